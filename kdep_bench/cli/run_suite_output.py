"""Output of `tools/run_suite.py`: lists of configs, the plan of a dry run, the result of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdep_bench.errors import KdepError

if TYPE_CHECKING:
    from kdep_bench.engine.local_pool import Outcome
    from kdep_bench.engine.state import Status
    from kdep_bench.suite.graph import Plan


def list_configs(folder: str) -> None:
    """Prints the name and a description of each config in configs/<folder>/."""
    from kdep_bench.suite.config import FOLDERS, config_files

    kind = {folder: kind for kind, folder in FOLDERS.items()}[folder]
    if kind == "method":
        print("\n".join(method_table()))
        return
    for name, path in config_files(kind).items():
        print(f"{name:24s} {_first_line(path)}")


def method_table() -> list[str]:
    """Lines of `--list methods`: name, family, needs, label policy and source in columns."""
    from kdep_bench.suite.config import load_config, names
    from kdep_bench.suite.schema import label_policy, method_needs

    rows = [("METHOD", "FAMILY", "NEEDS", "LABELS", "SOURCE")]
    for name in names("method"):
        try:
            method = load_config("method", name)
        except KdepError as e:
            rows.append((name, "-", "-", "-", f"(cannot be read: {e.problem})"))
            continue
        needs = ", ".join(sorted(method_needs(method))) or "-"
        transfer = method.get("transfer")
        if transfer is not None:
            needs = "tuned teacher" if transfer.get("teacher") else "-"
        labels = label_policy(method) if transfer is None else "at transfer"
        source = method.get("source", "")
        source += " (re-implementation)" if method.get("reconstruction") else ""
        rows.append((name, method.get("family") or "-", needs, labels, source))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    layout = "  ".join(f"{{:{width}}}" for width in widths) + "  {}"
    return [layout.format(*row) for row in rows]


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


def explain(plan: Plan, statuses: Mapping[str, Status], work: Path) -> str:
    """The text of --dry-run: for every stage whether it is done or will run, and why."""
    from kdep_bench.engine import state
    from kdep_bench.engine.local_pool import chain_costs
    from kdep_bench.engine.progress import duration
    from kdep_bench.forecast.costs import Costs

    todo = {stage_id for stage_id, status in statuses.items() if status.run}
    costs = Costs(plan, state.records(work, statuses) if todo else [])
    cost = {i: seconds for i in todo if (seconds := costs.measured(plan.stages[i])) is not None}
    lines = []
    for stage_id, status in statuses.items():
        action = "run " if status.run else "done" if status.done else "skip"
        reason = "" if status.why == "done" else f"  {status.why}"
        estimate = f"  ~{duration(cost[stage_id])}" if stage_id in cost else ""
        lines.append(f"{action}  {stage_id}{estimate}{reason}")
    done = sum(status.done for status in statuses.values())
    if len(cost) == len(todo):
        chain = chain_costs(plan, todo, cost)
        time = f"{duration(sum(cost.values()))} of estimated work, longest chain "
        time += duration(max(chain.values(), default=0.0))
    else:
        time = f"no timing available for {len(todo) - len(cost)} of them"
    lines.append(
        f"{plan.name}: {len(statuses)} stages, {done} done, {len(todo)} to run, {time}; "
        f"{len(plan.runs)} transfer runs" + (f", {len(plan.probes)} probes" if plan.probes else "")
    )
    return "\n".join(lines)


def summarise(plan: Plan, statuses: Mapping[str, Status], outcome: Outcome, command: str) -> int:
    """Prints the result of a run; returns the exit code.

    `command`: the command line, printed as the way to resume an interrupted run.
    """
    finished = [*outcome.ran, *outcome.elsewhere]
    done = sum(status.done for status in statuses.values())
    done += sum(not statuses[stage_id].done for stage_id in finished)
    for stage_id in outcome.failed:  # its error was printed when it failed
        print(f"failed: {stage_id}", file=sys.stderr)
    if outcome.skipped:
        print(f"{len(outcome.skipped)} downstream stage(s) skipped", file=sys.stderr)
    n_elsewhere = len(outcome.elsewhere)
    elsewhere = f"{n_elsewhere} finished by another process, " if n_elsewhere else ""
    print(
        f"{plan.name}: {len(outcome.ran)} finished in this run, {elsewhere}"
        f"{done} of {len(statuses)} stages are done"
    )
    if outcome.signal:
        print(f"interrupted; finished stages are kept. Resume with: {command}", file=sys.stderr)
        return 128 + outcome.signal
    return 0 if outcome.ok else 1


def disk_fault(e: OSError) -> KdepError:
    """The error for a full or faulty disk of the work dir or the results."""
    return KdepError(
        f"a file could not be written or read ({e})",
        fix="free disk space or inodes (see df -h and df -i), or correct the folder's "
        "permissions, then rerun the same command; finished stages are kept",
    )
