"""Puts hashes of a suite's data into its stage ids, and checks that stages read the same data.

When a suite is planned, `with_content` hashes the files that its data type declares (see
`kdep_bench.data.content`) and puts the hashes into the data config, from which they enter the spec
of stage `prepare`: edited data change stage ids, moved or touched files do not. Files are linked,
not copied, so each stage that reads them checks before and after that they are unchanged (`Guard`).
Weights files of teachers and methods are hashed as well, into their configs (see
`kdep_bench.data.given_files`). The folder `.content` of the work dir caches the hashes.
"""

from __future__ import annotations

import hashlib
import importlib
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
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, read_strict, write_json
from kdep_bench.suite.graph import Stage
from kdep_bench.suite.methods import with_role_teachers
from kdep_bench.suite.schema import Json, Suite

CONTENT = "content"  # the key in the spec of `prepare`, and in its outputs
INDEX = ".content"  # folder of the work dir
LISTING = "content"  # folder of a `prepare` stage: the catalogues of what it read
PARTS = "parts.json"
_POOL_KINDS = {"views", "cache", "pretrain"}
_SAID_EVERY = 5.0  # seconds

SourcesByPart = dict[str, list[Source]]
Say = Callable[[str], object]


def index(work: Path) -> Index:
    """The cache of hashes in the work dir."""
    return Index(work / INDEX)


def declared(maker: str, spec: Json) -> SourcesByPart | None:
    """The files that the data type reads, by part; None where its module has no `reads`.

    Args:
        maker: "module:function" or "module.function" of the type; "" for the default one, whose
            data is generated.

    Raises:
        KdepError: the module names no paths, as without $KDEP_DATA.
    """
    name = re.split(r"[.:]\w+$", maker)[0]
    if not name:
        return {}
    try:
        module = importlib.import_module(name)
    except Exception:  # a user's module: its stage reports faults
        return None
    reads = getattr(module, "reads", None)
    if reads is None:
        return None
    try:
        return reads({k: v for k, v in spec.items() if k != CONTENT})
    except KdepError:
        raise
    except Exception as e:  # from a config that the stage refuses, or from a user's module
        got = f"{name}.reads does not accept the data config ({type(e).__name__}: {e})"
        raise KdepError(got, fix="correct the data config, or `reads` of that module") from e


# --- planning ------------------------------------------------------------------------------------


@dataclass
class _Read:
    """Hashes and counts of the files of one data config."""

    digests: dict[str, str] = field(default_factory=dict)
    files: int = 0
    hashed: int = 0
    note: str = ""


def with_content(
    suite: Suite, work: Path, *, verify: bool = False, say: Say | None = None
) -> tuple[Suite, list[str]]:
    """The suite with the hashes of its data in the data config, and lines for the user.

    Where the data is absent, or its type does not declare what it reads, the suite stays as it is
    and a line reports it.

    Args:
        suite: a resolved suite.
        work: the work dir, which caches hashes.
        verify: read every file again.
        say: receives progress messages; hashing can take minutes the first time.

    Returns:
        (suite, lines).
    """
    known: dict[str, _Read] = {}

    def given(data: Json) -> Json:
        key = canonical_json(data)
        if key not in known:
            known[key] = _read(data, index(work), verify, say)
        digests = known[key].digests
        return {**data, CONTENT: digests} if digests else data

    def filled(variant: Suite) -> Suite:
        return variant.model_copy(
            update={"data": given(variant.data), **_with_files(variant, work, verify)}
        )

    variants = [filled(v) for v in suite.variants]
    suite = filled(suite).model_copy(update={"variants": variants})
    lines = [
        f"data: {r.files:,} files, {r.hashed:,} hashed now, the other hashes reused"
        for r in known.values()
        if r.files
    ]
    return suite, [*lines, *(r.note for r in known.values() if r.note)]


def _with_files(suite: Suite, work: Path, verify: bool) -> dict[str, Any]:
    """Teachers and methods of the suite, with the hashes of the weights files that they name."""

    def read(source: Source) -> Catalogue:
        return index(work).read(source, verify=verify)

    teachers = {k: t and given_files.with_content(t, read) for k, t in suite.teachers.items()}

    def filled(method: Json) -> Json:
        if isinstance(method.get("weights"), Mapping):
            method = {**method, "weights": given_files.with_content(method["weights"], read)}
        method = with_role_teachers(method, lambda t: given_files.with_content(t, read))
        tuned = (method.get("transfer") or {}).get("teacher")
        if tuned is None:
            return method
        teacher = {**tuned, "method": filled(tuned["method"])}
        return {**method, "transfer": {**method["transfer"], "teacher": teacher}}

    return {"teachers": teachers, "methods": [filled(m) for m in suite.methods]}


def is_read(suite: Suite) -> bool:
    """Whether the stage ids contain the hashes of all files that the data type declares."""
    for data in [suite.data, *(v.data for v in suite.variants)]:
        try:
            if declared(str(data.get("type") or ""), data) and CONTENT not in data:
                return False
        except KdepError:
            return False
    return True


def was_read(suite: Suite, work: Path) -> bool:
    """Whether all data were hashed before, so that `with_content` reads only changed files."""
    try:
        declared_by = [
            declared(str(d.get("type") or ""), d) or {}
            for d in [suite.data, *(v.data for v in suite.variants)]
        ]
    except KdepError:
        return False
    sources = [s for parts in declared_by for part_sources in parts.values() for s in part_sources]
    return all(index(work).path(s).is_file() for s in sources)


