"""Contents of a work dir: stage directories and cluster runs, their sizes, and their pruning.

A stage is kept if a record in a results folder cites it, if one of the named suites plans it, if a
kept stage depends on it, or while a process runs it. Only directories with the name of a stage, an
attempt or a cluster run are removed. Superseded records (`superseded/`) are in no table; the stages
that they cite are not kept.

An attempt of a stage works in a separate directory (see `attempts`). The directory of a killed
attempt is kept if its stage is kept and would continue from it.

A cluster run has a folder `.cluster/<suite>-<random>` with its plan, Snakemake's state and the logs
of its jobs. The folder remains if stages failed. It is kept while the run or one of its jobs may be
running.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from kdep_bench.engine import attempts, cluster, state
from kdep_bench.engine.lock import StageLock
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict
from kdep_bench.safe_files import is_real_folder, not_a_folder
from kdep_bench.safe_files import remove as remove_tree

_STAGE_DIR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*-[0-9a-f]{12}")
_RUN_DIR = re.compile(rf"{re.escape(cluster.RUNS_DIR)}/[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class WorkDirEntry:
    """One stage directory, or the folder of one cluster run.

    Attributes:
        id: its path in the work dir; of a stage directory this is the id of the stage.
        bytes: total size of its files.
        state: 'done', 'failed', 'interrupted', 'damaged' or 'running'; for a cluster run
            'running', 'queued' (it has, or may have, queued jobs) or 'ended'.
        finished: time at which the stage finished, UTC; '' if it is not done.
        needs: ids of the stages that it depends on.
        kept_by: why it is kept: names of results folders and suites, 'needed by ...', 'running'.
    """

    id: str
    bytes: int
    state: str
    finished: str
    needs: tuple[str, ...]
    kept_by: tuple[str, ...] = ()

    @property
    def is_cluster_run(self) -> bool:
        return _RUN_DIR.fullmatch(self.id) is not None


def survey(
    work: Path, cited: Mapping[str, Iterable[str]], planned: Mapping[str, Iterable[str]]
) -> list[WorkDirEntry]:
    """Every stage directory and cluster run in `work`, largest first, with why it is kept.

    Args:
        work: the work dir.
        cited: stage id -> names of the results folders whose records cite it; see `citations`.
        planned: stage id -> names of the suites that plan it.

    Raises:
        KdepError: the folder `work` does not exist.
    """
    check_exists(work)
    stages = {stage_id: _stage_entry(work, stage_id) for stage_id in stage_ids(work)}
    # (name of an attempt's directory, id of its stage)
    attempt_dirs = [(folder.name, match["stage"]) for folder in _folders(work)
                    if (match := attempts.NAME.fullmatch(folder.name))]  # fmt: skip
    kept_by: dict[str, list[str]] = {}
    for stage_id, entry in stages.items():
        suites = (f"suite {name}" for name in planned.get(stage_id, ()))
        kept_by[stage_id] = [*cited.get(stage_id, ()), *suites]
        if entry.state == "running":
            kept_by[stage_id].append("running")
    todo = [stage_id for stage_id, reasons in kept_by.items() if reasons]
    while todo:
        stage_id = todo.pop()
        for upstream in stages[stage_id].needs:
            if upstream in kept_by and not kept_by[upstream]:
                kept_by[upstream] = [f"needed by {stage_id}"]
                todo.append(upstream)
    entries = [replace(entry, kept_by=tuple(kept_by[i])) for i, entry in stages.items()]
    entries += [
        _attempt_entry(work, name, stage_id, kept_by.get(stage_id, []))
        for name, stage_id in attempt_dirs
    ]
    entries += _run_entries(work)
    return sorted(entries, key=lambda e: (-e.bytes, e.id))


def _folders(work: Path) -> list[os.DirEntry[str]]:
    return [e for e in os.scandir(work) if e.is_dir(follow_symlinks=False)]


def check_exists(work: Path) -> None:
    """Raises KdepError if the work dir does not exist."""
    if not work.is_dir():
        raise KdepError(
            f"the work dir {work} does not exist", fix="run a suite first, or give --work-dir"
        )


def stage_ids(work: Path) -> list[str]:
    """The ids of the stages that have a directory in the work dir; [] without the work dir."""
    if not work.is_dir():
        return []
    return [e.name for e in _folders(work) if _STAGE_DIR.fullmatch(e.name)]


def _stage_entry(work: Path, stage_id: str) -> WorkDirEntry:
    """The entry of a stage directory, without `kept_by`."""
    return WorkDirEntry(stage_id, total_bytes(work / stage_id), *stage_state(work, stage_id))


def stage_state(work: Path, stage_id: str) -> tuple[str, str, tuple[str, ...]]:
    """(state, finished, needs) of a stage directory; see `WorkDirEntry`."""
    out = work / stage_id
    finished, needs = "", ()
    try:
        record = state.read_stage(out)
        if record is None:
            status = "failed" if state.failure(out) else "interrupted"
        elif record["id"] != stage_id:
            status = "damaged"
        else:
            status, finished = "done", str(record.get("finished", ""))
            needs = tuple(sorted(set(record["needs"].values())))
    except KdepError:
        status = "damaged"
    if StageLock(work, stage_id).is_held_by_any():
        status = "running"
    return status, finished, needs


def _attempt_entry(work: Path, name: str, stage_id: str, stage_kept_by: list[str]) -> WorkDirEntry:
    """The entry of the directory `name` of an attempt of a stage.

    `stage_kept_by`: why the stage is kept; empty if it is not.
    """
    status: str = "interrupted"
    kept_by: tuple[str, ...] = ()
    if StageLock(work, stage_id).is_held_by_any():
        status, kept_by = "running", ("running",)
    elif stage_kept_by and name in attempts.attempt_names(work, stage_id):
        kept_by = (f"the next attempt of {stage_id} continues from it",)
    return WorkDirEntry(name, total_bytes(work / name), status, "", (), kept_by)


def _run_entries(work: Path) -> list[WorkDirEntry]:
    """The folders of cluster runs."""
    out = []
    queue = cluster.queued_jobs(work) if shutil.which("squeue") else None
    runs_dir = work / cluster.RUNS_DIR
    for run_dir in sorted(runs_dir.glob("*")) if is_real_folder(runs_dir) else ():
        entry_id = run_dir.relative_to(work).as_posix()
        if is_real_folder(run_dir) and _RUN_DIR.fullmatch(entry_id):
            status, reason = _run_state(work, run_dir, queue)
            kept_by = (reason,) if reason else ()
            out.append(WorkDirEntry(entry_id, total_bytes(run_dir), status, "", (), kept_by))
    return out


def _run_state(work: Path, run_dir: Path, queue: Mapping[str, list[str]] | None) -> tuple[str, str]:
    """(state, why it is kept) of a cluster run; '' if it is not kept.

    `queue`: stage id -> Slurm jobs; None if this machine has no Slurm.
    """
    if cluster.run_lock(run_dir).is_held_by_any():
        return "running", "running"
    try:
        content = read_strict(run_dir / cluster.RUN_FILE, follow=False)
        stages, executor = list(content["stages"]), content.get("executor")
    except (KdepError, KeyError, TypeError, AttributeError):
        return "ended", ""  # interrupted before it submitted a job
    if any(StageLock(work, i).is_held_by_any() for i in stages):
        return "running", "one of its stages is running"
    jobs = sorted(j for i in stages for j in (queue or {}).get(i, ()))
    if jobs:
        return "queued", f"Slurm's jobs {', '.join(jobs)}"
    may_have_jobs = executor != "snakemake-local" and (executor != "slurm" or queue is None)
    if may_have_jobs and not all((work / i / state.STAGE).exists() for i in stages):
        return "queued", "it may have queued jobs that this machine cannot see"
    return "ended", ""


def total_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; links are not followed."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a running stage removes files
                total += os.lstat(os.path.join(base, name)).st_size
    return total


def citations(folders: Iterable[Path]) -> dict[str, list[str]]:
    """Stage id -> names of the results folders with a record that cites it.

    Raises:
        KdepError: a record cannot be read. The stages it cites are then unknown, so none may be
            removed.
    """
    out: dict[str, list[str]] = {}
    for folder in folders:
        files = []
        for place in (folder / "records", folder / "probes"):
            if place.is_symlink():
                raise not_a_folder(place, place.lstat().st_mode, "records folder")
            files += sorted(place.glob("*.json"))
        for path in files:
            content = read_strict(path, follow=False)
            stages = content.get("stages") if isinstance(content, dict) else None
            if not isinstance(stages, dict):
                raise KdepError(
                    f"the record {path} has no valid list of stages",
                    fix="run its suite again, or move the file elsewhere",
                )
            for stage_id in {str(content.get("id")), *map(str, stages.values())}:
                names = out.setdefault(stage_id, [])
                if folder.name not in names:
                    names.append(folder.name)
    return out


def prunable(entries: Iterable[WorkDirEntry], has_references: bool) -> list[WorkDirEntry]:
    """Entries without a reason to keep them.

    `has_references`: whether any stage is cited or planned.

    Raises:
        KdepError: `has_references` is False.
    """
    if not has_references:
        raise KdepError(
            "no results were found and no suite was given, so every stage would be removed",
            fix="give --results-dir, or the names of the suites to keep",
        )
    return [e for e in entries if not e.kept_by]


def remove(work: Path, entry: WorkDirEntry) -> bool:
    """Deletes one entry while holding its lock; False if a process uses it or it is no directory.

    stage.json is removed first, so that an interrupted removal leaves a stage that is not done.
    """
    out, attempt = work / entry.id, attempts.NAME.fullmatch(entry.id)
    removable = entry.is_cluster_run or attempt or _STAGE_DIR.fullmatch(entry.id)
    if not removable or not is_real_folder(out):
        return False
    stage_id = attempt["stage"] if attempt else entry.id
    lock = cluster.run_lock(out) if entry.is_cluster_run else StageLock(work, stage_id)
    if not lock.take():
        return False
    try:
        remove_tree(out / state.STAGE)
        remove_tree(out)
    finally:
        lock.free()
    return True


def size_text(size: float) -> str:
    """Bytes as text, in decimal units: '12 B', '3.4 MB', '1.2 GB'."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def summary(entries: Iterable[WorkDirEntry]) -> str:
    """Number and size of the entries, for example '3 stage directories, 1.2 GB'."""
    entries = list(entries)
    runs = sum(e.is_cluster_run for e in entries)
    text = f"{len(entries) - runs} stage directories"
    text += f" and {runs} cluster runs" if runs else ""
    return f"{text}, {size_text(sum(e.bytes for e in entries))}"


def table(entries: Iterable[WorkDirEntry]) -> str:
    """The entries as lines: size, state, day on which the stage finished, id, why it is kept."""
    lines = []
    for entry in entries:
        size, day = size_text(entry.bytes), entry.finished[:10] or "-"
        reasons = ", ".join(entry.kept_by) or "unreferenced"
        lines.append(f"{size:>9}  {entry.state:11}  {day:10}  {entry.id}  {reasons}")
    return "\n".join(lines)


def as_json(entries: Iterable[WorkDirEntry]) -> str:
    """The entries as JSON."""
    return json.dumps([vars(e) for e in entries], indent=1)
