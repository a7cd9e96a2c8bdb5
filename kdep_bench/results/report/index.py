"""results/index.html: every published suite, what it asks, its answer, and all scores to search in.

One offline file in the style of the suites' pages (see `page`), made from their records alone.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from kdep_bench.errors import KdepError
from kdep_bench.files import write_atomic
from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.claims.verdict import headlines
from kdep_bench.results.report import board_rows, markdown, page
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.markup import Raw, tag
from kdep_bench.results.report.report import view_of
from kdep_bench.results.report.widgets import chip

MAIN = "pocket"  # suites whose names begin so come first
SUITES_HEAD = ("question and answer of each suite",)
SCORES_HEAD = ("suite", "student", "method", "task", "score", "chance", "pre-training cost")
INTRODUCTION = (
    "Each suite is one experiment under one protocol. The same method has other scores in another "
    "suite, where the data, the budget or the learning rate differs: compare within a suite."
)


class Suite(NamedTuple):
    """One published suite; `question` is the first sentence of its config."""

    folder: str
    question: str
    view: BoardView


def write_index(root: Path, configs: Path) -> Path:
    """Writes index.html into `root`, which holds one folder per published suite.

    Args:
        root: the folder results/.
        configs: the folder of suite configs, whose docstrings say what a suite asks.

    Raises:
        KdepError: `root` contains no results folder.
    """
    path = root / "index.html"
    write_atomic(path, index(suites(root, configs), documents(root)))
    return path


def suites(root: Path, configs: Path) -> list[Suite]:
    """The suites published in `root`, by folder name."""
    folders = sorted(p for p in root.glob("*") if (p / "records").is_dir())
    folders.sort(key=lambda p: not p.name.startswith(MAIN))
    if not folders:
        raise KdepError(
            f"{root} contains no results folder",
            expected="folders with records/, such as results/pocket",
            fix="name the folder that contains them",
        )
    return [Suite(p.name, question(configs / f"{p.name}.py"), view_of(p)) for p in folders]


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


def index(published: list[Suite], reports: Mapping[str, str]) -> str:
    """The page."""
    rows = [_suite_row(suite) for suite in published]
    scores = [row for suite in published for row in _score_rows(suite)]
    links = [tag("li", tag("a", title, href=path)) for path, title in reports.items()]
    legend = tag("p", markdown.LEGEND_HTML, class_="dim small")
    tables = [
        _section("suites", "Suites", _table("Suites", SUITES_HEAD, rows, 1)),
        _section("scores", "All scores", legend, _table("All scores", SCORES_HEAD, scores, 4)),
    ]
    if links:
        tables.append(_section("other", "Other measurements", tag("ul", *links)))
    header = tag(
        "header",
        tag("h1", "Published results"),
        tag("p", INTRODUCTION),
    )
    return page.document("Published results", header, tag("main", _tools(), *tables, id="main"))


def _tools() -> Raw:
    word = tag("input", id="filter", type="search", autocomplete="off", spellcheck="false")
    displayed = tag("output", id="displayed", aria_live="polite", for_="filter")
    box = tag("label", "Search suites, methods and tasks", word)
    theme = tag("button", "Dark theme", id="theme", type="button", aria_pressed="false")
    find = tag("div", box, displayed, class_="find", role="search")
    return tag("div", find, theme, id="tools", class_="tools", hidden=True)


def _section(anchor: str, title: str, *children: object) -> Raw:
    heading = tag("h2", title, id=f"h-{anchor}")
    return tag("section", heading, *children, id=anchor, aria_labelledby=f"h-{anchor}")


def _table(caption: str, head: tuple[str, ...], rows: list[Raw], left: int) -> Raw:
    entries = [
        tag("th", h, scope="col", class_="l" if i < left else None) for i, h in enumerate(head)
    ]
    table = tag(
        "table", tag("thead", tag("tr", *entries)), tag("tbody", *rows), class_="sortable pin"
    )
    return tag("div", table, class_="scroll", tabindex=0, role="group", aria_label=caption)


def _suite_row(suite: Suite) -> Raw:
    """One table cell, so that the search box finds a suite by any of its words."""
    board, folder = suite.view.board, suite.folder
    answers = [s for lines in board_rows.answers(suite.view).values() for s in lines]
    judged = [
        tag("li", text.plain(v.title), " ", chip(v.verdict, v.shown))
        for v in headlines(suite.view.verdicts)
    ]
    counts = (
        _count(len(board.runs), "record"),
        _count(len({row.method for row in board.rows}), "method"),
        _count(len(board.columns), "task"),
    )
    links = [
        tag("a", name, href=_address(folder, path))
        for name, path in (
            ("tables", "leaderboard.md"),
            ("CSV", "leaderboard.csv"),
            ("records", "records/"),
        )
    ]
    files = [part for link in links for part in (" · ", link)]
    body = [
        tag("h3", tag("a", text.plain(folder), href=_address(folder, "index.html"))),
        tag("p", text.plain(suite.question, 300)) if suite.question else None,
        tag("ul", *(tag("li", text.plain(s, 600)) for s in answers), class_="answer"),
        tag("details", tag("summary", f"{_count(len(judged), 'claim')}"), tag("ul", *judged))
        if judged
        else None,
        tag("p", ", ".join(counts), *files, class_="dim small"),
    ]
    return tag("tr", tag("td", *body, class_="l"))


def _address(folder: str, path: str) -> str:
    return f"{quote(folder)}/{path}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _number(displayed: object, value: float | None, css: str = "n") -> Raw:
    sort = "" if value is None else repr(float(value))
    return tag("td", displayed, class_=css, data_v=sort)


def _score_rows(suite: Suite) -> list[Raw]:
    view, board = suite.view, suite.view.board
    names = board_rows.column_names(board.columns)
    link = tag("a", text.plain(suite.folder), href=_address(suite.folder, "index.html"))
    rows = []
    for row in board.rows:
        for column in board.columns:
            if (row, column) not in board.results:
                continue
            result = board.result(row, column)
            estimate = result.estimate
            css = "n best" if view.is_bold(row, column) else "n" if result.values else "n hole"
            displayed = text.score(result)
            if compare.below(board, row, column):
                displayed += board_rows.BELOW
            cost, chance = view.summaries[row].cost_s, board.chance[column]
            entries = [
                tag("td", link, class_="l n"),
                tag("td", text.plain(row.student, 80), class_="l n"),
                tag("td", text.plain(board_rows.row_name(view, row), 80), class_="l"),
                tag("td", text.plain(names[column], 80), class_="l n"),
                _number(displayed, None if estimate is None else estimate.mean, css),
                _number(text.points(chance), chance),
                _number(text.seconds(cost), cost),
            ]
            rows.append(tag("tr", *entries))
    return rows
