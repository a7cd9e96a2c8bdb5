"""Selects the comparisons that fit a budget of GPU-hours, lowest cost per run first.

A comparison consists of all methods of one student, teacher, data fraction, length of pre-training,
task and pair of seeds; with fewer methods nothing would be compared. Methods without a teacher
belong to the comparisons of every teacher, untrained ones to all. The cost of a comparison is what
it adds to those already selected: a shared pre-training counts once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kdep_bench.errors import KdepError
from kdep_bench.forecast.work import Hours
from kdep_bench.suite.graph import Plan, TransferRun


class ComparedRuns(NamedTuple):
    """The runs that are compared with each other; see the module."""

    student: str
    task: str
    seeds: tuple[int, int]
    fraction: float
    epochs: float
    teacher: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """Selected comparisons in order, their total GPU-hours, and those left out."""

    taken: list[ComparedRuns]
    left: list[ComparedRuns]
    hours: float

    def summary(self, budget: float) -> list[str]:
        """Sentences on what runs and what is left out."""
        total = Counter(c.task for c in [*self.taken, *self.left])
        left = Counter(c.task for c in self.left)
        lines = [
            f"{len(self.taken)} of {len(self.taken) + len(self.left)} comparisons (all methods of "
            "one student, teacher, data fraction, length, task and pair of seeds) fit into "
            f"{budget:g} GPU-hours, lowest cost per transfer run first: {self.hours:,.1f} GPU-hours"
        ]
        if left:
            parts = [f"{task} {n} of {total[task]}" for task, n in sorted(left.items())]
            lines.append(f"not run, comparisons by task: {', '.join(parts)}")
        return lines


def comparisons(plan: Plan, selected: Container[str]) -> list[ComparedRuns]:
    """All comparisons of the plan's runs in `selected`, in the order of the plan."""
    with_teacher: dict[tuple[object, ...], list[str]] = defaultdict(list)
    without_teacher: dict[tuple[object, ...], list[str]] = defaultdict(list)
    untrained: dict[tuple[object, ...], list[str]] = defaultdict(list)
    order: dict[tuple[object, ...], None] = {}
    for run in (c for c in plan.runs if c.id in selected):
        seeds = (run.pretrain_seed, run.transfer_seed)
        base = (run.student["name"], run.task["name"], seeds)
        budget = plan.stages[run.chain["pretrain"]].spec.get("budget")
        if budget is None:
            untrained[base].append(run.id)
            continue
        key, teacher = (*base, run.fraction, float(budget["epochs"])), teacher_of(plan, run)
        (with_teacher[*key, teacher] if teacher else without_teacher[key]).append(run.id)
        order[*key, teacher] = None
    taught_keys = {key[:-1] for key in with_teacher}
    complete = []
    for key in order:
        *base, _ = key
        if not key[-1] and key[:-1] in taught_keys:
            continue  # included in the comparisons of each teacher
        runs = [*with_teacher[key], *without_teacher[tuple(base)], *untrained[tuple(base[:3])]]
        complete.append(ComparedRuns(*key, tuple(runs)))  # type: ignore[arg-type]
    compared = {c for comparison in complete for c in comparison.runs}
    for base, runs in untrained.items():
        if not compared.issuperset(runs):  # no method of these is trained
            complete.append(ComparedRuns(*base, 1.0, 0.0, "", tuple(runs)))  # type: ignore[arg-type]
    return complete


def teacher_of(plan: Plan, run: TransferRun) -> str:
    """Name of a run's teacher, through intermediate teachers; '' without one.

    Of several teachers: the suite's, where it is one of them, so that the run is compared with
    those of that teacher; otherwise all their names.
    """
    method, chain_prefix = run.method, ""
    while method.get("teacher") is not None:
        method, chain_prefix = method["teacher"]["method"], f"{chain_prefix}teacher."
    by_role = method.get("teachers")
    role = next((r for r, ref in (by_role or {}).items() if ref == "suite"), None)
    cache = run.chain.get(f"{chain_prefix}cache" if role is None else f"{chain_prefix}{role}.cache")
    if cache is not None:
        return plan.stages[cache].spec["teacher"]["name"]
    return run.teacher["name"] if run.teacher else ""


def fit(
    plan: Plan,
    selected: Container[str],
    todo: set[str],
    hours: Mapping[str, float | None],
    budget: float,
) -> Fit:
    """The comparisons that fit into `budget` GPU-hours.

    Args:
        plan: the stages and runs.
        selected: ids of the selected stages.
        todo: those that must run; finished ones cost nothing.
        hours: GPU-hours by stage id; comparisons with an unknown one (None) are left out.
        budget: GPU-hours.
    """
    candidates = comparisons(plan, selected)
    upstream = [plan.upstream(c.runs) & todo for c in candidates]
    used_by: dict[str, list[int]] = defaultdict(list)
    for i, stages in enumerate(upstream):
        for stage_id in stages:
            used_by[stage_id].append(i)
    unknown = {
        i for stage_id, indices in used_by.items() if hours[stage_id] is None for i in indices
    }
    open_ones = [i for i in range(len(candidates)) if i not in unknown]
    cost = [sum(hours[s] or 0.0 for s in stages) for stages in upstream]
    n_runs = [
        len(stages.intersection(c.runs)) for c, stages in zip(candidates, upstream, strict=True)
    ]
    taken, spent, paid = list[int](), 0.0, set[str]()
    while True:
        fitting = [i for i in open_ones if spent + cost[i] <= budget]
        if not fitting:
            break
        best = min(fitting, key=lambda i: (cost[i] / max(1, n_runs[i]), i))
        taken.append(best)
        open_ones.remove(best)
        spent += cost[best]
        for stage_id in upstream[best] - paid:
            for i in used_by[stage_id]:
                cost[i] = max(0.0, cost[i] - (hours[stage_id] or 0.0))
                n_runs[i] -= stage_id in candidates[i].runs
        paid |= upstream[best]
    chosen = set(taken)
    left = [c for i, c in enumerate(candidates) if i not in chosen]
    return Fit([candidates[i] for i in taken], left, spent)


def refusal(fitted: Fit, hours: Hours, budget: float) -> KdepError | None:
    """The error if the whole run does not fit `budget`, or its cost is unknown; None if it fits."""
    unknown = sum(v is None for v in hours.by_stage.values())
    if unknown:
        return KdepError(
            f"the GPU-hours of {unknown} of {len(hours.by_stage)} stages to run are not known",
            fix="give --measure-throughput, or --device-rate with --count-flops, or add "
            "--fit-budget to run only stages whose cost is known",
        )
    total = sum(v or 0.0 for v in hours.by_stage.values())
    if total <= budget:
        return None
    n_comparisons = len(fitted.taken) + len(fitted.left)
    return KdepError(
        f"the run needs an estimated {total:,.1f} GPU-hours, {hours.source}",
        expected=f"at most {budget:g} (--budget-hours)",
        fix=f"raise --budget-hours, or add --fit-budget to run the {len(fitted.taken)} of "
        f"{n_comparisons} comparisons that fit",
    )
