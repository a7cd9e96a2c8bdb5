"""State of stages, read from their directories: which stages are done, and why stages must run.

A stage is done if `<work>/<stage id>/stage.json` is valid; this file is written last and
atomically. State is stored nowhere else. Paths in stage.json are relative, so a moved or copied
work dir stays valid. The work dir may be a symbolic link; stage directories, and the engine's files
in them, may not.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import canonical_json, file_hash, read_strict, write_atomic, write_json
from kdep_bench.paths import PACKAGE
from kdep_bench.safe_files import is_real_folder, not_a_folder, read_bytes, real_folder
from kdep_bench.suite.data_identity import changes_since
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.schema import Json

SCHEMA = 1
STAGE, FAILED, LOG = "stage.json", "failed.json", "stage.log"
DAMAGED = "stage.json.damaged"  # a stage.json that does not describe the files of its stage
POINTER, PREVIOUS_PREFIX = ".try", ".before-"  # see `attempts`
ENGINE_FILES = {STAGE, FAILED, LOG, DAMAGED, POINTER}
LISTED_FILES = 2000  # number of files that stage.json lists with checksums; others are summarised
_FAILED_BYTES = 1 << 20  # bytes; failed.json is read up to this size
VERIFY_BYTES = 64 << 20  # bytes of a stage's files that are hashed every time they are an input
VERIFIED = ".verified"  # folder of the work dir that lists larger files with a correct checksum


def folder(work: Path, stage: Stage | str) -> Path:
    """Directory of a stage."""
    return work / (stage if isinstance(stage, str) else stage.id)


# --- files of a finished stage ---------------------------------------------------------------


def walk(out: Path) -> Iterator[tuple[str, int]]:
    """(relative path, size in bytes) of every file below `out`, sorted.

    The engine's files and temporary files are left out.

    For a symbolic link, the size is that of the link: its target is a file of the user, who may
    edit it.
    """
    entries = []
    for base, folders, files in os.walk(out):
        if base == os.fspath(out):
            folders[:] = [f for f in folders if not f.startswith(PREVIOUS_PREFIX)]
        for name in files:
            path = os.path.join(base, name)
            relative = os.path.relpath(path, out)
            if relative not in ENGINE_FILES and not (
                name.startswith(".") and name.endswith(".tmp")
            ):
                entries.append((relative, os.lstat(path).st_size))
    # Files in fewer folders first, so that manifests come before the many files that they describe.
    return iter(sorted(entries, key=lambda f: (f[0].count("/"), f[0])))


def list_files(out: Path) -> tuple[dict[str, list[Any]], Json | None]:
    """The files of a stage, for its stage.json.

    Returns:
        (files, rest): {relative path: [bytes, sha256]} of the first LISTED_FILES files, and a
        `_summary` of the other files, or None if there are no others.
    """
    all_files = list(walk(out))
    listed, rest = all_files[:LISTED_FILES], all_files[LISTED_FILES:]
    files = {name: [size, _hash(out / name)] for name, size in listed}
    return files, _summary(rest) if rest else None


def _hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the path that a link holds."""
    if path.is_symlink():
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
    return file_hash(path)


def _summary(rest: list[tuple[str, int]]) -> Json:
    """Number and bytes of files, and a hash of their names and sizes."""
    digest = hashlib.sha256(canonical_json(sorted(rest)).encode()).hexdigest()
    return {"count": len(rest), "bytes": sum(s for _, s in rest), "names_and_sizes": digest}


def _first_mismatch(
    out: Path, record: Json, compare_checksums: bool, work: Path | None = None
) -> str | None:
    """A clause about the first file that is not as recorded; None if all are.

    Args:
        out: the stage's directory.
        record: its stage.json.
        compare_checksums: whether to compare checksums as well as sizes.
        work: None, or the work dir (for `verify_input`). Then large files that VERIFIED lists are
            not hashed again, and files that stage.json does not list are not checked.
    """
    files: dict[str, list[Any]] = record["files"]
    base = os.fspath(out)
    for name, (size, _) in files.items():
        try:
            current_size = os.lstat(f"{base}/{name}").st_size
        except OSError:
            return f"its file {name} is missing"
        if current_size != size:
            return f"its file {name} has {current_size} bytes instead of {size}"
    if not compare_checksums:
        return None
    verified = _VerifiedFiles(work, out.name) if work and _is_large(files) else None
    fault = _first_changed(out, files, verified)
    if verified is not None:
        verified.write()
    if fault is None and work is None and record.get("rest"):
        rest = [f for f in walk(out) if f[0] not in files]
        if _summary(rest) != record["rest"]:
            return f"files are missing or changed among the other {record['rest']['count']} files"
    return fault


