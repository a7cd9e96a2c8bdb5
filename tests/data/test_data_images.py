"""User images: every fault is found, and every readable image becomes upright 8-bit RGB.

A 'plain' image has this form already and is linked; others are converted to PNG.
"""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from kdep_bench.data import images
from kdep_bench.errors import KdepError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(PIXELS).resize((200, 120), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray = PIXELS, mode: str = "", **options: Any) -> Path:
    """Saves the pixels in a mode; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image file as bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def place_image(tmp_path: Path, file: Path) -> tuple[Path, images.ImageInfo]:
    """Inspects a file and places it as stage `prepare` does; returns (link or copy, info)."""
    inspected = images.inspect([file])
    assert not inspected.faults, inspected.faults
    link = tmp_path / "out" / images.placed_name(file.name, inspected.info[file])
    images.place(file, link, inspected.info[file])
    return link, inspected.info[file]


def read_by_all(path: Path) -> np.ndarray:
    """RGB pixels; asserts that Pillow, OpenCV and `read_rgb` return the same ones."""
    with Image.open(path) as image:
        assert image.mode in ("RGB", "L")
        assert image.getexif().get(images.ORIENTATION) not in range(2, 9)
        pillow = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pillow, images.read_rgb(path))
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    np.testing.assert_array_equal(pillow, np.asarray(cv2.imread(str(path), flags))[..., ::-1])
    return pillow


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.jpg", "grey.png", "grey.jpg"])
def test_a_plain_image_is_linked_and_not_converted(tmp_path: Path, name: str) -> None:
    file = save(tmp_path / name, SMOOTH, "L" if "grey" in name else "")
    link, info = place_image(tmp_path, file)
    assert info.plain
    assert link.is_symlink()
    assert link.name == name
    assert link.resolve() == file
    assert (info.width, info.height) == (200, 120)


def test_a_plain_image_is_read_with_the_pixels_of_opencv(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.bmp"):
        file = save(tmp_path / name, SMOOTH)
        before = np.asarray(cv2.imread(str(file), cv2.IMREAD_COLOR))[..., ::-1]
        np.testing.assert_array_equal(images.read_rgb(file), before)


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [
        ("a.gif", "P", "GIF file"),
        ("a.webp", "", "WEBP file"),
        ("a.tiff", "", "TIFF file"),
        ("a.tif", "L", "TIFF file"),
        ("a.png", "P", "palette"),
        ("a.png", "1", "1-bit"),
        ("a.jpg", "CMYK", "CMYK"),
        ("a.tif", "CMYK", "CMYK"),
        ("a.png", "RGBA", images.ALPHA),
        ("a.png", "LA", images.ALPHA),
        ("a.ppm", "", "PPM file"),
    ],
)
def test_images_in_other_formats_are_converted_to_png(
    tmp_path: Path, name: str, mode: str, kind: str
) -> None:
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    file = save(tmp_path / name, SMOOTH, mode, **options)
    link, info = place_image(tmp_path, file)
    assert kind in info.kinds
    assert link.name == f"{name}.png"
    assert not link.is_symlink()
    seen = read_by_all(link)
    assert seen.shape == (120, 200, 3)
    with Image.open(file) as source:
        np.testing.assert_array_equal(seen, np.asarray(source.convert("RGB")))


def test_a_jpeg_with_the_suffix_jfif_is_linked_with_the_suffix_jpg(tmp_path: Path) -> None:
    (tmp_path / "a.jfif").write_bytes(encoded(Image.fromarray(SMOOTH), "JPEG"))
    link, info = place_image(tmp_path, tmp_path / "a.jfif")
    assert info.plain
    assert link.name == "a.jfif.jpg"


def test_transparent_pixels_are_blended_with_a_white_background(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, 0] = (200, 0, 0, 255)
    pixels[:, 1] = (200, 0, 0, 0)
    pixels[:, 2] = (0, 0, 0, 128)
    seen = read_by_all(place_image(tmp_path, save(tmp_path / "a.png", pixels))[0])
    assert seen[0].tolist() == [[200, 0, 0], [255, 255, 255], [127, 127, 127]]
    grey = save(tmp_path / "b.png", np.zeros((2, 2), np.uint8), transparency=0)
    assert read_by_all(place_image(tmp_path, grey)[0]).min() == 255


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_over_the_whole_range(tmp_path: Path, suffix: str) -> None:
    # A value is divided by 257 and rounded, so 65535 becomes 255.
    deep = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], np.uint16)
    file = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(file), deep)
    link, info = place_image(tmp_path, file)
    assert images.SCALED_16_BIT in info.kinds
    assert read_by_all(link)[..., 0].tolist() == [[0, 0, 1, 1], [128, 254, 255, 255]]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_of_a_16_bit_image_is_applied_once(
    tmp_path: Path, suffix: str, colour: bool
) -> None:
    deep = RNG.integers(0, 65536, (5, 9, 3), dtype=np.uint16)
    deep = deep if colour else deep[..., 0]
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # to be rotated by 90 degrees clockwise
    file = tmp_path / f"a.{suffix}"
    if colour and suffix == "png":
        plain = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
        content = b"eXIf" + exif.tobytes()[6:]  # without the prefix "Exif" and two zeros
        chunk = struct.pack(">I", len(content) - 4) + content
        chunk += struct.pack(">I", zlib.crc32(content))
        # The first 33 bytes are PNG's signature and header chunk.
        file.write_bytes(plain[:33] + chunk + plain[33:])
    elif colour:
        cv2.imwrite(str(file), deep[..., ::-1])
        edited = bytearray(file.read_bytes())
        # The TIFF tag 284, planar configuration, is replaced: 1 is its default.
        offset = edited.find(struct.pack("<HHIH", 284, 3, 1, 1))
        assert offset > 0
        edited[offset : offset + 12] = struct.pack("<HHIHH", images.ORIENTATION, 3, 1, 6, 0)
        file.write_bytes(bytes(edited))
    else:
        Image.fromarray(deep).save(file, exif=exif)
    link, info = place_image(tmp_path, file)
    assert (info.orientation, info.width, info.height, info.upright) == (6, 9, 5, (5, 9))
    expected = np.rot90((deep.reshape(5, 9, -1).astype(np.uint32) + 128) // 257, -1)
    np.testing.assert_array_equal(read_by_all(link), np.broadcast_to(expected, (9, 5, 3)))


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
def test_16_bit_rgb_is_scaled_and_keeps_its_channels(tmp_path: Path, suffix: str) -> None:
    deep = np.zeros((2, 2, 3), np.uint16)
    deep[..., 0], deep[..., 1], deep[..., 2] = 65535, 129, 32768
    file = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(file), deep[..., ::-1])
    link, info = place_image(tmp_path, file)
    assert images.SCALED_16_BIT in info.kinds
    assert read_by_all(link)[0, 0].tolist() == [255, 1, 128]


def test_12_bit_values_in_a_16_bit_file_are_refused_as_nearly_black(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), RNG.integers(0, 4096, (9, 9), dtype=np.uint16))
    (fault,) = images.inspect([file]).faults
    assert "nearly black" in str(fault)
    assert str(file) in str(fault)
    cv2.imwrite(str(file), np.zeros((9, 9), np.uint16))  # black on any scale
    assert not images.inspect([file]).faults


def test_pixels_without_a_stated_range_are_refused(tmp_path: Path) -> None:
    for mode in ("I", "F"):
        file = tmp_path / f"{mode}.tif"
        Image.fromarray(PIXELS[..., 0]).convert(mode).save(file)
        (fault,) = images.inspect([file]).faults
        assert "32 bit without a stated range" in str(fault)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
def test_an_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    file = save(tmp_path / name, SMOOTH, exif=exif)
    link, info = place_image(tmp_path, file)
    with Image.open(file) as source:
        expected = np.asarray(ImageOps.exif_transpose(source).convert("RGB"))
    seen = read_by_all(link)
    np.testing.assert_array_equal(seen, expected)
    assert info.upright == seen.shape[1::-1]
    assert info.plain == (orientation == 1 and name != "a.tif")


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 255, 0))]
    for name in ("a.gif", "a.png", "a.webp", "a.tif"):
        lossless: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
        file = tmp_path / name
        frames[0].save(file, save_all=True, append_images=frames[1:], **lossless)
        link, info = place_image(tmp_path, file)
        assert info.frames == 2
        assert images.FRAMES in info.kinds
        assert read_by_all(link)[0, 0].tolist() == [255, 0, 0]


def break_truncate(file: Path) -> None:
    """Removes the last 40 bytes."""
    file.write_bytes(file.read_bytes()[:-40])


def break_zero_tail(file: Path) -> None:
    """Fills the second half with zeros."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def break_empty(file: Path) -> None:
    """Empties the file."""
    file.write_bytes(b"")


