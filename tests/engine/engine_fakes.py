"""Fake stage functions and small plans for the engine's tests: real processes and files, no torch.

Every execution of a stage appends lines to `trace.log` in the work dir, so that a test can count
the executions.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdep_bench.engine import attempts, local_pool, state
from kdep_bench.errors import KdepError
from kdep_bench.suite.graph import Plan, add_stage
from kdep_bench.suite.kinds import KINDS as REAL_KINDS
from kdep_bench.suite.kinds import StageKind

HERE = Path(__file__).resolve().parent
KINDS: Mapping[str, StageKind] = {
    "make": StageKind("engine_fakes:make", 1, cost=1.0, timeout=600),
    "join": StageKind("engine_fakes:make", 1, cost=1.0, timeout=600),
    "grow": StageKind("engine_fakes:grow", 1, resumable=True, cost=1.0, timeout=600),
}
# Sizes and costs in the output `transfer` of a transfer method that quantises the network.
SIZES = {
    "bits": 4.0,
    "megabytes": 0.9,
    "megabytes_float32": 3.1,
    "bit_operations": 2e9,
    "bit_operations_float32": 3e10,
}
# That output.
QUANTISED = {"extra_parameters": 0, "extra_forwards": 0, "quantised": {"layers": []}, **SIZES}
# A preloaded module that is quick to import, in place of the toolkits.
FAST = local_pool.PoolOptions(jobs=2, cpus=2, preload="kdep_bench.engine.worker")


def trace(out: Path, event: str) -> None:
    """Appends `event`, the stage's folder, the time and the process id to trace.log."""
    with open(out.parent / "trace.log", "a") as file:
        file.write(f"{event} {out.name} {time.time():.4f} {os.getpid()}\n")


def steps(work: Path, stage_id: str) -> int:
    """The number of steps that a `grow` stage has taken, running or not."""
    path = attempts.current_dir(work, stage_id) / "steps.txt"
    with contextlib.suppress(OSError):
        return path.read_text().count("\n")
    return 0


