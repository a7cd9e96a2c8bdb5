"""Runs the checks within a budget of seconds; what was measured is on disk after each of them.

Each check runs in a forked process with a time limit, so that one that hangs, crashes or fills the
memory ends alone: one after another, or two at once in a quick run, whose figures mean nothing.
The process that forks imports torch and the toolkits once, with every GPU hidden (see
kdep_bench/devices.py), so that a check begins in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kdep_bench import devices
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.gpu_check.base import Check, Json, Outcome, Setting, checks
from kdep_bench.gpu_check.report import REPORT, write_report

RESULT = "gpu_check.json"
BUDGET = 480.0
_GRACE = 5.0  # seconds a check is given to end after it was asked to


def run_checks(
    device: str,
    gpus: tuple[str, ...],
    out: Path,
    *,
    quick: bool,
    budget: float = BUDGET,
    only: list[str] | None = None,
    began: float | None = None,
    machine: Json | None = None,
    say: Callable[[str], object] = print,
) -> Json:
    """Runs the checks in order of value; returns what `gpu_check.json` in `out` holds.

    Args:
        gpus: device numbers the checks may use.
        quick: see `Setting`.
        budget: seconds for all, from `began` (a time.monotonic()).
        only: names of checks; all by default.
        machine: facts of the machine for the head of the report.
    """
    began = time.monotonic() if began is None else began
    chosen = {n: c for n, c in checks().items() if only is None or n in only}
    out.mkdir(parents=True, exist_ok=True)
    result: Json = {"device": device, "quick": quick, "machine": machine or {}, "checks": {}}
    _preload()

    def outcome(name: str) -> Json:
        check, left = chosen[name], budget - (time.monotonic() - began)
        say(f"{check.title}: " + (f"{left:.0f} s left" if left >= check.least else "left out"))
        if left < check.least:
            why = f"{max(left, 0):.0f} s were left and it takes {check.least:.0f} s or more"
            return {"status": "left out", "why": why}
        limit = min(left, check.seconds * (4 if quick else 1))  # a shared CPU is slow
        return _one(name, check, device, gpus, quick, out, limit)

    # Only the figures of a quick run mean nothing, so only there may two checks share the machine.
    with ThreadPoolExecutor(2 if quick else 1) as pool:
        outcomes = pool.map(outcome, chosen) if quick else map(outcome, chosen)
        _collect(chosen, outcomes, result, out, began, say)
    shutil.rmtree(out / "work", ignore_errors=True)
    return result


def _collect(
    chosen: dict[str, Check],
    outcomes: Iterable[Json],
    result: Json,
    out: Path,
    began: float,
    say: Callable[[str], object],
) -> None:
    """Writes the result and the report anew after each check."""
    for (name, check), found in zip(chosen.items(), outcomes, strict=True):
        result["checks"][name] = {"title": check.title, **found}
        result["seconds"] = round(time.monotonic() - began, 1)
        write_json(out / RESULT, result)
        write_report(result, out / REPORT)
        state = found["status"] + (f": {found['why']}" if found.get("why") else "")
        say(f"  {check.title}: {state}")


def failed(result: Json) -> int:
    """How many checks broke, and claims that do not hold."""
    broken = sum(c["status"] in ("failed", "interrupted") for c in result["checks"].values())
    false = sum(not row["ok"] for c in result["checks"].values() for row in c.get("claims", ()))
    return broken + false


def _preload() -> None:
    """Imports what the checks share, so that forks have it; sees no GPU."""
    devices.hide_gpus()
    from kdep_bench import openmmlab

    openmmlab.setup("mmpretrain", switch=True)
    import timm  # noqa: F401  (teachers and students; 1.5 s in every check otherwise)


def _one(
    name: str,
    check: Check,
    device: str,
    gpus: tuple[str, ...],
    quick: bool,
    out: Path,
    limit: float,
) -> Json:
    """One check in a process of its own, ended after `limit` seconds."""
    folder = out / "work" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared = out / "work" / "shared"
    setting = Setting(device, gpus, quick, folder, shared, folder / "partial.json")
    start = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=_work, args=(check, setting))
    child.start()
    child.join(limit)
    if child.is_alive():
        _end(child)
        found = {"status": "interrupted", "why": f"not done after {limit:.0f} s"}
    elif (folder / "error.txt").is_file():
        found = {"status": "failed", "why": (folder / "error.txt").read_text()}
    elif child.exitcode:
        found = {"status": "failed", "why": f"its process ended with status {child.exitcode}"}
    else:
        found = {"status": "done"}
    measured = read_json(setting.partial) if setting.partial.is_file() else {}
    log = folder / "log.txt"
    if found["status"] != "done" and log.is_file():
        found["log"] = log.read_text(errors="replace")[-2000:]
    shutil.rmtree(folder, ignore_errors=True)
    return {**found, "seconds": round(time.monotonic() - start, 1), **measured}


def _one_thread() -> None:
    """On a CPU that others use too, threads that wait for each other take minutes for seconds."""
    torch = sys.modules.get("torch")  # imported by `_preload`
    if torch is not None:
        torch.set_num_threads(1)


def _end(child: Any) -> None:
    """Ends a check and all that it started: it leads a process group of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        child.join(_GRACE)
        if not child.is_alive():
            return


def _work(check: Check, setting: Setting) -> None:
    """The body of a check's process: its output goes to a log, its error to a file."""
    os.setpgid(0, 0)
    log = os.open(setting.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    error = None
    try:
        devices.show_gpus(setting.gpus if setting.device == "cuda" else ())
        if setting.device == "cuda":
            devices.check_gpus(setting.gpus)
        else:
            _one_thread()
        check.run(setting, Outcome(setting))
    except KdepError as e:
        error = str(e)
    except Exception as e:
        traceback.print_exc()
        error = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    if error is not None:
        (setting.folder / "error.txt").write_text(error)
    sys.stdout.flush()
    os._exit(0)
