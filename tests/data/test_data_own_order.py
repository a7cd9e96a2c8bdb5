"""Scores do not depend on the order of lists or keys in a COCO JSON, nor on its ids."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import own_fixture as own
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Json = dict[str, Any]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """A data set with only boxes."""
    root = tmp_path_factory.mktemp("order") / "mine"
    full_spec = own.make(root)
    return {"pool": full_spec["pool"], "coco": full_spec["coco"]}


@pytest.fixture(scope="module")
def expected(spec: Json, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of every prepared file of the unchanged data set."""
    out = tmp_path_factory.mktemp("expected") / "out"
    own.run(spec, out)
    return own.contents(out / "data")


def shuffled(value: Any, rng: random.Random) -> Any:
    """The value with shuffled keys of objects and shuffled lists of entries."""
    if isinstance(value, dict):
        items = [(k, shuffled(v, rng)) for k, v in value.items()]
        rng.shuffle(items)
        return dict(items)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        items = [shuffled(v, rng) for v in value]
        rng.shuffle(items)
        return items
    return value


def renumbered(table: Json, rng: random.Random, ids_are_text: bool) -> Json:
    """A COCO table with other ids of images, categories and annotations."""

    def new_ids(key: str) -> dict[int, Any]:
        ids = rng.sample(range(-(2**40), 2**40), len(table[key]))
        return {
            e["id"]: f"id {i}" if ids_are_text else i for e, i in zip(table[key], ids, strict=True)
        }

    images, categories, annotations = map(new_ids, ("images", "categories", "annotations"))
    return {
        "images": [{**e, "id": images[e["id"]]} for e in table["images"]],
        "categories": [{**e, "id": categories[e["id"]]} for e in table["categories"]],
        "annotations": [
            {
                **e,
                "id": annotations[e["id"]],
                "image_id": images[e["image_id"]],
                "category_id": categories[e["category_id"]],
            }
            for e in table["annotations"]
        ],
    }


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seeds=st.tuples(st.integers(0), st.integers(0)),
    ids_are_text=st.booleans(),
    has_bom=st.booleans(),
)
def test_order_and_ids_in_a_json_do_not_change_the_prepared_files(
    seeds: tuple[int, int],
    ids_are_text: bool,
    has_bom: bool,
    spec: Json,
    expected: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """Each split is permuted and renumbered differently; BOM: a byte order mark in the file."""
    changed, work = {}, tmp_path / str(len(list(tmp_path.iterdir())))
    work.mkdir()
    for (split, part), seed in zip(spec["coco"].items(), seeds, strict=True):
        rng = random.Random(seed)
        table = json.loads(Path(part["json"]).read_text())
        table = shuffled(renumbered(table, rng, ids_are_text), rng)
        text = json.dumps(table, indent=rng.choice([None, 1]))
        (work / f"{split}.json").write_text(text, encoding="utf-8-sig" if has_bom else "utf-8")
        changed[split] = {"json": str(work / f"{split}.json"), "images": part["images"]}
    own.run({**spec, "coco": changed}, work / "out")
    assert own.contents(work / "out" / "data") == expected
    shutil.rmtree(work)


def test_another_label_changes_the_prepared_annotations(
    spec: Json, expected: dict[str, bytes], tmp_path: Path
) -> None:
    table = json.loads(Path(spec["coco"]["test"]["json"]).read_text())
    table["annotations"][0]["category_id"] = 3
    own.write(tmp_path / "test.json", table)
    test = {**spec["coco"]["test"], "json": str(tmp_path / "test.json")}
    own.run({**spec, "coco": {**spec["coco"], "test": test}}, tmp_path / "out")
    changed = own.contents(tmp_path / "out" / "data")
    assert {n for n in changed if changed[n] != expected[n]} == {"detect/annotations/test.json"}
