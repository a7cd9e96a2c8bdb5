"""Runs the checks within a time budget; measurements are written after each check.

Each check runs in a forked process with a time limit, so that a hang, crash or lack of memory ends
only that check. Checks run one after another; in a quick run, whose figures are not used, two run
at once. The parent process imports torch and the toolkits once, with every GPU hidden (see
kdep_bench/devices.py), so that a check starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from kdep_bench import devices
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json
from kdep_bench.gpu_check.base import Check, Json, Measurements, Setting, checks
from kdep_bench.gpu_check.report import REPORT, write_report

RESULT = "gpu_check.json"
BUDGET = 480.0
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


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
    """Runs the checks in order of importance; returns the content of `gpu_check.json` in `out`.

    Args:
        gpus: device numbers the checks may use.
        quick: see `Setting`.
        budget: seconds for all checks, counted from `began` (a time.monotonic()).
        only: names of checks; all by default.
        machine: item -> text, for the head of the report.
        say: prints a line of progress.
    """
    began = time.monotonic() if began is None else began
    chosen = {n: c for n, c in checks().items() if only is None or n in only}
    out.mkdir(parents=True, exist_ok=True)
    result: Json = {"device": device, "quick": quick, "machine": machine or {}, "checks": {}}
    _preload()

    def record(name: str, check_result: Json) -> None:
        """Adds a result and writes result and report again."""
        title = chosen[name].title
        result["checks"][name] = {"title": title, **check_result}
        result["seconds"] = round(time.monotonic() - began, 1)
        _write(result, out)
        say(
            f"  {title}: {check_result['status']}"
            + (f": {check_result['why']}" if check_result.get("why") else "")
        )

    # Two checks at once disturb each other's times, which only a quick run does not use.
    waiting, running, at_once = list(chosen), [], 2 if quick else 1
    while waiting or running:
        while waiting and len(running) < at_once:
            name = waiting.pop(0)
            check, left = chosen[name], budget - (time.monotonic() - began)
            if left < check.least:
                say(f"{check.title}: left out")
                record(name, _left_out(check, left))
                continue
            say(f"{check.title}: {left:.0f} s left")
            limit = min(left, check.seconds * (4 if quick else 1))  # a shared CPU is slow
            running.append(Running.start(name, check, device, gpus, quick, out, limit))
        for ended in _wait(running):
            running.remove(ended)
            record(ended.name, ended.result())
    shutil.rmtree(out / "work", ignore_errors=True)
    result["checks"] = {name: result["checks"][name] for name in chosen}
    _write(result, out)
    return result


def _write(result: Json, out: Path) -> None:
    """Writes the results and the report."""
    write_json(out / RESULT, result)
    write_report(result, out / REPORT)


def _left_out(check: Check, left: float) -> Json:
    """The result of a check for which only `left` seconds remain."""
    why = f"{max(left, 0):.0f} s were left and it takes {check.least:.0f} s or more"
    return {"status": "left out", "why": why}


def failed(result: Json) -> int:
    """Number of failed or interrupted checks and of claims that do not hold."""
    broken = sum(c["status"] in ("failed", "interrupted") for c in result["checks"].values())
    false = sum(not row["ok"] for c in result["checks"].values() for row in c.get("claims", ()))
    return broken + false


def _preload() -> None:
    """Imports common modules once for all forks, with every GPU hidden."""
    devices.hide_gpus()
    from kdep_bench import openmmlab

    openmmlab.setup("mmpretrain", switch=True)
    import timm  # noqa: F401  (teachers and students; 1.5 s in every check otherwise)


@dataclass(eq=False)
class Running:
    """A check in a separate process, ended after `limit` seconds."""

    name: str
    setting: Setting
    child: Any
    began: float
    limit: float

    @classmethod
    def start(
        cls,
        name: str,
        check: Check,
        device: str,
        gpus: tuple[str, ...],
        quick: bool,
        out: Path,
        limit: float,
    ) -> Running:
        """Starts the check in a new folder of `out`/work."""
        folder = out / "work" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shared = out / "work" / "shared"
        setting = Setting(device, gpus, quick, folder, shared, folder / "partial.json")
        child = multiprocessing.get_context("fork").Process(target=_work, args=(check, setting))
        child.start()
        return cls(name, setting, child, time.monotonic(), limit)

    @property
    def seconds_left(self) -> float:
        """Seconds until the limit."""
        return self.began + self.limit - time.monotonic()

    def result(self) -> Json:
        """Status and measurements; a check that still runs is ended."""
        folder = self.setting.folder
        if self.child.is_alive():
            _end(self.child)
            status = {"status": "interrupted", "why": f"not done after {self.limit:.0f} s"}
        elif (folder / "error.txt").is_file():
            status = {"status": "failed", "why": (folder / "error.txt").read_text()}
        elif self.child.exitcode:
            why = f"its process ended with status {self.child.exitcode}"
            status = {"status": "failed", "why": why}
        else:
            status = {"status": "done"}
        partial, log = self.setting.partial, folder / "log.txt"
        measured = read_json(partial) if partial.is_file() else {}
        if status["status"] != "done" and log.is_file():
            status["log"] = log.read_text(errors="replace")[-2000:]
        shutil.rmtree(folder, ignore_errors=True)
        return {**status, "seconds": round(time.monotonic() - self.began, 1), **measured}


def _wait(running: list[Running]) -> list[Running]:
    """The checks that have ended or have no time left; waits for the first."""
    left = min((r.seconds_left for r in running), default=0.0)
    ended = connection.wait([r.child.sentinel for r in running], timeout=max(0.0, left))
    for r in running:
        if r.child.sentinel in ended:
            r.child.join()  # the sentinel is ready a moment before the exit code is
    return [r for r in running if r.child.sentinel in ended or r.seconds_left <= 0]


def _one_thread() -> None:
    """One thread: on a busy CPU, threads that wait for each other are many times slower."""
    torch = sys.modules.get("torch")  # imported by `_preload`
    if torch is not None:
        torch.set_num_threads(1)


def _end(child: Any) -> None:
    """Ends a check and all processes it started, which are one process group."""
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
        check.run(setting, Measurements(setting))
    except KdepError as e:
        error = str(e)
    except Exception as e:
        traceback.print_exc()
        error = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    if error is not None:
        (setting.folder / "error.txt").write_text(error)
    sys.stdout.flush()
    os._exit(0)
