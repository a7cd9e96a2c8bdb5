"""The seeds that tasks and probes need for the same differences: `report FOLDER --seeds-needed`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.results import text
from kdep_bench.results.board import compare, seeds_needed
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.board.seeds_needed import PROBE, TASK, Evidence, Need, PairNeeds
from kdep_bench.results.records import probe_record
from kdep_bench.results.report import board_rows, probe_tables, report
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.markdown import md_table
from kdep_bench.results.report.probe_tables import ProbeRow, ProbeSection
from kdep_bench.results.statistics.power import MOST_SEEDS

NOTE = (
    "Pre-training seeds with which a paired t test (two-sided, 5 %) finds the measured difference "
    "of two methods with power 0.8, if its mean and standard deviation stayed as measured. Range: "
    "with the ends of the 95 % interval of the standard deviation. Medians are over tasks and over "
    "probes, one value per probe: its first. A difference of another size, or another pair, needs "
    "other numbers."
)
EPOCHS = 0.02  # relative difference of planned and run epochs
PAIR_HEAD = ["student", "comparison", "seeds needed: tasks, median", "probes, median"]
PAIR_HEAD += ["without two pre-training seeds"]
HEAD = ["measured by", "mean difference", "std. dev. of the difference"]
HEAD += ["difference / std. dev.", "pre-training seeds measured", "seeds needed", "range"]


def tables(results_dir: Path) -> str:
    """Both tables of a results folder, in Markdown.

    Raises:
        KdepError: no compared pair has two pre-training seeds in common.
    """
    view = report.view_of(results_dir)
    records, damaged = probe_record.read(results_dir)
    section = probe_tables.make_section(records, damaged)
    pairs = _pairs(view, section)
    if not any(pair.needs for pair in pairs):
        raise KdepError(
            f"no two compared methods in {results_dir} have two pre-training seeds in common",
            expected="records of two or more pre-training seeds",
            fix="list several in `seeds.pretrain` of the suite and run it",
        )
    lines = [f"# Seeds needed: {text.md(view.board.suite)}", "", NOTE, ""]
    lines += [*_remarks(section), *md_table(PAIR_HEAD, [_pair_row(view, p) for p in pairs], 2)]
    for pair in pairs:
        if pair.needs:
            lines += ["", f"## {text.md(_label(view, pair))}", ""]
            lines += md_table(HEAD, [_row(n) for n in pair.needs], 1)
    return "\n".join(lines)


def _remarks(section: ProbeSection) -> list[str]:
    lines = [f"- {text.md(remark, 300)}" for remark in section.remarks]
    return [*lines, ""] if lines else []


def _label(view: BoardView, pair: PairNeeds) -> str:
    student = f", {pair.row.student}" if len(view.board.students) > 1 else ""
    return f"{view.labels[pair.row]} - {view.labels[pair.reference]}{student}"


def _pairs(view: BoardView, section: ProbeSection) -> list[PairNeeds]:
    board, pairs = view.board, list[PairNeeds]()
    names = board_rows.column_names(board.columns)
    for student in board.students:
        for row, reference in compare.compared(board, student):
            evidence = seeds_needed.of_tasks(board, row, reference, names)
            evidence += _of_probes(view, section, row, reference)
            pairs.append(seeds_needed.pair_needs(row, reference, evidence))
    return pairs


def _of_probes(
    view: BoardView, section: ProbeSection, row: RowKey, reference: RowKey
) -> list[Evidence]:
    """The differences by every probe value that has a better direction."""
    evidence = []
    for table in section.tables:
        probed, baseline = _row_of(table.rows, row), _row_of(table.rows, reference)
        if probed is None or baseline is None:
            continue
        directed = [c for c in table.columns if c.better]
        for column in directed:
            first, second = probed.values.get(column), baseline.values.get(column)
            if not first or not second:
                continue
            if len(second) == 1 and view.board.fixed(reference):  # as in `intervals.differences`
                second = dict.fromkeys(first, next(iter(second.values())))
            sign = 1 if column.better == "larger" else -1
            gaps = {s: sign * (first[s] - second[s]) for s in first if s in second}
            name = f"{table.title}: {column.name}"
            is_first = column == directed[0]
            evidence.append(Evidence(PROBE, name, gaps, column.percent, is_first))
    return evidence


def _row_of(rows: Sequence[ProbeRow], row: RowKey) -> ProbeRow | None:
    """The probes' row of a row of the leaderboard; None unless there is exactly one.

    Probe records have the planned epochs, none for an untrained backbone; transfer records those
    that were run, which are rounded to whole steps.
    """
    epochs = row.epochs or 0.0
    same = [
        r
        for r in rows
        if r.key[:4] == row[:4] and math.isclose(r.key.epochs or 0.0, epochs, rel_tol=EPOCHS)
    ]
    return same[0] if len(same) == 1 else None


def _seeds(count: float | None) -> str:
    return f"> {MOST_SEEDS}" if count is None or math.isinf(count) else f"{count:g}"


def _pair_row(view: BoardView, pair: PairNeeds) -> list[str]:
    medians = [pair.median(source) for source in (TASK, PROBE)]
    return [
        text.md(pair.row.student),
        text.md(f"{view.labels[pair.row]} - {view.labels[pair.reference]}"),
        *("—" if m is None else _seeds(m) for m in medians),
        text.md(", ".join(pair.too_few), 300) or "—",
    ]


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.2f} (x100)" if percent else f"{value:.3g}"


def _row(need: Need) -> Sequence[str]:
    percent = need.evidence.percent
    effect = "—" if need.sd == 0 else f"{need.gap / need.sd:.2f}"
    return [
        text.md(f"{need.evidence.source} {need.evidence.name}"),
        _number(need.gap, percent),
        _number(need.sd, percent),
        effect,
        str(need.n),
        _seeds(need.seeds),
        f"{_seeds(need.low)} to {_seeds(need.high)}",
    ]
