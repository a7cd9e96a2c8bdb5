"""From runs to a board: columns (tasks), arms, and the cells between them.

What may be compared shares a column: task, version, split, metric *and* data fingerprint. Rules for
what could mislead:

* two records for one cell and seed pair: the newer counts, the older is listed as set aside;
  as old as each other and different: neither counts, the pair is shown as failed;
* a damaged file is shown with the failures;
* a missing or failed pair stays in its cell and is never averaged over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdep_bench.results.records.store import Run, Store
from kdep_bench.results.statistics.intervals import Estimate, estimate


class Column(NamedTuple):
    """One task as it can be compared. Sorts by family, then name."""

    family: str
    task: str
    version: int
    split: str
    metric: str
    direction: str
    data: str
    fingerprint: str

    @property
    def sign(self) -> int:
        """+1 where large is good, -1 where small is."""
        return 1 if self.direction == "max" else -1


class RowKey(NamedTuple):
    """One row: a student pre-trained in one way. `epochs` None where not known, -1 if ambiguous."""

    student: str
    method: str
    teacher: str
    fraction: float
    epochs: float | None

    def order(self) -> tuple[str, str, str, float, float]:
        """Sort key; large share and long training first."""
        epochs = 0.0 if self.epochs is None else self.epochs
        return (self.student, self.method, self.teacher, -self.fraction, -epochs)


@dataclass(slots=True)
class Result:
    """The runs of one arm on one task; `values` only of those that are ok."""

    values: dict[tuple[int, int], float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    _estimate: Estimate | None = None

    @property
    def complete(self) -> bool:
        """Has values, and nothing failed or missing."""
        return bool(self.values) and not self.failed and not self.missing

    @property
    def estimate(self) -> Estimate | None:
        """Mean and interval of the values; None where there is none."""
        if self._estimate is None and self.values:
            self._estimate = estimate(self.values)
        return self._estimate


@dataclass(slots=True)
class Board:
    """Everything tables, claims and the page read."""

    suite: str
    columns: list[Column]
    rows: list[RowKey]
    results: dict[tuple[RowKey, Column], Result]
    chance: dict[Column, float | None]
    runs: list[Run]
    remarks: list[str]
    damaged: list[tuple[str, str]]
    # Fitted once each by `compare.model`: by student and columns.
    models: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def students(self) -> list[str]:
        """Students, sorted."""
        return sorted({a.student for a in self.rows})

    @property
    def families(self) -> list[str]:
        """Task families, sorted."""
        return sorted({c.family for c in self.columns})

    @property
    def untimed(self) -> bool:
        """Whether the suite states no times (`runtime.timed=False`): a run that was timed has at
        least its transfer's."""
        ok = [r for r in self.runs if r.status == "ok"]
        return bool(ok) and all(r.cost.transfer_s is r.cost.pretrain_s is None for r in ok)

    def result(self, row: RowKey, column: Column) -> Result:
        """The cell, empty where nothing was recorded."""
        return self.results.get((row, column)) or Result()

    def rows_of(self, student: str) -> list[RowKey]:
        """Rows of one student."""
        return [a for a in self.rows if a.student == student]

    def columns_of(self, family: str) -> list[Column]:
        """Columns of one task family."""
        return [c for c in self.columns if c.family == family]

    def runs_of(self, row: RowKey) -> list[Run]:
        """Every run of a row, ok or not, in a fixed order."""
        runs = [
            r for c in self.columns if (row, c) in self.results for r in self.results[row, c].runs
        ]
        return sorted(runs, key=lambda r: (r.status != "ok", r.id))

    def values(self, row: RowKey, column: Column) -> dict[tuple[int, int], float]:
        """The ok values of a cell by (pretrain seed, transfer seed)."""
        return self.result(row, column).values

    def fixed(self, row: RowKey) -> bool:
        """Whether the arm has no pre-training here (published weights, or none at all)."""
        ok = [r for r in self.runs_of(row) if r.status == "ok"]
        return bool(ok) and not any(r.pretrained for r in ok)

    def counterpart(self, row: RowKey, method: str) -> RowKey | None:
        """The arm of `method` that `arm` is compared with: same student; the same share, teacher
        and epochs where there is a choice; None where the choice stays open or there is none."""
        found = [a for a in self.rows if a.student == row.student and a.method == method]
        found = [a for a in found if a != row]
        for part in ("fraction", "epochs", "teacher"):
            if len(found) > 1:
                same = [a for a in found if getattr(a, part) == getattr(row, part)]
                found = same or found
        if len(found) != 1:
            return None
        only = found[0]
        # A smaller share of the data is another experiment, unless no data was used at all.
        return only if only.fraction == row.fraction or self.fixed(only) else None