def break_text(file: Path) -> None:
    """Stores a web page in its place."""
    file.write_text("<html>not found</html>")


def break_dangling(file: Path) -> None:
    """Replaces it by a link to nothing."""
    file.unlink()
    file.symlink_to(file.parent / "nowhere.png")


def break_loop(file: Path) -> None:
    """Replaces it by a link to itself."""
    file.unlink()
    file.symlink_to(file)


def break_fifo(file: Path) -> None:
    """Replaces it by a FIFO."""
    file.unlink()
    os.mkfifo(file)


def break_device(file: Path) -> None:
    """Replaces it by a link to a device without end."""
    file.unlink()
    file.symlink_to("/dev/zero")


def break_folder(file: Path) -> None:
    """Replaces it by a folder."""
    file.unlink()
    file.mkdir()


def break_bomb(file: Path) -> None:
    """Stores an image with far too many pixels."""
    Image.new("1", (20_000, 10_000)).save(file, "PNG")


def break_postscript(file: Path) -> None:
    """Stores an image format that is not accepted."""
    Image.new("RGB", (9, 9)).save(file, "EPS")


FAULTS = {
    break_truncate: "truncated",
    break_zero_tail: "truncated|damaged",
    break_empty: "0 bytes",
    break_text: "not an image .*<html>",
    break_dangling: "a link to .*nowhere.png, which does not exist",
    break_loop: "cannot be read",
    break_fifo: "a pipe, socket or device",
    break_device: "a pipe, socket or device",
    break_folder: "is a folder",
    break_bomb: "too large",
    break_postscript: "not an image",
}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_one_inspection_finds_every_kind_of_fault(tmp_path: Path, suffix: str) -> None:
    files = [save(tmp_path / f"{i}.{suffix}", SMOOTH) for i in range(30)]
    # The first 13 images stay intact.
    broken_files = {breaker: files[13 + i] for i, breaker in enumerate(FAULTS)}
    for breaker, file in broken_files.items():
        breaker(file)
    inspected = images.inspect(files)
    assert len(inspected.faults) == len(FAULTS)
    assert len(inspected.info) == 30 - len(FAULTS)
    for (breaker, file), fault in zip(broken_files.items(), inspected.faults, strict=True):
        assert str(file) in str(fault), breaker
        assert re.search(FAULTS[breaker], str(fault)), (breaker, fault)


