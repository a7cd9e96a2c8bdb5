"""SHA-256 of files, remembered by signature: never believed where the file may have changed."""

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

TICK = 0.05  # seconds; longer than the ticks of the file systems that tests run on


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pool"
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 9)
    return root


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Files count as changed long ago as soon as TICK has passed."""
    monkeypatch.setattr(content, "RACY_NS", int(TICK / 2 * 1e9))
    time.sleep(TICK)


def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index")


def same_size_and_times(path: Path) -> None:
    """Changes the content, and puts back the times that a program can set."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def replaced(path: Path) -> None:
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.usefixtures("settled")
def test_unchanged_files_are_not_read_again(folder: Path, tmp_path: Path) -> None:
    first = index(tmp_path).read(images_of(folder))
    again = index(tmp_path).read(images_of(folder))
    assert (first.read, again.read) == (3, 0)
    assert again.digest() == first.digest()
    assert index(tmp_path).read(images_of(folder), verify=True).read == 3


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("edit", [same_size_and_times, replaced])
def test_an_edit_that_keeps_size_and_mtime_is_seen(
    edit: Callable[[Path], None], folder: Path, tmp_path: Path
) -> None:
    first = index(tmp_path).read(images_of(folder))
    edit(folder / "a/1.png")
    again = index(tmp_path).read(images_of(folder))
    assert again.digest() != first.digest()
    assert again.read == 1
    assert str(first.changes(again)) == "1.png changed"


@pytest.mark.usefixtures("settled")
def test_renamed_added_and_removed_files_are_other_content(folder: Path, tmp_path: Path) -> None:
    where = index(tmp_path)
    first = where.read(images_of(folder))
    (folder / "a/1.png").rename(folder / "a/9.png")
    renamed = where.read(images_of(folder))
    assert renamed.digest() != first.digest()
    assert str(first.changes(renamed)) == "1 file added (9.png), 1 removed (1.png)"
    (folder / "a/9.png").rename(folder / "a/1.png")
    (folder / "notes.txt").write_text("no image")
    assert where.read(images_of(folder)).digest() == first.digest()
    assert where.read(all_of(folder)).digest() != first.digest()
    assert where.read(all_of(folder, ["notes.txt"])).digest() == first.digest()


@pytest.mark.usefixtures("settled")
def test_a_touched_copied_or_moved_file_is_the_same_content(folder: Path, tmp_path: Path) -> None:
    first = index(tmp_path).read(images_of(folder))
    os.utime(folder / "a/1.png")
    assert index(tmp_path).read(images_of(folder)).digest() == first.digest()
    moved = folder.rename(tmp_path / "elsewhere")
    assert index(tmp_path).read(images_of(moved)).digest() == first.digest()


def test_a_file_changed_in_the_tick_in_which_it_was_read_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system with coarse times leaves such an edit the same signature."""
    monkeypatch.setattr(content, "_signature", lambda s: b"%d 0 0 %d" % (s.st_size, s.st_ino))
    source = one_file(folder / "a/1.png")
    first = index(tmp_path).read(source)
    (folder / "a/1.png").write_bytes((folder / "a/1.png").read_bytes()[::-1])
    assert index(tmp_path).read(source).digest() != first.digest()


@pytest.mark.usefixtures("settled")
def test_an_mtime_far_in_the_future_does_not_cost_a_reading_each_time(
    folder: Path, tmp_path: Path
) -> None:
    os.utime(folder / "a/1.png", (4e9, 4e9))
    time.sleep(TICK)
    index(tmp_path).read(images_of(folder))
    assert index(tmp_path).read(images_of(folder)).read == 0


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("place", [0, 20, 70, 100, -1])
def test_a_damaged_index_is_rebuilt_and_never_used(
    place: int, folder: Path, tmp_path: Path
) -> None:
    where, source = index(tmp_path), images_of(folder)
    first = where.read(source)
    raw = bytearray(where.path(source).read_bytes())
    raw[place] ^= 1
    where.path(source).write_bytes(raw)
    assert where.stored(source) is None
    again = where.read(source)
    assert (again.read, again.digest()) == (3, first.digest())
    assert where.read(source).read == 0


@pytest.mark.usefixtures("settled")
def test_an_index_of_another_source_or_behind_a_link_is_not_used(
    folder: Path, tmp_path: Path
) -> None:
    where, source = index(tmp_path), images_of(folder)
    first = where.read(source)
    other = one_file(folder / "a/1.png")
    where.path(source).rename(where.path(other))
    assert where.stored(other) is None
    target = where.path(other).rename(tmp_path / "target")
    where.path(source).symlink_to(target)
    assert where.stored(source) is None
    before = target.read_bytes()
    assert where.read(source).digest() == first.digest()
    assert target.read_bytes() == before
    assert read_catalogue(tmp_path / "nowhere") is None


@pytest.mark.usefixtures("settled")
def test_what_was_read_before_an_interruption_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_CHUNK", 1)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index(tmp_path).read(images_of(folder), progress=interrupt)
    assert index(tmp_path).read(images_of(folder)).read == 1


def test_an_unreadable_file_changes_the_content_hash(folder: Path, tmp_path: Path) -> None:
    whole = Catalogue(images_of(folder)).scan()
    (folder / "a/4.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "a/5.png")  # opening it would never end
    odd = Catalogue(images_of(folder)).scan()
    assert odd.digest() != whole.digest()
    assert odd.digest() == Catalogue(images_of(folder)).scan().digest()
    assert str(whole.changes(odd)) == "2 files added (4.png, 5.png)"


def test_a_file_that_is_being_written_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.read

    def growing(fd: int, size: int) -> bytes:
        with open(folder / "a/1.png", "ab") as f:
            f.write(b"more")
        return real(fd, size) if os.lseek(fd, 0, os.SEEK_CUR) < 1000 else b""

    monkeypatch.setattr(content.os, "read", growing)
    with pytest.raises(KdepError, match=r"1\.png changed while it was read"):
        Catalogue(one_file(folder / "a/1.png")).scan()


def test_names_of_any_bytes_are_kept_apart(tmp_path: Path) -> None:
    root = tmp_path / "pool"
    root.mkdir()
    for name in (b"lat\xe9.png", b"a\nb.png", b"a\tb.png", "é.png".encode()):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    catalogue = index(tmp_path).read(images_of(root))
    stored = index(tmp_path).stored(images_of(root))
    assert stored is not None
    assert stored.rows == catalogue.rows
    assert len(catalogue.rows) == 4


def test_changes_name_the_first_few_files() -> None:
    many = Changes(["x/test.json"], [f"x/{i}.png" for i in range(5)], ["x/gone.png"])
    assert str(many) == (
        "test.json changed, 5 files added (0.png, 1.png, 2.png, ...), 1 removed (gone.png)"
    )
