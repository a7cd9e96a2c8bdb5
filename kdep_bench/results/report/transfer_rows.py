"""The table of transfer methods: the teacher and the costs of each."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.records.record import Transfer
from kdep_bench.results.records.store import Run
from kdep_bench.results.report.board_rows import BoardView, column_names

HEADING = "Transfer methods"
_NAMES = (
    "'pre-trained by X, transferred with Y': the student was pre-trained by the method X (scratch: "
    "not pre-trained) and then trained on the task with the transfer method Y. Only this student "
    "is scored."
)
_TEACHER = (
    "Teacher: another network that was trained on the same task before. Its name is "
    "'network.pre-training method'; 'with' is followed by the transfer method with which it was "
    "trained. It was trained once for all seeds, so its score is from one run."
)
COSTS = (
    "Extra parameters: those of the teacher and of the method. Extra forward passes, in total: "
    "those of the teacher and of moving averages, and passes of the student in addition to one per "
    "training image."
)
_TIME = "Transfer time: includes the training of the teacher and all passes."
_SIZES = (
    "Weight bits, megabytes and bit-operations: of a quantised backbone and neck, with the values "
    "for 32 bits in brackets."
)
HEAD = ["student", "method", "task", "teacher", "teacher used labels", "teacher's score x100"]
HEAD += ["extra parameters", "extra forward passes", "transfer time"]
HEAD += ["weight bits", "megabytes", "bit-operations"]


def notes(view: BoardView) -> list[str]:
    """The explanations of the table."""
    runs = [run for run in view.board.runs if run.transfer is not None]
    has_times = any(run.cost.transfer_s is not None for run in runs)
    is_quantised = any(run.transfer and run.transfer.bits is not None for run in runs)
    chosen = [(_TIME, has_times), (_SIZES, is_quantised)]
    return [_NAMES, _TEACHER, COSTS, *(note for note, is_shown in chosen if is_shown)]


def entries(view: BoardView) -> list[tuple[RowKey, list[tuple[str, float | None]]]]:
    """(row, entries under HEAD from "task" on) of every row and task with a transfer method.

    An entry is (text, number).
    """
    table = []
    for row in view.board.rows:
        if view.summaries[row].transfer is None:
            continue
        names = column_names(view.board.columns)
        for column in view.board.columns:
            runs = [r for r in view.board.result(row, column).runs if r.transfer is not None]
            if runs:
                table.append((row, _entries(names[column], runs)))
    return table


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
        *_sizes(transfer),
    ]


def _sizes(transfer: Transfer) -> list[tuple[str, float | None]]:
    """Weight bits, megabytes and bit-operations (G: 10^9) of a quantised network."""
    if transfer.bits is None:
        return [("—", None)] * 3
    megabytes, operations = transfer.megabytes or 0.0, transfer.bit_operations or 0.0
    at_32_bits = transfer.megabytes_float32 or 0.0, (transfer.bit_operations_float32 or 0.0) / 1e9
    return [
        (f"{transfer.bits:.1f} (32)", transfer.bits),
        (f"{megabytes:.2f} ({at_32_bits[0]:.2f})", megabytes),
        (f"{operations / 1e9:.2f} G ({at_32_bits[1]:.2f} G)", operations),
    ]
