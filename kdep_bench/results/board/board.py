"""A board: the runs of a suite as a table of rows (pre-trained students) and columns (tasks).

Scores are compared only within a column: same task, version, split, metric *and* data fingerprint.
Rules against misleading tables:

* two records of one row, task and seed pair: the newer counts, the older is listed as a duplicate;
  if they are equally old and differ, none counts and the seed pair is shown as failed;
* a damaged file is listed with the failures;
* a missing or failed seed pair stays visible in its result and is never averaged over.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdep_bench.results.records.store import SUBMITTED, Run, Store
from kdep_bench.results.statistics.intervals import Estimate, estimate


class Column(NamedTuple):
    """One task on one data set, whose scores are comparable. Sorts by family, then name."""

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
        """+1 where a larger score is better, -1 where a smaller one is."""
        return 1 if self.direction == "max" else -1


class RowKey(NamedTuple):
    """One row: a student, its pre-training method, teacher ("" for none), data fraction and epochs.

    `epochs` is None where unknown.
    """

    student: str
    method: str
    teacher: str
    fraction: float
    epochs: float | None

    def order(self) -> tuple[str, str, str, float, float]:
        """Sort key; larger data fraction and longer training first."""
        epochs = 0.0 if self.epochs is None else self.epochs
        return (self.student, self.method, self.teacher, -self.fraction, -epochs)


@dataclass(slots=True)
class Result:
    """The runs of one row on one task; `values`: scores of the ok ones by seed pair."""

    values: dict[tuple[int, int], float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    _estimate: Estimate | None = None

    @property
    def complete(self) -> bool:
        """Whether there is a score and no run failed or is missing."""
        return bool(self.values) and not self.failed and not self.missing

    @property
    def estimate(self) -> Estimate | None:
        """Mean and interval of the scores; None without a score."""
        if self._estimate is None and self.values:
            self._estimate = estimate(self.values)
        return self._estimate


@dataclass(slots=True)
class Board:
    """Rows, columns and results of a suite; tables, claims and the page are made from it."""

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
        """Whether the suite records no times (`runtime.timed=False`).

        A timed run has at least the time of its transfer.
        """
        ok = [r for r in self.runs if r.status == "ok"]
        return bool(ok) and all(r.cost.transfer_s is r.cost.pretrain_s is None for r in ok)

    def result(self, row: RowKey, column: Column) -> Result:
        """The result of a row on a task; an empty one where there is no record."""
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
        """Scores of a row on a task by (pre-training seed, transfer seed)."""
        return self.result(row, column).values

    def fixed(self, row: RowKey) -> bool:
        """Whether the row is not pre-trained here (published weights, or no pre-training)."""
        ok = [r for r in self.runs_of(row) if r.status == "ok"]
        return bool(ok) and not any(r.pretrained for r in ok)

    def submitted(self, row: RowKey) -> bool:
        """Whether somebody else ran the row."""
        # The name first: looking at the runs of 100,000 records for every task takes seconds.
        return SUBMITTED in row.method and any(r.submitter for r in self.runs_of(row))

    def counterpart(self, row: RowKey, method: str) -> RowKey | None:
        """The row of `method` that `row` is compared with; None without a unique one.

        It has the same student and data fraction (any fraction if it is not pre-trained here), and
        of several candidates the same epochs and teacher.
        """
        candidates = [a for a in self.rows if a.student == row.student and a.method == method]
        candidates = [a for a in candidates if a != row]
        for part in ("fraction", "epochs", "teacher"):
            if len(candidates) > 1:
                same = [a for a in candidates if getattr(a, part) == getattr(row, part)]
                candidates = same or candidates
        if len(candidates) != 1:
            return None
        only = candidates[0]
        # A smaller data fraction is another experiment, unless the row used no data at all.
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
    """Maps rows of runs that failed before their teacher or epochs were known to the complete row.

    `scored`: rows with a score, which are complete: without a teacher, they use none.
    """
    groups: dict[tuple[str, str, float], list[RowKey]] = defaultdict(list)
    for key in keys:
        groups[key.student, key.method, key.fraction].append(key)
    full = {}
    for group in groups.values():
        complete = [k for k in group if k.teacher and k.epochs is not None]
        for key in group:
            fits = [
                w
                for w in complete
                if key.teacher in ("", w.teacher) and key.epochs in (None, w.epochs)
            ]
            full[key] = fits[0] if len(fits) == 1 and key not in scored else key
    return full


def _same_column(columns: Iterable[Column]) -> dict[Column, Column]:
    """Maps columns with an unknown data fingerprint to the only known column of their task."""
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
    """The run that counts of several of one seed pair; the choice is added to `remarks`."""
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
    unused = ", ".join(shorten(r.id, 80) for r in rest)
    remarks.append(
        f"Duplicates: {where}: {len(runs)} records; the newest, {shorten(first.id, 80)}, is used, "
        f"not {unused}."
    )
    return first


def shorten(text: str, limit: int = 120) -> str:
    """`text`; one of more than `limit` characters without its middle."""
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
    # The store holds equal parts as one object, so identity is equality; a part that is held twice
    # only costs one more entry.
    parts = (run.arm, run.student, run.teacher, run.data, run.budget, run.task)
    return tuple(map(id, parts))


def _places(runs: list[Run]) -> dict[tuple[int, ...], tuple[RowKey, Column]]:
    """Row and column of every distinct combination of parts."""
    places_by_parts = {}
    for run in runs:
        key = _parts(run)
        if key not in places_by_parts:
            places_by_parts[key] = (_row_key(run), _column(run))
    scored = {places_by_parts[_parts(run)][0] for run in runs if run.status == "ok"}
    same_row = _same_row({row for row, _ in places_by_parts.values()}, scored)
    same_column = _same_column({column for _, column in places_by_parts.values()})
    return {k: (same_row[row], same_column[column]) for k, (row, column) in places_by_parts.items()}


def make_board(store: Store, suite: str | None = None) -> Board:
    """Groups the runs of `store`; `suite` keeps only that suite's (all where None)."""
    remarks: list[str] = []
    runs = sorted(store.runs, key=lambda r: r.id)
    if suite is not None and (n_other := sum(r.suite != suite for r in runs)):
        runs = [r for r in runs if r.suite == suite]
        remarks.append(f"{n_other} records of other suites are in the same folder and are ignored.")
    places = _places(runs)
    pairs: dict[tuple[RowKey, Column], dict[tuple[int, int], list[Run]]] = {}
    for run in runs:
        place = pairs.setdefault(places[_parts(run)], {})
        place.setdefault((run.pretrain_seed, run.transfer_seed), []).append(run)
    results: dict[tuple[RowKey, Column], Result] = {}
    kept = []
    for place, by_seeds in pairs.items():
        results[place] = result = Result()
        for same_seeds in by_seeds.values():
            run = same_seeds[0] if len(same_seeds) == 1 else _choose(same_seeds, remarks)
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


