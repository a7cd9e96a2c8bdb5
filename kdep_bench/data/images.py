"""The user's images: decodes each file once, and converts those that are not plain.

A plain image is one that all decoders of a suite (OpenCV in the views and in mm's
`LoadImageFromFile`, Pillow in the checks) read as the same pixels: a JPEG, PNG or BMP of 8-bit RGB
or grey, without alpha and without an EXIF orientation. Plain images are linked. Other images that
Pillow can decode are written as upright PNGs. All else is a fault that names the user's file.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from kdep_bench.devices import cores
from kdep_bench.errors import KdepError
from kdep_bench.prefetch import prefetch

# No others: Pillow hands some of them to other programs (EPS), or reads them in part.
FORMATS = tuple(
    str(plugin.format)
    for plugin in (
        JpegImagePlugin.JpegImageFile,  # also MPO, a JPEG with more JPEGs behind it
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        WebPImagePlugin.WebPImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
    )
)
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which a small file may be an attack
MAX_BYTES = 1 << 30
ORIENTATION = 0x0112  # the EXIF tag
PLAIN_SD = 2.0  # standard deviation of the 64 x 64 grey image, of 255
LISTED = 10  # faults of one list that an error shows
_PLAIN_FORMATS = ("JPEG", "MPO", "PNG", "BMP")
_PLAIN_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
_ALPHA = ("LA", "RGBA", "PA")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_FETCH = "copy or download it again"
_SHALLOW = 4096  # 16-bit values that are all below this come from a 12-bit camera

ALPHA = "with alpha (put on white)"
TURNED = "EXIF orientation (turned upright)"
DEEP = "16-bit (0..65535 scaled to 0..255)"
FRAMES = "several frames (the first is used)"


class ImageInfo(NamedTuple):
    """One image that decodes.

    Attributes:
        sha256: of the file's bytes, in hex.
        width: in pixels, as stored (before any EXIF orientation).
        height: in pixels, as stored.
        mode: Pillow's name of the pixel format.
        format: Pillow's name of the file format.
        frames: number of frames or pages.
        orientation: EXIF orientation, 1..8; 1 is upright.
        kinds: reasons for a conversion, as text for the data card; () for a plain image.
        phash: perceptual hash of 256 bit in hex (see `kdep_bench.data.leaks`); "" without contrast.
    """

    sha256: str
    width: int
    height: int
    mode: str
    format: str
    frames: int
    orientation: int
    kinds: tuple[str, ...]
    phash: str = ""

    @property
    def plain(self) -> bool:
        return not self.kinds

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after the EXIF orientation is applied."""
        turned = self.orientation >= 5
        return (self.height, self.width) if turned else (self.width, self.height)


@dataclass
class Inspection:
    """Result of `inspect`.

    Attributes:
        info: of every image without a fault, by file.
        faults: of the other files, in their order.
        decoded: number of images that were decoded (the others were known from earlier calls).
    """

    info: dict[Path, ImageInfo] = field(default_factory=dict)
    faults: list[KdepError] = field(default_factory=list)
    decoded: int = 0

    def raise_faults(self) -> None:
        """KdepError that lists the faults, the first `LISTED` in words; nothing without faults."""
        raise_all(self.faults, "images")

    def kinds(self) -> dict[str, int]:
        """Number of images by kind of normalisation, for the data card."""
        return dict(sorted(Counter(k for f in self.info.values() for k in f.kinds).items()))


def raise_all(faults: Sequence[KdepError], subject: str) -> None:
    """Raises one KdepError that lists `faults`, or the only fault itself; nothing without faults.

    Args:
        faults: may be empty.
        subject: plural noun of the things with the faults ("images").
    """
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = [f"\n  - {fault}" for fault in faults[:LISTED]]
        if len(faults) > LISTED:
            lines.append(f"\n  - and {len(faults) - LISTED} more")
        raise KdepError(f"{len(faults)} {subject} cannot be used:" + "".join(lines))


class Memory(Protocol):
    """ImageInfo as a list by SHA-256 of the image's bytes: a dict or `image_memory.ImageMemory`."""

    def get(self, key: str, /) -> Any: ...

    def __setitem__(self, key: str, value: Any, /) -> None: ...


