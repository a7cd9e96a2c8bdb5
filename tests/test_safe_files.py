"""Files in a work dir are opened, read and removed without following links or waiting at FIFOs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kdep_bench import files, safe_files
from kdep_bench.errors import KdepError


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A user's file outside the folder that the tests work in."""
    path = tmp_path / "thesis.txt"
    path.write_text("my thesis")
    return path


def make_obstacle(folder: Path, kind: str, target: Path) -> Path:
    """Makes `folder`/x a link to `target`, or something else that is not a regular file."""
    folder.mkdir(exist_ok=True)
    path = folder / "x"
    if kind == "link":
        path.symlink_to(target)
    elif kind == "link to nothing":
        path.symlink_to(folder / "nothing")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["link", "link to nothing", "fifo", "device", "folder"])
@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR | os.O_CREAT]
)
def test_links_fifos_devices_and_folders_are_refused_without_waiting(
    tmp_path, outside, kind, flags
):
    path = make_obstacle(tmp_path / "work", kind, outside)
    with pytest.raises(KdepError, match="expected a regular file"):
        safe_files.open_regular(path, flags)
    assert outside.read_text() == "my thesis"
    assert not (tmp_path / "work" / "nothing").exists()


def test_a_file_larger_than_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "stage.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a sparse file of a terabyte
    with pytest.raises(KdepError, match="bytes; expected at most"):
        safe_files.read_bytes(path)
    path.write_bytes(b"x" * 100)
    assert safe_files.read_bytes(path, 100) == b"x" * 100
    with pytest.raises(KdepError, match="has 100 bytes; expected at most 99"):
        safe_files.read_bytes(path, 99)


def test_a_file_of_unknown_size_is_read_completely():
    assert safe_files.read_bytes("/proc/self/status").startswith(b"Name:")
    assert b"VmHWM" in safe_files.read_bytes("/proc/self/status")


def test_a_fifo_is_refused_in_place_of_a_file_to_hash(tmp_path):
    path = make_obstacle(tmp_path, "fifo", tmp_path)
    with pytest.raises(KdepError, match="is a FIFO"):
        files.file_hash(path)
    with pytest.raises(KdepError, match="is a FIFO"):
        files.read_json(path)


def test_removing_a_link_keeps_its_target(tmp_path, outside):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_text("a")
    link = make_obstacle(tmp_path / "work", "link", folder)
    safe_files.remove(link)
    assert not os.path.lexists(link)
    assert (folder / "a.jpg").exists()
    stage = tmp_path / "work" / "stage"
    stage.mkdir()
    (stage / "photos").symlink_to(folder)
    safe_files.remove(stage)
    assert (folder / "a.jpg").exists()


def test_a_link_in_the_work_dir_is_refused_and_a_work_dir_that_is_a_link_is_allowed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "work").symlink_to(disk)
    assert safe_files.real_folder(tmp_path / "work" / "stage").is_dir()
    (disk / "link").symlink_to(disk / "stage")
    with pytest.raises(KdepError, match="is a link to"):
        safe_files.real_folder(tmp_path / "work" / "link")
    (disk / "file").touch()
    with pytest.raises(KdepError, match="is a file"):
        safe_files.real_folder(tmp_path / "work" / "file")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_new_files_get_the_permissions_that_the_umask_leaves(tmp_path, umask, mode):
    old = os.umask(umask)
    try:
        files.write_atomic(tmp_path / "sub" / "a.json", "{}")
        safe_files.copy_file(tmp_path / "sub" / "a.json", tmp_path / "b.json")
    finally:
        os.umask(old)
    for path in (tmp_path / "sub" / "a.json", tmp_path / "b.json"):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    # A new folder can also be searched (x) by all who can read it (r).
    assert stat.S_IMODE((tmp_path / "sub").stat().st_mode) == mode | (mode & 0o444) >> 2


def test_writing_replaces_a_link_and_leaves_its_target(tmp_path, outside):
    path = make_obstacle(tmp_path / "results", "link", outside)
    files.write_atomic(path, "table")
    assert outside.read_text() == "my thesis"
    assert not path.is_symlink()
    assert path.read_text() == "table"
