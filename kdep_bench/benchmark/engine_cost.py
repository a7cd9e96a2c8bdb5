"""Overhead of the engine: planning, status checks and starts of stages.

`make scale` writes results/scale.md. Planning and status checks are measured on 10,000 stages,
scheduling on 1,000 stages that do nothing. The start of a stage is measured twice: from a fork
server that has imported nothing else, and from one that has imported the toolkits, as in real
suites. This process imports no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdep_bench.console import run_main
from kdep_bench.engine import local_pool, machine, state
from kdep_bench.files import write_atomic
from kdep_bench.paths import OUTPUT, ROOT
from kdep_bench.suite.config import build_suite
from kdep_bench.suite.graph import Plan, add_stage
from kdep_bench.suite.kinds import StageKind
from kdep_bench.suite.plan import build_plan

Measures = dict[str, float]
_EMPTY_STAGE = {
    "nothing": StageKind(
        "kdep_bench.benchmark.engine_cost:empty_stage", cpus=1, cost=0.01, timeout=600
    ),
}


def empty_stage(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """A stage that does nothing."""
    return {}


def large_plan(stages: int = 10_000) -> Plan:
    """The plan of a suite with about `stages` stages, whose specs are as large as real ones."""
    # 16: 2 methods x 8 tasks are 16 transfers per pair of seeds, and there are seeds**2 pairs.
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


def peak_memory() -> int:
    """Peak resident memory of this process in bytes.

    Read from /proc, because ru_maxrss includes the peak of the parent process.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def time_planning(stages: int) -> tuple[Plan, Measures]:
    """Plans about `stages` stages.

    Returns:
        (the plan; its number of stages, the seconds of planning, this process's peak memory).
    """
    start = time.perf_counter()
    plan = large_plan(stages)
    seconds = time.perf_counter() - start
    return plan, {"stages": len(plan.stages), "plan_s": seconds, "plan_peak_bytes": peak_memory()}


def write_done_stages(plan: Plan, work: Path) -> None:
    """Writes a finished stage directory with two files for every stage of the plan."""
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
            "code": state.code_hash(stage.source_paths),
            "finished": "2026-01-01T00:00:00+00:00",
            "wall_s": 1.0,
            "peak_rss": 1,
            "environment": {},
            "outputs": {"value": 0.5, "curves": {"loss": [[k, 0.5] for k in range(100)]}},
            "files": {n: [len(stage.id), "0" * 64] for n in ("weights.pth", "notes.json")},
            "rest": None,
        }
        # `write_stage` would also call fsync, which takes minutes for 10,000 files.
        (out / state.STAGE).write_bytes(state.stage_text(record))


def time_status(plan: Plan, work: Path) -> Measures:
    """Seconds to determine the status of every stage."""
    start = time.perf_counter()
    statuses = state.statuses(plan, work)
    seconds = time.perf_counter() - start
    assert all(status.done for status in statuses.values())
    return {"status_s": seconds}


