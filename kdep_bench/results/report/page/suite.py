"""index.html of a results folder: the complete report as one offline file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from kdep_bench.results import text
from kdep_bench.results.board.board import Board
from kdep_bench.results.records.record import Record
from kdep_bench.results.report import (
    board_rows,
    image_tables,
    markdown,
    normalised_tables,
    plots,
)
from kdep_bench.results.report.answer_charts import answer_charts
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page import comparisons, records, scores
from kdep_bench.results.report.page.images import images_section
from kdep_bench.results.report.page.rendering import document
from kdep_bench.results.report.page.tables import Section


def html_page(
    view: BoardView, results_dir: Path, complete_records: Sequence[Record], drawn: list[plots.Plot]
) -> str:
    """The HTML of `view`.

    Args:
        results_dir: the results folder, for its data card and sample predictions.
        complete_records: records with curves, per-class scores and names of images, which the runs
            of `view` leave out.
        drawn: the charts of `plots.draw`.
    """
    return document(
        "suite.html.j2",
        text.plain(view.board.suite),
        question=view.question,
        networks=markdown.networks(view),
        students=view.board.students,
        answers=[
            (student, sentences, answer_charts(view, student))
            for student, sentences in board_rows.answers(view).items()
        ],
        counts=_counts(view.board),
        sections=[
            s for s in _sections(view, results_dir, complete_records, drawn) if s is not None
        ],
    )


def _counts(board: Board) -> list[tuple[str, int, bool]]:
    """The numbers at the top of the page: (name, count, whether the count means a fault)."""
    by_status = Counter(r.status for r in board.runs)
    counts = [
        ("records", len(board.runs), False),
        ("ok", by_status["ok"], False),
        ("failed", by_status["failed"], by_status["failed"] > 0),
        ("missing", by_status["missing"], by_status["missing"] > 0),
    ]
    if board.damaged:
        counts.append(("damaged files", len(board.damaged), True))
    return [*counts, ("tasks", len(board.columns), False), ("table rows", len(board.rows), False)]


def _sections(
    view: BoardView, results_dir: Path, complete_records: Sequence[Record], drawn: list[plots.Plot]
) -> list[Section | None]:
    return [
        scores.notes_section(view),
        scores.summary_section(view),
        scores.claims_section(view, drawn),
        *(scores.family_section(view, i, drawn) for i in range(len(view.board.families))),
        comparisons.transfers_section(view),
        comparisons.costs_section(view),
        comparisons.method_families_section(view),
        normalised_tables.page_section(view),
        *comparisons.ablation_sections(view),
        comparisons.differences_section(view, drawn),
        image_tables.page_section(view),
        image_tables.pairs_section(view),
        comparisons.efficiency_section(view, drawn),
        comparisons.alignment_section(view),
        comparisons.noise_section(view),
        comparisons.teachers_section(view),
        comparisons.teacher_choice_section(view),
        records.probes_section(view),
        records.reported_section(view),
        _training_section(drawn),
        scores.classes_section(view, complete_records),
        images_section(view, results_dir, complete_records),
        records.failures_section(view),
        records.data_section(view, results_dir),
        records.environment_section(view.board),
        records.reproduce_section(view),
        records.glossary_section(),
    ]


def _training_section(drawn: Sequence[plots.Plot]) -> Section | None:
    charts = [p for p in drawn if p.group == "training"]
    return Section("training", "Training curves", "charts", charts=charts) if charts else None
