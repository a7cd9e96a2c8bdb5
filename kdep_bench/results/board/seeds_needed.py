"""How many seeds a difference needs when it is seen by a task's score, and when by a probe.

Of every compared pair of methods: the mean and the standard deviation of its paired differences
over independent pre-training seeds, by task and by probe, and the seeds with which the paired t
test finds such a difference (see `kdep_bench.results.statistics.power`). Both kinds of evidence are
treated alike: the differences of the pair alone, each with its own standard deviation.
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
    """One measure of a pair: paired differences by pre-training seed, positive where the first
    method is better.

    `source`: TASK or PROBE. `name`: of the task, or of the probe and its value. `percent`: shown
    x100. `first`: the measure that stands for its probe in the medians.
    """

    source: str
    name: str
    gaps: Mapping[int, float]
    percent: bool = True
    first: bool = True


@dataclass(frozen=True, slots=True)
class Need:
    """The seeds that one measure of a pair needs.

    Attributes:
        n: independent seeds measured.
        gap, sd: mean and standard deviation of the paired differences.
        seeds: needed for `gap` with power 0.8; None for more than `power.MOST_SEEDS`, or no gap.
        low, high: the same with the ends of the 95 % interval of the standard deviation (chi
            squared); of `gap` as measured.
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
    """The measures of `row` - `reference`; `too_few`: names of those with fewer than two seeds."""

    row: RowKey
    reference: RowKey
    needs: tuple[Need, ...]
    too_few: tuple[str, ...]

    def median(self, source: str) -> float | None:
        """Median of the seeds needed over the tasks or the probes, one value per probe; infinite
        where it is more than `power.MOST_SEEDS`, None without a measure."""
        needs = [n for n in self.needs if n.evidence.source == source and n.evidence.first]
        seeds = [math.inf if n.seeds is None else n.seeds for n in needs]
        return statistics.median(seeds) if seeds else None


def need_of(evidence: Evidence) -> Need | None:
    """The seeds that a measure needs; None with fewer than two differences."""
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


def of_tasks(
    board: Board, row: RowKey, reference: RowKey, names: Mapping[Column, str]
) -> list[Evidence]:
    """The differences on every task of the pair, and their mean over tasks."""
    columns = compare.columns_of(board, row.student)
    every = [compare.gaps(board, row, reference, c) for c in columns]
    evidence = [
        Evidence(TASK, names[c], by_pretraining(gaps))
        for c, gaps in zip(columns, every, strict=True)
        if gaps
    ]
    if len(columns) > 1 and all(every):
        mean = st.mean_over(every, compare.task_weights(columns))
        name = compare.mean_name(columns)
        evidence.append(Evidence(TASK, name, by_pretraining(mean), first=False))
    return evidence


def pair_needs(row: RowKey, reference: RowKey, evidence: Sequence[Evidence]) -> PairNeeds:
    """The needs of a pair."""
    made = [(e, need_of(e)) for e in evidence]
    return PairNeeds(
        row,
        reference,
        tuple(need for _, need in made if need is not None),
        tuple(e.name for e, need in made if need is None),
    )
