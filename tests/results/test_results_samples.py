"""Per-sample outputs next to the records: scores are computed again from them, and two rows are
compared over images only if both have them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_records import fields

from kdep_bench.results import build
from kdep_bench.results.board.board import Column, RowKey
from kdep_bench.results.board.image_pairs import ImageGap, image_pair
from kdep_bench.results.records import samples, store
from kdep_bench.results.records.record import dump, make, parse
from kdep_bench.results.records.samples import Samples
from kdep_bench.results.records.submission import join
from kdep_bench.results.records.validate import validate

IMAGES = 200
SCORES = {"kdep": (120, 122, 124), "scratch": (80, 82, 84)}  # number of right predictions per seed
ROW = RowKey("r18", "kdep", "", 1.0, None)
COLUMN = Column("segmentation", "seg", 1, "test", "mIoU", "max", "pocket", "")


def outputs(right: int, images: int = IMAGES) -> Samples:
    """Per-sample outputs with this number of right predictions."""
    truth = np.arange(images) % 2
    wrong = np.arange(images) >= right
    arrays = {
        "truth": truth.astype(np.int32),
        "prediction": np.where(wrong, 1 - truth, truth).astype(np.int32),
        "probability": np.full(images, 0.75, np.float32),
        "truth_probability": np.where(wrong, 0.25, 0.75).astype(np.float32),
    }
    return Samples("probe", ("a", "b"), tuple(f"test/{i}.jpg" for i in range(images)), arrays)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of kdep and scratch on one task, with their outputs."""
    table = tmp_path / "golden"
    for method, counts in SCORES.items():
        for seed, right in enumerate(counts):
            add_record(table, method, seed, right)
    return table


def add_record(
    table: Path,
    method: str,
    seed: int,
    right: int,
    with_outputs: bool = True,
    outputs_part: dict[str, Any] | None = None,
) -> None:
    """Writes a record, with its per-sample outputs if `with_outputs`.

    `outputs_part`: what a record without them states about them.
    """
    name = f"transfer-probe.{method}.s{seed}-{'0' * 11}{seed}"
    value = right / IMAGES
    stages = {"transfer": name, "export": "export-x-000000000000"}
    budget = fields(method)["budget"] | {"images_seen": 60_000 if method == "kdep" else 0}
    if with_outputs:
        stored = samples.write(table / "samples" / f"{name}.npz", outputs(right))
        outputs_part = {**stored, "file": f"samples/{name}.npz"}
    record = make(
        fields(method, "probe", value, transfer=seed, id=name, stages=stages, budget=budget)
        | {"config_hash": "0" * 12, "metrics": {"top1": value}}
        | {"curves": {}, "samples": outputs_part}
    )
    store.write(table, record)


def test_the_difference_over_images_is_shown_with_its_numbers_of_seeds_and_images(folder):
    build(folder, claims=[])
    text = (folder / "leaderboard.md").read_text()
    section = text.split("## Differences over test images")[1].split("\n## ")[0]
    (line,) = [x for x in section.splitlines() if "kdep" in x]
    assert "kdep - scratch | probe (top1) | +20.0 [+" in line
    assert "3 seeds and 200 test images" in line
    assert line.endswith("| better |")
    assert "Differences over test images" in (folder / "index.html").read_text()
    assert "| predictions on test images | stored in samples/ |" in text


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (None, "the trainings of some seeds stored no predictions."),
        (
            dict(file="", sha256="0" * 64, bytes=200_000, images=200),
            "the predictions of some seeds are too large for this folder (they are in work_dirs).",
        ),
    ],
)
def test_pairs_that_are_not_in_the_table_are_counted_with_the_reason(folder, part, reason):
    for seed, right in enumerate((90, 92, 94)):
        add_record(folder, "supervised", seed, right, with_outputs=False, outputs_part=part)
    build(folder, claims=[])
    line = "1 of the 2 comparisons (each of two methods on one task) are missing, because " + reason
    for name in ("leaderboard.md", "index.html"):
        assert line in (folder / name).read_text()


def test_outputs_that_give_another_score_than_the_record_are_not_compared(folder):
    path = folder / "records" / "transfer-probe.kdep.s1-000000000001.json"
    path.write_text(path.read_text().replace("0.61", "0.81"))
    done = build(folder, claims=[])
    (remark,) = [r for r in done["remarks"] if "gives top1 = 0.61, but its record has 0.81" in r]
    assert remark.startswith("samples/transfer-probe.kdep.s1")
    assert "Differences over test images" not in (folder / "leaderboard.md").read_text()


