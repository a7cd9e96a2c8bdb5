"""index.html: the complete report as one offline file.

It loads nothing from the network. Its Content-Security-Policy allows one inline style and one
inline script, each by its SHA-256, and images as data: addresses only. Every name from a record
goes through `markup`, which escapes it.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from kdep_bench.results import text
from kdep_bench.results.board import compare, families
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.claims.verdict import Verdict, headlines
from kdep_bench.results.records.record import Record
from kdep_bench.results.report import (
    board_rows,
    data_card,
    data_notes,
    glossary,
    image_tables,
    markdown,
    normalised_tables,
    plots,
    probe_tables,
    reported,
    transfer_rows,
)
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.markup import Raw, join, tag
from kdep_bench.results.report.page_images import images_section
from kdep_bench.results.report.widgets import (
    CHANCE,
    COLOURED,
    Section,
    TableEntry,
    chip,
    name_entry,
    number_entry,
    page_table,
)

_HERE = Path(__file__).parent


def html_page(
    view: BoardView, results_dir: Path, full: Sequence[Record], drawn: list[plots.Plot]
) -> str:
    """The HTML of `view`.

    Args:
        results_dir: the results folder, for its data card and sample predictions.
        full: complete records, for sample predictions and per-class scores.
        drawn: the charts of `plots.draw`.
    """
    sections = [s for s in _sections(view, results_dir, full, drawn) if s is not None]
    main = tag("main", _tools(view), *(s.markup for s in sections), id="main")
    return document(text.plain(view.board.suite), _header(view, sections), main)


def document(title: str, header: Raw, main: Raw) -> str:
    """One offline file with its style and script."""
    style = (_HERE / "chart.css").read_text() + (_HERE / "page.css").read_text()
    script = (_HERE / "page.js").read_text()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{title} - kdep_bench"),
        tag("style", Raw(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#main", class_="skip"),
        header,
        main,
        tag("footer", tag("p", "Generated from records/ by tools/report.py.")),
        tag("script", Raw(script)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _policy(style: str, script: str) -> str:
    def digest(content: str) -> str:
        raw = hashlib.sha256(content.encode()).digest()
        return f"'sha256-{base64.b64encode(raw).decode()}'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _header(view: BoardView, sections: list[Section]) -> Raw:
    board = view.board
    counts = Counter(r.status for r in board.runs)
    summary = [
        ("records", len(board.runs), ""),
        ("ok", counts["ok"], ""),
        ("failed", counts["failed"], "bad" if counts["failed"] else ""),
        ("missing", counts["missing"], "bad" if counts["missing"] else ""),
    ]
    if board.damaged:
        summary.append(("damaged files", len(board.damaged), "bad"))
    summary.append(("tasks", len(board.columns), ""))
    summary.append(("table rows", len(board.rows), ""))
    rows = [
        tag("div", tag("dt", name), tag("dd", f"{n:,}", class_=css or None))
        for name, n, css in summary
    ]
    links = [tag("li", tag("a", s.title, href=f"#{s.anchor}")) for s in sections]
    terms = tag("a", "glossary", href="#glossary")
    legend = join([markdown.LEGEND_HTML, " Terms: see the ", terms, "."])
    lone = board.students[0] if len(board.students) == 1 else ""
    return tag(
        "header",
        tag("h1", f"Leaderboard: {text.plain(board.suite)}"),
        tag("p", f"Student: {text.plain(lone)}.") if lone else None,
        *_answer(view),
        tag("p", legend, class_="dim small"),
        tag("dl", *rows, class_="facts"),
        tag("nav", tag("ul", *links), aria_label="Sections"),
    )


def _answer(view: BoardView) -> list[Raw]:
    parts = []
    for student, sentences in board_rows.answers(view).items():
        if len(view.board.students) > 1:
            parts.append(tag("p", tag("b", f"Student {text.plain(student)}")))
        parts.append(
            tag("ul", *(tag("li", text.plain(s, 600)) for s in sentences), class_="answer")
        )
    return parts


def _tools(view: BoardView) -> Raw:
    students = view.board.students
    choice = None
    if len(students) > 1:
        options = [tag("option", "all", value="")]
        options += [tag("option", text.plain(s, 60), value=text.plain(s)) for s in students]
        choice = tag("label", "Student", tag("select", *options, id="student"))
    word = tag("input", id="filter", type="search", autocomplete="off", spellcheck="false")
    shown = tag("output", id="shown", aria_live="polite", for_="filter")
    box = tag("label", "Filter rows of all tables", word)
    theme = tag("button", "Dark theme", id="theme", type="button", aria_pressed="false")
    find = tag("div", box, choice, shown, class_="find", role="search")
    return tag("div", find, theme, id="tools", class_="tools", hidden=True)


COLOURED |= {"ok", "failed", "missing", "damaged"}


def _sections(
    view: BoardView, results_dir: Path, full: Sequence[Record], drawn: list[plots.Plot]
) -> list[Section | None]:
    sections = [_data_notes(view), _summary(view), _claims(view)]
    sections += [_task_family(view, f, i, drawn) for i, f in enumerate(view.board.families)]
    return [
        *sections,
        _transfers(view),
        _costs(view),
        _method_families(view),
        normalised_tables.page_section(view),
        _differences(view, drawn),
        image_tables.page_section(view),
        _efficiency(view, drawn),
        _alignment(view, drawn),
        _noise(view),
        _probes(view),
        _reported(view),
        _charts("training", "Training curves", drawn, "training"),
        _per_class(view, full),
        images_section(view, results_dir, full),
        _failures(view),
        _data(view, results_dir),
        _environment(view.board),
        _reproduce(view),
        _glossary(),
    ]


def _data_notes(view: BoardView) -> Section | None:
    """Known limitations of the data, before any score."""
    rows = [
        tag("li", f"({n.letter}) {text.plain(', '.join(n.tasks))}: {text.plain(n.sentence, 600)}.")
        for n in data_notes.legend(view.board, view.letters)
    ]
    if not rows:
        return None
    introduction = tag("p", data_notes.INTRODUCTION, class_="dim small")
    return Section("data-notes", data_notes.HEADING, introduction, tag("ul", *rows))


def _claims(view: BoardView) -> Section | None:
    if not view.verdicts:
        return None
    note = "Verdicts are computed from the records; costs include the teacher cache."
    first = headlines(view.verdicts)
    rest = None
    if len(first) < len(view.verdicts):
        table = _claim_table(view, "Claims by task family", view.verdicts)
        rest = tag("details", tag("summary", "By task family"), table)
    dim = tag("p", note, class_="dim small")
    return Section("claims", "Claims", dim, _claim_table(view, "Claims", first), rest)


def _claim_table(view: BoardView, caption: str, verdicts: list[Verdict]) -> Raw:
    rows = []
    for v in verdicts:
        title = [tag("b", text.plain(v.title))]
        if v.statement:
            title.append(tag("div", text.plain(v.statement, 500), class_="small dim"))
        entries = [
            TableEntry(chip(v.verdict, v.shown), css="l n"),
            TableEntry(join(title), css="l w"),
            name_entry(v.student or "—"),
            name_entry(v.scope),
            TableEntry(v.interval, css="l n"),
            TableEntry(v.threshold, css="l s"),
            TableEntry(text.plain(v.reason, 300), css="l w"),
            TableEntry(v.cost),
            number_entry(text.count(v.seeds_to_decide), v.seeds_to_decide),
        ]
        rows.append((v.student, entries))
    head = ["verdict", "claim", "student", "tasks", "measured [95\u00a0%]", "threshold", "reason"]
    head += ["cost ratio", "seeds needed (power 0.8)"]
    return page_table(view, caption, head, rows, 7, css="")


def _row_entry(view: BoardView, row: RowKey) -> TableEntry:
    name = board_rows.row_name(view, row)
    source = text.plain(view.summaries[row].method.source, 200)
    shown = text.plain(name, 140)
    css = "l n" if len(shown) <= 34 else "l"
    return TableEntry(tag("span", shown, title=source or None), css=css)


def _fraction_entry(view: BoardView, row: RowKey) -> TableEntry:
    return number_entry(
        board_rows.fraction_text(view, row), None if view.board.fixed(row) else row.fraction
    )


def _summary(view: BoardView) -> Section | None:
    if not view.board.runs:
        return Section("summary", "Summary", tag("p", "There are no records yet."))
    table = []
    for student in view.board.students:
        ranks = compare.mean_ranks(view.board, student)
        columns = compare.columns_of(view.board, student)
        rows = sorted(view.board.rows_of(student), key=lambda a: (ranks.get(a, 1e9), a.order()))
        for row in rows:
            f = view.summaries[row]
            won, marked = view.won(row, columns)
            rank = ranks.get(row)
            entries = [
                name_entry(student),
                _row_entry(view, row),
                number_entry("incomplete" if rank is None else f"{rank:.2f}", rank),
                number_entry(f"{won} of {marked}" if marked else "—", won),
                TableEntry(board_rows.labels_text(f), css="n"),
                _fraction_entry(view, row),
                number_entry(text.count(f.images_seen), f.images_seen),
                number_entry(text.seconds(f.cost_s), f.cost_s),
                number_entry(text.seconds(f.cache_s), f.cache_s),
                number_entry(text.ratio(f.coverage), f.coverage),
            ]
            table.append((student, entries))
    return Section(
        "summary",
        "Summary",
        tag("p", board_rows.MEAN_RANK, class_="dim small"),
        _untimed(view),
        page_table(view, "Summary", markdown.SUMMARY_HEAD, table, 2),
    )


def _untimed(view: BoardView) -> Raw | None:
    note = board_rows.untimed_note(view.board)
    return tag("p", note, class_="dim small") if note else None


def _score_entry(view: BoardView, row: RowKey, column: Column) -> TableEntry:
    result = view.board.result(row, column)
    est = result.estimate
    css = "n"
    if view.is_bold(row, column):
        css += " best"
    elif not result.values:
        css += " hole"
    shown: object = text.score(result)
    if est is not None and est.low is not None:
        span = f"95 % interval {text.points(est.low)} to {text.points(est.high)}, {est.seeds}"
        shown = tag("span", shown, title=span)
    if mark := view.mark(row, column):
        link = tag("a", f"({mark})", href="#data-notes")
        shown = join([shown, " ", link])
    if compare.below(view.board, row, column):
        shown = join([shown, board_rows.BELOW])
    return TableEntry(shown, None if est is None else est.mean, css, True)


def _task_family(view: BoardView, family: str, index: int, drawn: list[plots.Plot]) -> Section:
    columns = view.board.columns_of(family)
    names = board_rows.column_names(columns)
    rows = []
    for row in view.rows(columns):
        f = view.summaries[row]
        entries = [name_entry(row.student), _row_entry(view, row)]
        entries += [_score_entry(view, row, c) for c in columns]
        entries += [
            TableEntry(board_rows.labels_text(f), css="n"),
            _fraction_entry(view, row),
            number_entry(text.count(f.images_seen), f.images_seen),
            number_entry(text.seconds(f.cost_s), f.cost_s),
            number_entry(text.ratio(f.coverage), f.coverage),
        ]
        rows.append((row.student, entries))
    chance = [
        number_entry(text.points(view.board.chance[c]), view.board.chance[c]) for c in columns
    ]
    blank = [TableEntry("") for _ in range(5)]
    rows.append((CHANCE, [TableEntry("", css="l"), TableEntry("chance", css="l"), *chance, *blank]))
    head = ["student", "method", *(text.plain(names[c], 60) for c in columns)]
    head += markdown.ROW_END
    title = f"Task family: {text.plain(family, 60) or 'unnamed'}"
    charts = _figures([p for p in drawn if p.group == "scores" and p.family == family])
    table = page_table(view, title, head, rows, 2)
    return Section(f"family-{index}", title, _untimed(view), table, charts)


def _figures(group: Sequence[plots.Plot]) -> Raw | None:
    figures = []
    for p in group:
        owner = text.plain(p.student) if p.student else None
        figures.append(tag("figure", tag("figcaption", p.caption), p.svg, data_student=owner))
    return tag("div", *figures, class_="figures") if figures else None


def _charts(anchor: str, title: str, drawn: list[plots.Plot], group: str) -> Section | None:
    group_plots = [p for p in drawn if p.group == group]
    return Section(anchor, title, _figures(group_plots)) if group_plots else None


def _efficiency(view: BoardView, drawn: list[plots.Plot]) -> Section | None:
    """The curves first, then the reduction factors read off them."""
    charts = _figures([p for p in drawn if p.group == "efficiency"])
    rows = []
    for student, method, reference, axis, r in board_rows.saving_rows(view):
        times = TableEntry(text.times(r.estimate, r.bound), r.estimate.mean, "n", True)
        entries = [
            name_entry(student),
            name_entry(method),
            name_entry(reference),
            name_entry(axis),
            times,
        ]
        rows.append((student, [*entries, TableEntry(r.estimate.seeds, css="n")]))
    if not charts and not rows:
        return None
    caption = "Reduction factors at equal score"
    table = page_table(view, caption, markdown.SAVING_HEAD, rows, 4) if rows else None
    note = tag("p", board_rows.SAVING, class_="dim small") if rows else None
    title = tag("h3", "Budget for equal score") if rows else None
    return Section("efficiency", "Efficiency", charts, title, note, table)


def _costs(view: BoardView) -> Section | None:
    if not families.shown(view.board):
        return None
    rows = []
    for cost in families.costs(view.board, view.summaries):
        entries = [name_entry(cost.row.student), _row_entry(view, cost.row)]
        entries.append(name_entry(cost.summary.method.family or "—"))
        *numbers, (terms, _) = board_rows.cost_entries(cost, text.plain)
        entries += [*starmap(number_entry, numbers), TableEntry(terms, css="l w")]
        rows.append((cost.row.student, entries))
    head = ["student", "method", "method family", *board_rows.COST_HEAD]
    note = tag("p", families.COSTS, class_="dim small")
    return Section("costs", "Cost of each method", note, page_table(view, "Costs", head, rows, 3))


def _transfers(view: BoardView) -> Section | None:
    rows = []
    for row, shown in transfer_rows.entries(view):
        entries = [name_entry(row.student), _row_entry(view, row)]
        entries += [name_entry(t, 200) for t, _ in shown[:3]]
        rows.append((row.student, [*entries, *starmap(number_entry, shown[3:])]))
    if not rows:
        return None
    title, note = transfer_rows.HEADING, tag("p", transfer_rows.NOTE, class_="dim small")
    table = page_table(view, title, transfer_rows.HEAD, rows, 5)
    return Section("transfers", title, note, table)


def _method_families(view: BoardView) -> Section | None:
    if not families.shown(view.board):
        return None
    rows = []
    for f in families.families(view.board, view.summaries, view.method_inputs):
        entries = [name_entry(f.student), name_entry(f.name)]
        for shown, value in board_rows.family_entries(f, text.plain):
            entries.append(
                TableEntry(shown, css="l w") if value is None else number_entry(shown, value)
            )
        rows.append((f.student, entries))
    if not rows:
        return None
    head = ["student", "method family", *board_rows.FAMILY_HEAD]
    note, title = tag("p", families.FAMILIES, class_="dim small"), "Method families"
    return Section("families", title, note, page_table(view, title, head, rows, 2))


def _differences(view: BoardView, drawn: list[plots.Plot]) -> Section | None:
    rows = []
    for student, label, task, d in board_rows.difference_rows(view):
        est = d.estimate
        entries = [
            name_entry(student),
            TableEntry(text.plain(label), css="l"),
            name_entry(task),
            number_entry(text.gap(est), est.mean if est else None),
            number_entry(str(d.pairs), d.pairs),
            TableEntry(est.seeds if est else "—", css="n"),
            number_entry(text.p_value(d.adjusted), d.adjusted),
            TableEntry(chip(d.verdict), css="n"),
        ]
        rows.append((student, entries))
    if not rows:
        return None
    table = tag(
        "details",
        tag("summary", f"All {len(rows)} differences as a table"),
        page_table(view, "Paired differences", markdown.DIFFERENCE_HEAD, rows, 3),
    )
    charts = _figures([p for p in drawn if p.group == "differences"])
    return Section(
        "differences",
        "Paired differences",
        tag("p", board_rows.PAIRED, class_="dim small"),
        charts,
        table,
    )


def _alignment(view: BoardView, drawn: list[plots.Plot]) -> Section | None:
    rows = []
    for row in view.board.rows:
        f = view.summaries[row].align
        if f is None:
            continue
        values = [f.std_ratio_before, f.std_ratio_after_align, f.std_ratio_after_transform]
        entries = [name_entry(row.student), _row_entry(view, row), name_entry(row.teacher or "—")]
        entries.append(
            number_entry(text.ratio(f.explained_variance_ratio, 3), f.explained_variance_ratio)
        )
        entries += [number_entry(text.ratio(v), v) for v in values]
        rows.append((row.student, entries))
    if not rows:
        return None
    return Section(
        "alignment",
        "Alignment",
        tag("p", markdown.ALIGNMENT, class_="dim small"),
        page_table(view, "Alignment", markdown.ALIGNMENT_HEAD, rows, 3),
    )


def _noise(view: BoardView) -> Section | None:
    rows = []
    for student in view.board.students:
        columns = compare.columns_of(view.board, student)
        names = board_rows.column_names(columns)
        for c in columns:
            n = compare.noise(view.board, student, c)
            if n is not None:
                entries = [
                    name_entry(student),
                    name_entry(names[c]),
                    number_entry(text.points(n.sd), n.sd),
                ]
                entries += [number_entry(str(n.df), n.df), number_entry(str(n.n), n.n)]
                entries.append(
                    number_entry(text.points(n.detectable_difference), n.detectable_difference)
                )
                rows.append((student, entries))
    if not rows:
        return None
    table = page_table(view, "Seed noise", markdown.NOISE_HEAD, rows, 2)
    return Section("noise", "Seed noise (x100)", table)


def _probes(view: BoardView) -> Section | None:
    """Values of the probes, one table each."""
    section = view.probes
    if not section:
        return None
    parts: list[object] = [tag("p", probe_tables.INTRODUCTION, class_="dim small")]
    for table in section.tables:
        rows = []
        for row in table.rows:
            entries = [name_entry(row.key.student), name_entry(section.labels[row.key])]
            entries += [number_entry(row.score_text(c), row.mean(c)) for c in table.columns]
            rows.append((row.key.student, entries))
        if any(v is not None for v in table.chance.values()):
            chance = [name_entry(""), name_entry("chance")]
            for c in table.columns:
                chance.append(number_entry(c.shown(table.chance[c]), table.chance[c]))
            rows.append((CHANCE, chance))
        head = ["student", "method", *(text.plain(c.heading, 60) for c in table.columns)]
        parts.append(tag("h3", text.plain(table.title)))
        if table.about:
            parts.append(tag("p", text.plain(table.about, 300), class_="dim small"))
        parts.append(page_table(view, f"Probe {text.plain(table.title)}", head, rows, 2))
    if section.remarks:
        shown = [tag("li", text.plain(r, 800)) for r in section.remarks[:200]]
        parts.append(tag("ul", *shown))
    return Section("probes", probe_tables.HEADING, *parts)


def _reported(view: BoardView) -> Section | None:
    rows = reported.rows_for(view.board)
    if not rows:
        return None
    entries = [("", [TableEntry(c) for c in reported.entries(r)]) for r in rows]
    table = page_table(view, "Reported elsewhere", reported.HEAD, entries, 2)
    note = tag("p", reported.SOURCE)
    return Section("reported", "Reported elsewhere", note, table)


def _per_class(view: BoardView, full: Sequence[Record]) -> Section | None:
    tables = plots.per_class(view, full)
    if not tables:
        return None
    parts = []
    for title, classes, rows in tables:
        lines = []
        for row, means in rows:
            best = [number_entry(text.points(m), m) for m in means]
            lines.append((row.student, [name_entry(row.student), _row_entry(view, row), *best]))
        head = ["student", "method", *(text.plain(c, 40) for c in classes)]
        parts += [tag("h3", title), page_table(view, f"Per class: {title}", head, lines, 2)]
    note = "Mean over seeds, x100, without intervals: small differences may be noise."
    return Section("classes", "Per class", tag("p", note, class_="dim small"), *parts)


def _failures(view: BoardView) -> Section | None:
    table = board_rows.failures(view)
    parts: list[object] = []
    if table:
        rows = [
            (
                "",
                [
                    TableEntry(text.plain(w, 200), css="l w"),
                    TableEntry(chip(s), css="l"),
                    TableEntry(text.plain(why, 600), css="l w"),
                ],
            )
            for w, s, why in table
        ]
        parts.append(page_table(view, "Failures", markdown.FAILURE_HEAD, rows, 3, css=""))
    if view.board.remarks:
        parts += [
            tag("h3", "Remarks"),
            tag("ul", *(tag("li", text.plain(r, 800)) for r in view.board.remarks[:200])),
        ]
        if len(view.board.remarks) > 200:
            parts.append(tag("p", f"... and {len(view.board.remarks) - 200} more remarks."))
    return Section("failures", "Failed, missing, damaged", *parts) if parts else None


def _data(view: BoardView, results_dir: Path) -> Section | None:
    """Contents of the data, as counted by stage `prepare`."""
    card = data_card.read(results_dir)
    if card is None:
        return None
    parts: list[object] = [tag("p", text.plain(data_card.heading(card), 400))]
    shown = {r.data.fingerprint for r in view.board.runs if r.data.fingerprint}
    if shown - {card["fingerprint"]}:
        parts.append(
            tag("p", "Some records of this page were measured on data with another fingerprint.")
        )
    for title, head, rows in data_card.tables(card):
        entries = [[tag("td", text.plain(v, 300), class_="l") for v in row] for row in rows]
        body = tag("tbody", *(tag("tr", *row) for row in entries))
        table = tag("table", tag("thead", tag("tr", *(tag("th", h) for h in head))), body)
        box = tag("div", table, class_="scroll", tabindex=0, role="group", aria_label=title)
        parts += [tag("h3", text.plain(title, 100)), box]
    return Section("data", "Data", *parts)


def _environment(board: Board) -> Section | None:
    summary = board_rows.environment(board)
    if not summary:
        return None
    rows = [
        tag(
            "tr",
            tag("th", item, scope="row"),
            tag("td", join((text.plain(v, 600) for v in values[:20]), "<br>"), class_="l"),
        )
        for item, values in summary.items()
    ]
    table = tag("table", tag("tbody", *rows))
    return Section(
        "environment",
        "Environment",
        tag("div", table, class_="scroll", tabindex=0, role="group", aria_label="Environment"),
    )


def _reproduce(view: BoardView) -> Section | None:
    rows = [
        (
            a.student,
            [
                name_entry(a.student),
                _row_entry(view, a),
                TableEntry(tag("code", board_rows.command(view.board, a)), css="l w"),
            ],
        )
        for a in view.board.rows
    ]
    if not rows:
        return None
    table = page_table(view, "Reproduce", markdown.REPRODUCE_HEAD, rows, 3)
    return Section("reproduce", "Reproduce", table)


def _glossary() -> Section:
    lines = [tag("div", tag("dt", t.name), tag("dd", t.meaning)) for t in glossary.TERMS]
    return Section("glossary", "Glossary", tag("dl", *lines, class_="terms small"))
