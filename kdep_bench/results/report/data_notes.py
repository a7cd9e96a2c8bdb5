"""Notes on the data of a task, such as images that are in two splits.

The notes of a record that begin with `NOTE` are notes on the data. Each of them has a letter, which
is shown after every score that the note applies to.
"""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_lowercase
from typing import NamedTuple

from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.records.store import Run
from kdep_bench.results.report.data_card import NOTE

HEADING = "Notes on the data"
INTRODUCTION = (
    "Known limitations of the data. A letter after a score refers to a note. The note also "
    "applies to ranks, differences and claims that use this score."
)


class DataNote(NamedTuple):
    """One note with its letter and the names of the tasks to whose scores it applies."""

    letter: str
    tasks: list[str]
    sentence: str


def sentences(runs: Iterable[Run]) -> list[str]:
    """The notes on the data in `runs`, each once, in order of occurrence."""
    notes = (n.removeprefix(NOTE) for r in runs for n in r.notes if n.startswith(NOTE))
    return list(dict.fromkeys(notes))


def letters(board: Board) -> dict[str, str]:
    """Note -> letter (a to z, then aa, ab, ...), in the order of tasks and rows."""
    by_sentence: dict[str, str] = {}
    for column in board.columns:
        for row in board.rows:
            for sentence in sentences(board.result(row, column).runs):
                by_sentence.setdefault(sentence, _letter(len(by_sentence)))
    return by_sentence


def _letter(number: int) -> str:
    first, last = divmod(number, 26)
    return (_letter(first - 1) if first else "") + ascii_lowercase[last]


def mark(board: Board, letter_by_note: dict[str, str], row: RowKey, column: Column) -> str:
    """The letters of a result, such as "a, c"; "" without a note."""
    if not letter_by_note:
        return ""
    return ", ".join(letter_by_note[s] for s in sentences(board.result(row, column).runs))


def legend(board: Board, letter_by_note: dict[str, str]) -> list[DataNote]:
    """Every note with its letter and tasks."""
    tasks: dict[str, dict[str, None]] = {s: {} for s in letter_by_note}
    for column in board.columns:
        for row in board.rows:
            for sentence in sentences(board.result(row, column).runs):
                tasks[sentence][column.task] = None
    return [DataNote(letter, list(tasks[s]), s) for s, letter in letter_by_note.items()]
