"""The board: the transfer runs of a suite, as a table of rows (methods) and columns (tasks).

A row is one student that was pre-trained by one method with one teacher, data fraction and number
of epochs. A run is one transfer run with its record. Scores are compared only within a column,
which has one task, version, split, metric and data fingerprint. Rules that prevent misleading
tables:

* If two records have the same row, task and seed pair, the newer is used, and the older is listed
  as a duplicate. If they have the same date and differ, neither is used, and the seed pair is shown
  as failed.
* A damaged record file is listed with the failures.
* A result with a missing or failed seed pair shows this, and no mean over tasks includes it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kdep_bench.errors import first_of
from kdep_bench.results.records.store import SUBMITTED, Run, Store
from kdep_bench.results.statistics.intervals import Estimate, estimate


class Column(NamedTuple):
    """One task on one data set, whose scores can be compared; sorted by task family, then name.

    `direction`: "max" where a larger score is better, "min" where a smaller one is. `data`: the
    name of the data set.
    """

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
    """Key of a row: student, pre-training method, teacher, data fraction and epochs.

    `teacher` is "" without a teacher; `epochs` is None where unknown.
    """

    student: str
    method: str
    teacher: str
    fraction: float
    epochs: float | None

    def order(self) -> tuple[str, str, str, float, float]:
        """Sort key; larger data fractions and longer trainings come first."""
        epochs = 0.0 if self.epochs is None else self.epochs
        return (self.student, self.method, self.teacher, -self.fraction, -epochs)


@dataclass(slots=True)
class Result:
    """The runs of one row on one task.

    `values`: (pre-training seed, transfer seed) -> score, a fraction, of the runs with status ok.
    `runs`: all runs; `failed` and `missing` contain those without a score.
    """

    values: dict[tuple[int, int], float] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    _estimate: Estimate | None = None

    @property
    def is_complete(self) -> bool:
        """Whether there is a score, and no run failed or is missing."""
        return bool(self.values) and not self.failed and not self.missing

    @property
    def estimate(self) -> Estimate | None:
        """Mean and interval of the scores; None without a score."""
        if self._estimate is None and self.values:
            self._estimate = estimate(self.values)
        return self._estimate


Results = Mapping[tuple[RowKey, Column], Result]


@dataclass(slots=True)
class Board:
    """Rows, columns and results of a suite, from which tables, claims and the page are made.

    `chance`: column -> score of chance, None where unknown. `runs`: every run that is used.
    `remarks`: sentences for the reader of the tables. `damaged`: (file, sentence) of each damaged
    record file.
    """

    suite: str
    columns: list[Column]
    rows: list[RowKey]
    results: dict[tuple[RowKey, Column], Result]
    chance: dict[Column, float | None]
    runs: list[Run]
    remarks: list[str]
    damaged: list[tuple[str, str]]
    # Measures of teachers from probe records, see `teachers.measures_of`.
    teacher_measures: Mapping[tuple[str, str, str, float], Mapping[str, float]] = field(
        default_factory=dict
    )
    # (student, columns) -> the model that `compare.model` fitted.
    models: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def students(self) -> list[str]:
        """Students, sorted."""
        return sorted({row.student for row in self.rows})

    @property
    def families(self) -> list[str]:
        """Task families, sorted."""
        return sorted({column.family for column in self.columns})

    @property
    def has_no_times(self) -> bool:
        """Whether the records of the suite contain no times (`runtime.timed=False`).

        With times, every finished run has at least the time of its transfer.
        """
        costs = [run.cost for run in self.runs if run.status == "ok"]
        return bool(costs) and all(c.transfer_s is None and c.pretrain_s is None for c in costs)

    def result(self, row: RowKey, column: Column) -> Result:
        """The result of a row on a task; an empty result where there is no record."""
        return self.results.get((row, column)) or Result()

    def rows_of(self, student: str) -> list[RowKey]:
        """Rows of one student."""
        return [row for row in self.rows if row.student == student]

    def columns_of(self, family: str) -> list[Column]:
        """Columns of one task family."""
        return [c for c in self.columns if c.family == family]

    def runs_of(self, row: RowKey) -> list[Run]:
        """Every run of a row: first the runs with status ok, then the others, each by id."""
        results = [self.results[row, c] for c in self.columns if (row, c) in self.results]
        runs = [run for result in results for run in result.runs]
        return sorted(runs, key=lambda run: (run.status != "ok", run.id))

    def values(self, row: RowKey, column: Column) -> dict[tuple[int, int], float]:
        """Scores of a row on a task by (pre-training seed, transfer seed)."""
        return self.result(row, column).values

    def lacks_pretraining(self, row: RowKey) -> bool:
        """Whether the suite did not pre-train the row: published weights, or no pre-training."""
        finished = [run for run in self.runs_of(row) if run.status == "ok"]
        return bool(finished) and not any(run.pretrained for run in finished)

    def is_submitted(self, row: RowKey) -> bool:
        """Whether the records of the row were submitted by somebody else."""
        # The name is tested first, because reading all runs of 100,000 records takes seconds.
        return SUBMITTED in row.method and any(r.submitter for r in self.runs_of(row))

    def counterpart(self, row: RowKey, method: str) -> RowKey | None:
        """The row of `method` that `row` is compared with; None if there is no unique one.

        It has the same student and the same data fraction; the fraction does not matter if the
        suite did not pre-train it. Of several candidates, those with the same epochs and teacher
        are preferred.
        """
        candidates = [
            candidate
            for candidate in self.rows
            if candidate.student == row.student and candidate.method == method and candidate != row
        ]
        for part in ("fraction", "epochs", "teacher"):
            if len(candidates) > 1:
                same = [c for c in candidates if getattr(c, part) == getattr(row, part)]
                candidates = same or candidates
        if len(candidates) != 1:
            return None
        counterpart = candidates[0]
        is_comparable = counterpart.fraction == row.fraction or self.lacks_pretraining(counterpart)
        return counterpart if is_comparable else None


def _column(run: Run) -> Column:
    task, data = run.task, run.data
    return Column(
        task.family,
        task.name,
        task.version,
        task.split,
        task.metric,
        task.direction,
        data.name,
        data.fingerprint,
    )


def _row_key(run: Run) -> RowKey:
    teacher = "" if run.teacher is None else run.teacher.name
    epochs = run.budget.epochs
    return RowKey(run.student.name, run.arm.method, teacher, run.data.share, epochs)


def _same_row(keys: Iterable[RowKey], scored: set[RowKey]) -> dict[RowKey, RowKey]:
    """Row key -> the complete key of the same row.

    A run that failed early does not know its teacher or epochs. Its key is replaced by the only
    complete key that agrees with it, if there is exactly one.

    Args:
        keys: the row keys of all runs.
        scored: keys of rows with a score. They are complete: an empty teacher means no teacher.
    """
    groups: dict[tuple[str, str, float], list[RowKey]] = defaultdict(list)
    for key in keys:
        groups[key.student, key.method, key.fraction].append(key)
    complete_keys = {}
    for group in groups.values():
        complete = [k for k in group if k.teacher and k.epochs is not None]
        for key in group:
            matches = [
                c
                for c in complete
                if key.teacher in ("", c.teacher) and key.epochs in (None, c.epochs)
            ]
            is_replaced = len(matches) == 1 and key not in scored
            complete_keys[key] = matches[0] if is_replaced else key
    return complete_keys


def _same_column(columns: Iterable[Column]) -> dict[Column, Column]:
    """Column -> the column with a known data fingerprint, if the task has exactly one."""
    groups: dict[tuple[object, ...], list[Column]] = defaultdict(list)
    for column in columns:
        groups[column._replace(fingerprint="")].append(column)
    complete_columns = {}
    for group in groups.values():
        known = [c for c in group if c.fingerprint]
        for column in group:
            is_replaced = not column.fingerprint and len(known) == 1
            complete_columns[column] = known[0] if is_replaced else column
    return complete_columns


def _choose(runs: list[Run], remarks: list[str]) -> Run:
    """The newest of several runs of one seed pair; adds a remark on the others to `remarks`.

    If several runs are equally new and differ, a failed run without a score is returned instead.
    """
    runs = sorted(runs, key=lambda r: (-r.when, r.id))
    newest = [r for r in runs if r.when == runs[0].when]
    first = newest[0]
    ids = ", ".join(shorten(r.id, 80) for r in runs)
    where = f"{shorten(first.arm.method)} on {shorten(first.task.name)}, "
    where += f"pre-training seed {first.pretrain_seed}, transfer seed {first.transfer_seed}"
    if any((r.status, r.value) != (first.status, first.value) for r in newest):
        sentence = f"{len(newest)} records with the same date have different results ({ids})"
        remarks.append(f"Conflict: {where}: {sentence}. None is used.")
        return first._replace(status="failed", value=None, error=sentence)
    unused = ", ".join(shorten(r.id, 80) for r in runs if r is not first)
    remarks.append(
        f"Duplicates: {where}: {len(runs)} records. Used: {shorten(first.id, 80)} (the newest). "
        f"Not used: {unused}."
    )
    return first


def shorten(text: str, limit: int = 120) -> str:
    """`text`; if it has more than `limit` characters, its middle is replaced by their number."""
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


def _part_ids(run: Run) -> tuple[int, ...]:
    """Identities of the objects that determine the row and the column of a run.

    The store keeps equal parts of records as one object, so equal identities mean equal parts.
    """
    parts = (run.arm, run.student, run.teacher, run.data, run.budget, run.task)
    return tuple(map(id, parts))


def _places(runs: list[Run]) -> dict[tuple[int, ...], tuple[RowKey, Column]]:
    """`_part_ids` of a run -> its row and column.

    100,000 runs have few different parts; the row and column are made once for each combination.
    """
    first_places: dict[tuple[int, ...], tuple[RowKey, Column]] = {}
    for run in runs:
        part_ids = _part_ids(run)
        if part_ids not in first_places:
            first_places[part_ids] = (_row_key(run), _column(run))
    scored = {first_places[_part_ids(run)][0] for run in runs if run.status == "ok"}
    same_row = _same_row({row for row, _ in first_places.values()}, scored)
    same_column = _same_column({column for _, column in first_places.values()})
    return {
        part_ids: (same_row[row], same_column[column])
        for part_ids, (row, column) in first_places.items()
    }


def labels_of(rows: Iterable[RowKey]) -> dict[RowKey, str]:
    """Row -> name: the method, with teacher, data fraction or epochs if its rows differ in them."""
    groups: dict[tuple[str, str], list[RowKey]] = defaultdict(list)
    for row in rows:
        groups[row.student, row.method].append(row)
    labels = {}
    for group in groups.values():
        for row in group:
            extra = []
            if len({a.teacher for a in group}) > 1:
                extra.append(row.teacher or "no teacher")
            if len({a.fraction for a in group}) > 1:
                extra.append(f"{100 * row.fraction:g} % data")
            if len({a.epochs for a in group}) > 1:
                extra.append("epochs unknown" if row.epochs is None else f"{row.epochs:g} epochs")
            labels[row] = " · ".join([row.method, *extra])
    return labels


def make_board(store: Store, suite: str | None = None) -> Board:
    """The board of the runs in `store`; with `suite`, of the runs of that suite only."""
    remarks: list[str] = []
    runs = sorted(store.runs, key=lambda r: r.id)
    if suite is not None and (n_other := sum(r.suite != suite for r in runs)):
        runs = [r for r in runs if r.suite == suite]
        remarks.append(f"{n_other} records of other suites are in the same folder and are ignored.")
    places = _places(runs)
    runs_by_place: dict[tuple[RowKey, Column], dict[tuple[int, int], list[Run]]] = {}
    for run in runs:
        runs_by_seeds = runs_by_place.setdefault(places[_part_ids(run)], {})
        runs_by_seeds.setdefault((run.pretrain_seed, run.transfer_seed), []).append(run)
    results: dict[tuple[RowKey, Column], Result] = {}
    used = []
    for place, runs_by_seeds in runs_by_place.items():
        results[place] = result = Result()
        for same_seeds in runs_by_seeds.values():
            run = same_seeds[0] if len(same_seeds) == 1 else _choose(same_seeds, remarks)
            used.append(run)
            _add(result, run)

    chance: dict[Column, float | None] = {}
    for (_, column), result in results.items():
        for run in result.runs:
            if chance.get(column) is None:
                chance[column] = run.task.chance
    remarks += _all_remarks(used, results)
    return Board(
        suite=suite or _common_suite(runs),
        columns=sorted(chance),
        rows=sorted({row for row, _ in results}, key=RowKey.order),
        results=results,
        chance=chance,
        runs=used,
        remarks=sorted(remarks),
        damaged=[(d.file, d.sentence) for d in store.damaged],
    )


def _common_suite(runs: list[Run]) -> str:
    return " + ".join(shorten(s, 60) for s in sorted({r.suite for r in runs})) or "no suite"


# A transfer diverged if its loss rose to this multiple of its first value; no transfer of the
# published suites that converged exceeds 1.8.
DIVERGED = 3.0


def _divergence_remarks(results: Results, labels: Mapping[RowKey, str]) -> list[str]:
    """Remarks on transfers whose loss rose to DIVERGED times its first value, by row and task."""
    remarks = []
    for (row, column), result in results.items():
        rises = [run.loss_rise for run in result.runs if run.loss_rise >= DIVERGED]
        if rises:
            remarks.append(
                f"Transfer training of {shorten(labels[row])} ({shorten(row.student)}) on "
                f"{shorten(column.task)} diverged for {len(rises)} "
                f"seed{'s' if len(rises) > 1 else ''}: the loss rose to {max(rises):.0f} times its "
                "first value. The score reflects the recipe, not the weights."
            )
    return remarks


def _configuration_remarks(results: Results, labels: Mapping[RowKey, str]) -> list[str]:
    """Remarks on rows whose runs on a task have several configurations."""
    remarks = []
    for (row, column), result in results.items():
        scored = [r for r in result.runs if r.status == "ok"]
        learning_rates = {r.budget.learning_rate for r in scored} - {None}
        configs = {r.config_hash for r in scored}
        if max(len(learning_rates), len(configs)) < 2:
            continue
        difference = f"{len(configs)} configurations"
        if len(learning_rates) > 1:
            listed = ", ".join(f"{lr:g}" for lr in sorted(filter(None, learning_rates)))
            difference = f"the learning rates {listed}"
        remarks.append(
            f"The {len(scored)} runs of {shorten(labels[row])} ({shorten(row.student)}) on "
            f"{shorten(column.task)} have {difference}, but one name. Their mean mixes them."
        )
    return remarks


def _version_remarks(results: Iterable[tuple[RowKey, Column]]) -> list[str]:
    """Remarks on tasks that have several versions in the records."""
    versions: dict[str, set[int]] = defaultdict(set)
    for _, column in results:
        versions[column.task].add(column.version)
    return [
        f"The records have the versions {', '.join(map(str, sorted(several)))} of the task "
        f"{shorten(task)}. Each version is a separate column; scores of different versions are not "
        "compared."
        for task, several in sorted(versions.items())
        if len(several) > 1
    ]


def _submission_remarks(runs: list[Run]) -> list[str]:
    """One remark per person who submitted records."""
    counts = Counter(r.submitter for r in runs if r.submitter)
    return [
        f"{n} records were submitted by {name}. They were checked with `tools/report.py validate`, "
        "were not made by this suite, and are not used for claims."
        for name, n in sorted(counts.items())
    ]


def _epoch_remarks(runs: list[Run]) -> list[str]:
    """Remarks on pre-trainings with a number of epochs that differs from that of the budget."""
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


def _fingerprint_remarks(runs: list[Run]) -> list[str]:
    """A remark on records that were measured on different data."""
    fingerprints = {r.data.fingerprint for r in runs if r.data.fingerprint}
    if len(fingerprints) < 2:
        return []
    return [
        f"The records have {len(fingerprints)} different data fingerprints. Each has its own "
        "columns; scores on different data are not compared."
    ]


def _coverage_remarks(runs: list[Run]) -> list[str]:
    """A remark on runs that did not load all pre-trained weights."""
    uncovered = sorted({r.id for r in runs if r.coverage is not None and r.coverage < 1})
    if not uncovered:
        return []
    names = first_of((shorten(run_id, 80) for run_id in uncovered), 5)
    return [
        f"{len(uncovered)} transfer runs started without all pre-trained weights (weights "
        f"loaded below 1): {names}."
    ]


def _equal_score_remarks(results: Results, labels: Mapping[RowKey, str]) -> list[str]:
    """Remarks on rows with the same score for every seed of a task."""
    return [
        f"All {len(result.values)} seeds of {shorten(labels[row])} on {shorten(column.task)} have "
        "the same score. The seed may have no effect."
        for (row, column), result in results.items()
        if len(result.values) > 2 and len(set(result.values.values())) == 1
    ]


def _device_remarks(runs: list[Run]) -> list[str]:
    """A remark on records from different devices."""
    devices = sorted({r.cost.device for r in runs if r.cost.device})
    if len(devices) < 2:
        return []
    names = ", ".join(shorten(device, 60) for device in devices)
    return [
        f"The records are from different devices ({names}). Times on different devices cannot "
        "be compared, and the same seed gives different networks on them."
    ]


def _all_remarks(runs: list[Run], results: Results) -> list[str]:
    """Remarks on everything that could make the scores or times misleading."""
    labels = labels_of({row for row, _ in results})
    return [
        *_fingerprint_remarks(runs),
        *_coverage_remarks(runs),
        *_equal_score_remarks(results, labels),
        *_submission_remarks(runs),
        *_configuration_remarks(results, labels),
        *_version_remarks(results),
        *_divergence_remarks(results, labels),
        *_epoch_remarks(runs),
        *_device_remarks(runs),
    ]