# No converging transfer of the published suites exceeds 1.8.
DIVERGED = 3.0


def _diverged(runs: list[Run]) -> list[str]:
    """Remarks on transfers whose loss rose to DIVERGED times its first value, by row and task."""
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


def _mixed(results: Mapping[tuple[RowKey, Column], Result]) -> list[str]:
    """Rows whose runs on a task have several configurations, which their mean mixes."""
    remarks = []
    for (row, column), result in results.items():
        scored = [r for r in result.runs if r.status == "ok"]
        rates = {r.budget.learning_rate for r in scored} - {None}
        configs = {r.config_hash for r in scored}
        if max(len(rates), len(configs)) < 2:
            continue
        reason = f"{len(configs)} configurations"
        if len(rates) > 1:
            reason = "the learning rates " + ", ".join(
                f"{r:g}" for r in sorted(filter(None, rates))
            )
        remarks.append(
            f"{shorten(row.method)} ({shorten(row.student)}) on {shorten(column.task)}: its "
            f"{len(scored)} runs have {reason} under one name, and their mean mixes them."
        )
    return remarks


def _task_versions(results: Iterable[tuple[RowKey, Column]]) -> list[str]:
    """Tasks of which the records have several versions."""
    versions: dict[str, set[int]] = defaultdict(set)
    for _, column in results:
        versions[column.task].add(column.version)
    return [
        f"The task {shorten(task)} has the versions {', '.join(map(str, sorted(several)))}: each "
        "is a separate column, and rows are compared within one version."
        for task, several in sorted(versions.items())
        if len(several) > 1
    ]


def _submitted(runs: list[Run]) -> list[str]:
    """One remark per submitter of rows that this suite did not run."""
    counts = Counter(r.submitter for r in runs if r.submitter)
    return [
        f"{n} records were submitted by {name}: checked with `tools/report.py validate` before "
        "they joined this table, not run by this suite, and left out of its claims."
        for name, n in sorted(counts.items())
    ]


def _other_epochs(runs: list[Run]) -> list[str]:
    """Remarks on pre-trainings whose complete batches made other epochs than the budget has."""
    rows = {
        (r.student.name, r.arm.method, r.data.share, r.budget.epochs, r.budget.epochs_asked)
        for r in runs
        if r.budget.epochs_asked is not None
    }
    return [
        f"{shorten(method)} ({shorten(student)}, {100 * fraction:g} % of the data) was pre-trained "
        f"for {done:.3g} epochs instead of the {requested:.3g} of its budget, because only "
        "complete batches are used."
        for student, method, fraction, done, requested in sorted(rows, key=str)
    ]


def _warnings(runs: list[Run], results: dict[tuple[RowKey, Column], Result]) -> list[str]:
    """Remarks on everything that could make the scores or times misleading."""
    remarks = []
    prints = {r.data.fingerprint for r in runs if r.data.fingerprint}
    if len(prints) > 1:
        remarks.append(
            f"The records have {len(prints)} different data fingerprints; each has its own "
            "columns, and scores on different data are never compared."
        )
    uncovered = sorted({r.id for r in runs if r.coverage is not None and r.coverage < 1})
    if uncovered:
        names = ", ".join(shorten(u, 80) for u in uncovered[:5])
        remarks.append(f"Weights loaded below 1.0 in {len(uncovered)} records: {names}.")
    for (row, column), result in results.items():
        if len(result.values) > 2 and len(set(result.values.values())) == 1:
            remarks.append(
                f"All {len(result.values)} seeds of {shorten(row.method)} on "
                f"{shorten(column.task)} gave the same value: the seed may have no effect there."
            )
    remarks += [*_submitted(runs), *_mixed(results), *_task_versions(results), *_diverged(runs)]
    remarks += _other_epochs(runs)
    devices = sorted({r.cost.device for r in runs if r.cost.device})
    if len(devices) > 1:
        names = ", ".join(shorten(d, 60) for d in devices)
        remarks.append(
            f"Records are from different devices ({names}): their times are not comparable, and "
            "the same seeds train other networks there."
        )
    return remarks
