"""Builds the text of leaderboard.csv from a board, which contains all results of a folder."""

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
    mean_rank_and_command: tuple[float | None, str],
) -> list[object]:
    """The values under CSV_HEAD of one row and task.

    `rank`: (rank_best, rank_worst). `mean_rank_and_command`: the last two values.
    """
    summary, result = view.summaries[row], view.board.result(row, c)
    method, est, align = summary.method, result.estimate, summary.align
    values: list[object] = [view.board.suite, row.student, view.labels[row], row.method]
    values += [row.teacher, method.reconstruction, method.labels_used, method.label_policy]
    values += [row.fraction, summary.images_seen, row.epochs]
    values += [summary.pretrain_s, summary.cache_s, summary.align_s, summary.cost_s]
    values += [summary.transfer_s, summary.coverage]
    values += [c.task, c.family, c.version, c.split, c.metric, c.direction, view.board.chance[c]]
    values += [c.data, c.fingerprint]
    values += [est.mean, est.sd, est.n, est.low, est.high] if est else [None, None, 0, None, None]
    values += [row in view.bold.get((row.student, c), set()), *(rank or (None, None))]
    values += [len(result.values), len(result.failed), len(result.missing)]
    if align is None:
        values += [None] * 4
    else:
        values += [align.explained_variance_ratio, align.std_ratio_before]
        values += [align.std_ratio_after_align, align.std_ratio_after_transform]
    return [*values, *mean_rank_and_command]


# Extra columns in suites whose records have these values; see `families.has_costs`.
CSV_COSTS = [
    "method_family",
    "step_s",
    "step_time_over_kdep",
    "peak_memory_bytes",
    "extra_parameters",
    "extra_forwards",
    "learning_rate",
]


def _csv_costs(cost: families.RowCost | None) -> list[object]:
    if cost is None:
        return [None] * len(CSV_COSTS)
    s = cost.summary
    costs = [s.step_s, cost.ratio, s.peak_memory_bytes, s.extra_parameters, s.extra_forwards]
    return [s.method.family, *costs, s.learning_rate]


def _csv_value(value: object) -> object:
    if isinstance(value, str):
        return text.csv_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return json.dumps(round(value, 10))
    return "" if value is None else value


def csv_table(view: BoardView) -> str:
    """The text of leaderboard.csv, with one line for every row and task.

    Scores are fractions and times are seconds. A text that a spreadsheet could read as a formula
    begins with a single quote.
    """
    board = view.board
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    costs = families.costs(board, view.summaries) if families.has_costs(board) else []
    cost_by_row = {c.row: c for c in costs}
    notes_head = ["data_notes"] if view.letters else []
    writer.writerow([*CSV_HEAD, *(CSV_COSTS if costs else []), *notes_head])
    for student in board.students:
        mean_ranks = compare.mean_ranks(board, student)
        rows = board.rows_of(student)
        last_values = {row: (mean_ranks.get(row), command(board, row)) for row in rows}
        for c in compare.columns_of(board, student):
            ranks = compare.ranks(board, student, c)
            for row in rows:
                values = _csv_row(view, row, c, ranks.get(row), last_values[row])
                values += _csv_costs(cost_by_row.get(row)) if costs else []
                if notes_head:
                    values.append("; ".join(data_notes.sentences(board.result(row, c).runs)))
                writer.writerow([_csv_value(v) for v in values])
    return out.getvalue()
