"""Fork server: it has torch and the toolkits in memory and forks a new child for each request.

`__main__.py` starts it in a copy of the repository: a planted fault is in every process that a test
starts, and no file outside the copy changes. It reads one JSON object per line from stdin and
writes one answer per line to stdout:

    {"map": "tests/x/test_y.py", "calls": "..."}  ->  {"rc": 0, "seconds": 12.3}
    {"file": "kdep_bench/a.py", "source": "...", "tests": [...], "limit": 90}
                                                   ->  {"result": "noticed", "by": "tests/..."}
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBRARIES = (
    "pytest",
    "hypothesis.extra.numpy",
    "scipy.stats",
    "scipy.optimize",
    "sklearn.linear_model",
    "tests.transfer.preload",
    "mmengine.runner",
    "tests.mutation.child",
)

PARENT = os.getppid()  # when this process has ended, the server ends, too


def preload() -> None:
    """Imports the libraries. Of kdep_bench it imports only the replacements of mmcv's operators."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    import gc

    gc.freeze()


def in_child(work: Callable[[], int], tree: Path, log: Path, limit: float) -> int | None:
    """Exit code of `work` in a forked process; None if it took more than `limit` seconds.

    The limit is CPU time of the child; by the clock it may take ten times as long, as a test on a
    busy machine has to wait.
    """
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
            from tests.mutation import child

            child.enter(tree, log)
            code = work()
        except BaseException as e:
            print(f"mutation: {type(e).__name__}: {e}", flush=True)
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + 10 * limit
    code = None
    while time.monotonic() < end and os.getppid() == PARENT:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            code = None if code == -signal.SIGXCPU else code
            break
        time.sleep(0.02)
    for process in (lambda: os.killpg(pid, signal.SIGKILL), lambda: os.waitpid(pid, 0)):
        try:
            process()
        except (ProcessLookupError, ChildProcessError, PermissionError):
            continue
    return code


def answer(request: dict[str, Any], tree: Path, work: Path) -> dict[str, Any]:
    """Carries out one request."""
    log = work / "child.log"
    began = time.monotonic()
    if "map" in request:
        from tests.mutation import child

        job = lambda: child.map_calls([request["map"]], Path(request["calls"]), tree)  # noqa: E731
        code = in_child(job, tree, log, 3600)
        return {"rc": code, "seconds": round(time.monotonic() - began, 1)}
    last = work / "last"
    last.unlink(missing_ok=True)
    path = tree / request["file"]
    original, stat = path.read_bytes(), path.stat()
    compiled = Path(importlib.util.cache_from_source(str(path)))
    compiled.unlink(missing_ok=True)
    try:
        path.write_text(request["source"])
        from tests.mutation import child

        code = in_child(
            lambda: child.try_fault(request["tests"], last), tree, log, request["limit"]
        )
    finally:
        path.write_bytes(original)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        compiled.unlink(missing_ok=True)
    by = last.read_text() if last.exists() else "import"
    # pytest returns 0 if all tests passed, and 5 if it collected none.
    result = "unnoticed" if code in (0, 5) else "noticed"
    if code is None:
        result, by = "noticed", f"{by} (time limit)"
    seconds = round(time.monotonic() - began, 1)
    return {"result": result, "by": by if result == "noticed" else "", "rc": code, "s": seconds}


def main() -> None:
    """Answers requests until stdin ends."""
    tree, work = Path.cwd(), Path(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    preload()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for line in sys.stdin:
        request = json.loads(line)
        sys.dont_write_bytecode = "map" not in request
        if os.getppid() != PARENT:
            return
        replies.write(json.dumps(answer(request, tree, work)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
