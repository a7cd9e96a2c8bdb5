"""The summary of a table row: everything except its scores (costs, budget, alignment)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kdep_bench.results.board.board import Board, RowKey, labels_of
from kdep_bench.results.records.record import Align, Method, RecordedTeacher, Student, Transfer
from kdep_bench.results.records.store import Run


@dataclass(frozen=True, slots=True)
class RowSummary:
    """Costs, budget and alignment of one row; a value is None if no record has it.

    Times are in seconds. Times and `images_per_s` are means over the row's pre-trainings;
    `transfer_s` is a mean over its transfer runs. `coverage`: the lowest fraction of loaded weights
    of a run. `terms`: loss term -> mean fraction of the loss magnitude. `cached`: whether the row
    was trained from a teacher cache. `lacks_teacher_passes`: as in `record.Cost`.
    """

    method: Method
    student: Student
    teacher: RecordedTeacher | None
    images_seen: int | None
    pretrain_s: float | None
    cache_s: float | None
    align_s: float | None
    transfer_s: float | None
    images_per_s: float | None
    coverage: float | None
    align: Align | None
    cached: bool
    step_s: float | None = None
    peak_memory_bytes: int | None = None
    extra_parameters: int | None = None
    extra_forwards: int | None = None
    lacks_teacher_passes: bool = False
    terms: Mapping[str, float] = field(default_factory=dict)
    learning_rate: float | None = None
    transfer: Transfer | None = None

    @property
    def cost_s(self) -> float | None:
        """Seconds of pre-training, including its part of the teacher cache and the alignment.

        None if the time of the training or of the cache is unknown, because the sum of the others
        would be too low.
        """
        if self.pretrain_s is None or (self.cached and self.cache_s is None):
            return None
        return self.pretrain_s + (self.cache_s or 0.0) + (self.align_s or 0.0)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def summarize_row(board: Board, key: RowKey) -> RowSummary:
    """The summary of a row; each pre-training is counted once, also if several tasks use it."""
    runs = board.runs_of(key)
    ok = [r for r in runs if r.status == "ok"] or runs
    first = ok[0]
    # One run per pre-training seed: that with the first id.
    by_seed = {r.pretrain_seed: r for r in sorted(ok, key=lambda r: r.id, reverse=True)}
    per_seed = [by_seed[seed] for seed in sorted(by_seed)]
    coverages = [r.coverage for r in ok if r.coverage is not None]
    return RowSummary(
        method=first.arm,
        student=first.student,
        teacher=first.teacher,
        images_seen=first.budget.images_seen,
        pretrain_s=_mean(r.cost.pretrain_s for r in per_seed),
        cache_s=_mean(r.cost.cache_s for r in per_seed),
        align_s=_mean(r.cost.align_s for r in per_seed),
        transfer_s=_mean(r.cost.transfer_s for r in ok),
        images_per_s=_mean(r.cost.images_per_s for r in per_seed),
        coverage=min(coverages) if coverages else None,
        align=next((r.align for r in per_seed if r.align is not None), None),
        cached=any(r.cached for r in per_seed),
        step_s=_mean(_step_s(r) for r in per_seed),
        # The peak of a run is the larger of pre-training and transfer. The lowest peak of the row's
        # runs is the one that transfer raises least above the peak of pre-training.
        peak_memory_bytes=min((p for r in ok if (p := r.cost.peak_memory_bytes)), default=None),
        extra_parameters=_largest(r.cost.extra_parameters for r in per_seed),
        extra_forwards=_largest(r.cost.extra_forwards for r in per_seed),
        lacks_teacher_passes=any(r.cost.lacks_teacher_passes for r in per_seed),
        terms=_mean_terms([dict(r.terms) for r in per_seed if r.terms]),
        learning_rate=first.budget.learning_rate,
        transfer=first.transfer,
    )


def _step_s(run: Run) -> float | None:
    """Seconds per optimiser step of the run's pre-training; None where unknown."""
    seen, steps, images_per_s = run.budget.images_seen, run.budget.steps, run.cost.images_per_s
    return seen / steps / images_per_s if seen and steps and images_per_s else None


def _mean_terms(terms_by_seed: list[dict[str, float]]) -> dict[str, float]:
    """Mean fraction of each term over seeds; a term that a seed does not have counts as 0."""
    names = sorted({name for terms in terms_by_seed for name in terms})
    return {
        name: sum(terms.get(name, 0.0) for terms in terms_by_seed) / len(terms_by_seed)
        for name in names
    }


def _largest(values: Iterable[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)


def row_labels(board: Board) -> dict[RowKey, str]:
    """Row names of a board; see `labels_of`."""
    return labels_of(board.rows)