def _read(data: Json, where: Index, verify: bool, say: Say | None) -> _Read:
    read = _Read()
    try:
        parts = declared(str(data.get("type") or ""), data)
        if parts is None:
            read.note = (
                f"data {data['name']}: its type {data['type']} has no `reads` function that "
                "lists its files, so changed files are not noticed"
            )
            return read
        catalogues = _catalogues(parts, where, verify, say)
    except KdepError as e:
        read.note = f"data {data['name']} was not read: {e.problem}"
        return read
    read.digests = _digests(parts, catalogues)
    read.files = sum(len(c.rows) for c in catalogues.values())
    read.hashed = sum(c.read for c in catalogues.values())
    return read


def _catalogues(
    parts: SourcesByPart, where: Index, verify: bool = False, say: Say | None = None
) -> dict[str, Catalogue]:
    """The catalogue of every source of the parts by its key, each read once."""
    catalogues: dict[str, Catalogue] = {}
    for source in (s for sources in parts.values() for s in sources):
        if source.key() not in catalogues:
            progress = _progress(source, say) if say else None
            catalogues[source.key()] = where.read(source, verify=verify, progress=progress)
    return catalogues


def _progress(source: Source, say: Say) -> Callable[[int, int], None]:
    next_time = time.monotonic() + _SAID_EVERY

    def progress(done: int, total: int) -> None:
        nonlocal next_time
        if time.monotonic() > next_time:
            next_time = time.monotonic() + _SAID_EVERY
            say(f"hashing {source.path}: {done:,} of {total:,} files")

    return progress


def _digests(parts: SourcesByPart, catalogues: Mapping[str, Catalogue]) -> dict[str, str]:
    digests = {}
    for part, sources in parts.items():
        part_digests = [catalogues[s.key()].digest() for s in sources]
        joined = hashlib.sha256("\n".join(part_digests).encode()).hexdigest()
        digests[part] = part_digests[0] if len(part_digests) == 1 else joined
    return digests


def changes_since(old: Path, stage: Stage, work: Path) -> Changes:
    """Files that differ between an older `prepare` stage in `old` and the planned one.

    Empty where one of them has no file list, or the paths of the data differ.
    """
    changes = Changes()
    try:
        before = read_listing(old) or {}
        parts = declared(stage.function, stage.spec) or {}
    except KdepError:
        return changes
    seen: set[str] = set()
    for part, sources in parts.items():
        for catalogue, source in zip(before.get(part, ()), sources, strict=False):
            if source.key() not in seen:
                seen.add(source.key())
                current = index(work).stored(source)
                if current is not None and catalogue.source.kind == source.kind:
                    changes += catalogue.changes(current)
    return changes


# --- the file list that `prepare` writes ---------------------------------------------------------


def write_listing(out: Path, parts: SourcesByPart, catalogues: Mapping[str, Catalogue]) -> None:
    """Writes the catalogues below `out`, and the catalogues of each part."""
    numbers = {key: n for n, key in enumerate(catalogues)}
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
    """Checks before and after a stage's function that the data are those that the plan hashed.

    Args:
        stage: any stage; one that reads no file of the user is not checked.
        work: the work dir.
        out: the stage's directory.
    """

    def __init__(self, stage: Stage, work: Path, out: Path) -> None:
        self.stage, self.work, self.out = stage, work, out
        self._parts: SourcesByPart = {}
        self._planned: dict[str, Catalogue] = {}
        self._listed: list[Catalogue] = []

    def before(self) -> None:
        """Raises KdepError where the data changed since the plan, or since stage `prepare`."""
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
        """Checks again after the function has read the data; for `prepare`, adds to its outputs.

        Returns:
            the outputs; those of `prepare` with `content` ({part: SHA-256}) and a `fingerprint`.
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
        now = _catalogues(self._parts, index(self.work))
        changes = Changes()
        for key, catalogue in now.items():
            changes += self._planned[key].changes(catalogue)
        if changes:
            raise _changed(changes, "while it was being prepared")
        write_listing(self.out, self._parts, now)
        if isinstance(outputs, dict):
            outputs = {**outputs, "fingerprint": fingerprint_of(planned), CONTENT: planned}
        return outputs

    def _before_prepare(self) -> None:
        planned = self.stage.spec.get(CONTENT)
        try:
            self._parts = declared(self.stage.function, self.stage.spec) or {}
        except KdepError:
            if planned is not None:
                raise
            return  # the function itself reports the fault
        if planned is None:
            return
        where, changes = index(self.work), Changes()
        for source in {
            s.key(): s for part_sources in self._parts.values() for s in part_sources
        }.values():
            before = where.stored(source)
            self._planned[source.key()] = now = where.read(source)
            if before is not None:
                changes += before.changes(now)
        if _digests(self._parts, self._planned) != planned:
            raise _changed(changes, "after the run was planned")

    def _compare(self, when: str) -> None:
        changes = Changes()
        for catalogue in self._listed:
            changes += catalogue.changes(index(self.work).read(catalogue.source, also=catalogue))
        if changes:
            raise _changed(changes, when)

    def _reads(self, part: str) -> bool:
        """Whether the stage reads a part; a task without `set` or `folder` reads all."""
        if self.stage.kind in _POOL_KINDS:
            return part == "pool"
        spec = self.stage.spec
        recipe = (spec.get("task") or {}).get("recipe") or spec.get("images") or spec.get("probe")
        source_set = (recipe or {}).get("set") or (recipe or {}).get("folder")
        return source_set is None or part.partition("/")[0] == str(source_set).partition("/")[0]


def _changed(changes: Changes, when: str) -> KdepError:
    details = f" (the file {changes.first()}: {changes})" if changes else ""
    return KdepError(
        f"the data changed {when}{details}",
        expected="the same files from the first to the last stage of a run",
        fix="run the suite again: it uses the data as they are now and reruns every stage that "
        "depends on them",
    )
