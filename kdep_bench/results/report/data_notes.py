"""Notes about the data of a task, marked by letters at every score they apply to.

A record's note is about the data if it begins with `NOTE`: shared images between splits, a
teacher that was trained on what the task tests, classes that a split lacks. Each different sentence
has a letter; a score carries the letters of its notes.
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
    "Known limitations of the data behind the scores that carry the letter. They also apply to "
    "ranks, differences and claims that use these scores."
)


class DataNote(NamedTuple):
    """One sentence with its letter and the names of the tasks whose scores carry it."""

    letter: str
    tasks: list[str]
    sentence: str


def sentences(runs: Iterable[Run]) -> list[str]:
    """The notes about the data in `runs`, each once, in order of occurrence."""
    notes = (n.removeprefix(NOTE) for r in runs for n in r.notes if n.startswith(NOTE))
    return list(dict.fromkeys(notes))


def letters(board: Board) -> dict[str, str]:
    """Sentence -> letter: a to z, then aa, ab, ..., by task and row."""
    by_sentence: dict[str, str] = {}
    for column in board.columns:
        for row in board.rows:
            for sentence in sentences(board.result(row, column).runs):
                by_sentence.setdefault(sentence, _letter(len(by_sentence)))
    return by_sentence


def _letter(number: int) -> str:
    first, last = divmod(number, 26)
    return (_letter(first - 1) if first else "") + ascii_lowercase[last]


def mark(board: Board, given: dict[str, str], row: RowKey, column: Column) -> str:
    """The letters of a result, "a, c"; "" without a note."""
    return ", ".join(given[s] for s in sentences(board.result(row, column).runs)) if given else ""


def legend(board: Board, given: dict[str, str]) -> list[DataNote]:
    """Every note with its letter and tasks."""
    tasks: dict[str, dict[str, None]] = {s: {} for s in given}
    for column in board.columns:
        for row in board.rows:
            for sentence in sentences(board.result(row, column).runs):
                tasks[sentence][column.task] = None
    return [DataNote(letter, list(tasks[s]), s) for s, letter in given.items()]
