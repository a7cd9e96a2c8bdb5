"""Selects the comparisons that fit a budget of GPU-hours, lowest cost per run first.

A comparison consists of the transfer runs of all methods with the same student, teacher, data
fraction, epochs, task and pair of seeds. Either all these runs are run or none, because methods can
only be compared if all have results. Methods without a teacher belong to the comparisons of every
teacher; untrained students belong to all comparisons. A pre-training that several comparisons share
is part of the cost of the first that is selected.
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
    """The runs of one comparison; see the docstring of the module.

    Attributes:
        student, task, teacher: names; teacher "" if there is none.
        seeds: (pre-training seed, transfer seed).
        fraction: data fraction.
        epochs: epochs of the pre-training.
        runs: ids of the transfer stages.
    """

    student: str
    task: str
    seeds: tuple[int, int]
    fraction: float
    epochs: float
    teacher: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """The result of `fit`.

    Attributes:
        selected: selected comparisons in the order of selection.
        excluded: the other comparisons.
        hours: GPU-hours of the selected comparisons together.
    """

    selected: list[ComparedRuns]
    excluded: list[ComparedRuns]
    hours: float

    def summary(self, budget: float) -> list[str]:
        """Lines about the comparisons that run and the comparisons that do not."""
        n_total = len(self.selected) + len(self.excluded)
        total = Counter(c.task for c in [*self.selected, *self.excluded])
        excluded = Counter(c.task for c in self.excluded)
        lines = [
            f"{len(self.selected)} of {n_total} comparisons (all methods with the same student, "
            "teacher, data fraction, epochs, task and pair of seeds) fit into "
            f"{budget:g} GPU-hours, lowest cost per transfer run first: {self.hours:,.1f} GPU-hours"
        ]
        if excluded:
            parts = [f"{task} {n} of {total[task]}" for task, n in sorted(excluded.items())]
            lines.append(f"not run, comparisons by task: {', '.join(parts)}")
        return lines


def comparisons(plan: Plan, selected: Container[str]) -> list[ComparedRuns]:
    """All comparisons of the plan's runs whose ids are in `selected`, in the order of the plan."""
    # Run ids by the first fields of ComparedRuns: (student, task, seeds, fraction, epochs,
    # teacher), the same without the teacher, and (student, task, seeds).
    with_teacher: dict[tuple[object, ...], list[str]] = defaultdict(list)
    without_teacher: dict[tuple[object, ...], list[str]] = defaultdict(list)
    untrained: dict[tuple[object, ...], list[str]] = defaultdict(list)
    order: dict[tuple[object, ...], None] = {}  # all six fields, in the order of the plan
    for run in (run for run in plan.runs if run.id in selected):
        seeds = (run.pretrain_seed, run.transfer_seed)
        base = (run.student["name"], run.task["name"], seeds)
        budget = plan.stages[run.chain["pretrain"]].spec.get("budget")
        if budget is None:
            untrained[base].append(run.id)
            continue
        key, teacher = (*base, run.fraction, float(budget["epochs"])), teacher_name(plan, run)
        (with_teacher[*key, teacher] if teacher else without_teacher[key]).append(run.id)
        order[*key, teacher] = None
    keys_with_teacher = {key[:-1] for key in with_teacher}
    out = []
    for key in order:
        *base, _ = key
        if not key[-1] and key[:-1] in keys_with_teacher:
            continue  # its runs belong to the comparisons of each teacher
        runs = [*with_teacher[key], *without_teacher[tuple(base)], *untrained[tuple(base[:3])]]
        out.append(ComparedRuns(*key, tuple(runs)))  # type: ignore[arg-type]
    compared = {run_id for comparison in out for run_id in comparison.runs}
    for base, runs in untrained.items():
        if not compared.issuperset(runs):  # this task and student have only untrained runs
            out.append(ComparedRuns(*base, 1.0, 0.0, "", tuple(runs)))  # type: ignore[arg-type]
    return out


def teacher_name(plan: Plan, run: TransferRun) -> str:
    """Name of the teacher in the comparison of a run; '' without a teacher.

    For an intermediate teacher (assistant), the teacher that it was trained from. For several
    teachers, the suite's teacher if it is one of them, otherwise all their names.
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
    """Selects comparisons until no other fits into `budget` GPU-hours.

    The comparison with the lowest cost per transfer run is selected first.

    Args:
        plan: the stages and runs.
        selected: ids of the stages that may run.
        todo: ids of the selected stages that are not finished; only these have a cost.
        hours: stage id -> GPU-hours; a comparison with an unknown stage (None) is excluded.
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
    remaining = [i for i in range(len(candidates)) if i not in unknown]
    cost = [sum(hours[s] or 0.0 for s in stages) for stages in upstream]
    n_runs = [
        len(stages.intersection(c.runs)) for c, stages in zip(candidates, upstream, strict=True)
    ]
    chosen, used_hours, paid_stages = list[int](), 0.0, set[str]()
    while True:
        fitting = [i for i in remaining if used_hours + cost[i] <= budget]
        if not fitting:
            break
        best = min(fitting, key=lambda i: (cost[i] / max(1, n_runs[i]), i))
        chosen.append(best)
        remaining.remove(best)
        used_hours += cost[best]
        # The stages of the chosen comparison no longer add to the cost of other comparisons.
        for stage_id in upstream[best] - paid_stages:
            for i in used_by[stage_id]:
                cost[i] = max(0.0, cost[i] - (hours[stage_id] or 0.0))
                n_runs[i] -= stage_id in candidates[i].runs
        paid_stages |= upstream[best]
    excluded = [c for i, c in enumerate(candidates) if i not in set(chosen)]
    return Fit([candidates[i] for i in chosen], excluded, used_hours)


def budget_error(fitted: Fit, hours: Hours, budget: float) -> KdepError | None:
    """The error for a run that does not fit `budget` GPU-hours; None if it fits.

    Args:
        fitted: the comparisons that fit.
        hours: GPU-hours of all stages to run; it is also an error if a value is unknown.
        budget: GPU-hours.
    """
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
    n_comparisons = len(fitted.selected) + len(fitted.excluded)
    fix = "raise --budget-hours; not even one comparison fits"
    if fitted.selected:
        fix = (
            f"raise --budget-hours, or add --fit-budget to run the {len(fitted.selected)} of "
            f"{n_comparisons} comparisons that fit"
        )
    return KdepError(
        f"the run needs an estimated {total:,.1f} GPU-hours, {hours.source}",
        expected=f"at most {budget:g} (--budget-hours)",
        fix=fix,
    )
