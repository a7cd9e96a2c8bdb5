"""Leaks (images shared by two splits) are counted and named; different images are no leaks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from kdep_bench.data import leaks
from kdep_bench.data.allowed import read_allowed
from kdep_bench.data.images import inspect
from kdep_bench.errors import KdepError

RNG = np.random.default_rng(3)


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """An image with contrast at every scale, different for every seed."""
    rng, out = np.random.default_rng(seed), np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        out += np.asarray(small.resize(size, Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(out.astype(np.uint8))


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    """Saves an image, creating its folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def find_leaks(sets: dict[str, list[Path]], allow: object = ()) -> list[leaks.Leak]:
    """Images shared between the sets; `allow` lists pairs of sets that may share some."""
    inspected = inspect([f for files in sets.values() for f in files])
    assert not inspected.faults
    return leaks.find(sets, inspected.info, read_allowed(allow, sets))


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, list[Path]]:
    """Twelve images in each of four sets, all different."""
    names = ("pool", "coco/train", "coco/test", "masks/test")
    return {
        name: [save(tmp_path / name / f"{i}.png", photo(100 * k + i)) for i in range(12)]
        for k, name in enumerate(names)
    }


def test_different_images_are_not_reported_as_duplicates(sets: dict[str, list[Path]]) -> None:
    assert find_leaks(sets) == []


def test_equal_files_between_train_and_test_are_counted_and_named(sets, tmp_path: Path) -> None:
    for i in (0, 7):
        sets["coco/test"][i].write_bytes(sets["coco/train"][i + 1].read_bytes())
    (leak,) = find_leaks(sets)
    assert (leak.first, leak.second, leak.images) == ("coco/train", "coco/test", 12)
    assert (leak.equal, leak.near) == (2, 0)
    assert leak.examples == [
        ["test/0.png", "train/1.png", "equal"],
        ["test/7.png", "train/8.png", "equal"],
    ]
    assert leaks.notes([leak]) == {
        "coco": [
            "2 of 12 images of test are also in train (2 equal files), such as test/0.png and "
            "train/1.png"
        ]
    }
    assert json.loads(json.dumps(leaks.table([leak])))[0]["equal"] == 2


