"""Two data sets of a user that differ only in order and ids get exactly the same score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.data.own import prepare
from tests.transfer.conftest import config, quiet


def permuted(table: dict[str, Any], step: int) -> dict[str, Any]:
    """The same COCO table with lists and keys in reverse order and with other ids.

    `step` is the difference between ids.
    """

    def new_ids(key: str) -> dict[int, int]:
        """{old id: new id} of the rows of a list; unique for up to 1009 rows (1009 is a prime)."""
        return {row["id"]: 1000 + step * (k * 7 % 1009) for k, row in enumerate(table[key])}

    image_ids, category_ids, box_ids = map(new_ids, ("images", "categories", "annotations"))
    rows = {
        "annotations": [
            {
                **box,
                "id": box_ids[box["id"]],
                "image_id": image_ids[box["image_id"]],
                "category_id": category_ids[box["category_id"]],
            }
            for box in table["annotations"]
        ],
        "categories": [{**row, "id": category_ids[row["id"]]} for row in table["categories"]],
        "images": [{**row, "id": image_ids[row["id"]]} for row in table["images"]],
    }
    return {
        key: [dict(reversed(row.items())) for row in reversed(table_rows)]
        for key, table_rows in rows.items()
    }


def prepare_scenes(data: Path, out: Path, change: bool) -> Path:
    """Runs the stage `prepare` with the tiny scenes as a user's data; returns its directory.

    `change`: whether the COCO files are `permuted`.
    """
    coco = {}
    for number, split in enumerate(("train", "test"), 1):
        table = json.loads((data / "detect/annotations" / f"{split}.json").read_text())
        out.mkdir(exist_ok=True)
        file = out / f"{split}.json"
        file.write_text(json.dumps(permuted(table, number) if change else table))
        coco[split] = {"json": str(file), "images": str(data / "detect" / split)}
    (out / "prepare").mkdir()
    absent = [c["name"] for c in table["categories"]]  # in 8 scenes some classes are missing
    spec = {"pool": str(data / "classify/train"), "coco": coco, "allow_absent": absent}
    prepare(spec, {}, out / "prepare", quiet)
    return out / "prepare"


def run_detection(
    student: dict[str, Any], prepare_dir: Path, exported: Path, out: Path
) -> dict[str, Any]:
    """The outputs of a short detection transfer on the prepared scenes."""
    from kdep_bench.transfer import stage

    task = config("tasks", "pocket_det")
    task["recipe"] |= {"iters": 12, "batch": 4, "warmup": 2}
    out.mkdir()
    spec = {"task": task, "student": student, "seed": 0, "threads": 1}
    return stage.run(spec, {"prepare": prepare_dir, "export": exported}, out, quiet)


@pytest.mark.slow
def test_order_and_ids_of_a_coco_json_do_not_change_the_score(
    data: Path,
    exported: Path,
    student: dict[str, Any],
    tmp_path: Path,
    in_subprocess: Callable[..., Any],
) -> None:
    results = []
    for name in ("plain", "permuted"):
        stage_dir = prepare_scenes(data, tmp_path / name, name == "permuted")
        outputs = in_subprocess(
            run_detection, student, stage_dir, exported, tmp_path / f"{name}_det"
        )
        results.append({k: outputs[k] for k in ("value", "metrics", "per_class", "curves")})
    assert results[0] == results[1]
    # The losses change from step to step, so equal curves mean equal training.
    losses = [loss for _, loss in results[0]["curves"]["loss"]]
    assert len(set(losses)) > 3
