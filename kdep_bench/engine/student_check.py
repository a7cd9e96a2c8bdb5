"""Builds the students of a run before its first stage, so that a wrong config is found early.

Planning imports no torch, so it cannot compare `width` and `tap` of a student's config with its
network. Pre-training compares them, but only after the teacher cache, which can take hours.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

from kdep_bench.engine.fork_server import ForkServer
from kdep_bench.engine.stage_process import PR_SET_PDEATHSIG, set_threads
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json
from kdep_bench.suite.graph import Stage

_POLL = 0.05  # seconds


def check_students(
    server: ForkServer, stages: Iterable[Stage], is_stopped: Callable[[], bool]
) -> None:
    """Builds every student that one of `stages` pre-trains, in a fork of `server`.

    A fault other than a KdepError is left to the stage, whose log has the traceback.

    Raises:
        KdepError: a student's network does not have the width or the tap of its config.
    """
    students = {
        canonical_json(stage.spec["student"]): stage.spec["student"]
        for stage in stages
        if stage.kind == "pretrain"
    }
    if not students:
        return
    process, reader = server.launch(_check, list(students.values()), "students")
    while process.is_alive() and not reader.poll(_POLL) and not is_stopped():
        pass
    error = None
    with contextlib.suppress(EOFError, OSError):  # an empty pipe: all students are right
        error = reader.recv()
    reader.close()
    process.terminate()
    process.join()
    if isinstance(error, KdepError):
        raise error


def _check(students: list[dict[str, Any]], pipe: Any) -> None:
    """Body of the process: sends the first error through `pipe`."""
    # The process must end with the fork server; Ctrl-C is handled by the pool.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_threads(1)
    with contextlib.suppress(Exception):  # the stage fails with the same exception, and logs it
        for student in students:
            if error := student_error(student):
                pipe.send(error)
                break
    pipe.close()
    os._exit(0)  # skips the shutdown of the interpreter, which is slow with the toolkits


def student_error(student: dict[str, Any]) -> KdepError | None:
    """The error if the network of a student's config has another width or tap; otherwise None."""
    import torch

    from kdep_bench.pretrain.distiller import verified_network

    try:
        verified_network(student, torch.float32)
    except KdepError as e:
        problem = f"the student {student['name']!r} cannot be pre-trained: {e.problem}"
        return KdepError(problem, expected=e.expected, fix=e.fix)
    return None