def _column(run: Run) -> Column:
    t, d = run.task, run.data
    return Column(
        t.family, t.name, t.version, t.split, t.metric, t.direction, d.name, d.fingerprint
    )


def _row_key(run: Run) -> RowKey:
    teacher = "" if run.teacher is None else run.teacher.name
    epochs = run.budget.epochs
    return RowKey(run.student.name, run.arm.method, teacher, run.data.share, epochs)


def _same_row(keys: Iterable[RowKey], scored: set[RowKey]) -> dict[RowKey, RowKey]:
    """Maps arms of runs that failed before their teacher or epochs were known to the full one.

    `scored`: arms with a score, which are what they say: one without a teacher has none.
    """
    groups: dict[tuple[str, str, float], list[RowKey]] = defaultdict(list)
    for key in keys:
        groups[key.student, key.method, key.fraction].append(key)
    full = {}
    for group in groups.values():
        whole = [k for k in group if k.teacher and k.epochs is not None]
        for key in group:
            fits = [
                w
                for w in whole
                if key.teacher in ("", w.teacher) and key.epochs in (None, w.epochs)
            ]
            full[key] = fits[0] if len(fits) == 1 and key not in scored else key
    return full


def _same_column(columns: Iterable[Column]) -> dict[Column, Column]:
    """Maps columns whose data fingerprint was never learnt to the one of the same task."""
    groups: dict[tuple[object, ...], list[Column]] = defaultdict(list)
    for column in columns:
        groups[column[:7]].append(column)
    full = {}
    for group in groups.values():
        known = [c for c in group if c.fingerprint]
        for column in group:
            full[column] = known[0] if not column.fingerprint and len(known) == 1 else column
    return full


def _choose(runs: list[Run], remarks: list[str]) -> Run:
    """The one run of a cell and seed pair that counts; says so where there was a choice."""
    runs = sorted(runs, key=lambda r: (-r.when, r.id))
    newest = [r for r in runs if r.when == runs[0].when]
    first = newest[0]
    ids = ", ".join(shorten(r.id, 80) for r in runs)
    where = f"{shorten(first.arm.method)} on {shorten(first.task.name)}, "
    where += f"seeds {first.pretrain_seed}/{first.transfer_seed}"
    if any((r.status, r.value) != (first.status, first.value) for r in newest):
        sentence = f"{len(newest)} records of the same time disagree ({ids})"
        remarks.append(f"Conflict: {where}: {sentence}; none is used.")
        return first._replace(status="failed", value=None, error=sentence)
    rest = [r for r in runs if r is not first]
    which = ", ".join(shorten(r.id, 80) for r in rest)
    remarks.append(
        f"Duplicates: {where}: {len(runs)} records; the newest, {shorten(first.id, 80)}, is used, "
        f"not {which}."
    )
    return first


