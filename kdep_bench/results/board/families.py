"""Cost of every method, and the comparison of method families.

Shown for suites whose records have extra parameters and extra forward passes. A family's inputs are
those that its methods' configs declare; its cost and score differences are measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, RowKey
from kdep_bench.results.board.row_summary import RowSummary
from kdep_bench.results.statistics import intervals as st

REFERENCES = (compare.BASE, "scratch")

COSTS = (
    "Step time: mean over the pre-training steps, absolute and divided by that of kdep. Peak "
    "memory: of pre-training or transfer, whichever needs more; minimum over runs. Extra "
    "parameters: trained or stored with the student, dropped at export. Extra forward passes: of "
    "all networks "
    "other than the student (cached or live teacher, peers, moving averages), per image seen. The "
    "pre-training cost includes that of an assistant teacher. Loss terms: mean fraction of the "
    "loss magnitude, where a loss has several. Learning rate: the peak of the schedule."
)
FAMILIES = (
    "Inputs: what the methods' losses read, with the number of methods. Step time, extra "
    "parameters and extra forward passes: median (minimum to maximum). Mean difference: paired, "
    "over all tasks and the family's methods; the interval covers seed variance for these methods "
    "only. Methods with a failed or missing seed are left out, and kdep is not compared with "
    "itself."
)


def shown(board: Board) -> bool:
    """Whether any record has extra parameters or extra forward passes."""
    return any(
        r.cost.extra_parameters is not None or r.cost.extra_forwards is not None for r in board.runs
    )


@dataclass(frozen=True, slots=True)
class RowCost:
    """Costs of one row; `ratio`: its step time / that of kdep, None where one is unknown."""

    row: RowKey
    summary: RowSummary
    ratio: float | None

    @property
    def forwards(self) -> float | None:
        """Forward passes of other networks per image seen; None where unknown."""
        n_passes, seen = self.summary.extra_forwards, self.summary.images_seen
        return n_passes / seen if n_passes is not None and seen else None


def costs(board: Board, summary: Mapping[RowKey, RowSummary]) -> list[RowCost]:
    """The costs of every row that was pre-trained here."""
    table = []
    for row in board.rows:
        if board.fixed(row):
            continue
        base = row if row.method == compare.BASE else board.counterpart(row, compare.BASE)
        steps = summary[row].step_s, None if base is None else summary[base].step_s
        ratio = steps[0] / steps[1] if steps[0] and steps[1] else None
        table.append(RowCost(row, summary[row], ratio))
    return table


@dataclass(frozen=True, slots=True)
class Strength:
    """Mean paired difference of a family's methods to a reference, over `methods` methods."""

    methods: int
    estimate: st.Estimate | None


@dataclass(frozen=True, slots=True)
class MethodFamily:
    """Rows of one method family with the same use of labels, data fraction and epochs.

    `reads`: input of the losses -> number of methods that read it. `left_out`: methods with a
    failed or missing seed. `strength`: reference method -> mean difference to it.
    """

    student: str
    name: str
    labels: bool
    fraction: float
    epochs: float | None
    costs: list[RowCost]
    reads: dict[str, int]
    left_out: list[str]
    strength: dict[str, Strength]


def families(
    board: Board,
    summary: Mapping[RowKey, RowSummary],
    method_inputs: Mapping[str, Mapping[str, Any]],
) -> list[MethodFamily]:
    """The method families of every student; `method_inputs` as in `report.build`."""
    groups: dict[tuple[str, str, bool, float, float], list[RowCost]] = {}
    for cost in costs(board, summary):
        row, method = cost.row, cost.summary.method
        if row.method not in compare.REFERENCE_METHODS:
            labels, epochs = (
                method.label_policy == "labels",
                -1.0 if row.epochs is None else row.epochs,
            )
            key = (row.student, method.family or "other", labels, -row.fraction, -epochs)
            groups.setdefault(key, []).append(cost)
    return [_family(board, key, members, method_inputs) for key, members in sorted(groups.items())]


def _family(
    board: Board,
    key: tuple[str, str, bool, float, float],
    members: list[RowCost],
    method_inputs: Mapping[str, Mapping[str, Any]],
) -> MethodFamily:
    student, name, labels, _, _ = key
    columns = compare.columns_of(board, student)
    complete_rows, left_out = [], []
    for row in (c.row for c in members):
        is_complete = all(board.result(row, c).complete for c in columns)
        (complete_rows if is_complete else left_out).append(row)
    reads = Counter(
        r for c in members for r in method_inputs.get(c.row.method, {}).get("reads", [])
    )
    return MethodFamily(
        student,
        name,
        labels,
        members[0].row.fraction,
        members[0].row.epochs,
        members,
        dict(sorted(reads.items())),
        [a.method for a in left_out],
        {reference: strength(board, complete_rows, reference) for reference in REFERENCES},
    )


def strength(board: Board, rows: Iterable[RowKey], reference: str) -> Strength:
    """Mean over all tasks and `rows` of row - its counterpart of the method `reference`.

    A seed pair counts if every one of these differences has it. Rows of `reference` itself, rows
    without a counterpart and rows whose counterpart lacks a result are left out.
    """
    every, weights, methods = [], [], 0
    for row in rows:
        columns = compare.columns_of(board, row.student)
        counterpart = board.counterpart(row, reference)
        if row.method == reference or counterpart is None:
            continue
        if all(board.result(counterpart, c).complete for c in columns):
            methods += 1
            every += [compare.gaps(board, row, counterpart, c) for c in columns]
            weights += compare.task_weights(columns)
    means = st.mean_over(every, weights)
    return Strength(methods, st.estimate(means) if means else None)


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """'median (least to most)' of the known values; one alone as it is, a dash for none."""
    known = [v for v in values if v is not None]
    if not known:
        return "—"
    ends = [f"{v:,.{digits}f}" for v in (median(known), min(known), max(known))]
    return ends[0] if ends[1] == ends[2] else f"{ends[0]} ({ends[1]} to {ends[2]})"


def milliseconds(seconds: float | None) -> str:
    """A step's time; a dash where unknown."""
    return "—" if seconds is None else f"{1000 * seconds:.0f} ms"


def mebibytes(size: float | None) -> str:
    """Bytes as MiB; a dash where unknown."""
    return "—" if size is None else f"{size / 2**20:,.0f} MiB"
