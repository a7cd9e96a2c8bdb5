"""Tables of the seeds needed to detect differences, by task and by probe.

The command `report --seeds-needed` prints them.
"""

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
from kdep_bench.results.statistics.power import MAX_SEEDS

NOTE = (
    "Seeds needed: the number of pre-training seeds with which a paired t test (two-sided, 5 %) "
    "finds the measured difference of two methods with power 0.8, if its mean and standard "
    "deviation stayed as measured. Range: the same number for the ends of the 95 % interval of the "
    "standard deviation. The first table has the medians over tasks and over probes (only the "
    "first value of each probe). Its last column lists the tasks and probes for which the two "
    "methods have fewer than two pre-training seeds in common. Other differences need other "
    "numbers of seeds."
)
EPOCHS_TOLERANCE = 0.02  # largest relative difference between planned and trained epochs
PAIR_HEAD = ["student", "comparison", "median seeds needed: tasks", "median seeds needed: probes"]
PAIR_HEAD += ["fewer than two common seeds"]
HEAD = ["measured by", "mean difference", "std. dev. of the difference"]
HEAD += ["difference / std. dev.", "pre-training seeds measured", "seeds needed", "range"]


def tables(results_dir: Path) -> str:
    """The tables of a results folder in Markdown: one of all pairs, and one per pair.

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
            fix="list several seeds in `seeds.pretrain` of the suite and run it",
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
    """The seeds needed for every compared pair of rows."""
    board, pairs = view.board, list[PairNeeds]()
    names = board_rows.column_names(board.columns)
    for student in board.students:
        for row, reference in compare.compared_pairs(board, student):
            evidence = seeds_needed.task_evidence(board, row, reference, names)
            evidence += _probe_evidence(view, section, row, reference)
            pairs.append(seeds_needed.pair_needs(row, reference, evidence))
    return pairs


def _probe_evidence(
    view: BoardView, section: ProbeSection, row: RowKey, reference: RowKey
) -> list[Evidence]:
    """The differences in every probe value for which larger or smaller is better."""
    evidence = []
    for table in section.tables:
        probed, baseline = _row_of(table.rows, row), _row_of(table.rows, reference)
        if probed is None or baseline is None:
            continue
        columns = [c for c in table.columns if c.better]
        for column in columns:
            first, second = probed.values.get(column), baseline.values.get(column)
            if not first or not second:
                continue
            # As in `intervals.differences`.
            if len(second) == 1 and view.board.lacks_pretraining(reference):
                second = dict.fromkeys(first, next(iter(second.values())))
            sign = 1 if column.better == "larger" else -1
            gaps = {s: sign * (first[s] - second[s]) for s in first if s in second}
            name = f"{table.title}: {column.name}"
            is_first = column == columns[0]
            evidence.append(Evidence(PROBE, name, gaps, column.percent, is_first))
    return evidence


def _row_of(rows: Sequence[ProbeRow], row: RowKey) -> ProbeRow | None:
    """The row of a probe table that belongs to a leaderboard row; None unless exactly one does.

    Probe records have the planned epochs, or None for an untrained backbone. Transfer records have
    the trained epochs, which are rounded to complete steps.
    """
    epochs = row.epochs or 0.0
    same = [
        r
        for r in rows
        if r.key[:4] == row[:4]
        and math.isclose(r.key.epochs or 0.0, epochs, rel_tol=EPOCHS_TOLERANCE)
    ]
    return same[0] if len(same) == 1 else None


def _seeds(count: float | None) -> str:
    return f"> {MAX_SEEDS}" if count is None or math.isinf(count) else f"{count:g}"


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