def shorten(text: str, limit: int = 120) -> str:
    """`text`, its middle cut out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 20) // 2
    return f"{text[:half]}...({len(text)} characters)...{text[-half // 2 :]}"


def _add(result: Result, run: Run) -> None:
    result.runs.append(run)
    if run.status == "ok" and run.value is not None:
        result.values[run.pretrain_seed, run.transfer_seed] = run.value
    else:
        (result.failed if run.status == "failed" else result.missing).append(run)


def _parts(run: Run) -> tuple[int, ...]:
    # The store shares equal parts, so identities stand for values; a part it did not share only
    # costs one more entry.
    parts = (run.arm, run.student, run.teacher, run.data, run.budget, run.task)
    return tuple(map(id, parts))


def _places(runs: list[Run]) -> dict[tuple[int, ...], tuple[RowKey, Column]]:
    """Row and column of every distinct combination of parts."""
    found = {}
    for run in runs:
        key = _parts(run)
        if key not in found:
            found[key] = (_row_key(run), _column(run))
    scored = {found[_parts(run)][0] for run in runs if run.status == "ok"}
    same_row = _same_row({row for row, _ in found.values()}, scored)
    same_column = _same_column({column for _, column in found.values()})
    return {k: (same_row[row], same_column[column]) for k, (row, column) in found.items()}


def make_board(store: Store, suite: str | None = None) -> Board:
    """Groups the runs of `store`; `suite` keeps only that suite's (all where None)."""
    remarks: list[str] = []
    runs = sorted(store.runs, key=lambda r: r.id)
    if suite is not None and (others := sum(r.suite != suite for r in runs)):
        runs = [r for r in runs if r.suite == suite]
        remarks.append(f"{others} records of other suites are in the same folder and are ignored.")
    places = _places(runs)
    pairs: dict[tuple[RowKey, Column], dict[tuple[int, int], list[Run]]] = {}
    for run in runs:
        at = pairs.setdefault(places[_parts(run)], {})
        at.setdefault((run.pretrain_seed, run.transfer_seed), []).append(run)
    results: dict[tuple[RowKey, Column], Result] = {}
    kept = []
    for at, by_seeds in pairs.items():
        results[at] = result = Result()
        for some in by_seeds.values():
            run = some[0] if len(some) == 1 else _choose(some, remarks)
            kept.append(run)
            _add(result, run)

    chance: dict[Column, float | None] = {}
    for (_, column), result in results.items():
        for run in result.runs:
            if chance.get(column) is None:
                chance[column] = run.task.chance
    remarks += _warnings(kept, results)
    return Board(
        suite=suite or _common_suite(runs),
        columns=sorted(chance),
        rows=sorted({a for a, _ in results}, key=RowKey.order),
        results=results,
        chance=chance,
        runs=kept,
        remarks=sorted(remarks),
        damaged=[(d.file, d.sentence) for d in store.damaged],
    )


def _common_suite(runs: list[Run]) -> str:
    return " + ".join(shorten(s, 60) for s in sorted({r.suite for r in runs})) or "no suite"


# No transfer of the published suites whose training holds its course goes beyond 1.8.
DIVERGED = 3.0


def _diverged(runs: list[Run]) -> list[str]:
    """Transfers whose loss rose to DIVERGED times its first value, by arm and task."""
    rises: dict[tuple[str, str, str], list[float]] = {}
    for r in runs:
        if r.loss_rise >= DIVERGED:
            rises.setdefault((r.student.name, r.arm.method, r.task.name), []).append(r.loss_rise)
    return [
        f"Transfer training of {shorten(method)} ({shorten(student)}) on {shorten(task)} diverged "
        f"for {len(several)} seed{'s' if len(several) > 1 else ''}: the loss rose to "
        f"{max(several):.0f} times its first value. The score reflects the recipe, not the weights."
        for (student, method, task), several in sorted(rises.items())
    ]


def _other_epochs(runs: list[Run]) -> list[str]:
    """Pre-trainings whose whole batches made other epochs than the budget asked for, by arm."""
    rows = {
        (r.student.name, r.arm.method, r.data.share, r.budget.epochs, r.budget.epochs_asked)
        for r in runs
        if r.budget.epochs_asked is not None
    }
    return [
        f"{shorten(method)} ({shorten(student)}, {100 * share:g} % of the data) was pre-trained "
        f"for {done:.3g} epochs instead of the {asked:.3g} of its budget, because only complete "
        "batches are used."
        for student, method, share, done, asked in sorted(rows, key=str)
    ]


def _warnings(runs: list[Run], results: dict[tuple[RowKey, Column], Result]) -> list[str]:
    """Remarks on what may make the numbers misleading."""
    found = []
    prints = {r.data.fingerprint for r in runs if r.data.fingerprint}
    if len(prints) > 1:
        found.append(
            f"The records have {len(prints)} different data fingerprints; each has its own "
            "columns, and scores on different data are never compared."
        )
    uncovered = sorted({r.id for r in runs if r.coverage is not None and r.coverage < 1})
    if uncovered:
        names = ", ".join(shorten(u, 80) for u in uncovered[:5])
        found.append(f"Weights loaded below 1.0 in {len(uncovered)} records: {names}.")
    for (row, column), result in results.items():
        if len(result.values) > 2 and len(set(result.values.values())) == 1:
            found.append(
                f"All {len(result.values)} seeds of {shorten(row.method)} on "
                f"{shorten(column.task)} gave the same value: the seed may have no effect there."
            )
    found += _diverged(runs)
    found += _other_epochs(runs)
    devices = sorted({r.cost.device for r in runs if r.cost.device})
    if len(devices) > 1:
        names = ", ".join(shorten(d, 60) for d in devices)
        found.append(f"Times were measured on different devices ({names}) and are not comparable.")
    return found
