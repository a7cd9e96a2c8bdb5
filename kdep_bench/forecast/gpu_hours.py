"""What fits a budget of GPU-hours: whole comparisons, the cheapest a cell first.

A comparison is every arm of one student, teacher, data share, length of pre-training, task and pair
of seeds: fewer arms would compare nothing. Arms without a teacher belong to the comparisons of
every teacher, arms that are not trained to all. What a comparison costs is what it adds to the ones
already taken: a pre-training is paid for once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from kdep_bench.errors import KdepError
from kdep_bench.forecast.work import Hours
from kdep_bench.suite.graph import Plan, TransferRun


class Comparison(NamedTuple):
    """The arms that are compared with each other, as cells; see the module."""

    student: str
    task: str
    seeds: tuple[int, int]
    fraction: float
    epochs: float
    teacher: str
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """Comparisons taken, in order, their GPU-hours in all, and those left out."""

    taken: list[Comparison]
    left: list[Comparison]
    hours: float

    def summary(self, budget: float) -> list[str]:
        """What is run and what is left out, as sentences."""
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


def comparisons(plan: Plan, selected: Container[str]) -> list[Comparison]:
    """Every comparison of the plan's cells in `wanted`, in their order."""
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
            continue  # it is in the comparisons of its teachers
        runs = [*with_teacher[key], *without_teacher[tuple(base)], *untrained[tuple(base[:3])]]
        complete.append(Comparison(*key, tuple(runs)))  # type: ignore[arg-type]
    compared = {c for comparison in complete for c in comparison.runs}
    for base, runs in untrained.items():
        if not compared.issuperset(runs):  # nothing here is trained
            complete.append(Comparison(*base, 1.0, 0.0, "", tuple(runs)))  # type: ignore[arg-type]
    return complete


def teacher_of(plan: Plan, run: TransferRun) -> str:
    """Name of the teacher that an arm learns from, through assistants; '' without one.

    Of several teachers: the suite's, where it is one of them, so that the arm is compared with
    those of that teacher; otherwise all their names.
    """
    by_role = run.method.get("teachers")
    if by_role is not None:
        role = next((r for r, ref in by_role.items() if ref == "suite"), None)
        cache = run.chain.get(f"{role}.cache")
        if cache is not None:
            return plan.stages[cache].spec["teacher"]["name"]
        return run.teacher["name"] if run.teacher else ""
    caches = [role for role in run.chain if role.rpartition(".")[2] == "cache"]
    if caches:
        first = plan.stages[run.chain[max(caches, key=len)]]
        return first.spec["teacher"]["name"]
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
        wanted: stages that are asked for.
        todo: those of them that are to run; what is done costs nothing.
        hours: of each; a comparison with a stage of unknown hours (None) is left out.
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
    """Why a run of everything may not begin under `budget`; None where it fits."""
    unknown = sum(v is None for v in hours.by_stage.values())
    if unknown:
        return KdepError(
            f"the GPU-hours of {unknown} of {len(hours.by_stage)} stages to run are not known",
            fix="give --device-rate or --measure-throughput (and --count-flops), or add "
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
