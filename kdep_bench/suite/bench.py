"""What the engine itself costs: planning, looking, starting. `python -m kdep_bench.suite.bench`.

Planning and looking are measured on 10,000 stages, starting on 1,000 stages that do nothing, each
in a process of its own. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdep_bench.console import leave
from kdep_bench.suite import execute, state
from kdep_bench.suite.config import build_suite
from kdep_bench.suite.kinds import StageKind
from kdep_bench.suite.plan import Plan, add_stage, build_plan

_NOTHING = {
    "nothing": StageKind("kdep_bench.suite.bench:nothing", cpus=1, cost=0.01, timeout=600),
}


def nothing(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """A stage that does nothing."""
    return {}


def large_plan(stages: int = 10_000) -> Plan:
    """The graph of a suite with about as many stages: every recipe is a true one."""
    seeds = max(1, round((stages / 16) ** 0.5))
    return build_plan(
        build_suite(
            {
                "name": "large",
                "data": "smoke",
                "teacher": "efficientnet_lite0",
                "students": ["resnet18_w32"],
                "methods": ["kdep", "svd"],
                "tasks": [{"base": "pocket_det", "name": f"det{k}"} for k in range(8)],
                "budget": {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}},
                "seeds": {"pretrain": list(range(seeds)), "transfer": list(range(seeds))},
            }
        )
    )


def planning(stages: int) -> dict[str, float]:
    """Seconds and peak memory (MB) of this process for a plan of so many stages."""
    begun = time.perf_counter()
    plan = large_plan(stages)
    spent = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"stages": len(plan.stages), "plan_s": spent, "plan_peak_mb": peak}


def pretend_done(plan: Plan, work: Path) -> None:
    """Gives every stage of the plan a stage.json with two files, as a real one has."""
    for stage in plan.stages.values():
        out = work / stage.id
        out.mkdir(parents=True)
        for name in ("weights.pth", "notes.json"):
            (out / name).write_text(stage.id)
        record = {
            "schema": state.SCHEMA,
            "id": stage.id,
            "kind": stage.kind,
            "name": stage.name,
            "spec": stage.spec,
            "needs": dict(stage.needs),
            "version": stage.version,
            "code": state.code_hash(stage.rooms),
            "wall_s": 1.0,
            "environment": {},
            "outputs": {"value": 0.5, "curves": {"loss": [[k, 0.5] for k in range(100)]}},
            "files": {n: [len(stage.id), "0" * 64] for n in ("weights.pth", "notes.json")},
            "rest": None,
        }
        # Not through write_stage: 10,000 fsyncs say nothing about looking.
        (out / state.STAGE).write_bytes(state.stage_text(record))


def looking(plan: Plan, work: Path) -> dict[str, float]:
    """Seconds to say of every stage whether it is done."""
    begun = time.perf_counter()
    known = state.statuses(plan, work)
    spent = time.perf_counter() - begun
    assert all(s.done for s in known.values())
    return {"status_s": spent}


def starting(stages: int, work: Path, jobs: int, preload: str) -> dict[str, float]:
    """Stages a second of a pool whose stages do nothing, and the start overhead of one."""
    plan = Plan("nothing")
    for k in range(stages):
        add_stage(plan, "nothing", f"n{k}", {"k": k}, kinds=_NOTHING)
    begun = time.perf_counter()
    options = execute.Options(jobs=jobs, cpus=jobs, preload=preload)
    outcome = execute.run_plan(plan, work, state.statuses(plan, work), options)
    spent = time.perf_counter() - begun
    assert outcome.ok, outcome
    records = [json.loads((work / i / state.STAGE).read_text()) for i in outcome.ran]
    starts = [r["start_s"] for r in records[1:]]
    return {
        "stages_run": stages,
        "stages_per_s": stages / spent,
        "start_first_s": records[0]["start_s"],
        "start_median_s": sorted(starts)[len(starts) // 2],
        "start_p99_s": sorted(starts)[len(starts) * 99 // 100],
    }


def main(argv: list[str] | None = None) -> int:
    """Prints the figures as text, or as JSON for programs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=10_000, help="to plan and to look at")
    parser.add_argument("--runs", type=int, default=1_000, help="stages that do nothing, to run")
    parser.add_argument("--jobs", type=int, default=execute.cpu_count())
    parser.add_argument(
        "--toolkits", action="store_true", help="import the toolkits in the fork server, as suites"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    preload = execute.PRELOAD if args.toolkits else "kdep_bench.suite.worker"
    with tempfile.TemporaryDirectory(prefix="kdep-bench-") as folder:
        work = Path(folder)
        got = planning(args.stages)
        plan = large_plan(args.stages)
        pretend_done(plan, work / "done")
        got |= looking(plan, work / "done")
        got |= starting(args.runs, work / "run", args.jobs, preload)
    if args.json:
        print(json.dumps(got))
        return 0
    print(f"planning {got['stages']} stages: {got['plan_s']:.2f} s, {got['plan_peak_mb']:.0f} MB")
    print(f"status of as many directories: {got['status_s']:.2f} s")
    print(
        f"{args.runs} stages that do nothing, {args.jobs} at once on {os.cpu_count()} cores: "
        f"{got['stages_per_s']:.1f} stages/s; start {got['start_median_s'] * 1000:.0f} ms in the "
        f"median, {got['start_p99_s'] * 1000:.0f} ms at the 99th percentile"
    )
    return 0


if __name__ == "__main__":
    leave(main)
