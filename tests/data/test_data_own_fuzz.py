"""Arbitrary JSON files and masks of a user raise KdepError and no other exception."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import own_fixture as own
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdep_bench.data.own import boxes
from kdep_bench.data.own.coco_json import read_boxes
from kdep_bench.data.own.masks import _try_read
from kdep_bench.data.own.spec import DataConfig
from kdep_bench.errors import KdepError
from kdep_bench.faults import Faults

many_examples = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = st.one_of(  # and a few small containers
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**60), 10**60),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "..", "/", "a/../..", "\0", "\ud800", "1", [], {}, [1], {"id": 1}]),
)
ANY_JSON = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(), x))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small user data set."""
    folder = tmp_path_factory.mktemp("fuzz")
    own.make(folder)
    return folder


def paths_of_values(value: Any, path: tuple = ()) -> list[tuple]:
    """The path (keys and indices) of every value in a table."""
    paths = [path]
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        paths += paths_of_values(inner, (*path, key))
    return paths


def replace_at(table: Any, path: tuple, value: Any) -> Any:
    """A copy of the table with the value at a path replaced."""
    if not path:
        return value
    table = copy.copy(table)
    table[path[0]] = replace_at(table[path[0]], path[1:], value)
    return table


def check(path: Path, root: Path) -> None:
    """Reads the JSON at `path` as the test split; asserts that its faults can be printed."""
    faults, splits = Faults(), {}
    for split, file in (("train", root / "train.json"), ("test", path)):
        split_boxes = read_boxes(file, root / split, faults)
        if split_boxes is not None:
            splits[split] = split_boxes
    pairs = {"train": (root / "train.json", root / "train"), "test": (path, root / "test")}
    boxes.read_all(DataConfig(coco=pairs), faults)
    if len(faults):
        with pytest.raises(KdepError) as error:
            faults.raise_any("the data set")
        str(error.value).encode()  # printable
        assert str(error.value).count("\n") < 12


@many_examples
@given(data=st.data())
def test_a_json_with_any_value_replaced_raises_only_kdep_error(
    data: st.DataObject, root: Path, tmp_path: Path
) -> None:
    table = json.loads((root / "test.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(paths_of_values(table)))
        table = replace_at(table, path, data.draw(ANY_JSON))
        if not isinstance(table, dict | list):
            break
    file = tmp_path / "test.json"
    file.write_text(json.dumps(table))
    check(file, root)


@many_examples
@given(length=st.integers(0), position=st.integers(0), byte=st.integers(0, 255))
def test_a_json_with_changed_bytes_raises_only_kdep_error(
    length: int, position: int, byte: int, root: Path, tmp_path: Path
) -> None:
    raw = bytearray((root / "test.json").read_bytes())
    raw[position % len(raw)] = byte
    file = tmp_path / "test.json"
    file.write_bytes(raw[: length % (2 * len(raw))])
    check(file, root)


@many_examples
@given(
    flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
    length=st.integers(0),
)
def test_a_mask_with_changed_bytes_raises_only_kdep_error(
    flips: list[tuple[int, int]], length: int, tmp_path: Path
) -> None:
    file = tmp_path / "m.png"
    Image.fromarray(np.eye(32, dtype=np.uint8)).save(file)
    raw = bytearray(file.read_bytes())
    for position, byte in flips:
        raw[position % len(raw)] = byte
    file.write_bytes(raw[: length % (2 * len(raw))])
    result = _try_read(file)
    if isinstance(result, KdepError):
        assert "m.png" in str(result)
    else:
        assert result.counts.sum() == result.size[0] * result.size[1]
