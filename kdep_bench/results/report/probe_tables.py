"""Tables of probes, made from the probe records alone.

Probes are not in the board, so no mean, rank, difference or claim includes them, except claims
about teachers, which read the probe `teacher`.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kdep_bench.results import text
from kdep_bench.results.board import teachers
from kdep_bench.results.board.board import RowKey, labels_of
from kdep_bench.results.records.probe_record import ProbeRecord

HEADING = "Probes"
INTRODUCTION = (
    "Properties of the exported backbones, which are measured without training them. No mean, "
    "rank, mark of the best, difference or claim includes them. Each entry is mean ± standard "
    "deviation over seeds (number of seeds). There are no intervals, so small differences may be "
    "noise. ↑: larger is better, ↓: smaller is better; a table is sorted by its first column if "
    "that has an arrow. In brackets after a probe's name: the folder of the data that it reads "
    "(cityscapes: scenes with masks, in the file layout of Cityscapes). The number of nearest "
    "neighbours and the regularisation of linear classifiers are chosen on the validation split "
    "(val)."
)
TEACHER_NOTE = " Only the tables of teachers, and claims about them, read the probe `teacher`."
ARROW = {"larger": " ↑", "smaller": " ↓", "": ""}


class ProbeColumn(NamedTuple):
    """One value that a probe measures.

    `better`: "larger", "smaller" or "". `percent`: whether the value is shown x100.
    """

    name: str
    better: str
    percent: bool

    @property
    def heading(self) -> str:
        """The name with its unit and direction."""
        return f"{self.name}{' x100' if self.percent else ''}{ARROW[self.better]}"

    def text_of(self, value: float | None) -> str:
        """A value of the column; a dash where there is none."""
        return self.shown_as(value, value)

    def shown_as(self, value: float | None, mean: float | None) -> str:
        """`value`, such as a standard deviation, with the decimals of `mean`."""
        if value is None or mean is None:
            return "—"
        if self.percent:
            return text.points(value)
        return f"{value:.2f}" if abs(mean) >= 10 else f"{value:.3f}"


@dataclass
class ProbeRow:
    """One method: values by column and seed, and the seeds without a value."""

    key: RowKey
    values: dict[ProbeColumn, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    failed: set[int] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)

    def mean(self, column: ProbeColumn) -> float | None:
        """Mean over seeds; None without a value."""
        values = self.values.get(column)
        return statistics.fmean(values.values()) if values else None

    def score_text(self, column: ProbeColumn) -> str:
        """'mean ± standard deviation (n seeds)', and the numbers of failed and missing seeds."""
        parts, values = [], list(self.values.get(column, {}).values())
        if values:
            mean, spread = statistics.fmean(values), ""
            if len(values) > 1:
                spread = f" ± {column.shown_as(statistics.stdev(values), mean)}"
            parts.append(f"{column.text_of(mean)}{spread} ({len(values)})")
        for seeds, word in ((self.failed, "failed"), (self.missing, "missing")):
            if seeds:
                parts.append(f"{len(seeds)} {word}" if values or len(seeds) > 1 else word)
        return ", ".join(parts) or "—"


@dataclass
class ProbeTable:
    """One probe on one data set; the rows are sorted by the first column, best mean first."""

    probe: str
    title: str
    about: str
    columns: list[ProbeColumn]
    rows: list[ProbeRow]
    chance: dict[ProbeColumn, float | None]


@dataclass
class ProbeSection:
    """All tables, the labels of their rows, and sentences about records that are not in them."""

    tables: list[ProbeTable] = field(default_factory=list)
    labels: dict[RowKey, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tables or self.remarks)

    @property
    def introduction(self) -> str:
        """The text before the tables."""
        is_read = any(table.probe == teachers.PROBE for table in self.tables)
        return INTRODUCTION + (TEACHER_NOTE if is_read else "")


def make_section(records: Sequence[ProbeRecord], damaged: Sequence[str]) -> ProbeSection:
    """The tables of these records; `damaged`: one sentence per file that could not be read."""
    remarks = list(damaged)
    groups: dict[tuple[str, str, str, str, str], list[ProbeRecord]] = defaultdict(list)
    for r in records:
        groups[r.probe, r.folder, r.data.name, r.data.fingerprint, r.config_hash].append(r)
    tables = []
    for key, group in sorted(groups.items()):
        same_probe = [k for k in groups if k[0] == key[0]]
        tables.append(_table(key, group, len(same_probe) > 1, remarks))
    remarks += [
        f"probe {r.probe} of {_row(r).method}, seed {r.seed}: {r.error}"
        for r in sorted(records, key=lambda r: r.id)
        if r.status == "failed"
    ]
    rows = {row.key for table in tables for row in table.rows}
    return ProbeSection(tables, labels_of(sorted(rows, key=RowKey.order)), remarks)


def _row(r: ProbeRecord) -> RowKey:
    return RowKey(r.student, r.method.method, r.teacher, r.data.share, r.epochs)


def _table(
    key: tuple[str, ...], records: list[ProbeRecord], has_several: bool, remarks: list[str]
) -> ProbeTable:
    """The table of the probe records with one `key`; adds to `remarks`.

    `has_several`: whether the probe has several tables, so that titles name data and config.
    """
    probe, folder, data, fingerprint, config = key
    title = f"{probe} ({folder})" if folder else probe
    if has_several:
        title += f", data {data} {fingerprint[:8] or 'unknown'}, config {config[:6]}"
    rows: dict[RowKey, ProbeRow] = {}
    columns: dict[ProbeColumn, None] = {}
    chances: dict[ProbeColumn, set[float | None]] = defaultdict(set)
    for r in sorted(_one_per_seed(records, title, remarks), key=lambda r: r.id):
        row = rows.setdefault(_row(r), ProbeRow(_row(r)))
        if r.status != "ok":
            (row.failed if r.status == "failed" else row.missing).add(r.seed)
        for v in r.values:
            column = ProbeColumn(v.name, v.better, v.percent)
            columns[column] = None
            chances[column].add(v.chance)
            row.values[column][r.seed] = v.value
    # A table needs a column, even if no record has a value.
    order = list(columns) or [ProbeColumn("value", "", False)]
    chance = {c: next(iter(known)) if len(known) == 1 else None for c, known in chances.items()}

    def sort_key(row: ProbeRow) -> tuple[str, bool, float, tuple]:
        first = order[0] if order and order[0].better else None
        mean = None if first is None else row.mean(first)
        sign = -1 if first is not None and first.better == "larger" else 1
        return row.key.student, mean is None, sign * (mean or 0.0), row.key.order()

    return ProbeTable(
        probe,
        title,
        _sentence(next((r.about for r in records if r.about), "")),
        order,
        sorted(rows.values(), key=sort_key),
        chance,
    )


def _sentence(about: str) -> str:
    """`about` as a sentence; a first word such as mIoU keeps its case."""
    if not about:
        return ""
    first = about[:1].upper() if about.split()[0].islower() else about[:1]
    return f"{first}{about[1:].rstrip('.')}."


def _one_per_seed(records: list[ProbeRecord], title: str, remarks: list[str]) -> list[ProbeRecord]:
    """The records without duplicates: if several have the same row and seed, none is used."""
    same: dict[tuple[RowKey, int], list[ProbeRecord]] = defaultdict(list)
    for r in records:
        same[_row(r), r.seed].append(r)
    kept = []
    for (row, seed), group in same.items():
        if len(group) > 1:
            ids = ", ".join(sorted(r.id for r in group))
            remarks.append(
                f"{title}: {len(group)} records of {row.method}, seed {seed} ({ids}); none is used."
            )
        else:
            kept += group
    return kept


CSV_HEAD = ["student", "row", "method", "data_fraction", "probe", "folder", "seed", "metric"]
CSV_HEAD += ["value", "better", "chance", "features_s", "probe_s", "data", "fingerprint"]


def csv_table(section: ProbeSection, records: Sequence[ProbeRecord]) -> str:
    """probes.csv: one row per value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for r in sorted(records, key=lambda r: r.id):
        for v in r.values:
            entries = [r.student, section.labels.get(_row(r), r.method.method), r.method.method]
            entries = [text.csv_text(c) for c in entries]
            entries += [f"{r.data.share:g}", text.csv_text(r.probe), text.csv_text(r.folder)]
            entries += [str(r.seed), text.csv_text(v.name), repr(v.value), v.better]
            numbers = (v.chance, r.features_s, r.probe_s)
            entries += ["" if n is None else repr(n) for n in numbers]
            writer.writerow([*entries, text.csv_text(r.data.name), r.data.fingerprint])
    return out.getvalue()