def inspect(
    files: Iterable[Path],
    memory: Memory | None = None,
    digest: Callable[[Path], str] | None = None,
    progress: Callable[[int, int], object] | None = None,
    threads: int | None = None,
) -> Inspection:
    """Decodes every image once and collects all faults.

    Args:
        files: the user's files.
        memory: facts by SHA-256 of earlier calls, read and added to; an image whose hash is there
            is not decoded again. Only images without a fault are remembered.
        digest: SHA-256 of a file from an index; None reads the file and computes it.
        progress: called with (done, total).
        threads: None takes all cores.

    Returns:
        facts by file (those without a fault), faults in the order of `files`.
    """
    files = list(files)
    memory = dict[str, Any]() if memory is None else memory
    result = Inspection()

    def look(file: Path) -> tuple[ImageInfo | None, KdepError | None, bool]:
        try:
            check_regular(file)
            known = memory.get(digest(file)) if digest else None
            if known is None:
                data = _read(file)
                sha256 = hashlib.sha256(data).hexdigest()
                known = memory.get(sha256)
                if known is None:
                    return examine(data, file, sha256), None, True
            return _from_memory(known), None, False
        except KdepError as fault:
            return None, fault, True

    threads = cores() if threads is None else threads
    with warnings.catch_warnings():  # not safe inside threads; a copy of a bad image is refused
        warnings.simplefilter("ignore")
        answers = prefetch(look, files, threads if threads > 1 else 0)
        for done, (file, (info, fault, decoded)) in enumerate(zip(files, answers, strict=True)):
            result.decoded += decoded
            if info is not None:
                result.info[file] = info
                if decoded:
                    memory[info.sha256] = list(info)
            elif fault is not None:
                result.faults.append(fault)
            if progress:
                progress(done + 1, len(files))
    return result


def _from_memory(known: Sequence[Any]) -> ImageInfo:
    return ImageInfo(*known)._replace(kinds=tuple(known[ImageInfo._fields.index("kinds")]))


def check_regular(file: Path) -> None:
    """KdepError unless `file` is a regular file with content (a link to one is fine).

    A FIFO or a device would hang its reader or never end.
    """
    try:
        status = os.stat(file)
    except FileNotFoundError:
        if os.path.islink(file):
            raise KdepError(
                f"the image {file} is a link to {os.readlink(file)}, which does not exist",
                fix="correct the link, or move it out of the folder",
            ) from None
        raise KdepError(
            f"the image {file} does not exist", fix="check the path in the data config"
        ) from None
    except OSError as e:
        raise KdepError(
            f"the image {file} cannot be read ({e.strerror})",
            fix="check its permissions and, if it is a link, its target",
        ) from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise KdepError(
            f"the image {file} is {kind}", expected="a regular file", fix="move it elsewhere"
        )
    if status.st_size == 0:
        raise KdepError(f"the image {file} is empty (0 bytes)", fix=_FETCH)
    if status.st_size > MAX_BYTES:
        raise KdepError(
            f"the image {file} has {status.st_size} bytes",
            expected=f"at most {MAX_BYTES}",
            fix="reduce its size",
        )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except MemoryError:
        raise KdepError(
            f"the image {file} does not fit into memory", fix="reduce its size"
        ) from None
    except OSError as e:
        raise KdepError(
            f"the image {file} cannot be read ({e.strerror})", fix="check its permissions"
        ) from None


def examine(data: bytes, file: Path, sha256: str = "") -> ImageInfo:
    """Facts of one image, all of it decoded.

    Raises:
        KdepError: not an image of `FORMATS`, truncated or damaged, too large, a pixel format
            without a certain meaning in 8 bit.
    """
    with _decoding(data, file) as image:
        check_whole(data, file)
        size, mode, kind = _stored_size(image), image.mode, str(image.format)
        frames = int(getattr(image, "n_frames", 1))
        orientation, broken = _orientation(image)
        depth = _depth(image, data)
        if kind in ("JPEG", "MPO"):
            image.draft(mode, (64, 64))  # decodes every byte, at an eighth of the size
        image.load()
        alpha = mode in _ALPHA or "transparency" in image.info
        grey = image.convert("L") if mode in ("L", "RGB") else None
    kinds: list[str] = []
    if kind not in _PLAIN_FORMATS:
        kinds.append(f"{kind} file")
    if frames > 1 and kind != "MPO":  # an MPO is a JPEG with more JPEGs behind it
        kinds.append(FRAMES)
    if alpha:
        kinds.append(ALPHA)
    if depth > 8:
        kinds.append(DEEP)
    elif depth < 8:
        kinds.append("1-bit" if mode == "1" else f"{depth}-bit")
    if mode in ("P", "PA"):
        kinds.append("palette")
    elif mode in ("CMYK", "YCbCr"):
        kinds.append(mode)
    if orientation != 1:
        kinds.append(TURNED)
    if broken:
        kinds.append("damaged EXIF (ignored)")
    info = ImageInfo(sha256, *size, mode, kind, frames, orientation, tuple(kinds))
    _check_mode(info, file)
    if depth > 8:
        _check_range(data, file)
    if kinds or grey is None:
        grey = plain_pixels(data, file).convert("L")
    return info._replace(phash=perceptual_hash(grey))


