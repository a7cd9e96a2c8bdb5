"""Numbers of seeds needed to detect the difference of two methods, by task and by probe.

For every compared pair of methods, this module computes the mean and the standard deviation of the
paired differences over independent pre-training seeds, and the number of seeds with which a paired
t test detects the mean (see `kdep_bench.results.statistics.power`). Tasks and probes are treated
alike: the standard deviation is that of the pair's own differences, not the pooled one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.statistics import intervals as st
from kdep_bench.results.statistics import power

TASK, PROBE = "task", "probe"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The paired differences of two methods on one task or in one value of a probe.

    Attributes:
        source: TASK or PROBE.
        name: name of the task, or of the probe and its value.
        gaps: pre-training seed -> difference; positive if the first method is better.
        percent: whether tables show the differences x100.
        first: whether the medians include these differences (those of a task, and of the first
            value of a probe).
    """

    source: str
    name: str
    gaps: Mapping[int, float]
    percent: bool = True
    first: bool = True


@dataclass(frozen=True, slots=True)
class Need:
    """The number of seeds needed to detect one difference of a pair.

    Attributes:
        n: number of independent seeds in the records.
        gap, sd: mean and standard deviation of the paired differences.
        seeds: number needed to detect `gap` with power 0.8; None if it is more than
            `power.MAX_SEEDS`, or `gap` is 0.
        low, high: the same with the ends of the 95 % interval of `sd` (chi squared), for the
            measured `gap`.
    """

    evidence: Evidence
    n: int
    gap: float
    sd: float
    seeds: int | None
    low: int | None
    high: int | None


@dataclass(frozen=True, slots=True)
class PairNeeds:
    """The seeds needed for `row` - `reference`.

    `too_few`: names of tasks and probe values with fewer than two seeds.
    """

    row: RowKey
    reference: RowKey
    needs: tuple[Need, ...]
    too_few: tuple[str, ...]

    def median(self, source: str) -> float | None:
        """Median of the seeds needed, over tasks or over probes (the first value of each).

        It is infinite if it is more than `power.MAX_SEEDS`, and None if there is no number.
        """
        needs = [n for n in self.needs if n.evidence.source == source and n.evidence.first]
        seeds = [math.inf if n.seeds is None else n.seeds for n in needs]
        return statistics.median(seeds) if seeds else None


def compute_need(evidence: Evidence) -> Need | None:
    """The seeds needed for these differences; None if there are fewer than two."""
    gaps = [evidence.gaps[seed] for seed in sorted(evidence.gaps)]
    if len(gaps) < 2:
        return None
    gap, sd, df = statistics.fmean(gaps), statistics.stdev(gaps), len(gaps) - 1
    if abs(gap) < st.ROUNDING:
        gap = 0.0
    if sd < st.ROUNDING:
        sd = 0.0
    seeds = power.seeds_needed(gap, sd)
    ends = [power.seeds_needed(gap, s) for s in power.sd_interval(sd, df)]
    return Need(evidence, len(gaps), gap, sd, seeds, *ends)


def by_pretraining(values: Mapping[st.Key, float]) -> dict[int, float]:
    """Pre-training seed -> mean over its transfer seeds."""
    return {
        p: statistics.fmean(v for (seed, _), v in sorted(values.items()) if seed == p)
        for p in {key[0] for key in values}
    }


def task_evidence(
    board: Board, row: RowKey, reference: RowKey, names: Mapping[Column, str]
) -> list[Evidence]:
    """The differences of a pair on every task, and their mean over tasks."""
    columns = compare.columns_of(board, row.student)
    gaps_by_task = [compare.gaps(board, row, reference, c) for c in columns]
    evidence = [
        Evidence(TASK, names[c], by_pretraining(gaps))
        for c, gaps in zip(columns, gaps_by_task, strict=True)
        if gaps
    ]
    if len(columns) > 1 and all(gaps_by_task):
        mean = st.mean_over(gaps_by_task, compare.task_weights(columns))
        name = compare.mean_name(columns)
        evidence.append(Evidence(TASK, name, by_pretraining(mean), first=False))
    return evidence


def pair_needs(row: RowKey, reference: RowKey, evidence: Sequence[Evidence]) -> PairNeeds:
    """The seeds needed for a pair, from all its differences."""
    needs = [(e, compute_need(e)) for e in evidence]
    return PairNeeds(
        row,
        reference,
        tuple(need for _, need in needs if need is not None),
        tuple(e.name for e, need in needs if need is None),
    )
