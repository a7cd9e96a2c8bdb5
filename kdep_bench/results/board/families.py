"""The cost of every method, and the comparison of method families.

Both are shown for suites whose records have extra parameters or extra forward passes. The inputs of
a family are the inputs that the configs of its methods declare.
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

_STEP_TIME = (
    "Step time: mean over the pre-training steps. Step time / kdep: divided by that of kdep."
)
_COSTS = (
    "Learning rate: the largest value of the schedule.",
    "Peak memory: of a run, the larger of the peaks of pre-training and transfer; in the table, "
    "that of the method's run with the lowest one.",
    "Extra parameters: trained or stored with the student and dropped at export.",
    "Extra forward passes: in addition to the student's one per image seen. They are those of all "
    "other networks (cached or live teacher, peer networks, moving averages), additional passes of "
    "the student, and all passes in the pre-training of a teacher that the suite trains.",
)
_COST = (
    "Pre-training cost: includes the teacher cache and the training of a teacher that the suite "
    "trains for the method."
)
PASSES_MISSING_MARK = " ‡"  # follows a number of extra forward passes that is too low
_MISSING_PASSES_NOTE = (
    "‡: without the passes in the pre-training of the method's teacher, which earlier versions of "
    "the program did not count."
)
_LOSS_TERMS = (
    "Loss terms: if a loss has several terms, the mean percentage of the loss magnitude that each "
    "contributes."
)
_LEVELS = ("s4", "s8", "s16", "s32")  # loss terms of feature maps, by stride
_OTHER_TERMS = "The docstrings of the methods' configs and objectives explain the other names."
# Name of a loss term -> its meaning.
_TERM_MEANINGS = {
    "cross_entropy": "cross-entropy with the image labels or, if the method reads no labels, with "
    "the teacher's most probable class",
    "labels": "cross-entropy with the image labels",
    "teacher": "distillation from the teacher",
    "target": "distillation of the probability of one class: the label or, if the method reads no "
    "labels, the teacher's most probable class",
    "others": "distillation of the probabilities of all other classes",
    "mutual": "distillation from a peer network",
    "peer_cross_entropy": "cross-entropy of the peer network with the image labels",
    "peer_mutual": "distillation from the student to the peer network",
    "consistency": "difference from a moving average of the student",
    "kdep": "KDEP's loss",
    "hint": "FitNets' loss on a feature map",
    "pooled": "KDEP's loss on the average of a feature map",
    "attention": "attention of a transformer's blocks",
    "adversarial": "discriminator of student and teacher features",
    "hidden": "tokens after each block of a transformer",
    "embedding": "tokens before the first block of a transformer",
    "prototypes": "reconstruction of the teacher's local features from prototypes",
    "contrast": "identification of the teacher's feature of an image among those of other images",
    "distance": "distances between the features of a batch",
    "angle": "angles between the features of a batch",
    "edges": "similarity of the images of a batch in a late layer",
    "early": "similarity of the images of a batch in an early layer",
    "change": "change of the batch similarities from an early to a late layer",
}
_FAMILIES = (
    "Method family: the kind of teacher signal. feature: pooled features or feature maps; "
    "relation: relations between the images of a batch; logit: class scores; online: networks "
    "that are trained together with the student.",
    "Inputs: what the losses read, with the number of methods that read it. Labels used: if the "
    "methods differ, each answer is followed by its number of methods.",
    "{medians} and extra forward passes: median over the methods (minimum to maximum).",
    "Mean difference: paired by seeds, over all tasks and all methods of the family except methods "
    "with a failed or missing seed. The difference from kdep leaves out kdep itself. The interval "
    "covers the variation between seeds, not between methods.",
)
_PASSES_OF_CACHE = (
    "A teacher cache is computed once, so a longer training has fewer extra forward passes per "
    "image seen."
)


def family_notes(summaries: Iterable[RowSummary]) -> list[str]:
    """The explanations of the table of method families, whose methods have these rows."""
    rows = list(summaries)
    medians = "Step time, extra" if any(row.step_s is not None for row in rows) else "Extra"
    notes = [note.format(medians=f"{medians} parameters") for note in _FAMILIES]
    return [note for note in (*notes, missing_passes_note(rows)) if note]


def cost_notes(summaries: Iterable[RowSummary]) -> list[str]:
    """The explanations of the table of costs of these rows."""
    rows = list(summaries)
    notes: list[str] = list(_COSTS)
    if any(row.step_s is not None for row in rows):
        notes.insert(1, _STEP_TIME)
    if any(row.cost_s is not None for row in rows):
        notes.append(_COST)
    if len({row.images_seen for row in rows if row.cached}) > 1:
        notes.append(_PASSES_OF_CACHE)
    notes += [loss_terms_note(rows), missing_passes_note(rows)]
    return [note for note in notes if note]


def loss_terms_note(summaries: Iterable[RowSummary]) -> str:
    """The sentences that explain the loss terms of these rows; "" if no row has terms."""
    names = {name for summary in summaries for name in summary.terms}
    if not names:
        return ""
    names = {name.rpartition(".")[2] for name in names}  # "maps.s16" is a part of the term "maps"
    levels = [name for name in _LEVELS if name in names]
    meanings = [f"{', '.join(levels)}: feature maps, by stride."] if levels else []
    meanings += [f"{name}: {text}." for name, text in _TERM_MEANINGS.items() if name in names]
    other = [_OTHER_TERMS] if names - _TERM_MEANINGS.keys() - {*_LEVELS} else []
    return " ".join([_LOSS_TERMS, *meanings, *other])


def missing_passes_note(summaries: Iterable[RowSummary]) -> str:
    """The sentence that explains PASSES_MISSING_MARK; "" if no row is marked with it."""
    return (
        _MISSING_PASSES_NOTE if any(summary.lacks_teacher_passes for summary in summaries) else ""
    )


def has_costs(board: Board) -> bool:
    """Whether any record has extra parameters or extra forward passes."""
    return any(
        r.cost.extra_parameters is not None or r.cost.extra_forwards is not None for r in board.runs
    )


@dataclass(frozen=True, slots=True)
class RowCost:
    """Costs of one row; `ratio`: its step time divided by that of kdep, None if unknown."""

    row: RowKey
    summary: RowSummary
    ratio: float | None

    @property
    def forwards(self) -> float | None:
        """Extra forward passes (`record.Cost.extra_forwards`) per image seen; None if unknown."""
        n_passes, seen = self.summary.extra_forwards, self.summary.images_seen
        return n_passes / seen if n_passes is not None and seen else None

    @property
    def mark(self) -> str:
        """The mark PASSES_MISSING_MARK if `forwards` is too low, otherwise ""."""
        return PASSES_MISSING_MARK if self.summary.lacks_teacher_passes else ""


def mark_of(costs: Iterable[RowCost]) -> str:
    """PASSES_MISSING_MARK if one of `costs` has it, otherwise ""."""
    return max((cost.mark for cost in costs), default="")


def costs(board: Board, summary: Mapping[RowKey, RowSummary]) -> list[RowCost]:
    """The costs of every row that the suite pre-trained."""
    table = []
    for row in board.rows:
        if board.lacks_pretraining(row):
            continue
        base = row if row.method == compare.BASE else board.counterpart(row, compare.BASE)
        step_s = summary[row].step_s
        base_step_s = None if base is None else summary[base].step_s
        ratio = step_s / base_step_s if step_s and base_step_s else None
        table.append(RowCost(row, summary[row], ratio))
    return table


@dataclass(frozen=True, slots=True)
class Strength:
    """Mean paired difference of a family from a reference, over `methods` of its methods."""

    methods: int
    estimate: st.Estimate | None


@dataclass(frozen=True, slots=True)
class MethodFamily:
    """The rows of one method family with the same use of labels, data fraction and epochs.

    `labels`: whether its methods, or teachers that the suite trains for them, use labels. `reads`:
    input of a loss -> number of methods that read it. `left_out`: methods with a failed or missing
    seed, which `strength` does not include. `strength`: reference method -> mean difference from
    it.
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
            uses_labels = method.label_policy == "labels"
            epochs = -1.0 if row.epochs is None else row.epochs
            # Negative: larger data fractions and longer trainings come first.
            key = (row.student, method.family or "other", uses_labels, -row.fraction, -epochs)
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
        is_complete = all(board.result(row, c).is_complete for c in columns)
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
    """Mean, over all tasks and `rows`, of the difference from the row of the method `reference`.

    Only seed pairs that all these differences have are used. Left out are rows of `reference`
    itself, rows without a counterpart, and rows whose counterpart has an incomplete result.
    """
    differences, weights, methods = [], [], 0
    for row in rows:
        columns = compare.columns_of(board, row.student)
        counterpart = board.counterpart(row, reference)
        if row.method == reference or counterpart is None:
            continue
        if all(board.result(counterpart, c).is_complete for c in columns):
            methods += 1
            differences += [compare.gaps(board, row, counterpart, c) for c in columns]
            weights += compare.task_weights(columns)
    means = st.mean_over(differences, weights)
    return Strength(methods, st.estimate(means) if means else None)


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """'median (minimum to maximum)' of the known values, as text; a dash without a known value.

    If all values are equal, it is the median alone.
    """
    known = [v for v in values if v is not None]
    if not known:
        return "—"
    middle, low, high = (f"{v:,.{digits}f}" for v in (median(known), min(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def milliseconds(seconds: float | None) -> str:
    """A time as milliseconds; a dash if unknown."""
    return "—" if seconds is None else f"{1000 * seconds:.0f} ms"


def mebibytes(size: float | None) -> str:
    """A number of bytes as MiB; a dash if unknown."""
    return "—" if size is None else f"{size / 2**20:,.0f} MiB"
