"""leaderboard.csv of a board."""

from __future__ import annotations

import csv
import io
import json

from kdep_bench.results import text
from kdep_bench.results.board import compare, families
from kdep_bench.results.board.board import Column, RowKey
from kdep_bench.results.report import data_notes
from kdep_bench.results.report.board_rows import BoardView, command

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
    view: BoardView,
    row: RowKey,
    c: Column,
    rank: tuple[int, int] | None,
    ends: tuple[object, object],
) -> list[object]:
    f, result, est = (
        view.summaries[row],
        view.board.result(row, c),
        view.board.result(row, c).estimate,
    )
    al = f.align
    values: list[object] = [
        view.board.suite,
        row.student,
        view.labels[row],
        row.method,
        row.teacher,
    ]
    values += [
        f.method.reconstruction,
        f.method.labels_used,
        f.method.label_policy,
        row.fraction,
        f.images_seen,
    ]
    values += [row.epochs, f.pretrain_s, f.cache_s, f.align_s, f.cost_s, f.transfer_s, f.coverage]
    values += [c.task, c.family, c.version, c.split, c.metric, c.direction, view.board.chance[c]]
    values += [c.data, c.fingerprint]
    values += [est.mean, est.sd, est.n, est.low, est.high] if est else [None, None, 0, None, None]
    values += [view.is_bold(row, c), *(rank or (None, None))]
    values += [len(result.values), len(result.failed), len(result.missing)]
    values += [al.explained_variance_ratio, al.std_ratio_before] if al else [None, None]
    values += [al.std_ratio_after_align, al.std_ratio_after_transform] if al else [None, None]
    return [*values, *ends]


# In suites whose records have them; see `families.shown`.
CSV_COSTS = [
    "method_family",
    "step_s",
    "step_time_over_kdep",
    "peak_memory_bytes",
    "extra_parameters",
]


def _csv_costs(cost: families.RowCost | None) -> list[object]:
    if cost is None:
        return [None] * len(CSV_COSTS)
    f = cost.summary
    costs = [f.step_s, cost.ratio, f.peak_memory_bytes, f.extra_parameters, f.extra_forwards]
    return [f.method.family, *costs, f.learning_rate]


def _csv_value(value: object) -> object:
    if isinstance(value, str):
        return text.csv_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return json.dumps(round(value, 10))
    return "" if value is None else value


def csv_table(view: BoardView) -> str:
    """leaderboard.csv: one line per (row, task), numbers as fractions and seconds, unrounded.

    Text that a spreadsheet could take for a formula starts with a quote mark.
    """
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    costs = families.costs(view.board, view.summaries) if families.shown(view.board) else []
    spent = {c.row: c for c in costs}
    noted = ["data_notes"] if view.letters else []
    writer.writerow([*CSV_HEAD, *(CSV_COSTS if costs else []), *noted])
    for student in view.board.students:
        means = compare.mean_ranks(view.board, student)
        rows = view.board.rows_of(student)
        ends = {a: (means.get(a), command(view.board, a)) for a in rows}
        for c in compare.columns_of(view.board, student):
            ranks = compare.ranks(view.board, student, c)
            for row in rows:
                values = _csv_row(view, row, c, ranks.get(row), ends[row])
                values += _csv_costs(spent.get(row)) if costs else []
                if noted:
                    values.append("; ".join(data_notes.sentences(view.board.result(row, c).runs)))
                writer.writerow([_csv_value(v) for v in values])
    return out.getvalue()
