"""Sections about the records: probes, reported scores, failures, data, environment, commands."""

from __future__ import annotations

from pathlib import Path

from kdep_bench.results import text
from kdep_bench.results.board.board import Board
from kdep_bench.results.report import (
    board_rows,
    data_card,
    glossary,
    markdown,
    probe_tables,
    reported,
)
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import (
    LEFT,
    LEFT_WIDE,
    Entry,
    chip_entry,
    name_entry,
    number_entry,
    row_entry,
)
from kdep_bench.results.report.page.tables import CHANCE, Section, Table, page_table
from kdep_bench.results.report.probe_tables import ProbeTable

MAX_REMARKS = 200
MAX_VALUES = 20  # values of an item of the environment


def probes_section(view: BoardView) -> Section | None:
    """One table per probe, with its values."""
    probes = view.probes
    if not probes:
        return None
    return Section(
        "probes",
        probe_tables.HEADING,
        "probes",
        introduction=probes.introduction,
        tables=[(t.title, t.about, _probe_table(view, t)) for t in probes.tables],
        remarks=probes.remarks[:MAX_REMARKS],
    )


def _probe_table(view: BoardView, table: ProbeTable) -> Table:
    rows = []
    for row in table.rows:
        entries = [name_entry(row.key.student), name_entry(view.probes.labels[row.key])]
        entries += [number_entry(row.score_text(c), row.mean(c)) for c in table.columns]
        rows.append((row.key.student, entries))
    if any(v is not None for v in table.chance.values()):
        chance = [name_entry(""), name_entry("chance")]
        for c in table.columns:
            chance.append(number_entry(c.text_of(table.chance[c]), table.chance[c]))
        rows.append((CHANCE, chance))
    head = ["student", "method", *(text.plain(c.heading, 60) for c in table.columns)]
    return page_table(view, f"Probe {text.plain(table.title)}", head, rows, 2)


def reported_section(view: BoardView) -> Section | None:
    """Scores of the KDEP paper."""
    rows = reported.rows_for(view.board)
    if not rows:
        return None
    entries = [("", [Entry(c) for c in reported.entries(r)]) for r in rows]
    title = "Reported elsewhere"
    table = page_table(view, title, reported.HEAD, entries, 2)
    return Section("reported", title, "reported", note=reported.SOURCE, table=table)


def failures_section(view: BoardView) -> Section | None:
    """The table of failed, missing and damaged records, and remarks on the records."""
    rows = [
        (
            "",
            [
                Entry(text.plain(where, 200), LEFT_WIDE),
                chip_entry(status, css=LEFT),
                Entry(text.plain(why, 600), LEFT_WIDE),
            ],
        )
        for where, status, why in board_rows.failures(view)
    ]
    remarks = view.board.remarks
    if not rows and not remarks:
        return None
    table = None
    if rows:
        table = page_table(view, "Failures", markdown.FAILURE_HEAD, rows, 3, css="")
    return Section(
        "failures",
        "Failed, missing, damaged",
        "failures",
        table=table,
        remarks=remarks[:MAX_REMARKS],
        omitted=max(0, len(remarks) - MAX_REMARKS),
    )


def data_section(view: BoardView, results_dir: Path) -> Section | None:
    """The data card: counts of images, boxes and classes; None if the folder has no card."""
    card = data_card.read(results_dir)
    if card is None:
        return None
    fingerprints = {r.data.fingerprint for r in view.board.runs if r.data.fingerprint}
    return Section(
        "data",
        "Data",
        "data",
        heading=data_card.heading(card),
        is_mixed=bool(fingerprints - {card["fingerprint"]}),
        tables=data_card.tables(card),
    )


def environment_section(board: Board) -> Section | None:
    """Devices, data, code and packages of the records."""
    summary = board_rows.environment(board)
    if not summary:
        return None
    rows = [(item, values[:MAX_VALUES]) for item, values in summary.items()]
    return Section("environment", "Environment", "environment", rows=rows)


def reproduce_section(view: BoardView) -> Section | None:
    """The commands that reproduce the rows."""
    rows = []
    for (student, line), reproduced in board_rows.commands(view.board).items():
        names = ", ".join(board_rows.row_name(view, row) for row in reproduced)
        is_single = len(reproduced) == 1
        label = row_entry(view, reproduced[0]) if is_single else name_entry(names, 300)
        rows.append((student, [name_entry(student), label, Entry(line, LEFT_WIDE, kind="code")]))
    if not rows:
        return None
    table = page_table(view, "Reproduce", markdown.REPRODUCE_HEAD, rows, 3)
    return Section("reproduce", "Reproduce", "table", notes=[], table=table)


def glossary_section() -> Section:
    """All terms of the glossary."""
    return Section("glossary", "Glossary", "glossary", terms=glossary.TERMS)