@pytest.mark.parametrize("kept_fraction", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.gif", "a.webp", "a.tif"])
def test_a_truncated_image_is_refused_and_never_filled_with_grey(
    tmp_path: Path, name: str, kept_fraction: float
) -> None:
    file = save(tmp_path / name, SMOOTH)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept_fraction)])
    assert len(images.inspect([file]).faults) == 1
    with pytest.raises(KdepError, match=str(file)):
        images.read_rgb(file)


def test_the_end_marker_of_a_thumbnail_is_not_taken_for_the_end_of_the_image(
    tmp_path: Path,
) -> None:
    thumb = encoded(Image.fromarray(PIXELS), "JPEG")
    data = encoded(Image.fromarray(SMOOTH), "JPEG")
    # A segment before the image, as cameras write it for thumbnails.
    app1 = b"\xff\xe1" + (len(thumb) + 2).to_bytes(2, "big") + thumb
    complete = data[:2] + app1 + data[2:]
    images.check_complete(complete, tmp_path)
    images.check_complete(complete + b"trailing bytes of a camera", tmp_path)
    for progressive in (False, True):
        data = encoded(Image.fromarray(SMOOTH), "JPEG", progressive=progressive)
        images.check_complete(data, tmp_path)
        with pytest.raises(KdepError, match="truncated"):
            images.check_complete(data[:2] + app1 + data[2:-2], tmp_path)


def test_an_image_that_was_inspected_is_not_decoded_again(tmp_path: Path) -> None:
    files = [save(tmp_path / f"{i}.png", RNG.integers(0, 255, (9, 9, 3), np.uint8)) for i in "abc"]
    memory: dict = {}
    first = images.inspect(files, memory)
    assert first.decoded == 3
    second = images.inspect(files, memory)
    assert second.decoded == 0
    assert second.info == first.info
    Image.new("RGB", (9, 9)).save(files[1])
    assert images.inspect(files, memory).decoded == 1


