"""Runs the checks within a time budget; the results are written after each check.

Each check runs in a forked process with a time limit, so that a hang, a crash or a lack of memory
ends only that check. Checks run one after another; in a quick run, whose figures are not used, two
run at once. The parent process imports torch and the toolkits once, with all GPUs hidden (see
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
BUDGET = 480.0  # seconds for all checks
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def run_checks(
    device: str,
    gpus: tuple[str, ...],
    out: Path,
    *,
    quick: bool,
    budget: float = BUDGET,
    only: list[str] | None = None,
    start_time: float | None = None,
    machine: Json | None = None,
    print_line: Callable[[str], object] = print,
) -> Json:
    """Runs the checks in order of importance; returns the content of `gpu_check.json` in `out`.

    Args:
        device: "cuda" or "cpu".
        gpus: device numbers that the checks may use.
        out: folder for the results.
        quick: see `Setting`.
        budget: seconds for all checks, counted from `start_time`.
        only: names of checks; None: all.
        start_time: time.monotonic() at which the budget begins; None: now.
        machine: description of the machine for the report: item -> text.
        print_line: prints a line of progress.
    """
    start_time = time.monotonic() if start_time is None else start_time
    selected = {name: check for name, check in checks().items() if only is None or name in only}
    out.mkdir(parents=True, exist_ok=True)
    result: Json = {"device": device, "quick": quick, "machine": machine or {}, "checks": {}}
    _preload()

    def record(name: str, check_result: Json) -> None:
        """Adds the result of a check, and writes all results and the report."""
        title = selected[name].title
        result["checks"][name] = {"title": title, **check_result}
        result["seconds"] = round(time.monotonic() - start_time, 1)
        _write(result, out)
        print_line(
            f"  {title}: {check_result['status']}"
            + (f": {check_result['why']}" if check_result.get("why") else "")
        )

    # Two checks at once disturb each other's times, but the times of a quick run are not used.
    waiting, running, max_running = list(selected), [], 2 if quick else 1
    while waiting or running:
        while waiting and len(running) < max_running:
            name = waiting.pop(0)
            check, remaining = selected[name], budget - (time.monotonic() - start_time)
            if remaining < check.min_seconds:
                print_line(f"{check.title}: left out")
                record(name, _left_out(check, remaining))
                continue
            print_line(f"{check.title}: {remaining:.0f} s left")
            # In a quick run two checks share a CPU, so each gets more time.
            limit = min(remaining, check.seconds * (4 if quick else 1))
            running.append(Running.start(name, check, device, gpus, quick, out, limit))
        for ended in _wait(running):
            running.remove(ended)
            record(ended.name, ended.result())
    shutil.rmtree(out / "work", ignore_errors=True)
    result["checks"] = {name: result["checks"][name] for name in selected}
    _write(result, out)
    return result


def _write(result: Json, out: Path) -> None:
    """Writes the results and the report."""
    write_json(out / RESULT, result)
    write_report(result, out / REPORT)


def _left_out(check: Check, remaining: float) -> Json:
    """The result of a check that is not run, because only `remaining` seconds remain."""
    why = f"{max(remaining, 0):.0f} s were left and it takes {check.min_seconds:.0f} s or more"
    return {"status": "left out", "why": why}


def failed(result: Json) -> int:
    """Number of checks that failed or were interrupted, plus number of claims that do not hold."""
    results = result["checks"].values()
    n_failed = sum(check["status"] in ("failed", "interrupted") for check in results)
    n_false = sum(not claim["ok"] for check in results for claim in check.get("claims", ()))
    return n_failed + n_false


def _preload() -> None:
    """Imports common modules once for all forks, with all GPUs hidden."""
    devices.hide_gpus()
    from kdep_bench import openmmlab

    openmmlab.setup("mmpretrain", switch=True)
    import timm  # noqa: F401  (teachers and students; 1.5 s in every check otherwise)


@dataclass(eq=False)
class Running:
    """A check that runs in a separate process.

    Attributes:
        name: name of the check.
        setting: its input.
        child: the process.
        start_time: time.monotonic() of its start.
        limit: seconds after which it is ended.
    """

    name: str
    setting: Setting
    child: Any
    start_time: float
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
        return self.start_time + self.limit - time.monotonic()

    def result(self) -> Json:
        """Status and measurements of the check; ends it if it still runs."""
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
        return {**status, "seconds": round(time.monotonic() - self.start_time, 1), **measured}


def _wait(running: list[Running]) -> list[Running]:
    """Waits until a check has ended or reached its limit; returns all such checks."""
    timeout = max(0.0, min((check.seconds_left for check in running), default=0.0))
    ended = connection.wait([check.child.sentinel for check in running], timeout=timeout)
    for check in running:
        if check.child.sentinel in ended:
            check.child.join()  # the exit code is available only after this
    return [c for c in running if c.child.sentinel in ended or c.seconds_left <= 0]


def _use_one_thread() -> None:
    """Sets torch to one thread: on a busy CPU several threads are slower than one."""
    torch = sys.modules.get("torch")  # imported by `_preload`
    if torch is not None:
        torch.set_num_threads(1)


def _end(child: Any) -> None:
    """Ends a check and all processes that it started, which form one process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            return
        child.join(_GRACE)
        if not child.is_alive():
            return


def _work(check: Check, setting: Setting) -> None:
    """Body of a check's process; writes its output to log.txt and its error to error.txt."""
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
            _use_one_thread()
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
