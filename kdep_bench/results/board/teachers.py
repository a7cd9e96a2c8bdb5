"""Compares measures of the teachers of a method with the scores of the students they trained.

For each measure: the rank correlation with the score over the teachers, the teacher that the
measure would have chosen, and how much lower its student scores than that of the best teacher.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np

from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.row_summary import summarize_row
from kdep_bench.results.records.probe_record import ProbeRecord
from kdep_bench.results.statistics.intervals import Estimate
from kdep_bench.results.statistics.rank_correlation import Correlation, kendall, spearman
from kdep_bench.results.teacher_measures import MEASURES, PICKER, TOP1, choice

PROBE = "teacher"  # name of the probe that measures teachers
Key = tuple[str, str, str, float]  # student, method, teacher, data fraction


def key_of(row: RowKey) -> Key:
    """The key of a row in `Board.teacher_measures`."""
    return row.student, row.method, row.teacher, row.fraction


def measures_of(records: Sequence[ProbeRecord], remarks: list[str]) -> dict[Key, dict[str, float]]:
    """{key of a row: {measure: mean over seeds}} of the records of the probe `teacher`.

    Of several numbers of epochs, the largest is used. A row with a failed or missing record, with
    seeds that have different measures, or with records on several data sets, of several settings
    or with equal seeds is left out. `remarks` receives a sentence for it.
    """
    groups: dict[tuple[Key, float], list[ProbeRecord]] = defaultdict(list)
    for r in records:
        if r.probe == PROBE:
            key = r.student, r.method.method, r.teacher, r.data.share
            groups[key, r.epochs or 0.0].append(r)
    longest = {key: group for (key, _), group in sorted(groups.items(), key=lambda g: g[0])}
    measures: dict[Key, dict[str, float]] = {}
    for key, group in longest.items():
        names = [sorted(v.name for v in r.values if v.name in MEASURES) for r in group]
        sources = {(r.folder, r.data.fingerprint, r.config_hash) for r in group}
        if any(r.status != "ok" for r in group) or names != names[:1] * len(names):
            reason = "not every seed has its measures"
        elif len(sources) > 1 or len({r.seed for r in group}) < len(group):
            reason = "it has records of several data sets or settings, or two of one seed"
        else:
            values = [{v.name: v.value for v in r.values} for r in group]
            measures[key] = {name: fmean(v[name] for v in values) for name in names[0]}
            continue
        remarks.append(
            f"The teacher {key[2]} of {key[1]} ({key[0]}) is not in the table of teachers, because "
            f"{reason}."
        )
    return measures


class TeacherRow(NamedTuple):
    """One teacher: its row, the mean score of its students, and its measures."""

    row: RowKey
    score: float
    measures: Mapping[str, float]


class MeasureResult(NamedTuple):
    """How well one measure ranks the teachers.

    Attributes:
        measure: a key of MEASURES.
        teachers: number of teachers for which it is known.
        spearman, kendall: rank correlations of measure and score; None if they are undefined.
        choice: the teacher that the measure chooses.
        regret: the score of the best teacher minus that of `choice`; 0 if they are the same.
        interval: the difference of these two rows with its interval; None if they are the same.
    """

    measure: str
    teachers: int
    spearman: Correlation | None
    kendall: Correlation | None
    choice: str
    regret: float
    interval: Estimate | None


@dataclass(frozen=True)
class TeacherStudy:
    """The teachers of one method and student at one data fraction.

    Attributes:
        rows: teachers, best score first; scores have the sign with which larger is better.
        results: one per measure that is known for two or more teachers.
        mean_regret: regret of a choice at random, each teacher with equal probability.
        left_out: teachers without complete results or without measures.
    """

    student: str
    method: str
    fraction: float
    rows: Sequence[TeacherRow]
    results: Sequence[MeasureResult]
    mean_regret: float
    left_out: Sequence[str]

    @property
    def best(self) -> TeacherRow:
        """The teacher with the best score."""
        return self.rows[0]


def studies(board: Board) -> list[TeacherStudy]:
    """One study per student, method and data fraction with two or more measured teachers."""
    groups: dict[tuple[str, str, float], list[RowKey]] = defaultdict(list)
    for row in board.rows:
        if row.teacher:
            groups[row.student, row.method, row.fraction].append(row)
    made = []
    for (student, method, fraction), rows in sorted(groups.items()):
        columns = compare.columns_of(board, student)
        # Of a teacher with several numbers of epochs, the longest training.
        longest = {r.teacher: r for r in sorted(rows, key=lambda r: r.epochs or 0.0)}
        known = [t for r in longest.values() if (t := _teacher_row(board, r, columns)) is not None]
        if len(known) > 1:
            known.sort(key=lambda t: (-t.score, t.row.teacher))
            left_out = sorted(set(longest) - {t.row.teacher for t in known})
            made.append(_study(board, (student, method, fraction), known, columns, left_out))
    return made


def _teacher_row(board: Board, row: RowKey, columns: Sequence[Column]) -> TeacherRow | None:
    """The teacher of a row; None without measures, or if a result of the row is incomplete."""
    measures = board.teacher_measures.get(key_of(row))
    results = [board.result(row, c) for c in columns]
    if not measures or not all(r.is_complete for r in results):
        return None
    means = [c.sign * r.estimate.mean for c, r in zip(columns, results, strict=True) if r.estimate]
    score = float(np.average(means, weights=compare.task_weights(columns)))
    teacher = summarize_row(board, row).teacher
    top1 = {} if teacher is None or teacher.top1 is None else {TOP1: teacher.top1}
    return TeacherRow(row, score, {**measures, **top1})


def _study(
    board: Board,
    key: tuple[str, str, float],
    rows: Sequence[TeacherRow],
    columns: list[Column],
    left_out: Sequence[str],
) -> TeacherStudy:
    results = []
    for measure in (PICKER, *(name for name in MEASURES if name != PICKER)):
        known = [t for t in rows if measure in t.measures]
        if len(known) > 1:
            results.append(_result(board, measure, rows[0], known, columns))
    mean_regret = rows[0].score - fmean(t.score for t in rows)
    return TeacherStudy(*key, rows, results, mean_regret, left_out)


def _result(
    board: Board,
    measure: str,
    best: TeacherRow,
    known: Sequence[TeacherRow],
    columns: list[Column],
) -> MeasureResult:
    """The result of one measure; `known`: the teachers for which it is known."""
    values = {t.row.teacher: t.measures[measure] for t in known}
    x, y = np.array(list(values.values())), np.array([t.score for t in known])
    chosen = next(t for t in known if t.row.teacher == choice(values, measure))
    interval = None
    if chosen is not best:
        difference = compare.mean_difference(board, best.row, chosen.row, columns)
        interval = None if difference is None else difference.estimate
    return MeasureResult(
        measure,
        len(known),
        spearman(x, y),
        kendall(x, y),
        chosen.row.teacher,
        best.score - chosen.score,
        interval,
    )
