"""Reads and writes records: one JSON file per record in results/<suite>/records/.

A folder may have 100,000 records. Therefore many files are read by several processes, each record
is reduced to a `Run` with the values that tables need, and equal parts of records are one object.
Curves and per-class scores are read when a report needs them (`load_records`).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, safe_name, write_atomic
from kdep_bench.results.records.record import (
    MAX_RECORD_BYTES,
    Align,
    Data,
    Method,
    Record,
    RecordedBudget,
    RecordedTask,
    RecordedTeacher,
    Student,
    Transfer,
    dump,
    load,
    parse,
)
from kdep_bench.safe_files import is_real_folder, not_a_folder, read_bytes, real_folder

RECORDS = "records"
SUBMISSIONS = "submissions"  # folder with records of other people; see `submission.py`
MANIFEST = "submission.json"
SUBMITTED = " (submitted by "  # added to the name of a submitted method
_PARALLEL_FROM = 4000  # records; fewer are read faster by a single process


class CostTuple(NamedTuple):
    """`record.Cost` as a tuple, which needs less memory: few records have equal costs to share."""

    pretrain_s: float | None
    cache_s: float | None
    align_s: float | None
    transfer_s: float | None
    images_per_s: float | None
    cache_bytes: int | None
    peak_memory_bytes: int | None
    device: str | None
    threads: int | None
    extra_parameters: int | None = None
    extra_forwards: int | None = None
    processor_units: tuple[str, ...] | None = None
    lacks_teacher_passes: bool = False


class Run(NamedTuple):
    """The values of one record that tables need; most fields are those of `record.Record`.

    Attributes:
        file: name of the file in records/.
        coverage: fraction of loaded weights.
        pretrained: whether the suite pre-trained the backbone.
        cached: whether it was trained from a teacher cache.
        when: time of creation, in seconds since 1970.
        loss_rise: highest loss of the transfer divided by its first.
        samples: (file, SHA-256) of the per-sample outputs.
        submitter: who submitted the record; "" for a record of the suite itself.
    """

    id: str
    file: str
    suite: str
    status: str
    error: str | None
    arm: Method
    student: Student
    teacher: RecordedTeacher | None
    data: Data
    budget: RecordedBudget
    pretrain_seed: int
    transfer_seed: int
    task: RecordedTask
    value: float | None
    coverage: float | None
    cost: CostTuple
    align: Align | None
    pretrained: bool
    cached: bool
    when: float
    git: str
    config_hash: str
    packages: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    terms: tuple[tuple[str, float], ...] = ()
    loss_rise: float = 1.0
    samples: tuple[str, str] | None = None
    submitter: str = ""
    transfer: Transfer | None = None


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file in records/ that is not a valid record, and one sentence with the reason."""

    file: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Store:
    """The records of one folder, and its damaged files.

    Records are sorted by file name; those of submissions follow, by submission.
    """

    runs: list[Run]
    damaged: list[Damaged]


def own_folder(results_dir: str | Path, name: str) -> Path:
    """The folder `name` inside a results folder, which is made if it does not exist.

    Raises:
        KdepError: something with this name exists that is a link or not a folder.
    """
    return real_folder(Path(results_dir) / name, "results folder")


def records_dir(results_dir: str | Path) -> Path:
    """results/<suite> -> results/<suite>/records."""
    return Path(results_dir) / RECORDS


def _identity(record: Record) -> tuple[Any, ...]:
    return (
        record.suite,
        record.arm.method,
        record.student.name,
        record.data.share,
        record.seed,
        record.task.name,
    )


def write(results_dir: str | Path, record: Record) -> Path:
    """Writes `record` atomically as records/<id>.json, and returns the path.

    An earlier record of the same run is replaced.

    Raises:
        KdepError: the existing record with this id is of another run.
    """
    path = records_dir(results_dir) / f"{safe_name(record.id, 'record id')}.json"
    if path.exists():
        try:
            old = load(path)
        except KdepError:
            old = None  # a damaged file is replaced
        if old is not None and _identity(old) != _identity(record):
            raise KdepError(
                f"the file {path} is the record of another run with the same id",
                fix="move that file elsewhere, or run with other stage names",
            )
    own_folder(results_dir, RECORDS)
    write_atomic(path, dump(record))
    return path


