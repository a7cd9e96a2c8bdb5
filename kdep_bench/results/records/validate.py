"""Checks the records of somebody else before they are added to published results.

`validate` reads a results folder and returns one sentence per fault, with the file. It checks that
records are valid, all weights were loaded, scores and times have the right units, budgets are
equal, all records have the same data, tasks, scoring packages and checksums, and no result occurs
twice. It cannot prove that a score was measured. If a record has per-sample outputs, it computes
the score from them again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.results.records import samples, store
from kdep_bench.results.records.record import Record, load
from kdep_bench.results.records.record_checks import faults_in

# Packages that compute scores: their versions must be equal in all records.
SCORING = ("mmdet", "mmsegmentation", "mmpretrain", "pycocotools", "scikit-learn")
CURVE_POINTS = 6  # a loss curve with this many points or more is never equal for two trainings

Records = Sequence[tuple[str, Record]]  # (file inside the results folder, record)


@dataclass(frozen=True)
class Findings:
    """The result of `validate`: the records, one sentence per fault, and other remarks."""

    records: Records
    faults: list[str]
    notes: list[str]


def validate(
    folder: Path, published: Path | None = None, *, other_budgets: bool = False
) -> Findings:
    """Checks the records of `folder`.

    Args:
        folder: a results folder, which contains records/.
        published: a published results folder; data, tasks, budgets, seeds and scoring packages are
            then compared with its records too.
        other_budgets: accept different budgets for one data fraction.

    Raises:
        KdepError: `folder` or `published` is not a results folder, or contains no records.
    """
    records, faults = _read(folder)
    for file, record in records:
        faults += [f"{file}: {fault}" for fault in faults_in(record)]
    scored = [(file, r) for file, r in records if r.status == "ok"]
    for check in CHECKS_OF_ALL_RECORDS:
        faults += check(scored)
    if not other_budgets:
        faults += _budget_faults(scored)
    notes = (
        []
        if len(scored) == len(records)
        else [f"{len(records) - len(scored)} of {len(records)} records are failed or missing runs"]
    )
    if published is not None:
        known = [(file, r) for file, r in _read(published)[0] if r.status == "ok"]
        if not known:
            raise KdepError(
                f"the results folder {published} contains no record with a score",
                fix="give another folder with --against or --join",
            )
        faults += _faults_against(scored, known, other_budgets)
        notes += _other_versions(scored, known)
    agreeing, sample_faults = _samples(folder, records)
    notes.append(f"{agreeing} of {len(scored)} scores were computed again from per-sample outputs")
    return Findings(records, [*faults, *sample_faults], notes)


def _samples(folder: Path, records: Records) -> tuple[int, list[str]]:
    """(number of scores that agree with their per-sample outputs, faults)."""
    agreeing, faults = 0, []
    for file, r in records:
        if r.samples is None or not r.samples.file:
            continue
        place = PurePosixPath(r.samples.file)
        if place.is_absolute() or ".." in place.parts:
            faults.append(
                f"{file}: its per-sample outputs {r.samples.file[:80]} are outside the results "
                "folder"
            )
            continue
        try:
            outputs = samples.read(folder / place, r.samples.sha256)
            computed = samples.scores(outputs).get(r.task.metric)
        except KdepError as e:
            faults.append(f"{file}: {e}")
            continue
        if computed != r.value or len(outputs.images) != r.samples.images:
            faults.append(
                f"{file}: its per-sample outputs give {r.task.metric} = {computed} on "
                f"{len(outputs.images)} images, but the record has {r.value} on {r.samples.images}"
            )
            continue
        agreeing += 1
    return agreeing, faults


def _read(folder: Path) -> tuple[list[tuple[str, Record]], list[str]]:
    stored = store.read_own(folder)
    if not stored.runs and not stored.damaged:
        raise KdepError(
            f"the folder {folder} contains no records",
            expected="a results folder with records/*.json",
            fix="give the results folder of a suite, such as results/pocket",
        )
    faults = [f"{store.RECORDS}/{d.file}: {d.sentence}" for d in stored.damaged]
    files = [run.file for run in stored.runs]
    directory = store.records_dir(folder)
    return [(f"{store.RECORDS}/{file}", load(directory / file)) for file in files], faults


# --- all records together ---------------------------------------------------------------------


def _row(r: Record) -> tuple[Any, ...]:
    """The values that distinguish the rows of a table."""
    teacher = r.teacher.name if r.teacher else ""
    return (r.student.name, r.arm.method, teacher, r.data.share, r.budget.epochs)


def _groups(records: Records, key: Callable[[Record], Any]) -> dict[Any, list[tuple[str, Record]]]:
    """The records by their value of `key`."""
    groups: dict[Any, list[tuple[str, Record]]] = defaultdict(list)
    for file, record in records:
        groups[key(record)].append((file, record))
    return groups


def _duplicate_faults(records: Records) -> Iterator[str]:
    for group in _groups(records, lambda r: (_row(r), _task(r), r.seed)).values():
        for file, record in group[1:]:
            yield (
                f"{file}: the same method, task and seeds as {group[0][0]} "
                f"(scores {record.value:.4f} and {group[0][1].value:.4f})"
            )
    trained = [(f, r) for f, r in records if len(r.curves.get("loss", ())) >= CURVE_POINTS]
    for group in _groups(trained, lambda r: (r.task.name, json.dumps(r.curves["loss"]))).values():
        for file, _ in group[1:]:
            yield f"{file}: its loss curve is equal to that of {group[0][0]}, so it is a copy"


def _task(r: Record) -> tuple[Any, ...]:
    t = r.task
    return (t.name, t.version, t.split, t.metric, t.direction, r.data.fingerprint)


def _budget_faults(records: Records) -> Iterator[str]:
    """Faults of methods that have one student and data fraction, but different budgets."""
    trained = [(f, r) for f, r in records if r.budget.images_seen]
    for group in _groups(trained, lambda r: (r.student.name, r.data.share)).values():
        methods = _groups(group, lambda r: r.arm.method)
        budgets = {m: {_budget(r) for _, r in runs} for m, runs in methods.items()}
        all_budgets = (budget for of_method in budgets.values() for budget in of_method)
        common = max(all_budgets, key=lambda budget: _support(budget, budgets))
        for method, runs in methods.items():
            if common not in budgets[method]:
                seen, steps = _budget(runs[0][1])
                yield (
                    f"{runs[0][0]}: {method[:60]} was pre-trained with {seen} images in {steps} "
                    f"steps, other methods on the same data with {common[0]} in {common[1]}"
                )


def _budget(r: Record) -> tuple[int | None, int | None]:
    return r.budget.images_seen, r.budget.steps


def _support(budget: Any, budgets: Mapping[str, set[Any]]) -> tuple[int, str]:
    """(number of methods that have this budget, its text, which orders equal numbers)."""
    return sum(budget in seen for seen in budgets.values()), str(budget)


def _ambiguity_faults(records: Records) -> Iterator[str]:
    """Faults where one name has different contents: teacher, student, data, task, or package."""
    # Text with the key of a group -> (record -> key, record -> value that the group must share).
    definitions: dict[str, tuple[Callable[[Record], Any], Callable[[Record], Any]]] = {
        "checksums of the teacher {0[0]}": (
            _teacher,
            lambda r: r.teacher and r.teacher.checksum,
        ),
        "numbers of parameters of the student {0}": (
            lambda r: r.student.name,
            lambda r: r.student.params,
        ),
        "fingerprints of the data {0}": (lambda r: r.data.name, lambda r: r.data.fingerprint),
        "definitions (version, split, metric, direction) of the task {0}": (
            lambda r: r.task.name,
            lambda r: (r.task.version, r.task.split, r.task.metric, r.task.direction),
        ),
        "config hashes of {0[0][1]} on {0[1]}": (
            lambda r: (_row(r), r.task.name),
            lambda r: r.config_hash,
        ),
    }
    for text, (name, value_of) in definitions.items():
        for key, group in _groups(records, name).items():
            if key is not None:
                yield from _differing(text.format(key), group, value_of)
    for name in SCORING:
        yield from _differing(f"versions of {name}", records, lambda r, n=name: r.packages.get(n))


def _teacher(r: Record) -> tuple[Any, ...] | None:
    """Key of the records that must have the same teacher; None without a teacher.

    It begins with the name of the teacher. If the row trains its own teacher, the key also has the
    row and the pre-training seed.
    """
    if r.teacher is None:
        return None
    return (r.teacher.name, *((_row(r), r.seed.pretrain) if _trains_teacher(r) else ()))


def _trains_teacher(r: Record) -> bool:
    return any("." in kind for kind in r.stages)  # such as "kdep_assistant.pretrain"


def _differing(subject: str, group: Records, value_of: Callable[[Record], Any]) -> Iterator[str]:
    if not group:
        return
    first = value_of(group[0][1])
    for file, record in group[1:]:
        if (second := value_of(record)) != first:
            yield f"{file}: there are two {subject}: {second} here, {first} in {group[0][0]}"
            return


CHECKS_OF_ALL_RECORDS: tuple[Callable[[Records], Iterable[str]], ...] = (
    _duplicate_faults,
    _ambiguity_faults,
)


# --- comparison with the records of the table -------------------------------------------------


def _faults_against(records: Records, known: Records, other_budgets: bool) -> Iterator[str]:
    """Faults of `records` that do not fit `known`, the scored records of the published table."""
    suites = {r.suite for _, r in known}
    tasks = {r.task.name: r for _, r in known}
    seeds = {r.task.name: set[Any]() for _, r in known}
    for _, r in known:
        seeds[r.task.name].add(r.seed.transfer)
    configs = {(_row(r), r.task.name): r.config_hash for _, r in known}
    teachers = {_teacher(r): r.teacher.checksum for _, r in known if r.teacher}
    # Records with the same id are from the same stage, even if their config hashes differ: a config
    # also has settings that are not part of the id.
    known_ids = {r.id for _, r in known}
    pretrained = [(f, r) for f, r in known if r.budget.images_seen]
    budgets = _groups(pretrained, _student_and_fraction)
    for file, r in records:
        yield from (f"{file}: {fault}" for fault in _record_faults(r, suites, tasks, seeds))
        known_hash = configs.get((_row(r), r.task.name))
        if known_hash and known_hash != r.config_hash and r.id not in known_ids:
            yield (
                f"{file}: the configuration of {r.arm.method[:60]} on {r.task.name[:60]} differs "
                f"from that in the table (config_hash {r.config_hash}, in the table {known_hash})"
            )
        checksum = None if _trains_teacher(r) else teachers.get(_teacher(r))
        if r.teacher and checksum and checksum != r.teacher.checksum:
            yield (
                f"{file}: the teacher {r.teacher.name[:60]} has the checksum {r.teacher.checksum}, "
                f"in the table {checksum}"
            )
        allowed = {_budget(k) for _, k in budgets.get(_student_and_fraction(r), [])}
        if allowed and r.budget.images_seen and not other_budgets and _budget(r) not in allowed:
            yield (
                f"{file}: pre-trained on {r.budget.images_seen} images in {r.budget.steps} steps, "
                f"in the table on {', '.join(sorted(f'{a} in {b}' for a, b in allowed))}"
            )


def _student_and_fraction(r: Record) -> tuple[str, float]:
    return r.student.name, r.data.share


def _record_faults(
    r: Record, suites: set[str], tasks: Mapping[str, Record], seeds: Mapping[str, set[Any]]
) -> Iterator[str]:
    if r.suite not in suites:
        yield f"its suite is {r.suite[:60]}, that of the table is {', '.join(sorted(suites))}"
    table_record = tasks.get(r.task.name)
    if table_record is None:
        yield f"the table has no task {r.task.name[:60]} (it has {', '.join(sorted(tasks))})"
        return
    if _task(r) != _task(table_record):
        yield (
            f"its task is {_task_text(r)}, in the table {_task_text(table_record)}; the scores "
            "cannot be compared"
        )
    if r.seed.transfer not in seeds[r.task.name]:
        yield (
            f"transfer seed {r.seed.transfer} is not one of those in the table "
            f"({', '.join(map(str, sorted(seeds[r.task.name])))}); seeds must not be selected"
        )


def _task_text(r: Record) -> str:
    t = r.task
    data = r.data.fingerprint[:8] or "unknown"
    return f"{t.name} version {t.version}, {t.metric} on {t.split}, data {data}"


def _listed(records: Records, value_of: Callable[[Record], str]) -> str:
    """The different values in the records, sorted, as text."""
    return ", ".join(sorted({value_of(record) for _, record in records}))


def _other_versions(records: Records, known: Records) -> list[str]:
    """Notes on packages and processors that differ from those of the table."""
    notes = []
    packages = {name for _, r in [*records, *known] for name in r.packages}
    for name in sorted(packages):
        new, old = (
            _listed(group, lambda r, name=name: r.packages.get(name, "none"))
            for group in (records, known)
        )
        if new != old:
            notes.append(f"{name}: {new} here, {old} in the table")
    new, old = (_listed(group, lambda r: r.cost.device or "unknown") for group in (records, known))
    if new != old:
        notes.append(
            f"the device is {new} here and {old} in the table; the same seed gives different "
            "networks on different devices"
        )
    return notes