def perceptual_hash(grey: Image.Image) -> str:
    """256 bit in hex of a grey image; "" where it has no contrast (see `kdep_bench.data.leaks`)."""
    import imagehash

    grey = grey.resize((64, 64), Image.Resampling.LANCZOS)
    if np.asarray(grey).std() < PLAIN_SD:
        return ""
    return str(imagehash.phash(grey, hash_size=16, highfreq_factor=4))


class _decoding:
    """Opens an image held in memory; what Pillow raises becomes a KdepError naming `file`."""

    def __init__(self, data: bytes, file: Path) -> None:
        self.data, self.file = data, file

    def __enter__(self) -> Image.Image:
        try:
            self.image = Image.open(io.BytesIO(self.data), formats=FORMATS)
            pixels = self.image.width * self.image.height
        except Exception as e:
            raise self._fault(e) from None
        if pixels > MAX_PIXELS:
            raise KdepError(
                f"the image {self.file} is too large ({self.image.width}x{self.image.height})",
                expected=f"at most {MAX_PIXELS / 1e6:.0f} megapixels",
                fix="split it into tiles, or reduce its size",
            )
        return self.image

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.image.close()
        if isinstance(error, Exception) and not isinstance(error, KdepError):
            raise self._fault(error) from None

    def _fault(self, e: Exception) -> KdepError:
        if isinstance(e, Image.UnidentifiedImageError):
            head = self.data[:8]
            fault = (
                f"the file {self.file} is not an image of a known format (it begins with {head!r})"
            )
            return KdepError(fault, expected="JPEG, PNG, BMP, GIF, WebP, TIFF or PPM", fix=_FETCH)
        if isinstance(e, Image.DecompressionBombError):
            return KdepError(
                f"the image {self.file} is too large ({e})",
                expected=f"at most {MAX_PIXELS / 1e6:.0f} megapixels",
                fix="split it into tiles, or reduce its size",
            )
        fault = "truncated" if "truncated" in str(e).lower() else "damaged"
        reason = str(e).strip() or type(e).__name__
        return KdepError(f"the image {self.file} is {fault} ({reason})", fix=_FETCH)


def _orientation(image: Image.Image) -> tuple[int, bool]:
    """EXIF orientation (1 where none or no valid one is stated), and whether EXIF is damaged."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return (value if value in range(1, 9) else 1), False
    except Exception:
        return 1, True


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before any EXIF orientation: of a TIFF Pillow states those after it."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return int(tags.get(256, image.width)), int(tags.get(257, image.height))


def _depth(image: Image.Image, data: bytes) -> int:
    """Bits of a channel. Pillow's mode hides 16-bit RGB, which it reads as 8-bit."""
    if image.mode == "1":
        return 1
    if image.mode in _DEEP or (image.mode == "I" and image.format == "PPM"):
        return 16
    if image.format == "PNG" and len(data) > 24:
        return data[24] if image.mode not in ("P", "PA") else 8  # IHDR
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, (8,))
        bits = max(bits) if isinstance(bits, tuple) else int(bits)
        return 16 if bits > 8 else 8
    if image.format == "PPM" and data[:2] in (b"P5", b"P6", b"P2", b"P3"):
        return 16 if _pnm_maximum(data) > 255 else 8
    return 8


def _pnm_maximum(data: bytes) -> int:
    header = re.sub(rb"#[^\n]*\n", b" ", data[:4096]).split(maxsplit=4)
    return int(header[3]) if len(header) > 3 and header[3].isdigit() else 255


def _check_mode(info: ImageInfo, file: Path) -> None:
    if info.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", *_ALPHA, *_DEEP):
        return
    if info.mode == "I" and info.format == "PPM":
        return
    fault = "32 bit without a stated range" if info.mode in ("I", "F") else "an unusual format"
    raise KdepError(
        f"the image {file} has pixels of {fault} (mode {info.mode})",
        expected="8-bit or 16-bit RGB or grey",
        fix="convert it to 8 bit with its known range of values, and save it as PNG",
    )


