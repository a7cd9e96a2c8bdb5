"""Puts hashes of a suite's data into its stage ids, and checks that stages read the same data.

When a suite is planned, `with_content` hashes the data files and puts the hashes into the data
config. From there they enter the spec of stage `prepare`. Editing a file therefore changes stage
ids; moving it or changing its modification time does not. The function `reads` of the data type's
module lists the files. A catalogue is the list of a folder's files with their sizes and hashes (see
`kdep_bench.data.content`).

The user's files are linked, not copied. Each stage that reads them checks, before and after
reading, that they are unchanged (`Guard`). Hashes of the weights files of teachers and methods
enter their configs (see `kdep_bench.data.given_files`). The folder `.content` of the work dir
caches the hashes.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdep_bench.data import given_files
from kdep_bench.data.content import (
    Catalogue,
    Changes,
    Index,
    Source,
    fingerprint_of,
    read_catalogue,
)
from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import canonical_json, read_strict, write_json
from kdep_bench.suite.graph import Stage
from kdep_bench.suite.methods import with_role_teachers
from kdep_bench.suite.schema import Json, Suite

CONTENT = "content"  # key of the hashes in the spec of `prepare`, and in its outputs
INDEX = ".content"  # folder of the work dir
LISTING = "content"  # folder of a `prepare` stage with the catalogues of the files it read
PARTS = "parts.json"  # file in LISTING: part of the data -> numbers of its catalogues
_POOL_KINDS = {"views", "cache", "pretrain"}  # stage kinds that read only the pool
_MESSAGE_INTERVAL = 5.0  # seconds between progress messages

SourcesByPart = dict[str, list[Source]]  # part of the data, such as "pool" -> its files
ShowMessage = Callable[[str], object]


def index(work: Path) -> Index:
    """The cache of hashes in the work dir."""
    return Index(work / INDEX)


def data_sources(data_type: str, spec: Json) -> SourcesByPart | None:
    """The files that the data type reads, by part; None if its module has no `reads` function.

    Args:
        data_type: "module:function" or "module.function"; "" for the default type,
            whose data is generated.
        spec: the data config.

    Raises:
        KdepError: `reads` fails, for example because $KDEP_DATA is not set.
    """
    name = re.split(r"[.:]\w+$", data_type)[0]
    if not name:
        return {}
    try:
        module = importlib.import_module(name)
    except Exception:  # stage `prepare` reports the faults of a user's module
        return None
    reads = getattr(module, "reads", None)
    if reads is None:
        return None
    try:
        return reads({k: v for k, v in spec.items() if k != CONTENT})
    except KdepError:
        raise
    except Exception as e:  # `reads` can be a user's code
        raise KdepError(
            f"{name}.reads does not accept the data config ({type(e).__name__}: {e})",
            fix="correct the data config, or `reads` of that module",
        ) from e


# --- planning ------------------------------------------------------------------------------------


@dataclass
class _DataHashes:
    """The hashes of the files of one data config.

    Attributes:
        digests: part of the data -> SHA-256.
        n_files: number of files.
        n_hashed: number of files that were hashed now, because their hashes were not cached.
        note: a line for the user that says why the data could not be hashed, or "".
    """

    digests: dict[str, str] = field(default_factory=dict)
    n_files: int = 0
    n_hashed: int = 0
    note: str = ""


def with_content(
    suite: Suite, work: Path, *, verify: bool = False, show_message: ShowMessage | None = None
) -> tuple[Suite, list[str]]:
    """Adds the hashes of its data to the data config of a suite.

    If the data are missing, or the data type does not list its files, the data config is not
    changed, and one of the returned lines states the reason. The configs of teachers, methods
    and probes get the hashes of the files they name.

    Args:
        suite: a resolved suite.
        work: the work dir, which caches hashes.
        verify: whether to hash every file again.
        show_message: receives progress messages; hashing can take minutes the first time.

    Returns:
        (the suite, lines for the user).
    """
    hashes_by_config: dict[str, _DataHashes] = {}

    def with_digests(data: Json) -> Json:
        key = canonical_json(data)
        if key not in hashes_by_config:
            hashes_by_config[key] = _hash_data(data, index(work), verify, show_message)
        digests = hashes_by_config[key].digests
        return {**data, CONTENT: digests} if digests else data

    def with_all_hashes(variant: Suite) -> Suite:
        changes = _with_weights_hashes(variant, work, verify)
        return variant.model_copy(update={"data": with_digests(variant.data), **changes})

    variants = [with_all_hashes(v) for v in suite.variants]
    suite = with_all_hashes(suite).model_copy(update={"variants": variants})
    lines = [
        f"data: {hashes.n_files:,} files, {hashes.n_hashed:,} hashed now, the other hashes reused"
        for hashes in hashes_by_config.values()
        if hashes.n_files
    ]
    return suite, [*lines, *(h.note for h in hashes_by_config.values() if h.note)]


def _with_weights_hashes(suite: Suite, work: Path, verify: bool) -> dict[str, Any]:
    """{"teachers", "methods", "probes"} of the suite, with the hashes of the files they name."""

    def read(source: Source) -> Catalogue:
        return index(work).read(source, verify=verify)

    teachers = {k: t and given_files.with_content(t, read) for k, t in suite.teachers.items()}

    def with_hashes(method: Json) -> Json:
        if isinstance(method.get("weights"), Mapping):
            method = {**method, "weights": given_files.with_content(method["weights"], read)}
        method = with_role_teachers(method, lambda t: given_files.with_content(t, read))
        tuned = (method.get("transfer") or {}).get("teacher")
        if tuned is None:
            return method
        teacher = {**tuned, "method": with_hashes(tuned["method"])}
        return {**method, "transfer": {**method["transfer"], "teacher": teacher}}

    return {
        "teachers": teachers,
        "methods": [with_hashes(m) for m in suite.methods],
        "probes": [given_files.with_content(p, read) for p in suite.probes],
    }


def is_read(suite: Suite) -> bool:
    """Whether all data configs contain the hashes of their files.

    True for data whose type lists no files; False if the files cannot be listed.
    """
    for data in [suite.data, *(v.data for v in suite.variants)]:
        try:
            if data_sources(str(data.get("type") or ""), data) and CONTENT not in data:
                return False
        except KdepError:
            return False
    return True


def was_read(suite: Suite, work: Path) -> bool:
    """Whether all data were hashed before, so that `with_content` hashes only changed files."""
    data_configs = [suite.data, *(v.data for v in suite.variants)]
    try:
        parts_by_config = [data_sources(str(d.get("type") or ""), d) or {} for d in data_configs]
    except KdepError:
        return False
    sources = [
        source
        for parts in parts_by_config
        for part_sources in parts.values()
        for source in part_sources
    ]
    return all(index(work).path(source).is_file() for source in sources)


def _hash_data(
    data: Json, cache: Index, verify: bool, show_message: ShowMessage | None
) -> _DataHashes:
    """Hashes the files of a data config."""
    hashes = _DataHashes()
    try:
        parts = data_sources(str(data.get("type") or ""), data)
        if parts is None:
            hashes.note = (
                f"data {data['name']}: its type {data['type']} has no `reads` function that "
                "lists its files, so changed files are not noticed"
            )
            return hashes
        paths = sorted({str(s.path) for sources in parts.values() for s in sources})
        if len(missing := [path for path in paths if not os.path.exists(path)]) > 1:
            hashes.note = (
                f"data {data['name']} was not read: {first_of(missing, 5)} do not exist; correct "
                "the paths in its config (relative paths begin at $KDEP_DATA or the current folder)"
            )
            return hashes
        catalogues = _catalogues(parts, cache, verify, show_message)
    except KdepError as e:
        hashes.note = f"data {data['name']} was not read: {e.problem}"
        return hashes
    hashes.digests = _digests(parts, catalogues)
    hashes.n_files = sum(len(c.rows) for c in catalogues.values())
    hashes.n_hashed = sum(c.read for c in catalogues.values())
    return hashes


def _catalogues(
    parts: SourcesByPart,
    cache: Index,
    verify: bool = False,
    show_message: ShowMessage | None = None,
) -> dict[str, Catalogue]:
    """Key of each source in `parts` -> its catalogue; each source is read once."""
    catalogues: dict[str, Catalogue] = {}
    for source in (s for sources in parts.values() for s in sources):
        if source.key() not in catalogues:
            progress = _progress(source, show_message) if show_message else None
            catalogues[source.key()] = cache.read(source, verify=verify, progress=progress)
    return catalogues


def _progress(source: Source, show_message: ShowMessage) -> Callable[[int, int], None]:
    """A callback (files done, files in total) that shows a message every _MESSAGE_INTERVAL."""
    next_time = time.monotonic() + _MESSAGE_INTERVAL

    def progress(done: int, total: int) -> None:
        nonlocal next_time
        if time.monotonic() > next_time:
            next_time = time.monotonic() + _MESSAGE_INTERVAL
            show_message(f"hashing {source.path}: {done:,} of {total:,} files")

    return progress


def _digests(parts: SourcesByPart, catalogues: Mapping[str, Catalogue]) -> dict[str, str]:
    """Part of the data -> SHA-256 of its files."""
    digests = {}
    for part, sources in parts.items():
        part_digests = [catalogues[s.key()].digest() for s in sources]
        joined = hashlib.sha256("\n".join(part_digests).encode()).hexdigest()
        digests[part] = part_digests[0] if len(part_digests) == 1 else joined
    return digests


def changes_since(old: Path, stage: Stage, work: Path) -> Changes:
    """Files that differ between the older `prepare` stage in the directory `old` and `stage`.

    The result is empty if either stage has no file list. Files are compared by their names below
    the data's paths, so data that were only moved have no changes.
    """
    changes = Changes()
    try:
        old_listing = read_listing(old) or {}
        parts = data_sources(stage.function, stage.spec) or {}
    except KdepError:
        return changes
    seen: set[str] = set()
    for part, sources in parts.items():
        for catalogue, source in zip(old_listing.get(part, ()), sources, strict=False):
            if source.key() not in seen:
                seen.add(source.key())
                current = index(work).stored(source)
                if current is not None and catalogue.source.kind == source.kind:
                    changes += catalogue.changes(current)
    return changes


# --- the file list that `prepare` writes ---------------------------------------------------------


def write_listing(out: Path, parts: SourcesByPart, catalogues: Mapping[str, Catalogue]) -> None:
    """Writes the catalogues below `out`, and which catalogues belong to each part."""
    numbers = {key: number for number, key in enumerate(catalogues)}
    for key, catalogue in catalogues.items():
        catalogue.write(out / LISTING / f"{numbers[key]}.{LISTING}")
    by_part = {part: [numbers[s.key()] for s in sources] for part, sources in parts.items()}
    write_json(out / LISTING / PARTS, by_part)


def read_listing(prepare: Path) -> dict[str, list[Catalogue]] | None:
    """Catalogues of the files that a `prepare` stage read, by part; None for generated data.

    Raises:
        KdepError: the file list is damaged.
    """
    path = prepare / LISTING / PARTS
    if not path.is_file():
        return None
    files: dict[int, Catalogue] = {}
    for number in sorted({n for numbers in read_strict(path).values() for n in numbers}):
        file = prepare / LISTING / f"{number}.{LISTING}"
        catalogue = read_catalogue(file)
        if catalogue is None:
            raise KdepError(
                f"the file list {file} is damaged", fix="run the suite again with --force prepare"
            )
        files[number] = catalogue
    return {part: [files[n] for n in numbers] for part, numbers in read_strict(path).items()}


# --- stages --------------------------------------------------------------------------------------


class Guard:
    """Checks, before and after a stage runs, that its data have the hashes in the plan.

    Args:
        stage: the stage; nothing is checked if it reads no file of the user.
        work: the work dir.
        out: the stage's directory.
    """

    def __init__(self, stage: Stage, work: Path, out: Path) -> None:
        self.stage, self.work, self.out = stage, work, out
        self._parts: SourcesByPart = {}
        self._planned: dict[str, Catalogue] = {}
        self._listed: list[Catalogue] = []

    def before(self) -> None:
        """Raises KdepError if the data have changed since the plan, or since stage `prepare`."""
        if self.stage.kind == "prepare":
            self._before_prepare()
            return
        prepare = self.stage.needs.get("prepare") or self.stage.needs.get("images")
        if prepare is None:
            return
        listing = read_listing(self.work / prepare) or {}
        catalogues = {c.source.key(): c for p in listing if self._reads(p) for c in listing[p]}
        self._listed = list(catalogues.values())
        self._compare("since it was prepared")

    def after(self, outputs: Any) -> Any:
        """Checks again after the stage function has read the data.

        Returns:
            the outputs; stage `prepare` also gets `content` ({part: SHA-256}) and `fingerprint`.

        Raises:
            KdepError: the data changed meanwhile, or could not be read when the suite was planned.
        """
        if self.stage.kind != "prepare":
            self._compare(f"while the stage {self.stage.id} read it")
            return outputs
        if not self._parts:
            return outputs
        planned = self.stage.spec.get(CONTENT)
        if planned is None:
            raise KdepError(
                f"the data {self.stage.name} could not be read when the suite was planned, so "
                "later changes of its files would not be noticed",
                fix="run the suite on a machine where the paths in the data config can be read",
            )
        current = _catalogues(self._parts, index(self.work))
        changes = Changes()
        for key, catalogue in current.items():
            changes += self._planned[key].changes(catalogue)
        if changes:
            raise _changed_error(changes, "while it was being prepared")
        write_listing(self.out, self._parts, current)
        if isinstance(outputs, dict):
            outputs = {**outputs, "fingerprint": fingerprint_of(planned), CONTENT: planned}
        return outputs

    def _before_prepare(self) -> None:
        """Raises KdepError if the files differ from those that were hashed for the plan."""
        planned = self.stage.spec.get(CONTENT)
        try:
            self._parts = data_sources(self.stage.function, self.stage.spec) or {}
        except KdepError:
            if planned is not None:
                raise
            return  # the function itself reports the fault
        if planned is None:
            return
        cache, changes = index(self.work), Changes()
        sources = {s.key(): s for part_sources in self._parts.values() for s in part_sources}
        for key, source in sources.items():
            stored = cache.stored(source)
            self._planned[key] = current = cache.read(source)
            if stored is not None:
                changes += stored.changes(current)
        if _digests(self._parts, self._planned) != planned:
            raise _changed_error(changes, "after the run was planned")

    def _compare(self, when: str) -> None:
        """Raises KdepError if a file changed since `prepare` listed it; `when`: for the error."""
        changes = Changes()
        for catalogue in self._listed:
            changes += catalogue.changes(index(self.work).read(catalogue.source, also=catalogue))
        if changes:
            raise _changed_error(changes, when)

    def _reads(self, part: str) -> bool:
        """Whether the stage reads a part of the data; without `set` or `folder` it reads all."""
        if self.stage.kind in _POOL_KINDS:
            return part == "pool"
        spec = self.stage.spec
        recipe = (spec.get("task") or {}).get("recipe") or spec.get("images") or spec.get("probe")
        source_set = (recipe or {}).get("set") or (recipe or {}).get("folder")
        return source_set is None or part.partition("/")[0] == str(source_set).partition("/")[0]


def _changed_error(changes: Changes, when: str) -> KdepError:
    details = f" (the file {changes.first()}: {changes})" if changes else ""
    return KdepError(
        f"the data changed {when}{details}",
        expected="the same files from the first to the last stage of a run",
        fix="run the suite again: it uses the data as they are now and reruns every stage that "
        "depends on them",
    )