def _is_large(files: Mapping[str, list[Any]]) -> bool:
    return sum(size for size, _ in files.values()) > VERIFY_BYTES


def _first_changed(
    out: Path, files: Mapping[str, list[Any]], verified: _VerifiedFiles | None
) -> str | None:
    """A clause about the first file with another checksum, smaller files first; None if none has.

    `verified`: files that need not be hashed again. The smallest files, up to VERIFY_BYTES
    together, are hashed in any case.
    """
    remaining_bytes = VERIFY_BYTES
    for name, (size, digest) in sorted(files.items(), key=lambda item: item[1][0]):
        remaining_bytes -= size
        try:
            # Read before the file is hashed: a change in between is then noticed the next time.
            stat_before = os.lstat(out / name)
            large_files = verified if remaining_bytes < 0 else None
            if large_files is not None and large_files.contains(name, digest, stat_before):
                continue
            if _hash(out / name) != digest:
                return f"its file {name} has changed (its checksum differs)"
            if large_files is not None:
                large_files.add(name, digest, stat_before)
        except KdepError as e:
            return f"its file {e.problem}"
        except OSError as e:
            return f"its file {name} cannot be read ({e.strerror})"
    return None


# --- one stage ---------------------------------------------------------------------------------

# Start of the checksum's line; json.dumps(indent=1) indents only top-level keys by one space.
_SUM = b'\n "sum": "'
_NO_SUM = b"0" * 64


def write_stage(out: Path, record: Json) -> None:
    """Writes stage.json atomically."""
    write_atomic(out / STAGE, stage_text(record))


