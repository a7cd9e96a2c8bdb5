"""Explain why a stage of a suite would run or is skipped: its inputs, and what changed.

kdep-bench why pocket 'pretrain*kdep.s0*'     by a part of the stage's id, or a glob for it
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdep_bench.engine.state import Status
    from kdep_bench.suite.graph import Plan


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("suite", help="a suite config, or its name in configs/suites/")
    p.add_argument("stage", metavar="STAGE", help="part of a stage id, or a glob for it")
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument("--json", action="store_true", help="print it as JSON")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 2 with a sentence for a fault."""
    args = parser().parse_args(argv)
    work = (args.work_dir or OUTPUT / "work_dirs").absolute()
    from kdep_bench.cli.logs import one_stage
    from kdep_bench.cli.run_suite import plan_with_content
    from kdep_bench.engine import state
    from kdep_bench.suite.config import load_suite

    try:
        _, plan = plan_with_content(load_suite(args.suite), work, False, sys.stderr)
        order = {i: -float(k) for k, i in enumerate(plan.stages)}
        stage_id = one_stage(args.stage, order, f"of {plan.name}")
        explained = explain(plan, state.statuses(plan, work), work, stage_id)
    except KdepError as e:
        print(f"why: {e}", file=sys.stderr)
        return 2
    print(json.dumps(explained, indent=1) if args.json else text(explained))
    return 0


def explain(plan: Plan, known: Mapping[str, Status], work: Path, stage_id: str) -> dict[str, Any]:
    """Why a stage would run, is done or is skipped.

    Returns:
        id, action ('run', 'done', 'skip') and why, as in --dry-run; first_causes: the stages before
        it that run although all their inputs are done; inputs (role, id, action, why); needed_by
        (id, action); compared_with: the newest finished stage of its kind and name with another id,
        and changes: what differs from it; log: the path, or None.
    """
    from kdep_bench.cli.run_suite_output import action
    from kdep_bench.engine import state

    stage, status = plan.stages[stage_id], known[stage_id]
    upstream = plan.upstream([stage_id]) - {stage_id}
    causes = [
        i
        for i in plan.stages
        if i in upstream
        and known[i].run
        and not any(known[u].run for u in plan.stages[i].needs.values())
    ]
    earlier = None if status.done else state.newest_other(stage, work)
    log = state.folder(work, stage_id) / state.LOG
    return dict(
        id=stage_id,
        action=action(status),
        why=status.why,
        first_causes=[dict(id=i, why=known[i].why) for i in causes if status.run],
        inputs=[
            dict(role=role, id=i, action=action(known[i]), why=known[i].why)
            for role, i in stage.needs.items()
        ],
        needed_by=[
            dict(id=i, action=action(known[i])) for i in plan.consumers()[stage_id] if i in known
        ],
        compared_with=earlier and earlier["id"],
        changes=state.spec_changes(stage, earlier) + _changed_inputs(stage.needs, earlier)
        if earlier
        else [],
        log=str(log) if log.is_file() else None,
    )


def _changed_inputs(needs: Mapping[str, str], earlier: Mapping[str, Any]) -> list[str]:
    before = earlier["needs"]
    return [f"{r}: {before.get(r)} -> {up}" for r, up in needs.items() if before.get(r) != up]


def text(explained: Mapping[str, Any]) -> str:
    """The result of `explain` for a terminal."""
    verb = {"run": "would run", "done": "is done", "skip": "is skipped"}[explained["action"]]
    lines = [f"{explained['id']} {verb}" + f": {explained['why']}" * (explained["why"] != "done")]
    lines += [f"first cause  {c['id']}: {c['why']}" for c in explained["first_causes"]]
    for row in explained["inputs"]:
        why = "" if row["why"] == "done" else f"  {row['why']}"
        lines.append(f"input        {row['action']:4s}  {row['id']}{why}")
    if explained["compared_with"]:
        lines.append(f"compared     {explained['compared_with']}")
        lines += [f"change       {change}" for change in explained["changes"]]
    later = explained["needed_by"]
    to_run = sum(row["action"] == "run" for row in later)
    lines.append(f"needed by    {len(later)} stage(s), {to_run} of them would run")
    if explained["log"]:
        lines.append(f"log          {explained['log']}")
    return "\n".join(lines)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
