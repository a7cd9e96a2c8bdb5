"""Progress of a run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from kdep_bench.suite.graph import Stage

_LINE_EVERY = 60.0  # seconds between plain progress lines of one stage


class View:
    """Receives the events of a run. The base class shows nothing.

    `eta` returns the estimated seconds until the end; `record` is the content of stage.json;
    `n_left` is the number of unfinished stages; `sentence` is the text of an error; `n_failed` is
    the number of failed attempts; `elsewhere`: another process, `owner`, is running the stage.
    """

    _first_with_error: dict[str, str] | None = None  # error -> the first stage with it

    def begin(self, count: int, eta: Callable[[], float]) -> None: ...
    def started(self, stage: Stage) -> None: ...
    def progress(self, stage: Stage, done: int, total: int, note: str) -> None: ...
    def finished(self, stage: Stage, record: dict[str, Any], n_left: int) -> None: ...
    def failed(self, stage: Stage, sentence: str, log: Path) -> None: ...
    def retrying(self, stage: Stage, sentence: str, n_failed: int, max_retries: int) -> None: ...
    def elsewhere(self, stage: Stage, owner: str) -> None: ...
    def note(self, text: str) -> None: ...
    def refresh(self) -> None: ...
    def end(self) -> None: ...

    def reason(self, stage: Stage, sentence: str) -> str:
        """The text for a failed stage: its error, or a reference to a stage with the same error."""
        self._first_with_error = self._first_with_error or {}
        first = self._first_with_error.setdefault(sentence, stage.id)
        return sentence if first == stage.id else f"same error as {first}."


class Silent(View):
    """Shows nothing (for tests and for use as a library)."""


def duration(seconds: float) -> str:
    """Seconds as text: '7.0 s', '3 min 20 s', '2 h 05 min'."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


class Plain(View):
    """One line per event, with the time; progress of a stage at most once per minute."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.total, self.eta = 0, lambda: 0.0
        self._printed_at: dict[str, float] = {}  # stage id -> time.monotonic() of its last line

    def write_line(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self.stream, flush=True)

    def begin(self, count: int, eta: Callable[[], float]) -> None:
        self.total, self.eta = count, eta
        self.write_line(f"{count} stage(s) to run, about {duration(eta())}")

    def started(self, stage: Stage) -> None:
        self._printed_at[stage.id] = time.monotonic()
        self.write_line(f"start  {stage.id}")

    def progress(self, stage: Stage, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._printed_at.get(stage.id, 0.0) >= _LINE_EVERY:
            self._printed_at[stage.id] = now
            percent = f" ({100 * done // total} %)" if total else ""
            self.write_line(f"       {stage.id}: {done}/{total}{percent} {note}")

    def finished(self, stage: Stage, record: dict[str, Any], n_left: int) -> None:
        remaining = f"; {n_left} left, about {duration(self.eta())}" if n_left else ""
        self.write_line(f"done   {stage.id} in {duration(record['wall_s'])}{remaining}")

    def failed(self, stage: Stage, sentence: str, log: Path) -> None:
        self.write_line(f"FAILED {stage.id}: {self.reason(stage, sentence)} Log: {log}")

    def retrying(self, stage: Stage, sentence: str, n_failed: int, max_retries: int) -> None:
        self.write_line(
            f"retry  {stage.id} (attempt {n_failed + 1} of {max_retries + 1}): {sentence}"
        )

    def elsewhere(self, stage: Stage, owner: str) -> None:
        self.write_line(f"wait   {stage.id}: {owner} is running it")

    def note(self, text: str) -> None:
        self.write_line(text)


class Live(View):
    """A table of running stages and the time left, redrawn in place; events scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self.console = Console()
        self.live = RichLive(console=self.console, auto_refresh=False, transient=True)
        self.total, self.n_done, self.n_failed = 0, 0, 0
        self.eta: Callable[[], float] = lambda: 0.0
        # Stage id -> [time.monotonic() of its start, done, total, note].
        self.rows: dict[str, list[Any]] = {}
        self.start_time, self._last_draw = time.monotonic(), 0.0

    def begin(self, count: int, eta: Callable[[], float]) -> None:
        self.total, self.eta = count, eta
        self.live.start()

    def started(self, stage: Stage) -> None:
        self.rows[stage.id] = [time.monotonic(), 0, 0, ""]

    def progress(self, stage: Stage, done: int, total: int, note: str) -> None:
        if stage.id in self.rows:
            self.rows[stage.id][1:] = [done, total, note]

    def finished(self, stage: Stage, record: dict[str, Any], n_left: int) -> None:
        self.rows.pop(stage.id, None)
        self.n_done += 1
        self._print(f"[green]done[/]   {stage.id} in {duration(record['wall_s'])}")

    def failed(self, stage: Stage, sentence: str, log: Path) -> None:
        from rich.markup import escape

        self.rows.pop(stage.id, None)
        self.n_failed += 1
        why = escape(self.reason(stage, sentence))
        self._print(f"[red]FAILED[/] {stage.id}: {why} Log: {escape(str(log))}")

    def retrying(self, stage: Stage, sentence: str, n_failed: int, max_retries: int) -> None:
        from rich.markup import escape

        self.rows.pop(stage.id, None)
        self._print(
            f"[yellow]retry[/]  {stage.id} (attempt {n_failed + 1} of {max_retries + 1}): "
            + escape(sentence)
        )

    def elsewhere(self, stage: Stage, owner: str) -> None:
        self._print(f"[yellow]wait[/]   {stage.id}: {owner} is running it")

    def note(self, text: str) -> None:
        from rich.markup import escape

        self._print(escape(text))

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self._last_draw >= 0.25:  # at most four times per second
            self._last_draw = now
            self.live.update(self._table(now), refresh=True)

    def _table(self, now: float) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        spent, remaining = duration(now - self.start_time), duration(self.eta())
        failures = f", {self.n_failed} failed" if self.n_failed else ""
        count = f"{self.n_done} of {self.total} stages{failures}"
        table = Table(
            title=f"{count} · {spent} · about {remaining} left",
            title_justify="left",
            box=None,
            show_header=False,
            padding=(0, 1),
        )
        for stage_id, (started, done, total, note) in self.rows.items():
            progress_bar = ProgressBar(
                total=total or None, completed=done, width=24, pulse=not total
            )
            count = f"{done}/{total}" if total else ""
            table.add_row(stage_id, progress_bar, count, duration(now - started), note)
        return table

    def end(self) -> None:
        self.live.stop()


def view_for(stream: TextIO, plain: bool = False) -> View:
    """The live view if `stream` is a terminal and `plain` is False, else plain lines."""
    return Plain(stream) if plain or not stream.isatty() else Live()
