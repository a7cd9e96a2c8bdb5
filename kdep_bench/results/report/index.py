"""results/index.html: question and answer of every published suite, and all scores to search in.

One offline file in the style of the suites' pages (see `page`), made from their records alone.
"""

from __future__ import annotations

import ast
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
from kdep_bench.results.report.page.entries import Entry, number_entry, sort_value
from kdep_bench.results.report.page.rendering import document
from kdep_bench.results.report.page.tables import Heading, Table, TableRow
from kdep_bench.results.report.report import view_of

MAIN = "pocket"  # suites whose names begin so come first
SCORES_HEAD = ("suite", "student", "method", "task", "score", "chance", "pre-training cost")
INTRODUCTION = (
    "Each suite is one experiment under one protocol. The same method has other scores in another "
    "suite, where the data, the budget or the learning rate differs: compare within a suite."
)


class PublishedSuite(NamedTuple):
    """One published suite; `question` is the first sentence of its config."""

    folder: str
    question: str
    view: BoardView


def write_index(root: Path, configs: Path) -> Path:
    """Writes index.html into `root`, which holds one folder per published suite.

    Args:
        root: the folder results/.
        configs: the folder of suite configs, whose docstrings contain the question of a suite.

    Raises:
        KdepError: `root` contains no results folder.
    """
    path = root / "index.html"
    write_atomic(path, index(suites(root, configs), documents(root)))
    return path


def suites(root: Path, configs: Path) -> list[PublishedSuite]:
    """The suites published in `root`, by folder name."""
    folders = sorted(p for p in root.glob("*") if (p / "records").is_dir())
    folders.sort(key=lambda p: not p.name.startswith(MAIN))
    if not folders:
        raise KdepError(
            f"{root} contains no results folder",
            expected="folders with records/, such as results/pocket",
            fix="name the folder that contains them",
        )
    return [PublishedSuite(p.name, question(configs / f"{p.name}.py"), view_of(p)) for p in folders]


def question(config: Path) -> str:
    """The first line of a config's docstring; "" where there is none. The config is not run."""
    try:
        docstring = ast.get_docstring(ast.parse(config.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    return docstring.split("\n")[0].replace("`", "")


def documents(root: Path) -> dict[str, str]:
    """Other reports in `root`: path below it -> title."""
    files = [*root.glob("*.md"), *root.glob("benchmark/*.md")]
    titles = {}
    for path in sorted(files):
        head = path.read_text(encoding="utf-8").split("\n", 1)[0]
        titles[path.relative_to(root).as_posix()] = head.lstrip("# ").strip() or path.name
    return titles


def index(published: list[PublishedSuite], reports: Mapping[str, str]) -> str:
    """The page."""
    headings = [Heading(h, i < 4) for i, h in enumerate(SCORES_HEAD)]
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
    """The values of a suite's table entry; all in one entry, so that the search box finds them."""
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
    link = Entry(text.plain(suite.folder), "l n", kind="link", note=address)
    rows = []
    for row in board.rows:
        for column in board.columns:
            if (row, column) not in board.results:
                continue
            result = board.result(row, column)
            estimate = result.estimate
            css = "n best" if view.is_bold(row, column) else "n" if result.values else "n hole"
            shown = text.score(result)
            if compare.below(board, row, column):
                shown += board_rows.BELOW
            cost, chance = view.summaries[row].cost_s, board.chance[column]
            entries = [
                link,
                Entry(text.plain(row.student, 80), "l n"),
                Entry(text.plain(board_rows.row_name(view, row), 80), "l"),
                Entry(text.plain(names[column], 80), "l n"),
                Entry(shown, css, sort_value(estimate and estimate.mean)),
                number_entry(text.points(chance), chance),
                number_entry(text.seconds(cost), cost),
            ]
            rows.append(TableRow(entries))
    return rows
