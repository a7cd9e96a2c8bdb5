"""Checks the user's images, and converts those that image libraries decode differently.

A plain image is a JPEG, PNG or BMP of 8-bit RGB or grey, without alpha channel and without EXIF
orientation: OpenCV (which reads images for training) and Pillow (which reads them here) decode it
to the same pixels. Plain images are linked. Other images that Pillow can decode are written as PNG,
rotated as their EXIF orientation states. For any other file, a KdepError names it.
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

# Pillow's other formats are excluded: it opens some of them with external programs (EPS), and reads
# others only in part.
FORMATS = tuple(
    str(plugin.format)
    for plugin in (
        JpegImagePlugin.JpegImageFile,  # also MPO, a JPEG followed by more JPEGs
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        WebPImagePlugin.WebPImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
    )
)
MAX_PIXELS = 89_478_485  # Pillow's limit against decompression bombs
MAX_BYTES = 1 << 30  # size of the largest image file
ORIENTATION = 0x0112  # number of the EXIF tag
# Grey levels (0..255); below it a 64 x 64 thumbnail counts as having no contrast.
NO_CONTRAST_SD = 2.0
_PLAIN_FORMATS = ("JPEG", "MPO", "PNG", "BMP")
_PLAIN_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
_MODES_WITH_ALPHA = ("LA", "RGBA", "PA")  # Pillow's modes with an alpha channel
_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of 16-bit grey
_FETCH = "copy or download it again"
_LIMIT_12_BIT = 4096  # 16-bit values that are all below this come from a 12-bit camera

# Reasons for a conversion, as shown in the data card.
ALPHA = "alpha channel (composited on white)"
EXIF_ROTATED = "EXIF orientation (rotated upright)"
SCALED_16_BIT = "16-bit (0..65535 scaled to 0..255)"
FRAMES = "several frames (the first is used)"


class ImageInfo(NamedTuple):
    """Size, format and hashes of an image that can be decoded.

    Attributes:
        sha256: SHA-256 of the file, in hex.
        width: width in pixels, before the EXIF orientation is applied.
        height: height in pixels, before the EXIF orientation is applied.
        mode: Pillow's name of the pixel format.
        format: Pillow's name of the file format.
        frames: number of frames or pages.
        orientation: EXIF orientation, 1..8; 1 is upright.
        kinds: reasons for a conversion, as text for the data card; () for a plain image.
        phash: perceptual hash of 256 bits in hex (see `kdep_bench.data.leaks`); "" for an image
            without contrast.
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
        """Whether the image needs no conversion (see the top of this module)."""
        return not self.kinds

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height after the EXIF orientation is applied."""
        swaps_sides = self.orientation >= 5  # 5..8 include a rotation by 90 or 270 degrees
        return (self.height, self.width) if swaps_sides else (self.width, self.height)


@dataclass
class Inspection:
    """Result of `inspect`.

    Attributes:
        info: ImageInfo of every image without a fault, by file.
        faults: one error for each other file, in the order of the files.
        decoded: number of files whose ImageInfo was not in the cache, including those with a fault.
    """

    info: dict[Path, ImageInfo] = field(default_factory=dict)
    faults: list[KdepError] = field(default_factory=list)
    decoded: int = 0


class Memory(Protocol):
    """A cache {SHA-256 of an image: its ImageInfo as a list}: a dict or an `ImageMemory`."""

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
        files: paths of the user's images.
        memory: cache of ImageInfo. Images in it are not decoded again. Images that are decoded
            without a fault are added to it.
        digest: returns the SHA-256 of a file without reading it. None: files are read.
        progress: called with (images done, images).
        threads: number of threads; None: one per core.
    """
    files = list(files)
    memory = dict[str, Any]() if memory is None else memory
    result = Inspection()

    def inspect_one(file: Path) -> tuple[ImageInfo | None, KdepError | None, bool]:
        """(info, fault, whether it was decoded); one of the first two is None."""
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
    with warnings.catch_warnings():  # outside the threads: warning filters are not thread-safe
        warnings.simplefilter("ignore")
        results = prefetch(inspect_one, files, threads if threads > 1 else 0)
        for done, (file, (info, fault, decoded)) in enumerate(zip(files, results, strict=True)):
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
    """Raises KdepError unless `file` is a regular file, or a link to one, of 1 to MAX_BYTES bytes.

    Reading a FIFO or a device would block or never end.
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
    """Decodes an image completely and returns its ImageInfo.

    Args:
        data: content of the file.
        file: path of the file, for errors.
        sha256: SHA-256 of `data`.

    Raises:
        KdepError: not an image of `FORMATS`, truncated or damaged, too large, a pixel format
            without a defined conversion to 8 bits, or a 16-bit image that is not black and has only
            values below 4096.
    """
    with _decoding(data, file) as image:
        check_complete(data, file)
        size, mode, kind = _stored_size(image), image.mode, str(image.format)
        frames = int(getattr(image, "n_frames", 1))
        orientation, has_damaged_exif = _orientation(image)
        depth = _depth(image, data)
        if kind in ("JPEG", "MPO"):
            # Faster: decodes all data, at a resolution reduced up to eight times. Both sides keep
            # at least 64 pixels if they have them.
            image.draft(mode, (64, 64))
        image.load()
        has_alpha = mode in _MODES_WITH_ALPHA or "transparency" in image.info
        grey = image.convert("L") if mode in ("L", "RGB") else None
    kinds: list[str] = []
    if kind not in _PLAIN_FORMATS:
        kinds.append(f"{kind} file")
    if frames > 1 and kind != "MPO":  # JPEG readers ignore the other frames of an MPO
        kinds.append(FRAMES)
    if has_alpha:
        kinds.append(ALPHA)
    if depth > 8:
        kinds.append(SCALED_16_BIT)
    elif depth < 8:
        kinds.append("1-bit" if mode == "1" else f"{depth}-bit")
    if mode in ("P", "PA"):
        kinds.append("palette")
    elif mode in ("CMYK", "YCbCr"):
        kinds.append(mode)
    if orientation != 1:
        kinds.append(EXIF_ROTATED)
    if has_damaged_exif:
        kinds.append("damaged EXIF (ignored)")
    info = ImageInfo(sha256, *size, mode, kind, frames, orientation, tuple(kinds))
    _check_mode(info, file)
    if depth > 8:
        _check_range(data, file)
    if kinds or grey is None:
        grey = plain_pixels(data, file).convert("L")
    return info._replace(phash=perceptual_hash(grey))


def perceptual_hash(grey: Image.Image) -> str:
    """Hash of a grey image, 256 bits in hex, for `kdep_bench.data.leaks`; "" without contrast."""
    import imagehash

    grey = grey.resize((64, 64), Image.Resampling.LANCZOS)
    if np.asarray(grey).std() < NO_CONTRAST_SD:
        return ""
    return str(imagehash.phash(grey, hash_size=16, highfreq_factor=4))


class _decoding:
    """Context manager: opens an image in memory; exceptions of Pillow become KdepErrors."""

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
    """(EXIF orientation, 1 if there is no valid one; whether the EXIF data is damaged)."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return (value if value in range(1, 9) else 1), False
    except Exception:
        return 1, True


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before the EXIF orientation is applied."""
    # Pillow's size of a TIFF is that after rotation. Tags 256 and 257: ImageWidth, ImageLength.
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return int(tags.get(256, image.width)), int(tags.get(257, image.height))


def _depth(image: Image.Image, data: bytes) -> int:
    """Bits per channel: 1, 2, 4, 8 or 16 (8 for every palette image, 16 for anything above 8).

    2 and 4 are reported for a PNG only. Pillow's mode does not show the bits of 16-bit RGB.
    """
    if image.mode == "1":
        return 1
    if image.mode in _MODES_16_BIT or (image.mode == "I" and image.format == "PPM"):
        return 16
    if image.format == "PNG" and len(data) > 24:
        return data[24] if image.mode not in ("P", "PA") else 8  # bit depth in the IHDR chunk
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, (8,))  # BitsPerSample
        bits = max(bits) if isinstance(bits, tuple) else int(bits)
        return 16 if bits > 8 else 8
    if image.format == "PPM" and data[:2] in (b"P5", b"P6", b"P2", b"P3"):
        return 16 if _pnm_maximum(data) > 255 else 8
    return 8


def _pnm_maximum(data: bytes) -> int:
    """The maximum pixel value in the header of a PPM or PGM (magic, width, height, maximum)."""
    header = re.sub(rb"#[^\n]*\n", b" ", data[:4096]).split(maxsplit=4)
    return int(header[3]) if len(header) > 3 and header[3].isdigit() else 255


def _check_mode(info: ImageInfo, file: Path) -> None:
    if info.mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", *_MODES_WITH_ALPHA, *_MODES_16_BIT):
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
    """Raises KdepError for a 16-bit image whose values do not use the range of 16 bits."""
    with _decoding(data, file) as image:
        is_colour = image.mode not in (*_MODES_16_BIT, "I")
        top = int((_deep_colour(data) if is_colour else np.asarray(image)).max())
    if 0 < top < _LIMIT_12_BIT:
        raise KdepError(
            f"the 16-bit image {file} has no value above {top}; converted to 8 bit it would be "
            f"nearly black (at most {round(top / 257)} of 255)",
            expected="values over the full 16-bit range, 0..65535",
            fix="convert it to 8 bit with the range of its camera, and save it as PNG",
        )


def check_complete(data: bytes, file: Path) -> None:
    """Raises KdepError for a truncated JPEG or PNG, or a PNG with a wrong checksum.

    Some decoders fill missing pixels with grey without an error. This check takes 2 to 3 % of the
    decoding time, so it is done whenever an image is read.
    """
    if data.startswith(b"\xff\xd8") and not _jpeg_ends(data):
        raise KdepError(
            f"the image {file} is truncated (a JPEG without its end marker)", fix=_FETCH
        )
    if data.startswith(b"\x89PNG\r\n\x1a\n") and (fault := _png_fault(data)):
        raise KdepError(f"the image {file} is {fault}", fix=_FETCH)


# Matching a single 0xFF, not a run of them, makes the search 80 times as fast.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def _jpeg_ends(data: bytes) -> bool:
    """Whether the JPEG's segments end with an EOI marker; those inside thumbnails do not count."""
    position, size, scanned = 2, len(data), False
    while position < size:
        marker_match = _NEXT_MARKER.search(data, position)
        if marker_match is None:
            return False
        position, marker = marker_match.end(), data[marker_match.end() - 1]
        if marker == 0xD9:  # EOI, end of image
            return scanned
        if position + 2 > size:
            return False
        position += struct.unpack_from(">H", data, position)[0]
        scanned |= marker == 0xDA  # SOS, start of the pixel data
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
    """Converts an image to 8-bit RGB or grey, rotated as its EXIF orientation states.

    Of several frames the first is used. An alpha channel is composited on white.

    Args:
        data: content of the file.
        file: path of the file, for errors.

    Returns:
        a Pillow image of mode RGB or L, without metadata.
    """
    with _decoding(data, file) as image:
        image.seek(0)
        depth, orientation = _depth(image, data), _orientation(image)[0]
        if depth > 8 and image.mode not in (*_MODES_16_BIT, "I"):
            out = _eight_bit(_deep_colour(data))
            if image.format == "TIFF":
                orientation = 1  # with IMREAD_UNCHANGED, OpenCV rotates TIFFs and no other format
        else:
            image.load()
            orientation = _orientation(image)[0]  # again: Pillow rotates a TIFF when it loads it
            if depth > 8:
                out = _eight_bit(np.asarray(image).astype(np.uint16))
            elif image.mode in _MODES_WITH_ALPHA or "transparency" in image.info:
                out = _on_white(image)
            else:
                out = image.convert("L" if image.mode in ("L", "1") else "RGB")
        out = Image.fromarray(np.asarray(out))  # drops EXIF, palette and other metadata
        method = _TURNS.get(orientation)
        return out.transpose(method) if method is not None else out