def stage_text(record: Json) -> bytes:
    """The text of a stage.json, with its SHA-256 in the key `sum`.

    The hash is computed with 64 zeros in its place; it can be checked without parsing the JSON.
    """
    blank = {**record, "sum": _NO_SUM.decode()}
    raw = (json.dumps(blank, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    position = raw.rindex(_SUM) + len(_SUM)
    return raw[:position] + hashlib.sha256(raw).hexdigest().encode() + raw[position + 64 :]


def _is_intact(raw: bytes) -> bool:
    """Whether the text of a stage.json fits its checksum; False if it has none."""
    position = raw.rfind(_SUM) + len(_SUM)
    if position < len(_SUM):
        return False
    blank = hashlib.sha256(raw[:position] + _NO_SUM + raw[position + 64 :])
    return blank.hexdigest().encode() == raw[position : position + 64]


# Entry of stage.json -> its type.
_ENTRY_TYPES: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "kind": str,
    "version": int,
    "finished": str,
    "wall_s": (int, float),
    "peak_rss": int,
    "files": dict,
    "outputs": dict,
    "spec": dict,
    "needs": dict,
    "environment": dict,
}


def _check_types(record: Json) -> None:
    """Raises TypeError for the first entry of a stage.json with a wrong type."""
    for key, entry_type in _ENTRY_TYPES.items():
        value = record[key]
        is_negative = isinstance(value, (int, float)) and value < 0
        # bool is excluded explicitly, because it is a subclass of int.
        if not isinstance(value, entry_type) or isinstance(value, bool) or is_negative:
            raise TypeError(f"{key} is {str(value)[:40]!r}")
    for name, (size, digest) in record["files"].items():
        if type(size) is not int or size < 0 or not isinstance(digest, str):
            raise TypeError(f"files: {name[:60]!r}")


def read_stage(out: Path) -> Json | None:
    """The stage.json in the directory `out`; None if there is none.

    Raises:
        KdepError: it is damaged or cannot be read, or `out` is not a real folder.
    """
    path = f"{os.fspath(out)}/{STAGE}"
    try:
        # O_NOFOLLOW: a symbolic link in place of the directory is an error.
        folder_fd = os.open(out, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            raw = read_bytes(STAGE, dir_fd=folder_fd)
        finally:
            os.close(folder_fd)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        if not out.parent.is_dir():
            return None
        raise not_a_folder(out, os.lstat(out).st_mode, "stage directory") from None
    except KdepError as e:
        raise KdepError(f"{os.fspath(out)}/{e.problem}", expected=e.expected, fix=e.fix) from None
    except OSError as e:
        raise KdepError(
            f"{path} cannot be read ({e.strerror})", fix="correct its permissions"
        ) from None
    try:
        if not _is_intact(raw):
            raise KdepError(
                f"{path} is damaged: its checksum is wrong or missing",
                fix="run the suite again: this stage is rerun",
            )
        record = from_json(raw, allow_inf_nan=False)
        if record["schema"] != SCHEMA:
            raise KdepError(
                f"{path} has schema {record['schema']}",
                expected=f"schema {SCHEMA}",
                fix="run the suite again: this stage is rerun",
            )
        _check_types(record)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as e:
        raise KdepError(
            f"{path} is damaged ({e})", fix="run the suite again: this stage is rerun"
        ) from None
    return record


def finished(stage: Stage, work: Path, verify: bool = False) -> tuple[Json | None, str | None]:
    """Reads stage.json and compares id, version and file sizes; with `verify` also all checksums.

    Returns:
        (stage.json, None) if the stage is done; (None, fault as a clause) if it is damaged; (None,
        None) if it has no stage.json.
    """
    out = folder(work, stage)
    try:
        record = read_stage(out)
    except KdepError as e:
        return None, e.problem
    if record is None:
        return None, None
    if record["id"] != stage.id:
        return None, f"its stage.json belongs to {record['id']}"
    if record["version"] != stage.version:
        return None, f"stage version {record['version']} -> {stage.version}"
    fault = _first_mismatch(out, record, verify)
    return (None, fault) if fault else (record, None)


def verify_input(work: Path, stage_id: str) -> str:
    """Checks the size and checksum of every listed file of an upstream stage, before it is read.

    The smallest files, up to VERIFY_BYTES together, are hashed every time. A larger file is hashed
    again only if its size, a change time or its inode has changed since the last successful check.

    Returns:
        a sentence about files that were not checked; '' if all were.

    Raises:
        KdepError: the stage has no result or a damaged one. The stage.json of a damaged stage is
            renamed, so that the next run repeats the stage.
    """
    out, record = folder(work, stage_id), None
    try:
        record = read_stage(out)
        fault = (
            "it has no stage.json"
            if record is None
            else _first_mismatch(out, record, compare_checksums=True, work=work)
        )
    except KdepError as e:
        fault = e.problem
    if fault:
        mark_damaged(out)
        raise KdepError(
            f"the input {stage_id} is damaged: {fault}",
            fix="run the suite again: this stage is rerun",
        )
    rest = (record or {}).get("rest")
    if not rest:
        return ""
    return (
        f"{stage_id}: {rest['count']} files ({rest['bytes']} bytes) beyond the {LISTED_FILES} "
        "that are listed were not checked; run_suite.py --verify checks their names and sizes"
    )


class _VerifiedFiles:
    """The larger files of a stage whose checksums were correct, with their stat(2) values.

    The list is stored in `<work>/.verified/<stage id>.json`.
    """

    def __init__(self, work: Path, stage_id: str) -> None:
        self.path = work / VERIFIED / f"{stage_id}.json"
        self._entries: Json = {}
        self._has_new = False
        with contextlib.suppress(KdepError):
            if is_real_folder(self.path.parent):
                content = read_strict(self.path, follow=False)
                self._entries = content if isinstance(content, dict) else {}

    def contains(self, name: str, digest: str, file_stat: os.stat_result) -> bool:
        """Whether the file had this checksum when it had the same stat(2) values."""
        return self._entries.get(name) == self._entry(digest, file_stat)

    def add(self, name: str, digest: str, file_stat: os.stat_result) -> None:
        self._entries[name], self._has_new = self._entry(digest, file_stat), True

    def write(self) -> None:
        """Writes new entries. A failure is ignored: the files are then hashed again."""
        if self._has_new:
            with contextlib.suppress(OSError, KdepError):
                real_folder(self.path.parent)
                write_json(self.path, self._entries)

    @staticmethod
    def _entry(digest: str, file_stat: os.stat_result) -> list[Any]:
        # A program can reset mtime after a write, but not ctime.
        return [
            digest,
            file_stat.st_size,
            file_stat.st_mtime_ns,
            file_stat.st_ctime_ns,
            file_stat.st_ino,
        ]


def data_fingerprint(work: Path, stage: Stage) -> Json:
    """{"data": fingerprint of the data that the stage reads}; {} if the stage reads no data."""
    prepare = stage.needs.get("prepare")
    record = read_stage(folder(work, prepare)) if prepare else None
    fingerprint = record["outputs"].get("fingerprint") if record else None
    return {"data": fingerprint} if isinstance(fingerprint, str) else {}


def mark_damaged(out: Path) -> None:
    """Renames stage.json to DAMAGED: the next run repeats the stage from scratch."""
    if is_real_folder(out):
        with contextlib.suppress(OSError):
            os.replace(out / STAGE, out / DAMAGED)


def failure(out: Path) -> Json | None:
    """The failed.json of the last attempt; None without one, or if it is damaged."""
    try:
        content = read_strict(out / FAILED, _FAILED_BYTES, False) if is_real_folder(out) else {}
        return content if isinstance(content.get("error"), str) else None
    except (KdepError, AttributeError):
        return None


# --- a whole plan --------------------------------------------------------------------------------


@dataclass
class Status:
    """Status of a stage.

    Attributes:
        done: whether its result is complete and fits the plan.
        run: whether it must run.
        why: the reason, as a clause.
        record: its stage.json, if it is done.
        forced: whether it runs although its result may be intact.
    """

    done: bool
    run: bool
    why: str
    record: Json | None = None
    forced: bool = False


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Disables cyclic garbage collection while thousands of JSON files are parsed.

    The collector would traverse all parsed objects many times and free nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def statuses(
    plan: Plan,
    work: Path,
    selected: set[str] | None = None,
    force: Callable[[Stage], bool] = lambda _: False,
    verify: bool = False,
) -> dict[str, Status]:
    """The status of every selected stage, upstream stages first.

    A stage that is not done must run if nothing depends on it, if a stage that depends on it must
    run, or if its outputs are damaged. A missing stage is not repeated if all stages that depend on
    it are done.

    Args:
        plan: the stages.
        work: the work dir.
        selected: ids of the stages to consider; None: all.
        force: returns whether a stage must run again. Stages that depend on it then run again, too.
        verify: whether to check all checksums.
    """
    stages = [s for s in plan.stages.values() if selected is None or s.id in selected]
    ids = {s.id for s in stages}
    consumers = {i: [c for c in cs if c in ids] for i, cs in plan.consumers().items() if i in ids}
    with without_garbage_collection():
        results = {s.id: finished(s, work, verify) for s in stages}
    out = _done_or_forced(stages, results, force, verify)
    damaged = {i for i, (record, fault) in results.items() if record is None and fault}
    for stage in reversed(stages):
        status = out[stage.id]
        if not status.done and not status.run:
            direct_consumers = consumers[stage.id]
            status.run = (
                not direct_consumers
                or stage.id in damaged
                or any(out[c].run for c in direct_consumers)
            )
            if not status.run:
                status.why = "outputs missing but not needed: every downstream stage is done"
    newest = _Newest(work)
    for stage in stages:
        status = out[stage.id]
        if status.run and not status.why:
            status.why = _reason(stage, work, out, newest)
        elif status.done and status.record is not None:
            made_by = status.record.get("code")
            if made_by and made_by != code_hash(stage.source_paths):
                status.why = "done, but with a different version of the code (rerun with --force)"
    return out


def _done_or_forced(
    stages: Sequence[Stage],
    results: Mapping[str, tuple[Json | None, str | None]],
    force: Callable[[Stage], bool],
    verify: bool,
) -> dict[str, Status]:
    """The status of every stage without regard to its downstream stages; see `statuses`.

    `results`: stage id -> the result of `finished`.
    """
    out: dict[str, Status] = {}
    for stage in stages:
        record, fault = results[stage.id]
        forced_upstream = [u for u in stage.needs.values() if u in out and out[u].run]
        if force(stage) or forced_upstream:
            why = "forced" if force(stage) else f"upstream {forced_upstream[0]} will run"
            out[stage.id] = Status(False, True, why, forced=True)
        elif record is not None:
            out[stage.id] = Status(True, False, "done", record)
        else:
            # If a checksum is wrong, the stage must be forced: its process checks only file sizes
            # and would accept it as done.
            out[stage.id] = Status(False, False, fault or "", forced=verify and fault is not None)
    return out


def records(work: Path, plan_statuses: Mapping[str, Status], limit: int = 500) -> list[Json]:
    """The stage.json of finished stages, from which durations are estimated.

    Args:
        work: the work dir.
        plan_statuses: the stages of the plan; see `statuses`.
        limit: largest number of stages of other plans (earlier versions, other suites).

    Returns:
        the newest `limit` stages of other plans, oldest first, then the stages of the plan.
    """
    stages_outside = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(work):
            if entry.name not in plan_statuses and not entry.name.startswith("."):
                with contextlib.suppress(OSError):
                    stages_outside.append(
                        (os.stat(os.path.join(entry.path, STAGE)).st_mtime, entry.path)
                    )
    stage_records = []
    for _, path in sorted(stages_outside)[-limit:]:
        with contextlib.suppress(KdepError):
            record = read_stage(Path(path))
            if record is not None:
                stage_records.append(record)
    return stage_records + [s.record for s in plan_statuses.values() if s.record is not None]


def _reason(stage: Stage, work: Path, statuses: Mapping[str, Status], newest: _Newest) -> str:
    """Why a stage must run, as a clause. `newest`: finds the stage's predecessor."""
    failed = failure(folder(work, stage))
    if failed:
        return f"failed before: {failed['error']}"
    if folder(work, stage).exists():
        return "interrupted"
    predecessor = newest.find(stage)
    if predecessor is not None:
        if stage.kind == "prepare" and (
            edits := changes_since(work / predecessor["id"], stage, work)
        ):
            return f"data changed: {edits}"
        changes = spec_changes(stage, predecessor)
        if changes:
            return f"spec changed: {first_of(changes, 3)}"
    if predecessor is None:
        return "never run"
    for upstream in stage.needs.values():
        if upstream in statuses and statuses[upstream].run:
            return f"upstream {upstream} will run"
    for role, upstream in stage.needs.items():
        if predecessor["needs"].get(role) != upstream:
            return f"upstream changed: {predecessor['needs'].get(role)} -> {upstream}"
    return "never run"


def newest_other(stage: Stage, work: Path) -> Json | None:
    """The newest stage.json of a finished stage with this kind and name and another id."""
    return _Newest(work).find(stage)


def spec_changes(stage: Stage, earlier: Json) -> list[str]:
    """Changes of a stage's version and spec since the stage.json `earlier`."""
    changes = differences(earlier["spec"], stage.spec)
    if earlier["version"] != stage.version:
        changes.insert(0, f"stage version {earlier['version']} -> {stage.version}")
    return changes


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Differences of two specs, for example 'budget.epochs 3 -> 4'."""
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for key in sorted(old.keys() | new.keys()):
            key_path = f"{path}.{key}" if path else key
            if key not in new:
                out.append(f"{key_path} dropped")
            elif key not in old:
                out.append(f"{key_path} added")
            else:
                out += differences(old[key], new[key], key_path)
        return out
    if old == new:
        return []
    return [f"{path} {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


class _Newest:
    """Finds the newest finished stage of the same kind and name; lists the work dir once."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._paths: dict[str, list[str]] | None = None

    def find(self, stage: Stage) -> Json | None:
        if self._paths is None:
            self._paths = {}
            with contextlib.suppress(OSError):
                for entry in os.scandir(self.work):
                    self._paths.setdefault(entry.name.rpartition("-")[0], []).append(entry.path)
        best: tuple[float, Json] | None = None
        for path in self._paths.get(stage.id.rpartition("-")[0], []):
            with contextlib.suppress(KdepError, OSError):
                when = os.stat(os.path.join(path, STAGE)).st_mtime
                if best is None or when > best[0]:
                    record = read_stage(Path(path))
                    if record is not None and record["id"] != stage.id:
                        best = (when, record)
        return best[1] if best else None


@cache
def code_hash(source_paths: tuple[str, ...]) -> str:
    """Hash of the package's source in `source_paths` (files and folders below kdep_bench/)."""
    digest = hashlib.sha256()
    for source in source_paths:
        place = PACKAGE / source
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = str(path.relative_to(PACKAGE)).encode()
            digest.update(name + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]