@pytest.mark.parametrize("change", ["jpeg", "half", "twice", "bright", "grey", "noise", "turned"])
def test_a_changed_copy_is_a_near_duplicate(sets, tmp_path: Path, change: str) -> None:
    image, options = photo(1), dict[str, Any]()
    path = tmp_path / "coco/test" / ("a.jpg" if change in ("jpeg", "turned") else "a.png")
    if change == "jpeg":
        options["quality"] = 40
    elif change in ("half", "twice"):
        image = image.resize((60, 45) if change == "half" else (240, 180))
    elif change == "bright":
        image = ImageEnhance.Brightness(image).enhance(1.15)
    elif change == "grey":
        image = image.convert("L")
    elif change == "noise":
        noisy = np.asarray(image) + RNG.normal(0, 6, (90, 120, 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    elif change == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation: rotated by 90 degrees
        image, options = image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}
    sets["coco/test"].append(save(path, image, **options))
    (leak,) = find_leaks(sets)
    assert (leak.first, leak.second, leak.equal, leak.near) == ("pool", "coco/test", 0, 1)
    assert leak.examples[0][:2] == [f"test/{path.name}", "pool/1.png"]


def test_different_images_without_contrast_are_not_near_duplicates(tmp_path: Path) -> None:
    image_sets = {
        f"coco/{split}": [
            save(tmp_path / split / f"{i}.png", Image.new("RGB", (9, 9), (i, 3, 99 - 20 * k)))
            for i in range(5)
        ]
        for k, split in enumerate(("train", "test"))
    }
    assert find_leaks(image_sets) == []
    image_sets["coco/test"][0].write_bytes(image_sets["coco/train"][4].read_bytes())
    assert [leak.equal for leak in find_leaks(image_sets)] == [1]


def test_different_squares_on_noise_are_not_near_duplicates(tmp_path: Path) -> None:
    def scene() -> Image.Image:
        """A red or blue square at a random place on grey noise."""
        pixels = RNG.integers(90, 140, (96, 128, 3), dtype=np.uint8)
        x, y = RNG.integers(5, 60), RNG.integers(5, 40)
        pixels[y : y + 44, x : x + 44] = [(220, 40, 40), (40, 60, 220)][RNG.integers(2)]
        return Image.fromarray(pixels)

    image_sets = {
        f"coco/{s}": [save(tmp_path / s / f"{i}.png", scene()) for i in range(60)]
        for s in ("train", "test")
    }
    assert find_leaks(image_sets) == []


def test_test_images_in_the_pool_are_noted_and_training_images_are_not(sets) -> None:
    sets["pool"] += [sets["coco/train"][0], sets["masks/test"][3]]
    leaks_by_sets = {(leak.first, leak.second): leak for leak in find_leaks(sets)}
    assert leaks_by_sets.keys() == {("pool", "coco/train"), ("pool", "masks/test")}
    assert leaks.notes(leaks_by_sets.values()).keys() == {"masks"}


def test_an_allowed_pair_of_sets_has_no_note_but_is_counted(sets) -> None:
    sets["pool"].append(sets["coco/test"][0])
    (leak,) = find_leaks(sets, [["coco/test", "pool"]])
    assert leak.allowed
    assert leak.equal == 1
    assert leaks.notes([leak]) == {}
    (leak,) = find_leaks(sets, [["pool", "masks/test"]])
    assert leaks.notes([leak])


@pytest.mark.parametrize(
    ("allow", "message"),
    [
        (["pool"], "pairs of sets"),
        ("pool", "pairs of sets"),
        ([["pool", "coco/tst"]], "did you mean coco/test"),
        ([["coco/test", "masks/test"]], "never compared"),
        ([["coco/test", "coco/test"]], "never compared"),
        ([["pool", 3]], "unknown set"),
    ],
)
def test_an_allowed_pair_of_unknown_or_uncompared_sets_is_refused(
    sets, allow: object, message: str
) -> None:
    with pytest.raises(KdepError, match=message):
        read_allowed(allow, sets)


def test_a_file_in_two_splits_is_refused_with_a_fix_that_works(sets, tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(sets["coco/train"][0])
    sets["coco/test"].append(link)
    (fault,) = leaks.check_paths(sets)
    assert str(link) in str(fault)
    assert "allow_duplicates=[['coco/train', 'coco/test']]" in str(fault)
    assert not leaks.check_paths(sets, read_allowed([["coco/train", "coco/test"]], sets))
    sets["coco/test"].pop()
    assert not leaks.check_paths(sets)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 24), st.booleans())
def test_the_search_finds_the_same_matches_as_comparing_all_pairs(
    seed: int, radius: int, skewed: bool
):
    """Hashes of leaks.BITS bits match if at most `radius` bits differ; skewed: few bits are 1."""
    rng = np.random.default_rng(seed)
    bits = (rng.random((300, leaks.BITS)) < (0.03 if skewed else 0.5)).astype(np.uint8)
    queries = bits[rng.integers(0, 300, 80)].copy()
    for row, flips in enumerate(rng.integers(0, 40, 80)):
        queries[row, rng.choice(leaks.BITS, flips, replace=False)] ^= 1
    words = np.packbits(bits, axis=1).view(np.uint64)
    query_words = np.packbits(queries, axis=1).view(np.uint64)
    match, distance = leaks.find_within(words, bits, query_words, queries, radius)
    all_pairs = (queries[:, None] != bits[None]).sum(2)
    np.testing.assert_array_equal(match >= 0, all_pairs.min(1) <= radius)
    matched = np.flatnonzero(match >= 0)
    np.testing.assert_array_equal(all_pairs[matched, match[matched]], distance[matched])


def test_the_search_is_fast_among_similar_images(tmp_path: Path) -> None:
    """Images of a fixed camera have similar hashes: every query has thousands of matches."""
    rng = np.random.default_rng(0)
    bits = np.tile(rng.integers(0, 2, leaks.BITS, dtype=np.uint8), (20_000, 1))
    bits[np.arange(20_000), rng.integers(0, leaks.BITS, 20_000)] ^= 1
    words = np.packbits(bits, axis=1).view(np.uint64)
    start = time.process_time()
    match, _ = leaks.find_within(words, bits, words[:5000], bits[:5000], leaks.MAX_DIFFERENT_BITS)
    assert time.process_time() - start < 1  # 0.04 s; a comparison of all pairs takes 2.5 s
    assert (match >= 0).all()
