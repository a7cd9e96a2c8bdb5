"""The log of a search, a file of JSON lines: first the settings, then one line per trial.

Lines are only appended. A trial is logged when it has ended. An interrupted trial is proposed
again, and its finished stages are reused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdep_bench.errors import KdepError, fault_text, first_of
from kdep_bench.files import canonical_json, parse_strict, read_bytes, text_hash
from kdep_bench.safe_files import open_regular

Json = dict[str, Any]
MAX_BYTES = 256 << 20  # largest log that is read


class _Line(BaseModel):
    """Base class of the lines: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Header(_Line):
    """The first line, which identifies the search.

    Attributes:
        search: name of the search.
        settings: all settings that its scores and proposals depend on.
        hash: hash of `settings`.
    """

    search: str
    settings: Json
    hash: str


class Trial(_Line):
    """A proposal and its result.

    Attributes:
        trial: its number, from 0.
        state: 'complete' (scored at the last rung), 'pruned' (stopped at an earlier rung), 'failed'
            (a stage failed, or the score is not a finite number), 'over_limit' (not trained,
            because the student is above the limits).
        proposal: {key of a dimension: value}.
        student: name of the student.
        params, flops: size of the student.
        epochs: epochs of the last pre-training; None for 'over_limit'.
        scores: the score at each rung.
        stages: {kind: stage id} of the last rung.
        error: the error of a failed trial.
    """

    trial: int
    state: Literal["complete", "pruned", "failed", "over_limit"]
    proposal: Json
    student: str
    params: Annotated[int, Field(ge=0)]
    flops: Annotated[int, Field(ge=0)]
    epochs: float | None = None
    scores: list[float] = []
    stages: dict[str, str] = {}
    error: str = ""

    @property
    def score(self) -> float | None:
        """The last score, or None."""
        return self.scores[-1] if self.scores else None

    @property
    def trained(self) -> bool:
        """Whether training was tried; only such trials count as evaluations."""
        return self.state != "over_limit"


def make_header(search: str, settings: Json) -> Header:
    """The first line of a log."""
    return Header(search=search, settings=settings, hash=text_hash(canonical_json(settings)))


@dataclass(frozen=True)
class Log:
    """The content of a log.

    Attributes:
        path: its file.
        header: the first line.
        trials: the lines after the header.
        n_bytes: length of the complete lines.
        is_torn: whether an incomplete line follows.
    """

    path: Path
    header: Header
    trials: Sequence[Trial]
    n_bytes: int
    is_torn: bool


def read(path: Path) -> Log | None:
    """Reads a log; None if the file is missing or has no complete line.

    A last line without a line feed is ignored: writing it was interrupted.

    Raises:
        KdepError: a damaged line, or trials that are not numbered 0, 1, 2, ...
    """
    if not path.exists():
        return None
    raw = read_bytes(path, MAX_BYTES)
    n_bytes = raw.rfind(b"\n") + 1
    lines = raw[:n_bytes].split(b"\n")[:-1]
    if not lines:
        return None
    header = _parse(Header, lines[0], path, 1)
    if text_hash(canonical_json(header.settings)) != header.hash:
        raise _damaged(path, 1, "its hash does not match its settings")
    trials = [_parse(Trial, line, path, number) for number, line in enumerate(lines[1:], 2)]
    for expected, trial in enumerate(trials):
        if trial.trial != expected:
            raise _damaged(path, expected + 2, f"trial {trial.trial} in place of {expected}")
        if trial.state == "complete" and not trial.scores:
            raise _damaged(path, expected + 2, "a complete trial without a score")
    return Log(path, header, trials, n_bytes, n_bytes < len(raw))


def _parse(model: Any, line: bytes, path: Path, number: int) -> Any:
    """Parses a line as `model`; raises KdepError with the line number if it is damaged."""
    try:
        return model.model_validate(parse_strict(line, f"{path}:{number}"))
    except KdepError as e:
        raise _damaged(path, number, e.problem) from None
    except ValidationError as e:
        fault = e.errors(include_url=False)[0]
        field_path = ".".join(map(str, fault["loc"]))
        raise _damaged(path, number, f"{field_path}: {fault_text(fault)}") from None


def _damaged(path: Path, line: int, why: str) -> KdepError:
    """The error for a damaged line."""
    return KdepError(
        f"line {line} of the log {path} is damaged ({why[:200]})",
        fix="restore the file from a copy, or name another file with --log: finished stages are "
        "reused",
    )


