"""The images of a folder are listed; system files and hidden files are skipped and counted."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kdep_bench.data.checks import check_image_folder
from kdep_bench.data.listing import IMAGE_SUFFIXES, class_names, list_images, shown
from kdep_bench.data.official import tiny
from kdep_bench.data.views import read_rgb
from kdep_bench.errors import KdepError


def make_files(root: Path, *names: str) -> Path:
    """Creates small files below `root`; returns `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def test_system_files_in_a_folder_are_skipped_and_counted(tmp_path: Path) -> None:
    root = make_files(
        tmp_path, "b/1.png", "a/2.WEBP", "a/c/3.gif", "README.txt", ".cache/p.png", ".x.png"
    )
    make_files(
        root, "a/.DS_Store", "a/._2.webp", "b/Thumbs.db", "b/desktop.ini", "__MACOSX/a/2.webp"
    )
    listing = list_images(root)
    assert listing.images == ["a/2.WEBP", "a/c/3.gif", "b/1.png"]
    assert listing.other_files == ["README.txt"]
    assert listing.skipped == {
        "hidden folder(s)": 1,
        "hidden file(s)": 1,
        ".DS_Store file(s)": 1,
        "._ file(s) of macOS": 1,
        "Thumbs.db file(s)": 1,
        "desktop.ini file(s)": 1,
        "__MACOSX folder(s)": 1,
    }
    assert "1 hidden folder(s) (.cache)" in listing.note()
    assert class_names(root) == ["a", "b"]
    assert listing.by_class() == {"a": ["a/2.WEBP", "a/c/3.gif"], "b": ["b/1.png"]}


def test_links_to_folders_are_followed_and_a_cycle_ends(tmp_path: Path) -> None:
    make_files(tmp_path / "real", "1.png")
    root = make_files(tmp_path / "pool", "0.png")
    (root / "linked").symlink_to(tmp_path / "real")
    (root / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    listing = list_images(root)
    assert listing.images == ["0.png", "gone.png", "linked/1.png"]
    assert listing.skipped == {"link(s) to a folder above": 1}
    assert listing.other_files == ["self"]


def test_a_folder_that_cannot_be_read_raises_kdep_error(tmp_path: Path) -> None:
    with pytest.raises(KdepError, match="cannot be read"):
        list_images(tmp_path / "nowhere")


def test_a_name_that_is_not_utf8_is_listed_read_and_printed(tmp_path: Path) -> None:
    image = tiny.noise_image(np.random.default_rng(0))
    os.rename(tiny.save(tmp_path / "1.png", image), os.fsencode(tmp_path) + b"/lat\xe9.png")
    (name,) = list_images(tmp_path).images
    assert np.array_equal(read_rgb(tmp_path / name), image)
    assert shown(name) == "lat\\xe9.png"


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_listed_suffix_is_read_by_the_views(suffix: str, tmp_path: Path) -> None:
    image = tiny.save(tmp_path / f"1{suffix}", tiny.noise_image(np.random.default_rng(0)))
    assert read_rgb(image).shape == (48, 64, 3)


def test_an_image_outside_every_class_folder_is_refused(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "2.png"):
        tiny.save(tmp_path / name, tiny.noise_image(np.random.default_rng(0)))
    with pytest.raises(KdepError, match=r"2\.png is not in a class folder"):
        check_image_folder(tmp_path)
