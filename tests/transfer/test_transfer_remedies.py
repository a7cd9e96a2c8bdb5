"""Each fix of a task's data check is followed, and then the check passes."""

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


def test_a_split_that_was_never_prepared_is_no_reason_to_prepare_again(tmp_path: Path):
    root = tmp_path / "classify" / "test"
    with pytest.raises(KdepError, match="no folder classify/test") as e:
        class_folders(root)
    assert "add that split to `classify`" in e.value.fix
    root.mkdir(parents=True)
    with pytest.raises(KdepError, match="has 0 class folders") as e:
        class_folders(root)
    assert "add a folder for each class there" in e.value.fix
    for name in ("a", "b"):
        (root / name).mkdir()
    assert class_folders(root) == ["a", "b"]


def test_the_folder_named_is_the_users_own(tmp_path: Path):
    own = tmp_path / "mine"
    own.mkdir()
    (tmp_path / "classify").mkdir()
    (tmp_path / "classify" / "train").symlink_to(own)
    with pytest.raises(KdepError) as e:
        class_folders(tmp_path / "classify" / "train")
    assert str(own) in str(e.value)
    assert "classify" not in e.value.problem


def test_categories_that_differ_name_both_files_of_the_user(data: Path, tmp_path: Path):
    root, own = tmp_path / "data", tmp_path / "own.json"
    shutil.copytree(data, root)
    path = root / "detect" / "annotations" / "test.json"
    told = json.loads(path.read_text())
    right = path.read_text()
    told["categories"][0]["name"] = "something else"
    own.write_text(json.dumps(told))
    path.unlink()
    path.symlink_to(own)
    task = build(config("tasks", "smoke_det"))
    with pytest.raises(KdepError) as e:
        task.check_data(root)
    assert str(own) in str(e.value)
    assert "the same list of categories" in e.value.fix
    own.write_text(right)
    task.check_data(root)


def test_a_full_disk_is_not_called_a_broken_image():
    with pytest.raises(OSError, match="No space"), reading_images("a task"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(KdepError, match="cannot read an image"), reading_images("a task"):
        raise OSError("image file is truncated")
