"""The index of a data folder stores hashes, sizes and times; only changed files are read again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdep_bench.data import content
from kdep_bench.data.content import (
    Catalogue,
    Changes,
    Index,
    all_of,
    images_of,
    one_file,
    read_catalogue,
)
from kdep_bench.errors import KdepError

TICK = 0.05  # seconds; longer than the time resolution of the tests' file systems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pool of three files in two folders."""
    root = tmp_path / "pool"
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 9)
    return root


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes the index trust files that were written more than TICK / 2 ago; waits for TICK."""
    monkeypatch.setattr(content, "RACY_NS", int(TICK / 2 * 1e9))
    time.sleep(TICK)


def index(tmp_path: Path) -> Index:
    """The index of a test."""
    return Index(tmp_path / "index")


def edit_with_same_stat(path: Path) -> None:
    """Changes the content, but keeps the size and the time of modification."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def replace_with_same_stat(path: Path) -> None:
    """Replaces the file by another one with the same size and time of modification."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.usefixtures("settled")
def test_unchanged_files_are_not_read_again(folder: Path, tmp_path: Path) -> None:
    first = index(tmp_path).read(images_of(folder))
    second = index(tmp_path).read(images_of(folder))
    assert (first.read, second.read) == (3, 0)
    assert second.digest() == first.digest()
    assert index(tmp_path).read(images_of(folder), verify=True).read == 3


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("edit", [edit_with_same_stat, replace_with_same_stat])
def test_an_edit_that_keeps_size_and_mtime_is_detected(
    edit: Callable[[Path], None], folder: Path, tmp_path: Path
) -> None:
    first = index(tmp_path).read(images_of(folder))
    edit(folder / "a/1.png")
    second = index(tmp_path).read(images_of(folder))
    assert second.digest() != first.digest()
    assert second.read == 1
    assert str(first.changes(second)) == "1.png changed"


@pytest.mark.usefixtures("settled")
def test_renamed_added_and_removed_files_change_the_content_hash(
    folder: Path, tmp_path: Path
) -> None:
    file_index = index(tmp_path)
    first = file_index.read(images_of(folder))
    (folder / "a/1.png").rename(folder / "a/9.png")
    renamed = file_index.read(images_of(folder))
    assert renamed.digest() != first.digest()
    assert str(first.changes(renamed)) == "1 file added (9.png), 1 removed (1.png)"
    (folder / "a/9.png").rename(folder / "a/1.png")
    (folder / "notes.txt").write_text("no image")
    assert file_index.read(images_of(folder)).digest() == first.digest()
    assert file_index.read(all_of(folder)).digest() != first.digest()
    without_notes = all_of(folder, skip=["notes.txt"])
    assert file_index.read(without_notes).digest() == first.digest()


@pytest.mark.usefixtures("settled")
def test_touching_or_moving_files_does_not_change_the_content_hash(
    folder: Path, tmp_path: Path
) -> None:
    first = index(tmp_path).read(images_of(folder))
    os.utime(folder / "a/1.png")
    assert index(tmp_path).read(images_of(folder)).digest() == first.digest()
    moved = folder.rename(tmp_path / "elsewhere")
    assert index(tmp_path).read(images_of(moved)).digest() == first.digest()


def test_a_file_changed_within_one_clock_tick_of_its_reading_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With coarse file times, such an edit does not change the signature."""
    monkeypatch.setattr(content, "_signature", lambda s: b"%d 0 0 %d" % (s.st_size, s.st_ino))
    source = one_file(folder / "a/1.png")
    first = index(tmp_path).read(source)
    (folder / "a/1.png").write_bytes((folder / "a/1.png").read_bytes()[::-1])
    assert index(tmp_path).read(source).digest() != first.digest()


@pytest.mark.usefixtures("settled")
def test_a_file_with_an_mtime_in_the_future_is_hashed_only_once(
    folder: Path, tmp_path: Path
) -> None:
    os.utime(folder / "a/1.png", (4e9, 4e9))  # the year 2096
    time.sleep(TICK)
    index(tmp_path).read(images_of(folder))
    assert index(tmp_path).read(images_of(folder)).read == 0


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("position", [0, 20, 70, 100, -1])  # of the flipped byte
def test_a_damaged_index_is_rebuilt_and_never_used(
    position: int, folder: Path, tmp_path: Path
) -> None:
    file_index, source = index(tmp_path), images_of(folder)
    first = file_index.read(source)
    raw = bytearray(file_index.path(source).read_bytes())
    raw[position] ^= 1
    file_index.path(source).write_bytes(raw)
    assert file_index.stored(source) is None
    second = file_index.read(source)
    assert (second.read, second.digest()) == (3, first.digest())
    assert file_index.read(source).read == 0


@pytest.mark.usefixtures("settled")
def test_an_index_of_another_source_and_an_index_that_is_a_link_are_not_used(
    folder: Path, tmp_path: Path
) -> None:
    file_index, source = index(tmp_path), images_of(folder)
    first = file_index.read(source)
    other = one_file(folder / "a/1.png")
    file_index.path(source).rename(file_index.path(other))
    assert file_index.stored(other) is None
    target = file_index.path(other).rename(tmp_path / "target")
    file_index.path(source).symlink_to(target)
    assert file_index.stored(source) is None
    before = target.read_bytes()
    assert file_index.read(source).digest() == first.digest()
    assert target.read_bytes() == before
    assert read_catalogue(tmp_path / "nowhere") is None


@pytest.mark.usefixtures("settled")
def test_files_read_before_an_interruption_are_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_FILES_PER_TASK", 1)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index(tmp_path).read(images_of(folder), progress=interrupt)
    assert index(tmp_path).read(images_of(folder)).read == 1


def test_an_unreadable_file_changes_the_content_hash(folder: Path, tmp_path: Path) -> None:
    readable = Catalogue(images_of(folder)).scan()
    (folder / "a/4.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "a/5.png")  # opening it would block
    with_unreadable = Catalogue(images_of(folder)).scan()
    assert with_unreadable.digest() != readable.digest()
    assert with_unreadable.digest() == Catalogue(images_of(folder)).scan().digest()
    assert str(readable.changes(with_unreadable)) == "2 files added (4.png, 5.png)"


def test_a_file_that_is_being_written_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read = os.read

    def read_and_append(fd: int, size: int) -> bytes:
        with open(folder / "a/1.png", "ab") as file:
            file.write(b"more")
        return real_read(fd, size) if os.lseek(fd, 0, os.SEEK_CUR) < 1000 else b""

    monkeypatch.setattr(content.os, "read", read_and_append)
    with pytest.raises(KdepError, match=r"1\.png changed while it was read"):
        Catalogue(one_file(folder / "a/1.png")).scan()


def test_files_whose_names_have_unusual_bytes_are_distinguished(tmp_path: Path) -> None:
    root = tmp_path / "pool"
    root.mkdir()
    for name in (b"lat\xe9.png", b"a\nb.png", b"a\tb.png", "é.png".encode()):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    catalogue = index(tmp_path).read(images_of(root))
    stored = index(tmp_path).stored(images_of(root))
    assert stored is not None
    assert stored.rows == catalogue.rows
    assert len(catalogue.rows) == 4


def test_the_description_of_changes_names_the_first_files() -> None:
    changes = Changes(["x/test.json"], [f"x/{i}.png" for i in range(5)], ["x/gone.png"])
    assert str(changes) == (
        "test.json changed, 5 files added (0.png, 1.png, 2.png, ...), 1 removed (gone.png)"
    )
