"""The tables of teachers: scores and measures of each, and how well each measure chooses one."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board.teachers import MeasureResult, TeacherStudy, studies
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.statistics.rank_correlation import MIN_POINTS, Correlation
from kdep_bench.results.teacher_measures import ACCURACY, MEASURES, PICKER, TOP1

HEADING = "Teachers"
CHOICE_HEADING = "Choice of a teacher"
NOTE = (
    "One method with several teachers. Mean score: of the students, over all tasks (each task "
    "family with the same weight). The other columns are measures of the teacher, means over seeds."
)
CHOICE_NOTE = (
    "How well each measure chooses a teacher. Expected: the sign of the correlation that the "
    "measure's source or this project expected before the run. Spearman's rho and Kendall's tau "
    f"are over the teachers; an interval needs {MIN_POINTS} or more. Choice: the teacher with the "
    "best value of the measure. Regret: mean score of the best teacher minus that of the choice, "
    "with a 95 % interval over seeds. The best teacher is the one with the highest measured score, "
    f"so the regret is overestimated if teachers are similar. {PICKER} is the measure by which "
    "`kdep-bench pick` ranks teachers before a run; it was chosen before any score."
)
HEAD = ["student", "method", "teacher", "mean score x100"]
CHOICE_HEAD = ["student", "method", "measure", "known from", "teachers", "expected"]
CHOICE_HEAD += ["Spearman's rho [95 %]", "Kendall's tau [95 %]", "choice", "regret x100 [95 %]"]
RANDOM = "a teacher chosen at random"
Entries = list[tuple[str, float | None]]  # (text, number)


def teacher_studies(view: BoardView) -> list[TeacherStudy]:
    """The studies of the board; [] if no records of the probe `teacher` are in the results."""
    return studies(view.board) if view.board.teacher_measures else []


def measure_columns(all_studies: list[TeacherStudy]) -> list[str]:
    """The measures that are known for a teacher, in the order of MEASURES."""
    known = {name for study in all_studies for t in study.rows for name in t.measures}
    return [name for name in MEASURES if name in known]


def teacher_head(all_studies: list[TeacherStudy]) -> list[str]:
    """HEAD and the headings of the measures."""
    return [*HEAD, *(_heading(name) for name in measure_columns(all_studies))]


def _heading(measure: str) -> str:
    return f"{measure} x100" if measure in (ACCURACY, TOP1) else measure


def teacher_entries(all_studies: list[TeacherStudy]) -> list[tuple[TeacherStudy, Entries]]:
    """(study, entries under `teacher_head`) of every teacher, best first."""
    rows = []
    for study in all_studies:
        for t in study.rows:
            entries: Entries = [(study.student, None), (study.method, None), (t.row.teacher, None)]
            entries.append((text.points(t.score), t.score))
            for name in measure_columns(all_studies):
                value = t.measures.get(name)
                entries.append((_shown_value(name, value), value))
            rows.append((study, entries))
    return rows


def _shown_value(measure: str, value: float | None) -> str:
    if value is None:
        return "—"
    if measure in (ACCURACY, TOP1):
        return text.points(value)
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def choice_entries(all_studies: list[TeacherStudy]) -> list[tuple[TeacherStudy, Entries]]:
    """(study, entries under CHOICE_HEAD) of every measure, and of a choice at random."""
    rows = []
    for study in all_studies:
        rows += [(study, _choice(study, result)) for result in study.results]
        entries: Entries = [(study.student, None), (study.method, None), (RANDOM, None)]
        entries += [("—", None), (str(len(study.rows)), len(study.rows)), *[("—", None)] * 4]
        rows.append((study, [*entries, (text.points(study.mean_regret), study.mean_regret)]))
    return rows


def _choice(study: TeacherStudy, result: MeasureResult) -> Entries:
    measure = MEASURES[result.measure]
    name = f"{result.measure} (kdep-bench pick)" if result.measure == PICKER else result.measure
    regret = text.gap(result.interval) if result.interval else text.points(result.regret)
    if result.choice == study.best.row.teacher:
        regret = "0 (the best teacher)"
    return [
        (study.student, None),
        (study.method, None),
        (name, None),
        (measure.known, None),
        (str(result.teachers), result.teachers),
        ("+" if measure.sign > 0 else "-", None),
        (correlation_text(result.spearman), result.spearman and result.spearman.value),
        (correlation_text(result.kendall), result.kendall and result.kendall.value),
        (result.choice, None),
        (regret, result.regret),
    ]


def correlation_text(c: Correlation | None) -> str:
    """The correlation with its interval, if it has one; a dash if it is undefined."""
    if c is None:
        return "—"
    interval = "" if c.low is None or c.high is None else f" [{c.low:+.2f}, {c.high:+.2f}]"
    return f"{c.value:+.2f}{interval}"


def notes(all_studies: list[TeacherStudy]) -> list[str]:
    """NOTE, the meaning of each measure, and the teachers that are left out."""
    names = measure_columns(all_studies)
    meanings = "; ".join(f"{name}: {MEASURES[name].meaning}" for name in names)
    lines = [NOTE, f"{meanings}."]
    for study in all_studies:
        if study.left_out:
            lines.append(
                f"Left out of {study.method} ({study.student}), because a score or a measure is "
                f"missing: {', '.join(study.left_out)}."
            )
    return lines
