"""Compares the verdicts of two results folders, for example of runs on two processors.

A verdict states whether one method is significantly better than another.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, RowKey
from kdep_bench.results.board.compare import Difference

Place = tuple[RowKey, RowKey, str, str]  # (row, reference, task family, task)


def processors(board: Board) -> list[str]:
    """The processors of a folder's records, with their matrix and vector units if known."""
    names = set()
    for run in board.runs:
        if run.status == "ok":
            units = run.cost.processor_units
            listed = f" ({', '.join(units)})" if units else ""
            names.add(f"{run.cost.device or 'unknown'}{listed}")
    return sorted(names)


def lines(old: Board, new: Board) -> list[str]:
    """Sentences on the processors, and on the verdicts on differences that are in both folders.

    They count verdicts that are the same, opposite (better and worse), or significant in only one
    of the folders.
    """
    before, after = processors(old), processors(new)
    sentences = []
    if before != after:
        sentences.append(
            f"Processors: {', '.join(before) or 'unknown'} -> {', '.join(after) or 'unknown'}. "
            "The same seed gives different networks on different processors."
        )
    first, second = dict(_verdicts(old)), dict(_verdicts(new))
    common = sorted(first.keys() & second.keys(), key=repr)
    tested = [k for k in common if first[k].p is not None and second[k].p is not None]
    if not tested:
        return sentences
    same = [k for k in tested if first[k].verdict == second[k].verdict]
    opposite = [k for k in tested if {first[k].verdict, second[k].verdict} == {"better", "worse"}]
    decided = [k for k in tested if first[k].verdict != "not significant"]
    kept = [k for k in decided if k in same]
    sentences.append(
        f"{len(tested)} differences are tested in both: {len(same)} verdicts are the same, "
        f"{len(tested) - len(same) - len(opposite)} are significant in one folder only, "
        f"{len(opposite)} are opposite. {len(kept)} of the {len(decided)} significant differences "
        "of the old folder have the same verdict in the new folder."
    )
    sentences += [_line(k, first[k], second[k]) for k in tested if k not in same]
    return sentences


def _verdicts(board: Board) -> Iterator[tuple[Place, Difference]]:
    for student in board.students:
        columns = compare.columns_of(board, student)
        for d in compare.difference_table(board, student):
            task = d.column.task if d.column else compare.mean_name(columns)
            family = d.column.family if d.column else ""
            yield (d.row, d.reference, family, task), d


def _line(place: Place, old: Difference, new: Difference) -> str:
    row, reference, _, task = place
    name = text.plain(f"{row.student}, {row.method} - {reference.method}, {task}", 160)
    before, after = (f"{text.gap(d.estimate)}: {d.verdict}" for d in (old, new))
    return f"  {name}: {before} -> {after}"
