"""Output of `kdep-bench run`: lists of configs, the plan of a dry run, the result of a run."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdep_bench.errors import KdepError

if TYPE_CHECKING:
    from kdep_bench.engine.local_pool import Outcome
    from kdep_bench.engine.state import Status
    from kdep_bench.suite.graph import Plan


METHOD_COLUMNS = ("method", "family", "needs", "labels", "source")


def list_configs(folder: str, as_json: bool = False) -> None:
    """Prints the name and a description of each config in configs/<folder>/."""
    from kdep_bench.suite.config import FOLDERS, config_files

    (kind,) = (kind for kind, its_folder in FOLDERS.items() if its_folder == folder)
    if kind == "method":
        rows = [dict(zip(METHOD_COLUMNS, row, strict=True)) for row in method_rows()]
        lines = [] if as_json else method_table()
    else:
        files = config_files(kind)
        rows = [dict(name=n, about=_first_line(p), file=str(p)) for n, p in files.items()]
        lines = [f"{row['name']:24s} {row['about']}" for row in rows]
    print(json.dumps(rows, indent=1) if as_json else "\n".join(lines))


def method_table() -> list[str]:
    """Lines of `--list methods`: name, family, needs, label policy and source in columns."""
    rows = [tuple(c.upper() for c in METHOD_COLUMNS), *method_rows()]
    aligned_columns = range(len(METHOD_COLUMNS) - 1)  # not `source`, the last column
    widths = [max(len(row[k]) for row in rows) for k in aligned_columns]
    layout = "  ".join(f"{{:{w}}}" for w in widths) + "  {}"
    return [layout.format(*row) for row in rows]


def method_rows() -> list[tuple[str, ...]]:
    """The values of METHOD_COLUMNS for every method; "-" if its config cannot be read."""
    from kdep_bench.signatures import class_value, resolve_alias
    from kdep_bench.suite.config import load_config, names
    from kdep_bench.suite.schema import label_policy, method_needs

    rows: list[tuple[str, ...]] = []
    for name in names("method"):
        try:
            method = load_config("method", name)
        except KdepError as e:
            rows.append((name, "-", "-", "-", f"(cannot be read: {e.problem})"))
            continue
        needs = ", ".join(sorted(method_needs(method))) or "-"
        transfer = method.get("transfer")
        if transfer is not None:
            class_needs = class_value(resolve_alias(transfer["type"]), "needs") or ()
            needs = ", ".join(sorted(n.replace("_", " ") for n in class_needs)) or "-"
        labels = label_policy(method) if transfer is None else "at transfer"
        source = method.get("source", "")
        source += " (re-implementation)" if method.get("reconstruction") else ""
        rows.append((name, method.get("family") or "-", needs, labels, source))
    return rows


def _first_line(path: Path) -> str:
    """The first line of the docstring of a config file."""
    import ast

    try:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    except (SyntaxError, UnicodeDecodeError):
        return "(cannot be read)"
    return docstring.partition("\n")[0]


def changed_data(plan: Plan, statuses: Mapping[str, Status]) -> list[str]:
    """A line for each data set that changed since it was prepared, with the number of reruns."""
    lines = []
    for stage_id, status in statuses.items():
        if status.run and status.why.startswith("data changed"):
            consumers = plan.downstream([stage_id]) - {stage_id}
            reruns = sum(statuses[i].run for i in consumers if i in statuses)
            lines.append(f"{stage_id}: {status.why}; {reruns} downstream stage(s) will be rerun")
    return lines


def action(status: Status) -> str:
    """'run', 'done' or 'skip' (not done, but also not needed)."""
    return "run" if status.run else "done" if status.done else "skip"


def measured_costs(plan: Plan, statuses: Mapping[str, Status], work: Path) -> dict[str, float]:
    """Stage id -> estimated seconds of the stages that would run, if a similar one has finished."""
    from kdep_bench.engine import state
    from kdep_bench.forecast.costs import Costs

    todo = {i for i, s in statuses.items() if s.run}
    costs = Costs(plan, state.records(work, statuses) if todo else [])
    return {i: seconds for i in todo if (seconds := costs.measured(plan.stages[i])) is not None}


def explain_json(
    plan: Plan, statuses: Mapping[str, Status], work: Path, forecast: Sequence[str]
) -> str:
    """The content of --dry-run as JSON; `forecast`: lines of the forecast."""
    cost = measured_costs(plan, statuses, work)
    stages = [
        dict(
            id=i,
            kind=plan.stages[i].kind,
            action=action(s),
            why=s.why,
            needs=dict(plan.stages[i].needs),
            estimated_s=cost.get(i),
        )
        for i, s in statuses.items()
    ]
    counts = Counter(s["action"] for s in stages)
    content = dict(
        suite=plan.name,
        work_dir=str(work),
        counts={k: counts[k] for k in ("done", "run", "skip")},
        transfer_runs=len(plan.runs),
        probes=len(plan.probes),
        stages=stages,
        forecast=list(forecast),
    )
    return json.dumps(content, indent=1)


def stage_line(stage_id: str, status: Status, seconds: float | None = None) -> str:
    """The line of a stage in --dry-run: action, id, estimated time, reason."""
    from kdep_bench.engine.progress import duration

    reason = "" if status.why == "done" else f"  {status.why}"
    estimate = "" if seconds is None else f"  ~{duration(seconds)}"
    return f"{action(status):4s}  {stage_id}{estimate}{reason}"


def explain(plan: Plan, statuses: Mapping[str, Status], work: Path) -> str:
    """The text of --dry-run: every stage, done or run, and why."""
    from kdep_bench.engine.local_pool import chain_costs
    from kdep_bench.engine.progress import duration

    todo = {i for i, s in statuses.items() if s.run}
    cost = measured_costs(plan, statuses, work)
    lines = [stage_line(i, s, cost.get(i)) for i, s in statuses.items()]
    n_done = sum(s.done for s in statuses.values())
    if len(cost) == len(todo):
        chain = chain_costs(plan, todo, cost)
        estimate = f"{duration(sum(cost.values()))} of estimated work, longest chain "
        estimate += duration(max(chain.values(), default=0.0))
    else:
        estimate = f"no timing available for {len(todo) - len(cost)} of them"
    lines.append(
        f"{plan.name}: {len(statuses)} stages, {n_done} done, {len(todo)} to run, {estimate}; "
        f"{len(plan.runs)} transfer runs" + (f", {len(plan.probes)} probes" if plan.probes else "")
    )
    return "\n".join(lines)


def summarise(plan: Plan, statuses: Mapping[str, Status], outcome: Outcome, command: str) -> int:
    """Prints the result of a run; returns the exit code.

    `command`: the command line, printed as the way to resume an interrupted run.
    """
    finished = [*outcome.ran, *outcome.elsewhere]
    n_done = sum(status.done for status in statuses.values())
    n_done += sum(not statuses[stage_id].done for stage_id in finished)
    for stage_id in outcome.failed:  # its error was printed when it failed
        print(f"failed: {stage_id}", file=sys.stderr)
    if outcome.skipped:
        print(f"{len(outcome.skipped)} downstream stage(s) skipped", file=sys.stderr)
    n_elsewhere = len(outcome.elsewhere)
    elsewhere = f"{n_elsewhere} finished by another process, " if n_elsewhere else ""
    print(
        f"{plan.name}: {len(outcome.ran)} finished in this run, {elsewhere}"
        f"{n_done} of {len(statuses)} stages are done"
    )
    if outcome.signal:
        print(f"interrupted; finished stages are kept. Resume with: {command}", file=sys.stderr)
        return 128 + outcome.signal
    return 0 if outcome.ok else 1
