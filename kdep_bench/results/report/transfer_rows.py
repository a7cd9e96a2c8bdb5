"""The table of the methods that acted at transfer: their teachers, and what they took."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.records.store import Run
from kdep_bench.results.report.board_rows import BoardView, column_names

HEADING = "Methods at transfer"
NOTE = (
    "The row 'pre-trained by X, transferred with Y' is trained on the task with the transfer "
    "method Y; its score is that of the task's own network alone. Teacher: another student, with "
    "its pre-training, that was trained on the same task before, once for all seeds; its score is "
    "that of one run. Extra parameters are those of the teacher and of the method. Transfer time "
    "contains the teacher's own training and its forward passes."
)
HEAD = ["student", "method", "task", "teacher", "teacher's labels", "teacher's score x100"]
HEAD += ["extra parameters", "extra forward passes", "transfer time"]


def entries(view: BoardView) -> list[tuple[RowKey, list[tuple[str, float | None]]]]:
    """(row, [(text, number)] from the task on) of every row and task with a transfer method."""
    found = []
    for row in view.board.rows:
        if view.summaries[row].transfer is None:
            continue
        names = column_names(view.board.columns)
        for column in view.board.columns:
            runs = [r for r in view.board.result(row, column).runs if r.transfer is not None]
            if runs:
                found.append((row, _entries(names[column], runs)))
    return found


def _entries(name: str, runs: list[Run]) -> list[tuple[str, float | None]]:
    ok = [r for r in runs if r.status == "ok"] or runs
    transfer = ok[0].transfer
    assert transfer is not None
    times = [r.cost.transfer_s for r in ok if r.cost.transfer_s is not None]
    mean = sum(times) / len(times) if times else None
    labels = {None: "—", True: "yes", False: "no"}[transfer.teacher_labels_used]
    return [
        (name, None),
        (transfer.teacher or "—", None),
        (labels, None),
        (text.points(transfer.teacher_value), transfer.teacher_value),
        (text.count(transfer.extra_parameters), transfer.extra_parameters),
        (text.count(transfer.extra_forwards), transfer.extra_forwards),
        (text.seconds(mean), mean),
    ]