def make(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Returns the sum of its inputs and its own value; `spec["do"]` selects a fault.

    Faults that their names do not explain:
        once: fails only in its first run.
        stubborn: ignores SIGTERM.
        wait: waits until the file `go` is in the work dir.
        orphan: leaves a child process.
        fill: writes 64 MiB.
    """
    trace(out, "begin")
    (out / "half.bin").write_bytes(b"x" * 1000)
    do = spec.get("do")
    if do == "raise":
        raise ValueError("a fault of the stage")
    if do == "kdep":
        raise KdepError("a wrong thing", expected="a right thing", fix="do it right")
    if do == "once" and not (out.parent / "second-try").exists():
        (out.parent / "second-try").touch()
        raise ValueError("only the first time")
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "sys.exit":
        sys.exit(0)
    if do == "os._exit":
        os._exit(0)
    if do == "nan":
        return {"value": float("nan")}
    if do == "none":
        return None  # type: ignore[return-value]
    if do == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
    while do == "wait" and not (out.parent / "go").exists():
        time.sleep(0.05)
    if do == "orphan":
        subprocess.Popen(["sleep", "54.321"])  # a test searches for this number
    if do == "fill":
        with open(out / "big.bin", "wb") as file:
            for _ in range(64):
                file.write(b"y" * (1 << 20))
    end = time.monotonic() + float(spec.get("sleep", 0))
    while time.monotonic() < end:
        progress(1, 2, "sleeping")
        time.sleep(0.02)
    total = spec.get("value", 0) + sum(int((p / "value.txt").read_text()) for p in inputs.values())
    (out / "value.txt").write_text(str(total))
    (out / "half.bin").unlink()
    progress(2, 2, "done")
    trace(out, "end")
    return {"value": total, "threads": int(os.environ["OMP_NUM_THREADS"])}


def grow(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """A resumable stage: appends one line per step and continues after the last one."""
    trace(out, "begin")
    steps_file = out / "steps.txt"
    first_step = len(steps_file.read_text().splitlines()) if steps_file.exists() else 0
    for k in range(first_step, spec["steps"]):
        with open(steps_file, "a") as file:
            file.write(f"{k}\n")
        progress(k + 1, spec["steps"])
        time.sleep(spec.get("sleep", 0.05))
    (out / "value.txt").write_text(str(spec["steps"]))
    trace(out, "end")
    return {"value": spec["steps"], "resumed_at": first_step}


def pretend(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Any stage of the real graph, with outputs of the real form and invented values."""
    trace(out, "begin")
    kind = out.name.partition("-")[0]
    (out / "made.txt").write_text(kind)
    if kind == "transfer":
        if (out.parent / "break-transfers").exists():
            raise KdepError("a broken transfer", expected="a whole one", fix="do it right")
        (out / "shown.png").write_bytes(b"png")
        return {
            "value": 0.25 + 0.01 * spec["seed"],
            "metric": spec["task"]["metric"],
            "metrics": {spec["task"]["metric"]: 0.25},
            "per_class": {"x": 0.5},
            "gate": {"coverage": 1.0, "matched": 3, "missing": [], "unexpected": []},
            "chance": 0.125,
            "curves": {"loss": [[k, 1.0 / (k + 1)] for k in range(1000)]},
            "pictures": ["shown.png"],
            "notes": [],
            **({"transfer": QUANTISED} if "bits" in (spec.get("transfer") or {}) else {}),
        }
    return {
        "prepare": {"fingerprint": "f" * 64, "source": "debian+pip"},
        "cache": {
            "teacher": {"name": "t", "checksum": "c" * 64, "width": 1280},
            "bytes": 1000,
            "fill_s": 5000.0,
        },
        "align": {
            "explained_variance_ratio": 0.9,
            "std_ratio_before": 5.0,
            "std_ratio_after_align": 8.0,
        },
        "pretrain": {
            "images": 10,
            "images_seen": 20,
            "steps": 2,
            "epochs": 2.0,
            "views": 1,
            "images_per_s": 3.0,
            "train_s": 7000.0,
            "std_ratio_after_transform": 2.0,
            "curves": {"pretrain_loss": [[1, 0.5]]},
        },
        "export": {"parameters": 7, "flops": 9},
    }.get(kind, {})


def wrong_parameters(spec: dict[str, Any]) -> dict[str, Any]:
    """A stage function with wrong parameters."""
    return {}


def diamond(**specs: Any) -> Plan:
    """The plan a -> b, c -> d; a keyword such as `b={"do": "raise"}` extends that stage's spec."""
    plan = Plan("diamond")
    a = add_stage(plan, "make", "a", {"value": 1, **specs.get("a", {})}, kinds=KINDS)
    b = add_stage(plan, "make", "b", {"value": 10, **specs.get("b", {})}, {"x": a}, kinds=KINDS)
    c = add_stage(plan, "make", "c", {"value": 100, **specs.get("c", {})}, {"x": a}, kinds=KINDS)
    add_stage(plan, "join", "d", specs.get("d", {}), {"l": b, "r": c}, kinds=KINDS)
    return plan


def chain(length: int, width: int = 1, **spec: Any) -> Plan:
    """A plan of `width` independent chains of `length` stages, named w0k0, w0k1, ..."""
    plan = Plan("chain")
    for chain_index in range(width):
        needs: dict[str, str] = {}
        for position in range(length):
            stage_id = add_stage(
                plan, "make", f"w{chain_index}k{position}", {"value": 1, **spec}, needs, kinds=KINDS
            )
            needs = {"x": stage_id}
    return plan


def id_of(plan: Plan, name: str) -> str:
    """The id of the stage of this name."""
    return next(s.id for s in plan.stages.values() if s.name == name)


def run(plan: Plan, work: Path, force: Any = None, **options: Any) -> local_pool.Outcome:
    """Runs the stages of the plan that are not done."""
    statuses = state.statuses(plan, work, force=force or (lambda _: False))
    from dataclasses import replace

    return local_pool.run_plan(plan, work, statuses, replace(FAST, **options))


def traced(work: Path, event: str = "begin") -> list[str]:
    """Names of the stages with this event ("begin" or "end") in trace.log, in order."""
    path = work / "trace.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[1].split("-")[1] for line in lines if line.startswith(event)]


# Every real stage kind, run by `pretend`.
PRETEND = {kind: StageKind("engine_fakes:pretend", cost=0.1, timeout=60) for kind in REAL_KINDS}


def main() -> None:
    """`python engine_fakes.py WORK PLAN [OPTIONS]`: a runner that a test can kill.

    PLAN is a Python expression of a plan, OPTIONS one of a dict of `PoolOptions`.
    """
    # `eval` is safe: the test wrote the expressions.
    work, plan, *options = Path(sys.argv[1]), *map(eval, sys.argv[2:])
    outcome = run(plan, work, **(options[0] if options else {}))
    print(sorted(outcome.ran), outcome.failed, outcome.signal, flush=True)
    sys.exit(128 + outcome.signal if outcome.signal else int(not outcome.ok))


if __name__ == "__main__":
    main()
