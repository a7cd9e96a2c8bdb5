"""The image memory is a database of checked images, so that they are not decoded again.

A damaged image memory changes no result.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import own_fixture as own
import pytest
from PIL import Image

from kdep_bench.data import image_memory, images
from kdep_bench.data.image_memory import ImageMemory


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five images; the fourth has an alpha channel."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, file in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("RGBA" if i == 3 else "RGB").save(file)
    return paths


def inspect(files: list[Path], path: Path) -> images.Inspection:
    """Inspects the files with the image memory at `path`."""
    with ImageMemory(path) as memory:
        return images.inspect(files, memory)


def test_a_second_inspection_decodes_nothing_and_gives_the_same_result(
    files, tmp_path: Path
) -> None:
    first = inspect(files, tmp_path / "m" / "images.sqlite")
    assert first.decoded == 5
    second = inspect(files, tmp_path / "m" / "images.sqlite")
    assert second.decoded == 0
    assert second.info == first.info
    files[0].write_bytes(files[1].read_bytes())
    moved = files[2].rename(files[2].with_name("moved.png"))
    assert inspect([files[0], moved], tmp_path / "m" / "images.sqlite").decoded == 0


def test_a_damaged_image_is_reported_in_every_run(files, tmp_path: Path) -> None:
    files[2].write_bytes(files[2].read_bytes()[:-30])
    for _ in range(2):
        assert len(inspect(files, tmp_path / "images.sqlite").faults) == 1


def overwrite(path: Path) -> None:
    """Overwrites the memory with other bytes."""
    path.write_bytes(b"not a database" * 99)


def replace_columns(path: Path) -> None:
    """Replaces the memory by a database with other columns."""
    path.unlink()
    with sqlite3.connect(path) as table:
        table.execute("CREATE TABLE images (a, b)")


def store_wrong_facts(path: Path) -> None:
    """Changes the stored facts (size and format of an image) to a list of another form."""
    with sqlite3.connect(path) as table:
        table.execute("UPDATE images SET facts = '[\"another\", 1, 2]'")


def store_facts_that_are_not_json(path: Path) -> None:
    """Stores facts that are not JSON."""
    with sqlite3.connect(path) as table:
        table.execute("UPDATE images SET facts = '{'")


def store_another_version(path: Path) -> None:
    """Stores facts of another version."""
    with sqlite3.connect(path) as table:
        table.execute("UPDATE images SET version = '0'")


def replace_by_fifo(path: Path) -> None:
    """Replaces the memory by a FIFO."""
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path) -> None:
    """Moves the memory and puts a link to it in its place."""
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def replace_by_folder(path: Path) -> None:
    """Replaces the memory by a folder."""
    path.unlink()
    path.mkdir()


def truncate(path: Path) -> None:
    """Keeps the first 5000 bytes of the memory."""
    path.write_bytes(path.read_bytes()[:5000])


DAMAGES = [
    overwrite,
    replace_columns,
    store_wrong_facts,
    store_facts_that_are_not_json,
    store_another_version,
    replace_by_fifo,
    replace_by_link,
    replace_by_folder,
    truncate,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unusable_image_memory_changes_no_result(files, tmp_path: Path, damage) -> None:
    path = tmp_path / "images.sqlite"
    first = inspect(files, path)
    damage(path)
    second = inspect(files, path)
    assert second.decoded == 5
    assert second.info == first.info


def test_an_image_memory_that_another_process_has_locked_is_not_used(
    files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_memory, "_LOCK_TIMEOUT", 0.1)
    path = tmp_path / "images.sqlite"
    inspect(files[:1], path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert inspect(files, path).decoded == 5
    other.execute("ROLLBACK")
    other.close()


def test_the_image_memory_can_be_used_by_several_threads(tmp_path: Path) -> None:
    with ImageMemory(tmp_path / "images.sqlite") as memory:

        def work(k: int) -> None:
            for i in range(400):
                key = f"{k}-{i}"
                memory[key] = [key, i]
                assert memory.get(key) == [key, i]

        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with ImageMemory(tmp_path / "images.sqlite") as memory:
        assert memory.get("5-399") == ["5-399", 399]


def test_preparing_data_again_decodes_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDEP_CACHE", str(tmp_path / "cache"))
    spec = own.make(tmp_path / "mine")
    first = own.run(spec, tmp_path / "a")

    def never(*_: object) -> None:
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(images, "examine", never)
    assert own.run(spec, tmp_path / "b")["fingerprint"] == first["fingerprint"]
