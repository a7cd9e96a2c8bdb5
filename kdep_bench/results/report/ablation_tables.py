"""The tables of an ablation: the best level of each factor, all contrasts, and all combinations."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board.ablation import EQUAL_PARAMETERS, Ablation, ablation, mean_score
from kdep_bench.results.report.board_rows import BoardView

HEADING = "Ablation"
NOTE = (
    "Each level of a factor is compared with the first level of the factor, over all combinations "
    "of the other factors in which both were run with complete results. Difference: mean over "
    "these combinations and over the tasks (each task family with the same weight), paired by "
    "seeds, with a 95 % interval over seeds. p is corrected by Holm's method over all contrasts of "
    "the table. Best practice: the level with the highest difference, if p is below 0.05; "
    "otherwise the first level. Levels that change the student are compared only if all students "
    f"have equal numbers of parameters (within {100 * (EQUAL_PARAMETERS - 1):.0f} %)."
)
HEAD = ["factor", "level", "compared with", "combinations", "mean score x100"]
HEAD += ["mean score of the first level x100", "difference x100 [95 %]", "p (Holm)"]
BEST_HEAD = ["factor", "best practice", "difference from the first level x100 [95 %]"]
RUN_HEAD = ["student", "method", "levels", "mean score x100", "first record"]
Entries = list[tuple[str, float | None]]  # (text, number)


def ablation_of(view: BoardView) -> Ablation | None:
    """The ablation of the board; None without a grid or without a row of it."""
    if view.grid is None:
        return None
    result = ablation(view.board, view.grid)
    return result if result.rows or result.remarks else None


def entries(result: Ablation) -> list[Entries]:
    """The entries under HEAD of every contrast."""
    return [
        [
            (c.factor, None),
            (c.level, None),
            (c.reference, None),
            (str(c.combinations), c.combinations),
            (text.points(c.score), c.score),
            (text.points(c.reference_score), c.reference_score),
            (text.gap(c.estimate), c.estimate and c.estimate.mean),
            (text.p_value(c.p), c.p),
        ]
        for c in result.contrasts
    ]


def best_entries(result: Ablation) -> list[Entries]:
    """The entries under BEST_HEAD of every factor."""
    rows: list[Entries] = []
    for factor, (level, contrast) in result.best().items():
        difference = (
            text.gap(contrast.estimate) if contrast else "no level is significantly better than it"
        )
        value = contrast.estimate.mean if contrast and contrast.estimate else None
        rows.append([(factor, None), (level, None), (difference, value)])
    return rows


def run_entries(view: BoardView, result: Ablation) -> list[Entries]:
    """The entries under RUN_HEAD of every combination, best mean score first."""
    scored = [(mean_score(view.board, row), row) for row in result.rows]
    rows: list[Entries] = []
    for score, row in sorted(scored, key=lambda r: (-r[0], r[1].order())):
        levels = ", ".join(f"{f}: {level}" for f, level in result.rows[row].items())
        names: Entries = [(row.student, None), (view.labels[row], None), (levels, None)]
        first = view.board.runs_of(row)[0].id
        rows.append([*names, (text.points(score), score), (f"records/{first}.json", None)])
    return rows
