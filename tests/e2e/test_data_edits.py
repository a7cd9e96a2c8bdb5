"""When a user edits the data between two runs, no earlier score is shown for the edited data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
COLOUR = {1: (220, 40, 40), 2: (40, 60, 220)}

pytestmark = pytest.mark.e2e


def make(root: Path) -> Path:
    """Images of squares in two colours with boxes, and a suite with an untrained student."""
    rng, splits = np.random.default_rng(0), {}
    for split in ("train", "test", "pool"):
        images, boxes = [], []
        for i in range(8):
            image, category = rng.integers(90, 140, (96, 128, 3), dtype=np.uint8), 1 + i % 2
            x, y = (int(v) for v in rng.integers(5, 40, 2))
            image[y : y + 44, x : x + 44] = COLOUR[category]
            path = root / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            images.append({"id": i, "file_name": path.name, "width": 128, "height": 96})
            box = {"bbox": [x, y, 44, 44], "area": 44 * 44, "iscrowd": 0}
            boxes.append({"id": i, "image_id": i, "category_id": category, **box})
        names = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        table = {"images": images, "annotations": boxes, "categories": names}
        if split != "pool":
            (root / f"{split}.json").write_text(json.dumps(table))
            splits[split] = {"json": f"{root}/{split}.json", "images": f"{root}/{split}"}
    data = {"type": "kdep_bench.data.own.prepare", "name": "edited", "labels": False}
    suite = {
        "name": "edited",
        "about": "data that is edited",
        "data": {**data, "pool": f"{root}/pool", "coco": splits},
        "teacher": "efficientnet_lite0",
        "students": ["resnet18_w32"],
        "methods": ["scratch"],
        "tasks": [
            {
                "base": "smoke_det",
                "name": "edited_det",
                "recipe": {"iters": 2, "warmup": 1, "scale": [128, 96]},
            }
        ],
        "budget": {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}},
        "seeds": {"pretrain": [0], "transfer": [0]},
        "claims": [],
    }
    (root / "suite.py").write_text(f"suite = {suite!r}\n")
    return root


def run_suite(root: Path, *arguments: str) -> str:
    """Runs the suite; returns its output."""
    command = [sys.executable, str(REPO / "tools/run_suite.py"), str(root / "suite.py")]
    command += [
        "--work-dir",
        str(root / "w"),
        "--results-dir",
        str(root / "r"),
        "--plain",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def record(root: Path) -> dict:
    """The only record of the suite."""
    (path,) = (root / "r/records").glob("*.json")
    return json.loads(path.read_text())


def test_scores_of_edited_data_are_measured_again(tmp_path: Path) -> None:
    root = make(tmp_path / "mine")
    run_suite(root)
    first, path = record(root), root / "test.json"
    os.utime(path)
    assert "edited: 0 finished in this run" in run_suite(root)

    size = path.stat().st_size  # the edit keeps the file's size
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 2'))
    assert path.stat().st_size == size
    assert "data changed: test.json changed" in run_suite(root, "--dry-run")
    completed = run_suite(root)
    # The stages prepare and transfer; no other stage reads these data.
    assert "edited: 2 finished in this run" in completed
    assert "1 downstream stage(s) will be rerun" in completed
    second = record(root)
    assert second["id"] != first["id"]
    assert second["data"]["fingerprint"] != first["data"]["fingerprint"]
    # A class without boxes may lack a score, but then a note must say so.
    assert set(second["per_class"]) == {"red", "blue"} or second["notes"]

    table = json.loads(path.read_text())
    # Half of the boxes.
    table["annotations"] = table["annotations"][:4]
    path.write_text(json.dumps(table))
    assert "edited: 2 finished in this run" in run_suite(root)
    third = record(root)
    fingerprints = {r["data"]["fingerprint"] for r in (first, second, third)}
    assert len(fingerprints) == 3
    superseded = [json.loads(p.read_text()) for p in (root / "r/superseded").glob("*.json")]
    assert {r["id"]: r["data"]["fingerprint"] for r in superseded} == {
        r["id"]: r["data"]["fingerprint"] for r in (first, second)
    }