# EXIF orientation -> the operation that makes the image upright, as PIL.ImageOps.exif_transpose.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _on_white(image: Image.Image) -> Image.Image:
    is_grey = image.mode in ("L", "LA")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("L" if is_grey else "RGB")


def _deep_colour(data: bytes) -> np.ndarray:
    """[H, W] or [H, W, 3 or 4] uint16 in RGB(A) order, by OpenCV: Pillow reduces it to 8 bits."""
    flat = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(flat, cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        raise ValueError("an unsupported 16-bit format")
    return image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]


def _eight_bit(deep: np.ndarray) -> Image.Image:
    """Scales uint16 values v to round(v / 257), so 65535 becomes 255; composites alpha on white."""
    out = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if out.ndim == 3 and out.shape[2] == 4:
        return _on_white(Image.fromarray(out, "RGBA"))
    return Image.fromarray(out)


def placed_name(name: str, info: ImageInfo) -> str:
    """The relative path at which `place` puts an image: UTF-8, with the suffix of its format.

    A plain image keeps its name if the suffix fits. Otherwise .png or .jpg is appended, not
    exchanged, so `a.gif` and `a.png` do not get the same name. Control characters and bytes that
    are not UTF-8 become %XX.

    Args:
        name: path of the image relative to its folder.
        info: ImageInfo of the image.
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
    """Makes `link` a symbolic link to a plain image, or else a PNG with the converted image.

    Raises:
        KdepError: `link` exists, the file changed since it was inspected, or it cannot be written.
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
    """Calls `place` for each (file, link) of `links`, in threads (None: one per core)."""
    threads = cores() if threads is None else threads
    files = list(links)
    for _ in prefetch(lambda f: place(f, links[f], info[f]), files, threads if threads > 1 else 0):
        pass


