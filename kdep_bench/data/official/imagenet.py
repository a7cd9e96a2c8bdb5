"""ImageNet-1K (ILSVRC 2012), for pre-training: train/<wnid>/*.JPEG, val/<wnid>/*.JPEG.

A wnid is the WordNet id of a class. The training archive is a tar with one tar per class. The
validation archive has all images in one folder; with the ground truth of the devkit they are sorted
into class folders, which torchvision and mmpretrain expect. Pre-training reads only `train`; `val`
and the devkit are optional.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdep_bench.data.listing import class_names, list_images
from kdep_bench.data.official import tiny as draw
from kdep_bench.data.official.archives import (
    SEALS,
    Archive,
    Progress,
    Seal,
    as_kdep_errors,
    place,
    safe_member,
    tar_members,
    unpack,
)
from kdep_bench.data.official.base import (
    OfficialSet,
    decode_some,
    how_to_unpack_again,
    lines,
    need_dir,
    need_file,
)
from kdep_bench.errors import KdepError
from kdep_bench.files import plain_text, write_atomic

_HOMEPAGE = "https://image-net.org/challenges/LSVRC/2012/"
_TORCHVISION = "torchvision 0.29.1, datasets/imagenet.py"
TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_WNID = re.compile(r"n\d{8}")
_UNPACK_AGAIN = how_to_unpack_again("imagenet")
#: Made-up wnids of the tiny copy (real ones begin with n0 or n1).
TINY_WNIDS = tuple(f"n9000000{i}" for i in range(4))
TINY_IMAGES = 24  # per class


def lay_out(folder: Path, archives: Mapping[str, Path], progress: Progress) -> None:
    """Unpacks the archives; sorts training and validation images into class folders.

    Args:
        folder: the set's folder.
        archives: {archive name: path}.
        progress: called with (done, total, note).
    """
    _unpack_train(archives[TRAIN], folder / "train", progress)
    if DEVKIT in archives:
        unpack(archives[DEVKIT], folder / "devkit", progress, strip=1)
    if VAL in archives:
        unpack(archives[VAL], folder / "val", progress)
        _sort_val(folder, progress)


def _unpack_train(path: Path, target: Path, progress: Progress) -> None:
    """Unpacks the training archive: its inner tars are read directly from the outer one.

    A marker file per class allows an interrupted run to resume at the next class.
    """
    seal = Seal(path, target)
    if seal.counts() is not None:
        return
    n_files = n_bytes = 0
    with as_kdep_errors(path), path.open("rb") as stream:
        target.mkdir(parents=True, exist_ok=True)
        seal.begin(progress)
        sha256 = seal.sha256()
        for number, inner in enumerate(tar_members(stream, path)):
            safe_member(inner.name, path)
            wnid = inner.name.removesuffix(".tar")
            if not _WNID.fullmatch(wnid):
                raise KdepError(
                    f"the archive {path} contains {inner.name[:60]!r}",
                    expected="one n########.tar per class",
                    fix="use the official training archive",
                )
            marker = target / SEALS / wnid
            if not (marker.is_file() and marker.read_bytes() == sha256.encode()):
                with inner.open() as data:
                    for member in tar_members(data, path):
                        relative_path = safe_member(f"{wnid}/{member.name}", path)
                        assert relative_path is not None
                        place(member, target, relative_path, path)
                        n_files, n_bytes = n_files + 1, n_bytes + member.size
                write_atomic(marker, sha256)
            progress(number + 1, 1000, f"unpacking {wnid}")  # of 1000 classes
    seal.close({"files": n_files, "bytes": n_bytes})


def _sort_val(folder: Path, progress: Progress) -> None:
    """Moves images directly in val/ (ILSVRC2012_val_########.JPEG) to val/<wnid>/."""
    unsorted = sorted((folder / "val").glob("ILSVRC2012_val_*.JPEG"))
    if not unsorted:
        return
    data = folder / "devkit" / "data"
    if not data.is_dir():
        raise KdepError(
            f"the folder {data}, with the classes of the validation images, does not exist",
            expected=f"the devkit ({DEVKIT})",
            fix=f"download {DEVKIT} from {_HOMEPAGE} into the folder of the other archives, and "
            "run the same command again",
        )
    wnids = _wnids(data / "meta.mat")
    truth = lines(data / "ILSVRC2012_validation_ground_truth.txt", "one class number per image")
    for i, file in enumerate(unsorted):
        target = folder / "val" / _image_wnid(file.stem.rsplit("_", 1)[1], truth, wnids, data)
        target.mkdir(exist_ok=True)
        file.replace(target / file.name)
        progress(i + 1, len(unsorted), "sorting val")


def _unpack_devkit(data: Path) -> str:
    """The fix for damaged files in `data`, a folder of the unpacked devkit."""
    return (
        f"move the folder {data.parent} elsewhere and run kdep-bench data imagenet again; it "
        f"unpacks {DEVKIT} again"
    )


def _wnids(meta: Path) -> dict[int, str]:
    """{ILSVRC class number: WordNet id} of the classes without subclasses.

    torchvision selects the same classes in `_parse_meta_mat`.
    """
    from scipy.io import loadmat

    try:
        synsets = loadmat(need_file(meta, "the devkit's table of classes"), squeeze_me=True)
        rows = synsets["synsets"]
        return {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in rows if not s["num_children"]}
    except KdepError:
        raise
    except Exception as e:  # scipy can raise any exception for a damaged file
        raise KdepError(
            f"the file {meta} cannot be read ({type(e).__name__}: {plain_text(e)})",
            expected="the devkit's table of classes",
            fix=_unpack_devkit(meta.parent),
        ) from None


def _image_wnid(number: str, truth: list[str], wnids: dict[int, str], data: Path) -> str:
    """The WordNet id of a validation image.

    Args:
        number: number of the image, from 1, as text.
        truth: class number of each image, in order.
        wnids: WordNet id by class number.
        data: the devkit's folder, for errors.

    Raises:
        KdepError: the devkit has no class for the image.
    """
    try:
        index = int(number) - 1
        wnid = wnids[int(truth[index])] if index >= 0 else ""
    except (ValueError, LookupError):
        wnid = ""
    if not _WNID.fullmatch(wnid):
        raise KdepError(
            f"the devkit in {data} has no class for the validation image {number[:20]}",
            expected="a class number for each of 50,000 images, and a WordNet id for each class",
            fix=_unpack_devkit(data),
        )
    return wnid


def class_folders(split: Path) -> list[Path]:
    """The class folders of a split, sorted; their order defines the class numbers."""
    return [split / name for name in class_names(need_dir(split, "one folder per class"))]


def verify(folder: Path, n_decoded: int | None) -> dict[str, int]:
    """Checks the class folders of train and, if it exists, val; decodes some images.

    Returns counts; see `OfficialSet.verify`.
    """
    counts = {}
    for split in ("train", "val"):
        if split == "val" and not (folder / split).is_dir():
            continue
        classes = class_folders(folder / split)
        if loose := next((folder / split).glob("*.JPEG"), None):
            raise KdepError(
                f"the image {loose} is not in a class folder",
                expected=f"{folder / split}/<wnid>/*.JPEG",
                fix="move it into the folder of its class"
                if split == "train"
                else f"run kdep-bench data imagenet with {DEVKIT} among its archives; it sorts "
                "val/ into class folders",
            )
        images_of_split: list[Path] = []
        for class_folder in classes:
            if not _WNID.fullmatch(class_folder.name):
                raise KdepError(
                    f"the name of the folder {class_folder} is not a WordNet id",
                    expected="n and eight digits",
                    fix="move it elsewhere",
                )
            images = [
                class_folder / n for n in list_images(class_folder).images if n.endswith(".JPEG")
            ]
            if not images:
                raise KdepError(
                    f"the class folder {class_folder} contains no *.JPEG", fix=_UNPACK_AGAIN
                )
            empty = next((f for f in images if f.stat().st_size == 0), None)
            if empty is not None:
                raise KdepError(f"the image {empty} is empty (0 bytes)", fix=_UNPACK_AGAIN)
            images_of_split += images
        if split == "val" and [c.name for c in classes] != [
            c.name for c in class_folders(folder / "train")
        ]:
            raise KdepError(
                f"the class folders of {folder / 'val'} differ from those of train",
                expected="the same 1000 folders",
                fix="sort the validation images again with kdep-bench data imagenet",
            )
        # The release has 22 CMYK JPEGs and one PNG named .JPEG. `check_image` would refuse them,
        # but training decodes them correctly.
        decode_some([f for f in images_of_split if not _is_cmyk_or_png(f)], n_decoded)
        counts |= {f"{split}_classes": len(classes), f"{split}_images": len(images_of_split)}
    return counts


def _is_cmyk_or_png(file: Path) -> bool:
    """Whether a file is a PNG or a CMYK image; False if it cannot be opened."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.format == "PNG" or image.mode == "CMYK"
    except Exception:  # Pillow can raise any exception; `check_image` then reports the file
        return False


def tiny(folder: Path, rng: np.random.Generator) -> None:
    """Generates 4 classes with 24 training and two validation images each."""
    for wnid in TINY_WNIDS:
        for i in range(TINY_IMAGES):
            draw.save(folder / "train" / wnid / f"{wnid}_{i}.JPEG", draw.noise_image(rng))
        for i in range(2):
            name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
            draw.save(folder / "val" / wnid / name, draw.noise_image(rng))


SET = OfficialSet(
    name="imagenet",
    title="ImageNet-1K (ILSVRC 2012)",
    homepage=_HOMEPAGE,
    licence="ImageNet terms of access: non-commercial research and education",
    archives=(
        Archive(TRAIN, _HOMEPAGE, "1d675b47d978889d74fa0da5fadfb00e", _TORCHVISION),
        Archive(VAL, _HOMEPAGE, "29b22e2961454d5413ddabcf34fc5622", _TORCHVISION, optional=True),
        Archive(DEVKIT, _HOMEPAGE, "fa75699e90414af021442c21a62c3abf", _TORCHVISION, optional=True),
    ),
    counts={"train_classes": 1000, "train_images": 1281167},
    training_counts=("train_images",),
    verify=verify,
    tiny=tiny,
    lay_out=lay_out,
)