def time_starts(stages: int, work: Path, jobs: int, preload: str) -> Measures:
    """Runs stages that do nothing; returns the stages per second and the seconds of a start.

    A start is the time from the pool's request to the call of the stage function.

    Args:
        stages: number of stages.
        work: work dir.
        jobs: stages in parallel.
        preload: module that the fork server imports.
    """
    plan = Plan("nothing")
    for k in range(stages):
        add_stage(plan, "nothing", f"n{k}", {"k": k}, kinds=_EMPTY_STAGE)
    start = time.perf_counter()
    options = local_pool.PoolOptions(jobs=jobs, cpus=jobs, preload=preload)
    outcome = local_pool.run_plan(plan, work, state.statuses(plan, work), options)
    seconds = time.perf_counter() - start
    assert outcome.ok, outcome
    records = [json.loads((work / i / state.STAGE).read_text()) for i in outcome.ran]
    starts = [r["start_s"] for r in records[1:]]  # the first may include the start of the server
    return {
        "run": stages,
        "per_s": stages / seconds,  # stages per second
        "median_s": sorted(starts)[len(starts) // 2],
        "p99_s": sorted(starts)[len(starts) * 99 // 100],
    }


def import_seconds(module: str) -> float:
    """Seconds of a new Python process that imports `module`; the fork server saves this time."""
    start = time.perf_counter()
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    command = [sys.executable, "-c", f"import {module}"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    return time.perf_counter() - start


def table(measured: dict[str, Measures]) -> str:
    """The measurements and their targets as Markdown."""
    planning, bare, toolkits = measured["plan"], measured["bare"], measured["toolkits"]
    jobs, stages = f"{measured['machine']['jobs']:.0f}", f"{planning['stages']:,.0f}"

    def row(measure: str, value: float, unit: str, target: float | None = None) -> str:
        digits = 2 if unit == "s" and value < 10 else 1 if value < 100 else 0
        shown = f"{value:.{digits}f} {unit}"
        if target is None:
            return f"| {measure} |  | {shown} |  |"
        met = "yes" if value < target else "no"
        return f"| {measure} | < {target:g} {unit} | {shown} | {met} |"

    rows = [
        row(f"planning {stages} stages", planning["plan_s"], "s", 2),
        row("peak memory of that process", planning["plan_peak_bytes"] / 1e6, "MB", 300),
        row(f"status of {stages} stages", planning["status_s"], "s", 2),
        row(f"{bare['run']:,.0f} empty stages, {jobs} in parallel", bare["per_s"], "stages/s"),
        row("start of a stage, median", bare["median_s"] * 1e3, "ms"),
        row("start of a stage, 99th percentile", bare["p99_s"] * 1e3, "ms"),
        row("start of a stage with the toolkits, median", toolkits["median_s"] * 1e3, "ms", 300),
        row(
            "start of a stage with the toolkits, 99th percentile",
            toolkits["p99_s"] * 1e3,
            "ms",
            300,
        ),
        row("importing the toolkits in a new process", toolkits["import_s"], "s"),
    ]
    return f"""# Overhead of the engine

The engine plans the stages of a suite, determines which of them are done, and starts the others in
new processes. `python -m kdep_bench.benchmark.engine_cost` (`make scale`) on {os.cpu_count()} cores
of {processor()}, load {measured["machine"]["load"]:.1f} at the start:

| measure | target | measured | met |
|---|---|---:|---|
{chr(10).join(rows)}

Start of a stage: time from the request for a new process to the call of the stage function in it.
With the toolkits: the process is forked from one that has imported torch, mmengine, mmpretrain,
mmdet and mmseg, as for the stages of every suite ({toolkits["run"]:.0f} starts here).
"""


def processor() -> str:
    """Name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "an unknown processor"


def main(argv: list[str] | None = None) -> int:
    """Measures, writes the table and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=10_000, help="stages to plan and check")
    parser.add_argument("--runs", type=int, default=1_000, help="empty stages to run")
    parser.add_argument(
        "--starts",
        type=int,
        default=100,
        help="empty stages to start from the toolkits' fork server",
    )
    parser.add_argument("--jobs", type=int, default=machine.cpu_count(), help="parallel stages")
    parser.add_argument("--toolkits", default=local_pool.PRELOAD, help=argparse.SUPPRESS)
    parser.add_argument(
        "--out", type=Path, default=OUTPUT / "results" / "scale.md", help="output file"
    )
    args = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kdep-bench-") as folder:
        work = Path(folder)
        plan, planned = time_planning(args.stages)
        write_done_stages(plan, work / "done")
        planned |= time_status(plan, work / "done")
        bare = time_starts(args.runs, work / "bare", args.jobs, "kdep_bench.engine.worker")
        toolkits = time_starts(args.starts, work / "toolkits", args.jobs, args.toolkits)
        toolkits["import_s"] = import_seconds(args.toolkits)
    conditions = {"jobs": args.jobs, "load": load}
    report = table({"machine": conditions, "plan": planned, "bare": bare, "toolkits": toolkits})
    write_atomic(args.out, report.encode())
    print(report, end="")
    return 0


if __name__ == "__main__":
    run_main(main)
