"""The table of transfer methods: the teacher and the costs of each."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.records.record import Transfer
from kdep_bench.results.records.store import Run
from kdep_bench.results.report.board_rows import BoardView, column_names

HEADING = "Transfer methods"
NOTE = (
    "'pre-trained by X, transferred with Y': the student was pre-trained by the method X and then "
    "trained on the task with the transfer method Y. Only this student is scored. Teacher: another "
    "network that was trained on the same task before; its name contains its pre-training method. "
    "The teacher was trained once for all seeds, so its score is from one run. Extra parameters: "
    "those of the teacher and of the method. Extra forward passes, in total: those of the teacher "
    "and of moving averages, and passes of the student in addition to one per training image. The "
    "transfer time includes the training of the teacher and all passes. Weight bits, megabytes and "
    "bit-operations: of a quantised backbone and neck, with the values for 32 bits in brackets; a "
    "dash for a network that is not quantised."
)
HEAD = ["student", "method", "task", "teacher", "teacher used labels", "teacher's score x100"]
HEAD += ["extra parameters", "extra forward passes", "transfer time"]
HEAD += ["weight bits", "megabytes", "bit-operations"]


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
