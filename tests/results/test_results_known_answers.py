"""Small tables whose numbers are computed by hand, read from the files of a report."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from make_records import grid, record

from kdep_bench.results import build
from kdep_bench.results.records.record import Record

Results = Callable[[Iterable[Record]], Path]
TableRow = dict[str, str]


def tables(folder: Path) -> dict[str, list[TableRow]]:
    """{heading: rows of the table below it} of leaderboard.md, without bold."""
    build(folder)
    rows_by_heading: dict[str, list[TableRow]] = {}
    heading, column_names = "", []
    for line in (folder / "leaderboard.md").read_text().splitlines():
        if line.startswith("## "):
            heading, column_names = line.removeprefix("## "), []
        elif line.startswith("|"):
            cells = [c.strip().replace("**", "") for c in line.strip("|").split("|")]
            if not column_names:
                column_names = cells
            elif set("".join(cells)) - set("-: "):
                rows_by_heading.setdefault(heading, []).append(
                    dict(zip(column_names, cells, strict=True))
                )
        else:
            column_names = []
    return rows_by_heading


def shuffled(records: list[Record], seed: int = 0) -> list[Record]:
    """The records in a random order."""
    random.Random(seed).shuffle(records)
    return records


def records_by_seed(method: str, task: str, values: dict[tuple[int, int], float]) -> list[Record]:
    """Records by (pre-training seed, transfer seed)."""
    return [record(method, task, v, pretrain=p, transfer=t) for (p, t), v in values.items()]


def only_difference(folder: Path) -> TableRow:
    """The only row of the table of paired differences."""
    (row,) = tables(folder)["Paired differences"]
    return row


def test_a_paired_difference_joins_values_by_transfer_seed(results: Results) -> None:
    """A fault would give another value, such as 16.7 for scores subtracted in order."""
    records = records_by_seed("kdep", "probe", {(0, 0): 0.5, (0, 1): 0.6, (0, 2): 0.7})
    # At seeds 1 and 2: .60 - .10 and .70 - .30, mean 45.0; seed 3 has no partner.
    records += records_by_seed("scratch", "probe", {(0, 3): 0.9, (0, 1): 0.1, (0, 2): 0.3})
    row = only_difference(results(shuffled(records)))
    assert row["comparison"] == "kdep - scratch"
    assert row["mean difference x100 [95 %]"].startswith("+45.0 ")
    assert row["seed pairs"] == "2"


def test_a_paired_difference_joins_values_by_both_seeds(results: Results) -> None:
    """Both methods were pre-trained, so the pre-training seed must match, too."""
    records = records_by_seed("kdep", "probe", {(0, 0): 0.5, (0, 1): 0.9, (1, 0): 0.6, (1, 1): 0.8})
    # Both have (1, 0) and (1, 1): .6 - .4 and .8 - .3, mean 35.0.
    other = {(1, 0): 0.4, (1, 1): 0.3, (2, 0): 0.8, (2, 1): 0.9}
    records += records_by_seed("supervised", "probe", other)
    row = only_difference(results(shuffled(records)))
    assert row["mean difference x100 [95 %]"].startswith("+35.0 ")
    assert row["seed pairs"] == "2"


def test_a_method_with_one_pre_training_seed_is_compared_only_with_the_same_seed(
    results: Results,
) -> None:
    """40.0 would be wrong: only published weights are compared with every seed."""
    records = records_by_seed("kdep", "probe", {(0, 0): 0.7, (0, 1): 0.9, (1, 0): 0.6, (1, 1): 0.8})
    records += records_by_seed("supervised", "probe", {(1, 0): 0.4, (1, 1): 0.3})
    row = only_difference(results(shuffled(records)))
    assert row["mean difference x100 [95 %]"].startswith("+35.0 ")
    assert row["seed pairs"] == "2"


# Among the best on det: only kdep; on probe: kdep and svd, which do not differ significantly; on
# seg: only supervised. photos has one seed, so no method is best.
SCORES = {
    "kdep": {"det": [0.50, 0.52, 0.51], "probe": [0.80, 0.82, 0.78], "seg": [0.20, 0.21, 0.22]},
    "svd": {"det": [0.30, 0.31, 0.33], "probe": [0.81, 0.80, 0.80], "seg": [0.21, 0.20, 0.24]},
    "supervised": {
        "det": [0.10, 0.12, 0.11],
        "probe": [0.15, 0.12, 0.13],
        "seg": [0.60, 0.62, 0.61],
    },
}
PHOTOS = {"kdep": 0.9, "svd": 0.8, "supervised": 0.7}
OTHER_STUDENT = {"name": "mobilenetv2_w50", "width": 320, "params": 1_000_000, "flops": 5e7}
TIMES_AMONG_BEST = {
    ("resnet18_w32", "kdep"): "2 of 3",
    ("resnet18_w32", "svd"): "1 of 3",
    ("resnet18_w32", "supervised"): "1 of 3",
    ("mobilenetv2_w50", "kdep"): "0 of 1",
    ("mobilenetv2_w50", "supervised"): "1 of 1",
}


def all_records() -> list[Record]:
    """The records of all tasks and students, shuffled."""
    records = grid(SCORES)
    records += [record(m, "photos", v) for m, v in PHOTOS.items()]
    other = {"kdep": {"det": [0.1, 0.12, 0.13]}, "supervised": {"det": [0.7, 0.71, 0.73]}}
    for a_record in grid(other, student=OTHER_STUDENT):
        records.append(a_record.model_copy(update={"id": f"mnv2-{a_record.id}"}))
    return shuffled(records)


def test_among_the_best_counts_only_tasks_of_the_student_with_a_best_method(
    results: Results,
) -> None:
    """Columns with one seed and columns of another student are not counted."""
    summary = tables(results(all_records()))["Summary"]
    counts = {(r["student"], r["method"].split()[0]): r["among the best"] for r in summary}
    assert counts == TIMES_AMONG_BEST


def test_the_page_has_the_same_counts(results: Results) -> None:
    """The counts of the page are those of the leaderboard."""
    folder = results(all_records())
    build(folder)
    cells = re.findall(r">(\d+ of \d+)</td>", (folder / "index.html").read_text())
    assert sorted(cells) == sorted(TIMES_AMONG_BEST.values())


def test_the_csv_has_each_result_s_mean_and_number_of_seeds(results: Results) -> None:
    """A value of another column or student would be wrong."""
    folder = results(all_records())
    build(folder)
    rows = list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text())))
    for method, tasks in SCORES.items():
        for task, values in tasks.items():
            (row,) = [
                r
                for r in rows
                if (r["student"], r["method"], r["task"]) == ("resnet18_w32", method, task)
            ]
            assert float(row["mean"]) == pytest.approx(sum(values) / 3)
            assert int(row["n"]) == 3
