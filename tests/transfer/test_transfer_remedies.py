"""Errors of data checks: after the fix that the error states, the check passes."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.registry import build
from kdep_bench.transfer.mm_config import class_folders, reading_images
from tests.transfer.conftest import config


def test_a_missing_split_is_accepted_after_the_stated_fixes(tmp_path: Path):
    root = tmp_path / "classify" / "test"
    with pytest.raises(KdepError, match="no folder classify/test") as error:
        class_folders(root)
    assert "add that split to `classify`" in error.value.fix
    root.mkdir(parents=True)
    with pytest.raises(KdepError, match="has 0 class folders") as error:
        class_folders(root)
    assert "add a folder for each class there" in error.value.fix
    for name in ("a", "b"):
        (root / name).mkdir()
    assert class_folders(root) == ["a", "b"]


def test_an_error_names_the_user_s_folder_and_not_the_link_to_it(tmp_path: Path):
    users_folder = tmp_path / "mine"
    users_folder.mkdir()
    (tmp_path / "classify").mkdir()
    (tmp_path / "classify" / "train").symlink_to(users_folder)
    with pytest.raises(KdepError) as error:
        class_folders(tmp_path / "classify" / "train")
    assert str(users_folder) in str(error.value)
    assert "classify" not in error.value.problem


def test_the_error_about_differing_categories_names_the_user_s_file(data: Path, tmp_path: Path):
    root, users_file = tmp_path / "data", tmp_path / "own.json"
    shutil.copytree(data, root)
    path = root / "detect" / "annotations" / "test.json"
    changed = json.loads(path.read_text())
    original = path.read_text()
    changed["categories"][0]["name"] = "something else"
    users_file.write_text(json.dumps(changed))
    path.unlink()
    path.symlink_to(users_file)  # as the stage `prepare` does
    task = build(config("tasks", "smoke_det"))
    with pytest.raises(KdepError) as error:
        task.check_data(root)
    assert str(users_file) in str(error.value)
    assert "the same list of categories" in error.value.fix
    users_file.write_text(original)
    task.check_data(root)  # no error


def test_a_full_disk_is_not_reported_as_an_unreadable_image():
    with pytest.raises(OSError, match="No space"), reading_images("a task"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(KdepError, match=r"^the probe cannot read an image"),
        reading_images("the probe"),
    ):
        raise OSError("image file is truncated")