def check_settings(log: Log, header: Header) -> None:
    """Raises KdepError if a log has other settings than `header`; the error names differences."""
    if log.header.hash == header.hash:
        return
    from kdep_bench.engine.state import differences

    changes = differences(log.header.settings, header.settings)
    raise KdepError(
        f"the log {log.path} belongs to another search: {first_of(changes, 3)}",
        expected=f"the log of {header.search!r} with settings hash {header.hash}; this log is of "
        f"{log.header.search!r}, hash {log.header.hash}",
        fix="undo the change, or name another file with --log",
    )


def best(trials: Sequence[Trial], settings: Mapping[str, Any]) -> Trial | None:
    """The complete trial within the limits that has the best score, or None.

    A contraction (contraction.py) also trains students above the limits in its earlier steps; they
    are never the best. Of trials with equal scores, the one with the fewest FLOPs is chosen, then
    the one with the fewest parameters, then the first.

    Args:
        trials: of the log.
        settings: of the log; `direction` and `limits` are read, and without `limits` there are
            none.
    """
    sign = -1 if settings["direction"] == "max" else 1
    limits = {k: v for k, v in (settings.get("limits") or {}).items() if v is not None}
    complete = [
        t
        for t in trials
        if t.state == "complete"
        and math.isfinite(t.scores[-1])
        and all(getattr(t, name) <= limit for name, limit in limits.items())
    ]
    return min(
        complete, key=lambda t: (sign * t.scores[-1], t.flops, t.params, t.trial), default=None
    )


def _encoded(line: Header | Trial) -> bytes:
    """The text of a line in UTF-8, with a line feed."""
    text = json.dumps(line.model_dump(), sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()


def _check_is_start(path: Path, raw: bytes, header: Header) -> None:
    """Checks the content `raw` of a file that has no complete line.

    Raises:
        KdepError: it is not a beginning of the header's line, whose writing was interrupted.
    """
    if not _encoded(header).startswith(raw):
        raise KdepError(
            f"the file {path} is not the log of a search",
            fix="name another file with --log; this one is not changed",
        )


class Writer:
    """Appends lines to a log."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def append(self, line: Header | Trial) -> None:
        """Writes one line and waits until it is on the disk."""
        data = _encoded(line)
        while data:
            data = data[os.write(self._fd, data) :]
        os.fsync(self._fd)


@contextlib.contextmanager
def writing(path: Path, header: Header) -> Iterator[tuple[Writer, Log | None]]:
    """Opens a log for appending, or creates it; yields (writer, the log so far or None).

    An incomplete last line is removed.

    Raises:
        KdepError: another process writes the log, the log is damaged, or it has other settings.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, follow=True)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KdepError(
                f"another process writes the log {path}",
                fix="wait until it has ended, or name another file with --log",
            ) from None
        log, writer = read(path), Writer(fd)
        if log is not None:
            check_settings(log, header)
        if log is None:
            _check_is_start(path, os.pread(fd, MAX_BYTES, 0), header)
        os.ftruncate(fd, 0 if log is None else log.n_bytes)
        if log is None:
            writer.append(header)
        yield writer, log
    finally:
        os.close(fd)


def summary(trials: Sequence[Trial], settings: Mapping[str, Any]) -> str:
    """A text with the number of trials by state, and the best trial.

    Raises:
        KdepError: no complete trial is within the limits.
    """
    counts = dict.fromkeys(("complete", "pruned", "failed", "over_limit"), 0)
    for trial in trials:
        counts[trial.state] += 1
    # The state 'over_limit' is shown as "over the limit".
    text = ", ".join(f"{n} {state.replace('_', ' the ')}" for state, n in counts.items())
    chosen = best(trials, settings)
    if chosen is None:
        errors = [t.error.partition(" Fix: ")[0].rstrip(".") for t in trials if t.error]
        raise KdepError(
            f"the search has no best trial: none of its {len(trials)} is complete and within the "
            f"limits ({text})" + (f"; the last error: {errors[-1][:300]}" if errors else ""),
            fix="run more trials (--trials)"
            if not errors
            else "correct the cause of the error, and run more trials (--trials)",
        )
    values = ", ".join(f"{k} = {v}" for k, v in sorted(chosen.proposal.items()))
    return (
        f"trials: {text}\nbest: trial {chosen.trial}, {settings['metric']} "
        f"{chosen.scores[-1]:.6g} on {settings['split']} (epochs: {chosen.epochs:g}), "
        f"{chosen.student} with {chosen.params:,} parameters and {chosen.flops:,} FLOPs: {values}"
    )