class _Sharer:
    """Replaces equal values by one object: 100,000 runs have few different methods and tasks.

    Pickle keeps shared objects within one message. Without sharing, reading with several processes
    would not be faster.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, Any] = {}

    def part(self, part: Any) -> Any:
        """The first object that is equal to `part`, a frozen pydantic model or None."""
        if part is None:
            return None
        return self._seen.setdefault((type(part), *part.__dict__.values()), part)

    def value(self, value: Any) -> Any:
        """The first object that is equal to `value`, a string or tuple."""
        return self._seen.setdefault(value, value)

    def run(self, record: Record, file: str) -> Run:
        """The `Run` of `record`."""
        cost = record.cost
        return Run(
            id=record.id,
            file=file,
            suite=self.value(record.suite),
            status=self.value(record.status),
            error=record.error,
            arm=self.part(record.arm),
            student=self.part(record.student),
            teacher=self.part(record.teacher),
            data=self.part(record.data),
            budget=self.part(record.budget),
            pretrain_seed=record.seed.pretrain,
            transfer_seed=record.seed.transfer,
            task=self.part(record.task),
            value=record.value,
            coverage=None if record.gate is None else record.gate.coverage,
            cost=CostTuple(
                cost.pretrain_s,
                cost.cache_s,
                cost.align_s,
                cost.transfer_s,
                cost.images_per_s,
                cost.cache_bytes,
                cost.peak_memory_bytes,
                self.value(cost.device),
                cost.threads,
                cost.extra_parameters,
                cost.extra_forwards,
                self.value(None if cost.processor_units is None else tuple(cost.processor_units)),
                cost.lacks_teacher_passes,
            ),
            align=self.part(record.align),
            pretrained="pretrain" in record.stages and record.budget.images_seen != 0,
            cached=any(role.rpartition(".")[2] == "cache" for role in record.stages),
            when=datetime.fromisoformat(record.created).timestamp(),
            git=self.value(record.git),
            config_hash=self.value(record.config_hash),
            packages=self.value(tuple(sorted(record.packages.items()))),
            notes=self.value(tuple(record.notes)),
            terms=tuple(sorted(record.terms.items())),
            loss_rise=_rise(record.curves.get("loss", [])),
            transfer=self.part(record.transfer),
            samples=record.samples and (record.samples.file, record.samples.sha256),
        )


def _rise(curve: Sequence[Sequence[float]]) -> float:
    """Highest value of a [step, value] curve divided by its first; 1 without a curve."""
    values = [point[1] for point in curve]
    return max(values) / values[0] if values and values[0] > 0 else 1.0


def _read_some(directory: str, names: Sequence[str]) -> tuple[list[Run], list[Damaged]]:
    """Reads the records in the files `names`; one process calls it for its part of the files."""
    runs: list[Run] = []
    damaged: list[Damaged] = []
    sharer = _Sharer()
    for name in names:
        path = f"{directory}/{name}"
        try:
            record = parse(read_bytes(path, MAX_RECORD_BYTES), name)
            if f"{record.id}.json" != name:
                # A copy with another name would count one run twice.
                raise KdepError(
                    f"the file {name} contains the record {record.id[:120]!r}",
                    expected="a file named after the record's id",
                    fix="move it to another folder if it is a copy, otherwise rename it to "
                    f"{record.id[:120]}.json",
                )
            runs.append(sharer.run(record, name))
        except KdepError as e:
            damaged.append(Damaged(name, str(e)))
        except OSError as e:
            sentence = f"the record {name} cannot be read ({e.strerror}). Fix: check the disk."
            damaged.append(Damaged(name, sentence))
    return runs, damaged


def _list(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            names = [e.name for e in entries if e.name.endswith(".json")]
    except FileNotFoundError:
        return []
    # Names that start with a dot are `write_atomic`'s unfinished files.
    return sorted(n for n in names if not n.startswith("."))


def read(results_dir: str | Path) -> Store:
    """All records of `results_dir` and of its submissions, and a list of the damaged files.

    Raises:
        KdepError: `results_dir` is not a folder.
    """
    store = read_own(results_dir)
    runs, damaged = list(store.runs), list(store.damaged)
    for name in submitters(results_dir):
        new_runs, new_damaged = _read_submission(Path(results_dir), name)
        runs += new_runs
        damaged += new_damaged
    return Store(runs, damaged)


def submitters(results_dir: str | Path) -> list[str]:
    """Names of the submissions in a results folder, sorted."""
    folder = Path(results_dir) / SUBMISSIONS
    if not is_real_folder(folder):
        return []
    return sorted(p.name for p in folder.iterdir() if is_real_folder(p))


def as_submitted(record: Record, name: str) -> Record:
    """The record of a submission as tables show it.

    Its method has another name, so it is not averaged with the suite's own runs and not used for
    claims. It has no images, because images are not copied.
    """
    method = f"{record.arm.method}{SUBMITTED}{name})"
    renamed = record.arm.model_copy(update={"method": method})
    outputs = record.samples
    if outputs is not None and outputs.file:
        place = f"{SUBMISSIONS}/{name}/{outputs.file}"
        outputs = outputs.model_copy(update={"file": place})
    changes = {"arm": renamed, "pictures": [], "samples": outputs}
    return record.model_copy(update=changes)


def _submission_fix(folder: Path) -> str:
    """The fix for a damaged submission in `folder`."""
    return (
        f"restore the file, or move {folder} elsewhere and add the submission again: "
        f"kdep-bench report validate FOLDER --join {folder.parents[1]} --name {folder.name}"
    )


def _read_submission(results_dir: Path, name: str) -> tuple[list[Run], list[Damaged]]:
    """The records of one submission; a file that changed after its validation is damaged."""
    folder = results_dir / SUBMISSIONS / name
    try:
        checksums = read_strict(folder / MANIFEST, follow=False)["records"]
        listed = {str(safe_name(file)): str(digest) for file, digest in checksums.items()}
    except (KdepError, KeyError, TypeError, AttributeError, OSError) as e:
        fix = _submission_fix(folder)
        sentence = str(KdepError(f"{folder / MANIFEST} cannot be used ({e!s:.200})", fix=fix))
        return [], [Damaged(f"{SUBMISSIONS}/{name}/{MANIFEST}", sentence)]
    runs: list[Run] = []
    damaged: list[Damaged] = []
    sharer = _Sharer()
    present = set(_list(folder / RECORDS))
    for file in sorted(present | set(listed)):
        place = f"{SUBMISSIONS}/{name}/{RECORDS}/{file}"
        try:
            raw = read_bytes(results_dir / place, MAX_RECORD_BYTES)
            if hashlib.sha256(raw).hexdigest() != listed.get(file):
                raise KdepError(
                    f"the record {place} was added or changed after its validation",
                    fix=_submission_fix(folder),
                )
            run = sharer.run(as_submitted(parse(raw, place), name), f"../{place}")
            runs.append(run._replace(submitter=name))
        except KdepError as e:
            damaged.append(Damaged(place, str(e)))
        except OSError as e:
            damaged.append(Damaged(place, f"the record {place} cannot be read ({e.strerror})."))
    return runs, damaged


def read_own(results_dir: str | Path) -> Store:
    """All records of `results_dir` without its submissions; see `read`."""
    if not Path(results_dir).is_dir():
        is_file = Path(results_dir).exists()
        raise KdepError(
            f"{results_dir} is a file"
            if is_file
            else f"the results folder {results_dir} does not exist",
            expected="a folder that contains records/, such as results/pocket",
            fix="give the results folder"
            if is_file
            else "run the suite first, or correct the path",
        )
    directory = records_dir(results_dir)
    if os.path.lexists(directory) and not is_real_folder(directory):
        raise not_a_folder(directory, os.lstat(directory).st_mode, "records folder")
    names = _list(directory)
    if len(names) < _PARALLEL_FROM or not _can_fork():
        return Store(*_read_some(str(directory), names))
    return _read_parallel(directory, names)


def _can_fork() -> bool:
    # torch starts threads, and forking a process with threads may hang.
    return sys.platform.startswith("linux") and "torch" not in sys.modules


def _read_parallel(directory: Path, names: list[str]) -> Store:
    import gc
    import multiprocessing

    workers = min(8, len(os.sched_getaffinity(0)))
    size = max(1, -(-len(names) // (workers * 4)))
    jobs = [(str(directory), names[i : i + size]) for i in range(0, len(names), size)]
    runs: list[Run] = []
    damaged: list[Damaged] = []
    # Records have no reference cycles, and garbage collection would scan all of them repeatedly.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with multiprocessing.get_context("fork").Pool(workers) as pool:
            for chunk, chunk_damaged in pool.starmap(_read_some, jobs, chunksize=1):
                runs.extend(chunk)
                damaged.extend(chunk_damaged)
    finally:
        if was_enabled:
            gc.enable()
    return Store(runs, damaged)


def load_records(results_dir: str | Path, runs: Iterable[Run]) -> list[Record]:
    """The complete records of `runs`, with curves, per-class scores and names of images.

    Raises:
        KdepError: a file cannot be read any more.
    """
    directory = records_dir(results_dir)
    complete_records = []
    for run in runs:
        record = load(directory / run.file)
        complete_records.append(as_submitted(record, run.submitter) if run.submitter else record)
    return complete_records
