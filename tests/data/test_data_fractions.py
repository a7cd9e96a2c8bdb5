"""Data fractions: seeded, nested, label-free or per class, and saved as a list."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdep_bench.data.fractions import (
    LIST,
    labels_file,
    labels_for_fraction,
    per_class,
    read_labels,
    save_list,
    select_for_spec,
    select_images,
)
from kdep_bench.errors import KdepError
from kdep_bench.files import write_json

FRACTIONS = (0.01, 0.05, 0.1, 1.0)
FILES = [f"00/{i:06d}.jpg" for i in range(2000)]


def write_labels(path: Path, labels: np.ndarray) -> Path:
    """Writes a labels.json for FILES; returns its path."""
    table = {f: int(label) for f, label in zip(FILES, labels, strict=True)}
    write_json(path, {"classes": ["a", "b", "c"], "labels": table})
    return path


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.booleans())
def test_data_fractions_are_seeded_nested_and_of_the_right_size(seed: int, by_class: bool):
    labels = np.random.default_rng(seed).choice(3, 2000, p=[0.7, 0.25, 0.05])
    select = (
        (lambda fraction, seed: per_class(labels, fraction, seed))
        if by_class
        else (lambda fraction, seed: select_images(FILES, fraction, seed))
    )
    lists = [select(fraction, seed) for fraction in FRACTIONS]
    for small, large in pairwise(lists):
        assert set(small) < set(large)
    for fraction, chosen in zip(FRACTIONS, lists, strict=True):
        assert np.array_equal(chosen, np.unique(chosen))
        assert np.array_equal(chosen, select(fraction, seed))
        assert abs(len(chosen) - fraction * 2000) <= 2
    assert not np.array_equal(select(0.1, seed), select(0.1, seed + 1))
    assert len(lists[-1]) == 2000


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 1.0))
def test_a_fraction_per_class_takes_the_fraction_of_every_class_and_at_least_one_image(
    fraction: float,
):
    labels = np.repeat([0, 1, 2], [1400, 590, 10])
    counts = np.bincount(labels[per_class(labels, fraction)], minlength=3)
    for n, count in zip((1400, 590, 10), counts, strict=True):
        assert count == max(1, round(fraction * n))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_an_impossible_data_fraction_raises_kdep_error(fraction: float):
    with pytest.raises(KdepError, match="data fraction"):
        per_class(np.zeros(10, int), fraction)
    with pytest.raises(KdepError, match="data fraction"):
        select_images(FILES, fraction)


def test_labels_are_read_only_for_a_fraction_per_class(tmp_path: Path):
    inputs = {"prepare": tmp_path}
    assert labels_for_fraction({"share": 0.1}, inputs) is None
    expected = labels_for_fraction({"share": 0.1, "share_by": "class"}, inputs)
    assert expected == tmp_path / "data" / "pool" / "labels.json"
    with pytest.raises(KdepError, match="'image' or 'class'"):
        labels_for_fraction({"share": 0.1, "share_by": "colour"}, inputs)
    labels = np.arange(2000) % 3
    path = write_labels(tmp_path / "labels.json", labels)
    assert np.array_equal(select_images(FILES, 0.1, 0, path), per_class(labels, 0.1, 0))
    with pytest.raises(KdepError, match="have no label"):
        select_images([*FILES, "unknown.jpg"], 0.1, 0, path)


def test_invalid_labels_raise_kdep_error_with_a_fix(tmp_path: Path):
    """They do not raise other exceptions, and strings and booleans are not taken for labels."""
    path = tmp_path / "labels.json"
    with pytest.raises(KdepError, match="share_by='image' in the suite, and remove the methods"):
        read_labels(path, ["a"])
    for text in ("[]", "{}", '{"labels": [], "classes": ["x"]}', '{"labels": {"a": 0}}'):
        path.write_text(text)
        with pytest.raises(KdepError, match="--force prepare"):
            read_labels(path, ["a"])
    for label in ('"0"', "true", "0.5", "null", "[0]"):
        path.write_text(f'{{"labels": {{"a": {label}}}, "classes": ["x", "y"]}}')
        with pytest.raises(KdepError, match="no label"):
            read_labels(path, ["a"])
    path.write_text('{"labels": {"a": 2}, "classes": ["x", "y"]}')
    with pytest.raises(KdepError, match="0 to 1"):
        read_labels(path, ["a"])
    path.write_text('{"labels": {"a": 1}, "classes": ["x", "y"]}')
    assert read_labels(path, ["a"]).tolist() == [1]


def test_the_list_of_selected_images_is_saved_with_its_checksum(tmp_path: Path):
    images = select_images(FILES, 0.05, 3)
    outputs = save_list(tmp_path, FILES, images)
    saved = (tmp_path / LIST).read_bytes()
    assert saved.decode().splitlines() == [FILES[i] for i in images]
    sha = hashlib.sha256(saved).hexdigest()
    assert outputs == {"images": 100, "of": 2000, "sha256": sha, "file": LIST}


def test_for_the_complete_pool_only_the_checksum_is_stored(tmp_path: Path):
    outputs = save_list(tmp_path, FILES, select_images(FILES, 1.0))
    assert outputs["file"] is None
    assert not (tmp_path / LIST).exists()
    assert len(outputs["sha256"]) == 64


def test_a_seed_gives_the_data_fraction_of_the_published_runs():
    labels = np.arange(40) % 3
    assert per_class(labels, 0.2).tolist() == [1, 5, 6, 7, 12, 18, 23, 28, 38]
    assert per_class(labels, 0.2, 1).tolist() == [2, 5, 10, 16, 18, 21, 33, 35, 37]
    # The images of a class do not depend on the other classes.
    two_classes = per_class(np.where(labels == 1, 1, 0), 0.2)
    assert [i for i in two_classes if labels[i] == 1] == [1, 7, 28]


def test_labels_are_read_by_file_name_and_must_be_in_range(tmp_path: Path):
    path = tmp_path / "labels.json"
    write_json(path, {"classes": ["a", "b"], "labels": {"z.jpg": 1, "b.jpg": 0, "a.jpg": 1}})
    assert read_labels(path, ["a.jpg", "b.jpg"]).tolist() == [1, 0]
    assert read_labels(path, ["b.jpg", "z.jpg"]).dtype == np.int64
    for label in (2, -1):
        write_json(path, {"classes": ["a", "b"], "labels": {"a.jpg": label, "b.jpg": 0}})
        with pytest.raises(KdepError, match="0 to 1"):
            read_labels(path, ["a.jpg", "b.jpg"])
    assert labels_file({"prepare": tmp_path}) == tmp_path / "data" / "pool" / "labels.json"
    spec = {"share": 0.5, "share_seed": 3, "share_by": "class"}
    (tmp_path / "data" / "pool").mkdir(parents=True)
    write_labels(tmp_path / "data" / "pool" / "labels.json", np.arange(2000) % 3)
    chosen = select_for_spec(FILES, spec, {"prepare": tmp_path})
    assert np.array_equal(chosen, per_class(np.arange(2000) % 3, 0.5, 3))
    spec["share_by"] = "image"
    assert np.array_equal(select_for_spec(FILES, spec, {}), select_images(FILES, 0.5, 3))
