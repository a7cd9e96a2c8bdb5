"""Explain why a stage of a suite would run or is skipped: its inputs, and what changed.

kdep-bench why pocket 'pretrain*kdep.s0*'     # the stage whose id contains or matches this
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdep_bench.engine.state import Status
    from kdep_bench.suite.graph import Plan


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("suite", help="a suite config, or its name in configs/suites/")
    p.add_argument("stage", metavar="STAGE", help="part of a stage id, or a glob for it")
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument("--json", action="store_true", help="print the explanation as JSON")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    args = parser().parse_args(argv)
    work = (args.work_dir or OUTPUT / "work_dirs").absolute()
    from kdep_bench.cli.logs import one_stage
    from kdep_bench.cli.run_suite import plan_with_content
    from kdep_bench.engine import state
    from kdep_bench.suite.config import load_suite

    try:
        _, plan = plan_with_content(load_suite(args.suite), work, verify=False, out=sys.stderr)
        # If several ids match, the error lists those with the largest numbers first.
        order = {i: -float(position) for position, i in enumerate(plan.stages)}
        listing = f"kdep-bench run {shlex.quote(args.suite)} --dry-run"
        stage_id = one_stage(args.stage, order, f"of {plan.name}", listing)
        explained = explain(plan, state.statuses(plan, work), work, stage_id)
    except KdepError as e:
        print(f"kdep-bench why: {e}", file=sys.stderr)
        return 2
    print(json.dumps(explained, indent=1) if args.json else text(explained))
    return 0


def explain(
    plan: Plan, statuses: Mapping[str, Status], work: Path, stage_id: str
) -> dict[str, Any]:
    """Why a stage would run, is done or is skipped.

    Returns:
        a dict with the keys

        - id, action ('run', 'done' or 'skip') and why: as in --dry-run;
        - first_causes: upstream stages that would run although none of their inputs would;
        - inputs: role, id, action and why of the direct upstream stages;
        - needed_by: id and action of the stages that directly depend on it;
        - compared_with: id of the newest finished stage with the same kind and name, or None;
        - changes: the differences from that stage;
        - log: path of the log, or None.
    """
    from kdep_bench.cli.run_suite_output import action
    from kdep_bench.engine import state

    stage, status = plan.stages[stage_id], statuses[stage_id]
    upstream = plan.upstream([stage_id]) - {stage_id}
    causes = [
        i
        for i in plan.stages
        if i in upstream
        and statuses[i].run
        and not any(statuses[u].run for u in plan.stages[i].needs.values())
    ]
    earlier = None if status.done else state.newest_other(stage, work)
    log = state.folder(work, stage_id) / state.LOG
    return dict(
        id=stage_id,
        action=action(status),
        why=status.why,
        first_causes=[dict(id=i, why=statuses[i].why) for i in causes if status.run],
        inputs=[
            dict(role=role, id=i, action=action(statuses[i]), why=statuses[i].why)
            for role, i in stage.needs.items()
        ],
        needed_by=[
            dict(id=i, action=action(statuses[i]))
            for i in plan.consumers()[stage_id]
            if i in statuses
        ],
        compared_with=earlier and earlier["id"],
        changes=state.spec_changes(stage, earlier) + _changed_inputs(stage.needs, earlier)
        if earlier
        else [],
        log=str(log) if log.is_file() else None,
    )


def _changed_inputs(needs: Mapping[str, str], earlier: Mapping[str, Any]) -> list[str]:
    """'role: old id -> new id' for inputs that differ from those in the stage.json `earlier`."""
    old = earlier["needs"]
    return [
        f"{role}: {old.get(role)} -> {upstream}"
        for role, upstream in needs.items()
        if old.get(role) != upstream
    ]


def text(explained: Mapping[str, Any]) -> str:
    """The result of `explain` for a terminal."""
    verb = {"run": "would run", "done": "is done", "skip": "is skipped"}[explained["action"]]
    reason = "" if explained["why"] == "done" else f": {explained['why']}"
    lines = [f"{explained['id']} {verb}{reason}"]
    lines += [f"first cause  {c['id']}: {c['why']}" for c in explained["first_causes"]]
    for row in explained["inputs"]:
        why = "" if row["why"] == "done" else f"  {row['why']}"
        lines.append(f"input        {row['action']:4s}  {row['id']}{why}")
    if explained["compared_with"]:
        lines.append(f"compared     {explained['compared_with']}")
        lines += [f"change       {change}" for change in explained["changes"]]
    consumers = explained["needed_by"]
    n_to_run = sum(row["action"] == "run" for row in consumers)
    lines.append(f"needed by    {len(consumers)} stage(s), {n_to_run} of them would run")
    if explained["log"]:
        lines.append(f"log          {explained['log']}")
    return "\n".join(lines)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
