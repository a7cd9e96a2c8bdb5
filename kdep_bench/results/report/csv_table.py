"""leaderboard.csv of a board."""

from __future__ import annotations

import csv
import io
import json

from kdep_bench.results import text
from kdep_bench.results.board import compare, families
from kdep_bench.results.board.board import ArmKey, Column
from kdep_bench.results.report import data_notes
from kdep_bench.results.report.board_rows import View, command

CSV_HEAD = [
    "suite",
    "student",
    "row",
    "method",
    "teacher",
    "reimplementation",
    "labels_used",
    "label_policy",
    "data_fraction",
    "images_seen",
    "epochs",
    "pretrain_s",
    "cache_s",
    "align_s",
    "cost_s",
    "transfer_s",
    "weights_loaded",
    "task",
    "task_family",
    "version",
    "split",
    "metric",
    "direction",
    "chance",
    "data",
    "fingerprint",
    "mean",
    "sd",
    "n",
    "low95",
    "high95",
    "among_best",
    "rank_best",
    "rank_worst",
    "ok",
    "failed",
    "missing",
    "explained_variance_ratio",
    "std_ratio_before",
    "std_ratio_after_align",
    "std_ratio_after_transform",
    "mean_rank",
    "command",
]


def _csv_row(
    view: View, arm: ArmKey, c: Column, rank: tuple[int, int] | None, ends: tuple[object, object]
) -> list[object]:
    f, cell, est = view.facts[arm], view.board.cell(arm, c), view.board.cell(arm, c).estimate
    al = f.align
    row: list[object] = [view.board.suite, arm.student, view.labels[arm], arm.method, arm.teacher]
    row += [f.arm.reconstruction, f.arm.labels_used, f.arm.label_policy, arm.share, f.images_seen]
    row += [arm.epochs, f.pretrain_s, f.cache_s, f.align_s, f.cost_s, f.transfer_s, f.coverage]
    row += [c.task, c.family, c.version, c.split, c.metric, c.direction, view.board.chance[c]]
    row += [c.data, c.fingerprint]
    row += [est.mean, est.sd, est.n, est.low, est.high] if est else [None, None, 0, None, None]
    row += [view.is_bold(arm, c), *(rank or (None, None))]
    row += [len(cell.values), len(cell.failed), len(cell.missing)]
    row += [al.explained_variance_ratio, al.std_ratio_before] if al else [None, None]
    row += [al.std_ratio_after_align, al.std_ratio_after_transform] if al else [None, None]
    return [*row, *ends]


# In suites whose records have them; see `families.shown`.
CSV_COSTS = [
    "method_family",
    "step_s",
    "step_time_over_kdep",
    "peak_memory_bytes",
    "extra_parameters",
]


def _csv_costs(cost: families.Cost | None) -> list[object]:
    if cost is None:
        return [None] * len(CSV_COSTS)
    f = cost.facts
    costs = [f.step_s, cost.ratio, f.peak_memory_bytes, f.extra_parameters, f.extra_forwards]
    return [f.arm.family, *costs, f.learning_rate]


def _csv_cell(value: object) -> object:
    if isinstance(value, str):
        return text.csv_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return json.dumps(round(value, 10))
    return "" if value is None else value


def csv_table(view: View) -> str:
    """leaderboard.csv: one line per (row, task), numbers as fractions and seconds, unrounded.

    Text that a spreadsheet could take for a formula starts with a quote mark.
    """
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    told = families.costs(view.board, view.facts) if families.shown(view.board) else []
    spent = {c.arm: c for c in told}
    noted = ["data_notes"] if view.letters else []
    writer.writerow([*CSV_HEAD, *(CSV_COSTS if told else []), *noted])
    for student in view.board.students:
        means = compare.mean_ranks(view.board, student)
        arms = view.board.arms_of(student)
        ends = {a: (means.get(a), command(view.board, a)) for a in arms}
        for c in compare.columns_of(view.board, student):
            ranks = compare.ranks(view.board, student, c)
            for arm in arms:
                row = _csv_row(view, arm, c, ranks.get(arm), ends[arm])
                row += _csv_costs(spent.get(arm)) if told else []
                if noted:
                    row.append("; ".join(data_notes.sentences(view.board.cell(arm, c).runs)))
                writer.writerow([_csv_cell(v) for v in row])
    return out.getvalue()