def check_orientation(file: Path, info: ImageInfo, width: int, height: int, where: str) -> None:
    """Raises KdepError if it is unclear whether labels fit the stored or the upright image.

    Accepted: orientation 1, or annotations that state the upright size where it differs from the
    stored one: the annotation program then applied the orientation. Refused: the stored size, as
    labels may still be drawn on the upright image, also if both sizes are equal (a square image, a
    rotation by 180 degrees, a mirrored image). A size that is neither of the two raises nothing
    here: it is for the caller to compare the annotated size with the upright size.

    Args:
        file: the user's image.
        info: ImageInfo of the image.
        width: width in pixels, as stated in the annotations or as that of the mask.
        height: height in pixels, likewise.
        where: source of the size, for the error ("train.json", "its mask").
    """
    stored, upright = (info.width, info.height), info.upright
    if info.orientation == 1 or (width, height) != stored:
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
    """Decodes an image to [H, W, 3] uint8 RGB.

    The file is read by Python, because OpenCV crashes (SIGSEGV) when a file name is not UTF-8.

    Raises:
        KdepError: not a regular file, truncated, damaged, or OpenCV cannot decode it.
    """
    path = Path(os.path.realpath(path))  # errors name the user's file, not a link in work_dirs
    check_regular(path)
    data = _read(path)
    check_complete(data, path)
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        # `check_complete` checks only JPEG and PNG; for other formats Pillow detects truncation.
        with _decoding(data, path) as image:
            image.load()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise KdepError(
            f"the image {path} could not be decoded",
            expected="a JPEG, PNG or BMP image",
            fix="replace the file or move it elsewhere, then run again",
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