def _check_range(data: bytes, file: Path) -> None:
    with _decoding(data, file) as image:
        colour = image.mode not in (*_DEEP, "I")
        top = int((_deep_colour(data) if colour else np.asarray(image)).max())
    if 0 < top < _SHALLOW:
        raise KdepError(
            f"the 16-bit image {file} has no value above {top}; converted to 8 bit it would be "
            f"nearly black (at most {round(top / 257)} of 255)",
            expected="values over the full 16-bit range, 0..65535",
            fix="convert it to 8 bit with the range of its camera, and save it as PNG",
        )


def check_whole(data: bytes, file: Path) -> None:
    """KdepError for a JPEG or PNG that does not reach its end marker.

    Some decoders fill what is missing with grey and report nothing. Takes 2 to 3 % of the
    time of decoding, so that it is done wherever an image is read.
    """
    if data.startswith(b"\xff\xd8") and not _jpeg_ends(data):
        raise KdepError(
            f"the image {file} is truncated (a JPEG without its end marker)", fix=_FETCH
        )
    if data.startswith(b"\x89PNG\r\n\x1a\n") and (fault := _png_fault(data)):
        raise KdepError(f"the image {file} is {fault}", fix=_FETCH)


# A first byte that is always the same makes the search 80 times as fast as one of any length.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def _jpeg_ends(data: bytes) -> bool:
    """Whether following the markers leads to an EOI (not one inside a thumbnail or after a gap)."""
    position, size, scanned = 2, len(data), False
    while position < size:
        marker_match = _NEXT_MARKER.search(data, position)
        if marker_match is None:
            return False
        position, marker = marker_match.end(), data[marker_match.end() - 1]
        if marker == 0xD9:
            return scanned
        if position + 2 > size:
            return False
        position += struct.unpack_from(">H", data, position)[0]
        scanned |= marker == 0xDA
    return False


