"""Builds results/index.html: question and answer of every suite, and a table of all scores.

It is one offline file, made from the records of the published suites.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from kdep_bench.errors import KdepError
from kdep_bench.files import write_atomic
from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.claims.verdict import headlines
from kdep_bench.results.report import board_rows, markdown
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import (
    LEFT,
    LEFT_ONE_LINE,
    Entry,
    number_entry,
    score_css,
    sort_value,
)
from kdep_bench.results.report.page.rendering import document
from kdep_bench.results.report.page.tables import Heading, Table, TableRow
from kdep_bench.results.report.report import docstring_line, view_of

MAIN = "pocket"  # suites whose names begin with this come first
SCORES_HEAD = ("suite", "student", "method", "task", "score", "chance", "pre-training cost")
INTRODUCTION = (
    "A suite is one experiment with one protocol. Compare methods within a suite: a method has "
    "different scores in other suites, which have other data, budgets or learning rates."
)


class PublishedSuite(NamedTuple):
    """One published suite; `question`: the first line of the docstring of its config."""

    folder: str
    question: str
    view: BoardView


def write_index(root: Path, configs: Path) -> Path:
    """Writes index.html into `root`; returns its path.

    Args:
        root: the folder that contains the results folders of all suites.
        configs: the folder of suite configs; the docstring of a config has the suite's question.

    Raises:
        KdepError: `root` does not exist or contains no results folder.
    """
    path = root / "index.html"
    write_atomic(path, index(suites(root, configs), documents(root)))
    return path


def suites(root: Path, configs: Path) -> list[PublishedSuite]:
    """The suites published in `root`, by folder name."""
    folders = sorted(p for p in root.glob("*") if (p / "records").is_dir())
    folders.sort(key=lambda p: not p.name.startswith(MAIN))
    if not folders:
        state = "contains no results folder" if root.is_dir() else "does not exist"
        raise KdepError(
            f"the folder {root} {state}",
            expected="a folder that contains the results folders of suites",
            fix="give that folder, such as results/",
        )
    return [
        PublishedSuite(p.name, docstring_line(configs / f"{p.name}.py"), view_of(p))
        for p in folders
    ]


def documents(root: Path) -> dict[str, str]:
    """Path inside `root` -> title, for the Markdown reports that do not belong to a suite."""
    files = [*root.glob("*.md"), *root.glob("benchmark/*.md")]
    titles = {}
    for path in sorted(files):
        head = path.read_text(encoding="utf-8").split("\n", 1)[0]
        titles[path.relative_to(root).as_posix()] = head.lstrip("# ").strip() or path.name
    return titles


def index(published: list[PublishedSuite], reports: Mapping[str, str]) -> str:
    """The page."""
    n_names = 4  # suite, student, method and task are left-aligned
    headings = [Heading(name, i < n_names) for i, name in enumerate(SCORES_HEAD)]
    scores = [row for suite in published for row in _score_rows(suite)]
    return document(
        "index.html.j2",
        "Published results",
        introduction=INTRODUCTION,
        suites=[_suite_values(suite) for suite in published],
        legend=markdown.LEGEND_HTML,
        scores=Table("All scores", headings, scores, "sortable pin"),
        reports=reports,
    )


def _suite_values(suite: PublishedSuite) -> dict[str, Any]:
    """The values that the template shows of one suite."""
    board = suite.view.board
    return {
        "name": suite.folder,
        "folder": quote(suite.folder),
        "question": suite.question,
        "answers": [s for lines in board_rows.answers(suite.view).values() for s in lines],
        "verdicts": headlines(suite.view.verdicts),
        "n_claims": _count(len(headlines(suite.view.verdicts)), "claim"),
        "counts": [
            _count(len(board.runs), "record"),
            _count(len({row.method for row in board.rows}), "method"),
            _count(len(board.columns), "task"),
        ],
    }


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _score_rows(suite: PublishedSuite) -> list[TableRow]:
    view, board = suite.view, suite.view.board
    names = board_rows.column_names(board.columns)
    address = f"{quote(suite.folder)}/index.html"
    link = Entry(text.plain(suite.folder), LEFT_ONE_LINE, kind="link", note=address)
    rows = []
    for row in board.rows:
        for column in board.columns:
            if (row, column) not in board.results:
                continue
            result = board.result(row, column)
            estimate = result.estimate
            css = score_css(view, row, column)
            shown = text.score(result)
            if compare.is_below_chance_or_scratch(board, row, column):
                shown += board_rows.BELOW_CHANCE_MARK
            cost, chance = view.summaries[row].cost_s, board.chance[column]
            entries = [
                link,
                Entry(text.plain(row.student, 80), "l n"),
                Entry(text.plain(board_rows.row_name(view, row), 80), LEFT),
                Entry(text.plain(names[column], 80), "l n"),
                Entry(shown, css, sort_value(estimate and estimate.mean)),
                number_entry(text.points(chance), chance),
                number_entry(text.seconds(cost), cost),
            ]
            rows.append(TableRow(entries))
    return rows