def test_the_images_on_which_two_rows_differ_are_named(folder):
    """kdep is right on the first 120, 122, 124 images, scratch on the first 80, 82, 84."""
    build(folder, claims=[])
    text = (folder / "leaderboard.md").read_text()
    section = text.split("## Images on which two methods differ most")[1].split("\n## ")[0]
    (line,) = [x for x in section.splitlines() if "kdep - scratch" in x]
    entries = [entry.strip() for entry in line.split("|")]
    assert entries[3:5] == ["44 / 156 / 0", "correct"]  # images 80 to 123
    assert entries[5] == (
        "test/84.jpg (3 of 3 against 0 of 3); test/85.jpg (3 of 3 against 0 of 3); test/86.jpg "
        "(3 of 3 against 0 of 3); 33 more images whose scores differ by 3 of 3"
    )
    assert "largest losses" not in section  # scratch is better on no image
    assert "Images on which two methods differ most" in (folder / "index.html").read_text()


def test_images_without_a_score_or_with_a_rounding_difference_are_neither_better_nor_worse():
    """The five images: equal except for rounding, better, without a score of the first method,
    worse, without a score of the second method."""
    nan = float("nan")
    first = np.array([[0.1, 1.0, nan, nan, 0.5], [0.2, 0.0, nan, 0.4, 0.5]])
    second = np.array([[0.1 + 0.2 - 0.3 + 0.15, 0.0, 0.3, 0.6, nan]])
    pair = image_pair(ROW, ROW, COLUMN, "mIoU of the image", tuple("abcde"), first, second)
    assert (pair.better, pair.equal, pair.worse, pair.undefined) == (1, 1, 1, 2)
    assert pair.gains == (ImageGap("b", 0.5, 0.0),)
    assert pair.losses == (ImageGap("d", 0.4, 0.6),)
    assert pair.trainings == (2, 1)
    assert not pair.is_accuracy


def test_a_row_with_a_seed_without_outputs_is_not_compared_over_images(folder):
    (folder / "records").joinpath("transfer-probe.kdep.s2-000000000002.json").unlink()
    add_record(folder, "kdep", 2, 124, with_outputs=False)
    build(folder, claims=[])
    text = (folder / "leaderboard.md").read_text()
    assert "Differences over test images" not in text
    assert "stored in samples/ (5 records)<br>not stored (1 records)" in text


def test_records_without_outputs_are_read_and_written_unchanged(tmp_path):
    add_record(tmp_path, "kdep", 0, 120, with_outputs=False)
    path = next((tmp_path / "records").iterdir())
    assert "samples" not in path.read_text()
    assert dump(parse(path.read_bytes())) == path.read_text()


def test_damaged_outputs_are_not_compared(folder):
    path = folder / "samples" / "transfer-probe.kdep.s0-000000000000.npz"
    path.write_bytes(b"damaged")
    done = build(folder, claims=[])
    assert any("checksum of its record" in r for r in done["remarks"])
    assert "Differences over test images" not in (folder / "leaderboard.md").read_text()


def test_validate_recomputes_scores_and_names_one_that_differs(folder):
    report = validate(folder)
    assert report.faults == []
    assert "6 of 6 scores were computed again from per-sample outputs" in report.notes
    path = folder / "records" / "transfer-probe.kdep.s1-000000000001.json"
    path.write_text(path.read_text().replace("0.61", "0.81"))
    (fault,) = validate(folder).faults
    assert fault.startswith(f"records/{path.name}: its per-sample outputs give top1 = 0.61 on 200")
    (folder / "samples" / "transfer-probe.kdep.s2-000000000002.npz").unlink()
    assert any("cannot be read" in fault for fault in validate(folder).faults)


def test_outputs_outside_the_folder_are_not_read(folder, tmp_path):
    path = folder / "records" / "transfer-probe.kdep.s1-000000000001.json"
    name = "samples/transfer-probe.kdep.s1-000000000001.npz"
    shutil.copy(folder / name, tmp_path / "other.npz")
    path.write_text(path.read_text().replace(name, "../other.npz"))
    (fault,) = validate(folder).faults
    assert "are outside the results folder" in fault
    build(folder, claims=[])
    assert "Differences over test images" not in (folder / "leaderboard.md").read_text()


def test_per_sample_outputs_of_a_submission_are_used(folder, tmp_path):
    table = tmp_path / "table"
    shutil.copytree(folder, table)
    join(validate(folder, table), table, "lab", folder)
    build(table, claims=[])
    text = (table / "leaderboard.md").read_text()
    assert "kdep (submitted by lab) - scratch | probe (top1) | +20.0 [+" in text
    assert "stored in samples/ |" in text
