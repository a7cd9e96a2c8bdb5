"""Output of `tools/run_suite.py`: lists of configs, the plan of a dry run, the end of a run."""

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
    """Prints the configs of configs/<folder>/: names, and what each is."""
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
            m = load_config("method", name)
        except KdepError as e:
            rows.append((name, "-", "-", "-", f"(cannot be read: {e.problem})"))
            continue
        needs = ", ".join(sorted(method_needs(m))) or "-"
        transfer = m.get("transfer")
        if transfer is not None:
            needs = "tuned teacher" if transfer.get("teacher") else "-"
        labels = label_policy(m) if transfer is None else "at transfer"
        source = m.get("source", "") + (" (re-implementation)" if m.get("reconstruction") else "")
        rows.append((name, m.get("family") or "-", needs, labels, source))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    layout = "  ".join(f"{{:{w}}}" for w in widths) + "  {}"
    return [layout.format(*row) for row in rows]


def _first_line(path: Path) -> str:
    import ast

    try:
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    except (SyntaxError, UnicodeDecodeError):
        return "(cannot be read)"
    return docstring.partition("\n")[0]


def changed_data(plan: Plan, known: Mapping[str, Status]) -> list[str]:
    """A line for each data set that changed since it was prepared: what, and what runs for it."""
    lines = []
    for stage_id, status in known.items():
        if status.run and status.why.startswith("data changed"):
            consumers = plan.downstream([stage_id]) - {stage_id}
            reruns = sum(known[i].run for i in consumers if i in known)
            lines.append(f"{stage_id}: {status.why}; {reruns} downstream stage(s) will be rerun")
    return lines


def explain(plan: Plan, known: Mapping[str, Status], work: Path) -> str:
    """The text of --dry-run: every stage, done or run, and why."""
    from kdep_bench.engine import state
    from kdep_bench.engine.local_pool import chain_costs
    from kdep_bench.engine.progress import duration
    from kdep_bench.forecast.costs import Costs

    todo = {i for i, s in known.items() if s.run}
    costs = Costs(plan, state.records(work, known) if todo else [])
    cost = {i: seconds for i in todo if (seconds := costs.measured(plan.stages[i])) is not None}
    lines = []
    for stage_id, status in known.items():
        action = "run " if status.run else "done" if status.done else "skip"
        reason = "" if status.why == "done" else f"  {status.why}"
        estimate = f"  ~{duration(cost[stage_id])}" if stage_id in cost else ""
        lines.append(f"{action}  {stage_id}{estimate}{reason}")
    done = sum(s.done for s in known.values())
    if len(cost) == len(todo):
        chain = chain_costs(plan, todo, cost)
        time = f"{duration(sum(cost.values()))} of estimated work, longest chain "
        time += duration(max(chain.values(), default=0.0))
    else:
        time = f"no timing available for {len(todo) - len(cost)} of them"
    lines.append(
        f"{plan.name}: {len(known)} stages, {done} done, {len(todo)} to run, {time}; "
        f"{len(plan.runs)} transfer runs" + (f", {len(plan.probes)} probes" * bool(plan.probes))
    )
    return "\n".join(lines)


def summarise(plan: Plan, known: Mapping[str, Status], outcome: Outcome, command: str) -> int:
    """Prints how a run ended; returns its exit code."""
    finished = [*outcome.ran, *outcome.elsewhere]
    done = sum(s.done for s in known.values()) + len([i for i in finished if not known[i].done])
    for stage_id in outcome.failed:  # the error was printed when it failed, and is in its log
        print(f"failed: {stage_id}", file=sys.stderr)
    if outcome.skipped:
        print(f"{len(outcome.skipped)} downstream stage(s) skipped", file=sys.stderr)
    n_elsewhere = len(outcome.elsewhere)
    meanwhile = f"{n_elsewhere} finished by another process, " if n_elsewhere else ""
    print(
        f"{plan.name}: {len(outcome.ran)} finished in this run, {meanwhile}"
        f"{done} of {len(known)} stages are done"
    )
    if outcome.signal:
        print(f"interrupted; finished stages are kept. Resume with: {command}", file=sys.stderr)
        return 128 + outcome.signal
    return 0 if outcome.ok else 1


def disk_fault(e: OSError) -> KdepError:
    """A full or broken disk under the work dir or the results, as a sentence."""
    return KdepError(
        f"a file could not be written or read ({e})",
        fix="free disk space or inodes (see df -h and df -i), or correct the folder's "
        "permissions, then rerun the same command; finished stages are kept",
    )
