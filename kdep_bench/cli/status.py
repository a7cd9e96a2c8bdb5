"""Show which stages are done, running, failed and left; runs nothing.

kdep-bench status            all stages in the work dir
kdep-bench status pocket     the stages of a suite, including those that must still run
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kdep_bench.engine.state import Status

# In the order of the output. 'left': must run; 'skipped': not done, but also not needed.
STATES = ("done", "running", "failed", "interrupted", "damaged", "left", "skipped")
_COUNTED_STATES = ("done", "left", "skipped")  # stages in these states are counted, not listed


@dataclass(frozen=True)
class StageState:
    """A stage and its state.

    Attributes:
        id: id of the stage.
        state: one of STATES.
        detail: the process that runs it, its error, or the reason for its state.
    """

    id: str
    state: str
    detail: str = ""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("suite", nargs="?", help="a suite config, or its name in configs/suites/")
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument("--json", action="store_true", help="print every stage as JSON")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    args = parser().parse_args(argv)
    work = (args.work_dir or OUTPUT / "work_dirs").absolute()
    try:
        if args.suite:
            name, states = suite_states(args.suite, work)
        else:
            name, states = str(work), work_dir_states(work)
    except KdepError as e:
        print(f"kdep-bench status: {e}", file=sys.stderr)
        return 2
    print(as_json(name, work, states) if args.json else text(name, states, args.suite))
    return 0


def suite_states(suite_name: str, work: Path) -> tuple[str, list[StageState]]:
    """(the suite's name, the states of all its stages, upstream first)."""
    from kdep_bench.cli.run_suite import plan_with_content
    from kdep_bench.engine import state
    from kdep_bench.suite.config import load_suite

    # The hashes of the data are part of stage ids.
    suite, plan = plan_with_content(load_suite(suite_name), work, verify=False, out=sys.stderr)
    statuses = state.statuses(plan, work)
    return suite.name, [_planned_stage_state(work, i, statuses) for i in statuses]


def _planned_stage_state(work: Path, stage_id: str, statuses: Mapping[str, Status]) -> StageState:
    """The state of a stage of a plan; `statuses` are from `engine.state.statuses`."""
    from kdep_bench.engine import state

    status = statuses[stage_id]
    if owner := _owner(work, stage_id):
        return StageState(stage_id, "running", owner)
    if status.done:
        return StageState(stage_id, "done")
    if not status.run:
        return StageState(stage_id, "skipped", status.why)
    out = state.folder(work, stage_id)
    failure = state.failure(out)
    if failure:
        return StageState(stage_id, "failed", failure["error"])
    if (out / state.STAGE).exists():
        return StageState(stage_id, "damaged", status.why)
    if status.why == "interrupted":
        return StageState(stage_id, "interrupted")
    return StageState(stage_id, "left", status.why)


def work_dir_states(work: Path) -> list[StageState]:
    """The states of all stages that have a directory in the work dir, by id.

    Raises:
        KdepError: the work dir does not exist.
    """
    from kdep_bench.engine import state
    from kdep_bench.engine.work_dir import check_exists, stage_ids, stage_state

    check_exists(work)
    states = []
    for stage_id in sorted(stage_ids(work)):
        state_name, _, _ = stage_state(work, stage_id)
        failure = state.failure(work / stage_id) if state_name == "failed" else None
        detail = failure["error"] if failure else ""
        if state_name == "running":
            detail = _owner(work, stage_id)
        states.append(StageState(stage_id, state_name, detail))
    return states


def _owner(work: Path, stage_id: str) -> str:
    """The process that runs a stage; '' if none does."""
    from kdep_bench.engine.lock import StageLock

    lock = StageLock(work, stage_id)
    return lock.owner() if lock.is_held_by_any() else ""


def text(name: str, states: list[StageState], suite: str | None) -> str:
    """The states for a terminal: counts, then every stage that is not done, left or skipped."""
    counts = Counter(s.state for s in states)
    summary = ", ".join(f"{counts[k]} {k}" for k in STATES if counts[k] or k == "done")
    lines = [f"{name}: {len(states)} stages, {summary}"]
    for listed in STATES:
        if listed not in _COUNTED_STATES:
            lines += [
                f"{s.state:11s}  {s.id}  {s.detail}".rstrip() for s in states if s.state == listed
            ]
    if counts["failed"]:
        lines.append("the log of a stage: kdep-bench logs STAGE")
    if suite and len(states) > counts["done"] + counts["running"] + counts["skipped"]:
        lines.append(
            f"next: kdep-bench run {suite}; why a stage would run: kdep-bench why {suite} STAGE"
        )
    return "\n".join(lines)


def as_json(name: str, work: Path, states: list[StageState]) -> str:
    """The states as JSON."""
    counts = Counter(s.state for s in states)
    content = dict(
        name=name,
        work_dir=str(work),
        counts={k: counts[k] for k in STATES},
        stages=[asdict(s) for s in states],
    )
    return json.dumps(content, indent=1)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