def _png_fault(data: bytes) -> str:
    """The fault of a PNG as text; "" if every chunk up to IEND is complete."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        # ancillary chunks (lower case) may be damaged without a change of the pixels
        if (
            kind[:1].isupper()
            and zlib.crc32(data[position + 4 : end - 4])
            != struct.unpack_from(">I", data, end - 4)[0]
        ):
            return f"damaged (wrong checksum of its part {kind.decode('latin-1')})"
        if kind == b"IEND":
            return ""
        position = end
    return "truncated (a PNG without its last part)"


def plain_pixels(data: bytes, file: Path) -> Image.Image:
    """The image upright as 8-bit RGB or grey: its first frame, alpha put on white.

    Args:
        data: bytes of the file.
        file: its name, for errors.

    Returns:
        a Pillow image of mode RGB or L, without metadata.
    """
    with _decoding(data, file) as image:
        image.seek(0)
        depth, orientation = _depth(image, data), _orientation(image)[0]
        if depth > 8 and image.mode not in (*_DEEP, "I"):
            out = _eight_bit(_deep_colour(data))
            if image.format == "TIFF":
                orientation = 1  # OpenCV turns a TIFF, and with IMREAD_UNCHANGED no other format
        else:
            image.load()
            orientation = _orientation(image)[0]  # Pillow turns a TIFF as it loads it
            if depth > 8:
                out = _eight_bit(np.asarray(image).astype(np.uint16))
            elif image.mode in _ALPHA or "transparency" in image.info:
                out = _on_white(image)
            else:
                out = image.convert("L" if image.mode in ("L", "1") else "RGB")
        out = Image.fromarray(np.asarray(out))  # drops EXIF, palette and other metadata
        method = _TURNS.get(orientation)
        return out.transpose(method) if method is not None else out


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # as PIL.ImageOps.exif_transpose


def _on_white(image: Image.Image) -> Image.Image:
    grey = image.mode in ("L", "LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("L" if grey else "RGB")


def _deep_colour(data: bytes) -> np.ndarray:
    """[H, W, 3 or 4] uint16 in RGB(A) order: Pillow keeps 8 bit of a 16-bit RGB."""
    flat = np.frombuffer(data, np.uint8)
    read = cv2.imdecode(flat, cv2.IMREAD_UNCHANGED)
    if read is None or read.dtype != np.uint16:
        raise ValueError("an unsupported 16-bit format")
    return read if read.ndim == 2 else read[..., [2, 1, 0, 3][: read.shape[2]]]


def _eight_bit(deep: np.ndarray) -> Image.Image:
    """round(v / 257): 0 stays 0 and 65535 becomes 255. Alpha is put on white."""
    out = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if out.ndim == 3 and out.shape[2] == 4:
        return _on_white(Image.fromarray(out, "RGBA"))
    return Image.fromarray(out)


def placed_name(name: str, info: ImageInfo) -> str:
    """Relative name under which `place` should put an image: UTF-8, with a suffix of its content.

    A plain image with an ordinary name keeps it. Otherwise the suffix .png or .jpg is appended, so
    that `a.gif` and `a.png` stay two files; bytes that are not UTF-8 become %XX.
    """
    name = re.sub(
        r"[\x00-\x1f\x7f\udc80-\udcff]",
        lambda m: "".join(f"%{b:02X}" for b in os.fsencode(m[0])),
        name,
    )
    if not info.plain:
        return f"{name}.png"
    if Path(name).suffix.lower() in _PLAIN_SUFFIXES:
        return name
    return name + {"PNG": ".png", "BMP": ".bmp"}.get(info.format, ".jpg")


def place(file: Path, link: Path, info: ImageInfo) -> None:
    """Puts the image at `link`: a plain one as a link to it, any other as a plain PNG.

    Raises:
        KdepError: `link` is taken, the file changed since it was inspected, the disk is full.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(link):
        raise KdepError(
            f"two images of the data would have the same name {link.name} after conversion; one "
            f"of them is {file}",
            fix="rename one of them",
        )
    if info.plain:
        link.symlink_to(os.path.abspath(file))
        return
    data = _read(file)
    if info.sha256 and hashlib.sha256(data).hexdigest() != info.sha256:
        raise KdepError(
            f"the image {file} changed while the data were prepared",
            fix="wait until no program writes to it, then run again",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain_pixels(data, file).save(link, "PNG", compress_level=1)
    except OSError as e:
        raise KdepError(
            f"the converted copy of {file} cannot be written ({e.strerror})",
            fix="free disk space, or correct the permissions of the work dir",
        ) from None


def place_all(
    info: Mapping[Path, ImageInfo], links: Mapping[Path, Path], threads: int | None = None
) -> None:
    """`place` of each file of `links`, in threads."""
    threads = cores() if threads is None else threads
    files = list(links)
    for _ in prefetch(lambda f: place(f, links[f], info[f]), files, threads if threads > 1 else 0):
        pass


def check_turn(file: Path, info: ImageInfo, width: int, height: int, where: str) -> None:
    """KdepError where it is not certain that labels fit an image with an EXIF orientation.

    Labels certainly fit the upright image if the size in the annotations is that of the upright
    image and differs from the stored size: the program that wrote it applied the orientation. If it
    is the stored size, this is not certain (the size may have been read from the file, but the
    labels drawn on the upright image), nor for a square image, a rotation by 180 degrees or a
    mirrored image, whose sizes are equal.

    Args:
        file: the user's image.
        info: of the image.
        width: stated width in pixels, of the json or the mask.
        height: stated height.
        where: who states it, for the error ("train.json", "its mask").
    """
    if info.orientation == 1:
        return
    stored, upright = (info.width, info.height), info.upright
    if (width, height) == upright != stored:
        return
    raise KdepError(
        f"the image {file} has the EXIF orientation {info.orientation}, but {where} has the size "
        f"{width}x{height}, so it is not known whether its labels belong to the stored pixels "
        f"({stored[0]}x{stored[1]}) or to the upright image ({upright[0]}x{upright[1]})",
        expected="an image without EXIF orientation",
        fix="check whether the labels fit the upright image; if so, save it with "
        "PIL.ImageOps.exif_transpose(Image.open(f)).save(...), otherwise save the stored pixels "
        "without EXIF; then correct the size in the annotations if it differs",
    )


def read_rgb(path: Path) -> np.ndarray:
    """[H, W, 3] uint8 RGB of an image that is decoded wholly.

    The bytes are read by Python: OpenCV ends the process (SIGSEGV) when a name is not UTF-8.

    Raises:
        KdepError: no regular file, truncated, damaged, or not decoded by OpenCV.
    """
    path = Path(os.path.realpath(path))  # errors name the user's file, not a link in work_dirs
    check_regular(path)
    data = _read(path)
    check_whole(data, path)
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):  # without a cheap check: decoded twice
        with _decoding(data, path) as image:
            image.load()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise KdepError(
            f"the image {path} could not be decoded",
            expected="a JPEG or PNG image",
            fix="replace the file or move it elsewhere, then run again",
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