def test_a_name_that_is_not_utf8_is_placed_and_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"lat\xe9.png")
    file = save(tmp_path / "a.png", SMOOTH).rename(tmp_path / name)
    link, info = place_image(tmp_path, file)
    assert link.name == "lat%E9.png"
    assert info.plain
    np.testing.assert_array_equal(read_by_all(link), SMOOTH)
    code = f"""if True:
        import sys; sys.path[:0] = {sys.path!r}
        from pathlib import Path
        from kdep_bench.data.images import read_rgb
        print(read_rgb(Path({str(file)!r})).shape)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "(120, 200, 3)"), done.stderr


def test_an_error_about_a_name_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"lat\xe9.png")
    file.write_bytes(b"no image")
    (fault,) = images.inspect([file]).faults
    assert "lat\\xe9.png" in str(fault)
    str(fault).encode("utf-8")


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_labels_of_an_image_with_exif_orientation_need_a_size_that_only_the_upright_image_has(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    file = save(tmp_path / "a.jpg", SMOOTH, exif=exif)
    info = images.inspect([file]).info[file]
    with pytest.raises(KdepError, match=f"EXIF orientation {orientation}.*train.json.*200x120"):
        images.check_orientation(file, info, 200, 120, "train.json")
    if orientation >= 5:
        images.check_orientation(file, info, 120, 200, "train.json")
    # A size that fits neither is another fault, which the caller reports.
    images.check_orientation(file, info, 30, 30, "train.json")
    square = save(tmp_path / "b.jpg", SMOOTH[:100, :100], exif=exif)
    with pytest.raises(KdepError, match="EXIF orientation"):
        images.check_orientation(
            square, images.inspect([square]).info[square], 100, 100, "its mask"
        )


def test_two_images_with_the_same_resulting_name_are_refused(tmp_path: Path) -> None:
    gif, png = save(tmp_path / "a.gif"), save(tmp_path / "a.gif.png")
    inspected = images.inspect([gif, png]).info
    images.place(
        gif, tmp_path / "out" / images.placed_name(gif.name, inspected[gif]), inspected[gif]
    )
    with pytest.raises(KdepError, match="two images of the data"):
        images.place(
            png, tmp_path / "out" / images.placed_name(png.name, inspected[png]), inspected[png]
        )


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    mode=st.sampled_from(MODES),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    orientation=st.integers(0, 9),
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"]),
    seed=st.integers(0, 99),
)
def test_any_readable_image_becomes_an_upright_8_bit_image(
    tmp_path_factory: pytest.TempPathFactory,
    mode: str,
    width: int,
    height: int,
    orientation: int,
    kind: str,
    seed: int,
) -> None:
    rng, exif = np.random.default_rng(seed), Image.Exif()
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        deep = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        deep[0, 0] = 65535
        image = Image.fromarray(deep)
    else:
        image = Image.fromarray(pixels).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(pixels[..., 0]))
    exif[images.ORIENTATION] = orientation
    try:
        data = encoded(image, kind, exif=exif)
    except (OSError, KeyError, ValueError):
        return  # the format does not support the mode
    folder = tmp_path_factory.mktemp("any")
    (folder / "a").write_bytes(data)
    link, _ = place_image(folder, folder / "a")
    seen = read_by_all(link)
    # From a path, Pillow 13 would rotate an uncompressed TIFF wrongly.
    with Image.open(io.BytesIO(data)) as source:
        turned = ImageOps.exif_transpose(source)
        assert seen.shape[1::-1] == turned.size
        if turned.mode in ("RGB", "L", "P", "CMYK", "1") and "transparency" not in source.info:
            np.testing.assert_array_equal(seen, np.asarray(turned.convert("RGB")))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    n_removed=st.integers(0, 10**6),
)
def test_a_damaged_file_is_an_image_or_raises_kdep_error(
    kind: str, changes: list[tuple[int, int]], n_removed: int
) -> None:
    data = bytearray(encoded(Image.fromarray(SMOOTH[:30, :40]), kind))
    for position, value in changes:
        data[position % len(data)] = value
    raw = bytes(data[: len(data) - n_removed % 9])
    try:
        info = images.examine(raw, Path("a"))
        images.plain_pixels(raw, Path("a"))
    except KdepError:
        return
    assert info.width > 0


@settings(max_examples=100, deadline=None)
@given(name=st.binary(min_size=1, max_size=20), is_converted=st.booleans())
def test_any_file_name_becomes_a_name_that_every_reader_accepts(
    name: bytes, is_converted: bool
) -> None:
    name = name.replace(b"/", b"_").replace(b"\0", b"_")
    kinds = ("palette",) if is_converted else ()
    info = images.ImageInfo(
        sha256="",
        width=1,
        height=1,
        mode="RGB",
        format="JPEG",
        frames=1,
        orientation=1,
        kinds=kinds,
    )
    placed = images.placed_name(os.fsdecode(name), info)
    placed.encode("utf-8")
    assert placed.isprintable() or not placed.isascii()
    assert Path(placed).suffix.lower() in {".jpg", ".jpeg", ".png", ".bmp"}
    assert images.placed_name(placed, info._replace(kinds=())) == placed
