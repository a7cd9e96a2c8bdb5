"""Small tables whose numbers are worked out by hand, read back from the files of a report."""

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
ReportedScore = dict[str, str]


def tables(folder: Path) -> dict[str, list[ReportedScore]]:
    """The tables of leaderboard.md by heading; cells without bold."""
    build(folder)
    series: dict[str, list[ReportedScore]] = {}
    heading, head = "", []
    for line in (folder / "leaderboard.md").read_text().splitlines():
        if line.startswith("## "):
            heading, head = line.removeprefix("## "), []
        elif line.startswith("|"):
            cells = [c.strip().replace("**", "") for c in line.strip("|").split("|")]
            if not head:
                head = cells
            elif set("".join(cells)) - set("-: "):
                series.setdefault(heading, []).append(dict(zip(head, cells, strict=True)))
        else:
            head = []
    return series


def shuffled(records: list[Record], seed: int = 0) -> list[Record]:
    random.Random(seed).shuffle(records)
    return records


def keyed(method: str, task: str, values: dict[tuple[int, int], float]) -> list[Record]:
    """Records by (pre-training seed, transfer seed)."""
    return [record(method, task, v, pretrain=p, transfer=t) for (p, t), v in values.items()]


def only_difference(folder: Path) -> ReportedScore:
    """The one row of the paired differences."""
    (row,) = tables(folder)["Paired differences"]
    return row


def test_a_paired_difference_joins_values_by_transfer_seed(results: Results) -> None:
    """Not 16.7, the difference of the lists side by side, nor that of the means of all."""
    records = keyed("kdep", "probe", {(0, 0): 0.5, (0, 1): 0.6, (0, 2): 0.7})
    # At seeds 1 and 2: .60 - .10 and .70 - .30, 45.0 in the mean; seed 3 has no partner.
    records += keyed("scratch", "probe", {(0, 3): 0.9, (0, 1): 0.1, (0, 2): 0.3})
    row = only_difference(results(shuffled(records)))
    assert row["comparison"] == "kdep - scratch"
    assert row["mean difference x100 [95 %]"].startswith("+45.0 ")
    assert row["seed pairs"] == "2"


def test_a_paired_difference_joins_values_by_both_seeds(results: Results) -> None:
    """Not by transfer seed alone where both arms were pre-trained here."""
    records = keyed("kdep", "probe", {(0, 0): 0.5, (0, 1): 0.9, (1, 0): 0.6, (1, 1): 0.8})
    # Both have (1, 0) and (1, 1): .6 - .4 and .8 - .3, 35.0 in the mean.
    other = {(1, 0): 0.4, (1, 1): 0.3, (2, 0): 0.8, (2, 1): 0.9}
    records += keyed("supervised", "probe", other)
    row = only_difference(results(shuffled(records)))
    assert row["mean difference x100 [95 %]"].startswith("+35.0 ")
    assert row["seed pairs"] == "2"


def test_a_method_with_one_seed_is_not_compared_with_every_seed(results: Results) -> None:
    """Not 40.0: only weights that were not pre-trained here stand against every seed."""
    records = keyed("kdep", "probe", {(0, 0): 0.7, (0, 1): 0.9, (1, 0): 0.6, (1, 1): 0.8})
    records += keyed("supervised", "probe", {(1, 0): 0.4, (1, 1): 0.3})
    row = only_difference(results(shuffled(records)))
    assert row["mean difference x100 [95 %]"].startswith("+35.0 ")
    assert row["seed pairs"] == "2"


# kdep is alone at the top of det; kdep and svd do not differ significantly on probe; supervised is
# alone at the top of seg; photos has one seed and so no best.
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
OTHER = {"name": "mobilenetv2_w50", "width": 320, "params": 1_000_000, "flops": 5e7}
WON = {
    ("resnet18_w32", "kdep"): "2 of 3",
    ("resnet18_w32", "svd"): "1 of 3",
    ("resnet18_w32", "supervised"): "1 of 3",
    ("mobilenetv2_w50", "kdep"): "0 of 1",
    ("mobilenetv2_w50", "supervised"): "1 of 1",
}


def board() -> list[Record]:
    records = grid(SCORES)
    records += [record(m, "photos", v) for m, v in PHOTOS.items()]
    other = {"kdep": {"det": [0.1, 0.12, 0.13]}, "supervised": {"det": [0.7, 0.71, 0.73]}}
    for one in grid(other, student=OTHER):
        records.append(one.model_copy(update={"id": f"mnv2-{one.id}"}))
    return shuffled(records)


def test_among_the_best_counts_a_student_s_own_columns_that_have_a_best(results: Results) -> None:
    """Not all columns of the board, not those with one seed, not another student's."""
    summary = tables(results(board()))["Summary"]
    found = {(r["student"], r["method"].split()[0]): r["among the best"] for r in summary}
    assert found == WON


def test_the_page_has_the_same_counts(results: Results) -> None:
    """Not other columns than the table of the leaderboard."""
    folder = results(board())
    build(folder)
    cells = re.findall(r">(\d+ of \d+)</td>", (folder / "index.html").read_text())
    assert sorted(cells) == sorted(WON.values())


def test_the_csv_has_each_result_s_mean_and_number_of_seeds(results: Results) -> None:
    """Not the mean of another column, another student, or of a column's neighbours."""
    folder = results(board())
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
