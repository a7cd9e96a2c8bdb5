"""SHA-256 of the input files of a data set; files that did not change are not hashed again.

A data config's `type` names a `prepare` function. Its module also defines

    reads(spec) -> dict[str, list[Source]]

which returns the files and folders that `prepare` reads, by part. A part is named after its reader:
"pool" for the images of pre-training, "<folder>/<split>" for a task whose recipe has that `folder`,
"<set>" for a task whose recipe has that `set`. A Source is `one_file(path)`, `images_of(folder)` or
`all_of(folder)`. `reads` opens no file, and the paths need not exist; it raises KdepError if it
cannot name them. For generated data it returns {}. `kdep_bench.suite.data_identity` adds the hashes
of the parts to the spec of stage `prepare`, and so to the ids of all later stages.

A `Catalogue` stores, for each file of a source, its SHA-256 and its signature (size, mtime, ctime,
inode) at the time of reading. A file with the same signature is not read again, unless it was
changed less than RACY_NS before it was read: a second change could then leave the times the same.
ctime is included because a program can restore the old mtime after a change, but not the ctime.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdep_bench.data.listing import list_images, shown
from kdep_bench.devices import cores
from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import canonical_json, write_atomic

RACY_NS = 2_000_000_000  # coarsest timestamps in use: 2 s (FAT)
MAX_NAMED_FILES = 3  # maximum number of files that a message names
_MAGIC = b"kdep content 1 "
_UNSETTLED = b"-"  # in place of a signature: read this file again next time
_FILES_PER_TASK = 256  # a task is the work that one thread does at a time
_READ_BYTES = 1 << 20
_ATTEMPTS = 3

Progress = Callable[[int, int], object]
Rows = dict[bytes, bytes]  # name -> b"<sha256> <signature>"


@dataclass(frozen=True)
class Source:
    """A file or folder that a data type reads.

    Attributes:
        path: path of the file or folder.
        kind: "file": a single file; "images": the images of a folder; "all": all files of a folder
            that `kdep_bench.data.listing` does not skip.
        skip: names directly below `path` that no stage reads, such as downloaded archives.
    """

    path: Path
    kind: Literal["file", "images", "all"]
    skip: frozenset[str] = frozenset()

    def key(self) -> str:
        """A string that is different for different sources."""
        return json.dumps([os.path.abspath(self.path), self.kind, sorted(self.skip)])

    def names(self) -> list[str]:
        """Paths of the files relative to `path`, sorted; "" for a single file.

        Raises:
            KdepError: a folder that does not exist or cannot be read.
        """
        if self.kind == "file":
            return [""]
        listing = list_images(self.path)
        if self.kind == "images":
            return listing.images
        names = sorted([*listing.images, *listing.other_files])
        return [n for n in names if n.partition("/")[0] not in self.skip]

    def file(self, name: str | bytes) -> str:
        """The path of one of `names`, as the user gave it."""
        return os.path.join(self.path, os.fsdecode(name)) if name else str(self.path)


def one_file(path: str | Path) -> Source:
    """A single file."""
    return Source(Path(path), "file")


def images_of(folder: str | Path) -> Source:
    """All images of a folder and its subfolders."""
    return Source(Path(folder), "images")


def all_of(folder: str | Path, skip: Iterable[str] = ()) -> Source:
    """All files of a folder and its subfolders, except the entries `skip` directly below it."""
    return Source(Path(folder), "all", frozenset(skip))


@dataclass
class Catalogue:
    """Content of the files of one source.

    Attributes:
        source: the file or folder.
        rows: SHA-256 in hex and signature, by file name relative to the source's path, as bytes.
            A file that cannot be read has "!<reason>" instead of a hash.
        read: number of files that had to be read.
        bytes: sum of all file sizes.
    """

    source: Source
    rows: Rows = field(default_factory=dict)
    read: int = 0
    bytes: int = 0

    def digest(self) -> str:
        """SHA-256 over names and contents of all files; independent of the source's path."""
        h = hashlib.sha256()
        for name in sorted(self.rows):
            h.update(name + b"\0" + _content(self.rows[name]) + b"\n")
        return h.hexdigest()

    def scan(
        self, known: Sequence[Mapping[bytes, bytes]] = (), progress: Progress | None = None
    ) -> Catalogue:
        """Fills an empty catalogue and returns it.

        Args:
            known: rows of earlier catalogues; a file whose signature is in one is not read.
            progress: called with (files done, files).

        Raises:
            KdepError: a folder that cannot be read, or a file that changes while it is read.
        """
        names = self.source.names()
        chunks = [names[i : i + _FILES_PER_TASK] for i in range(0, len(names), _FILES_PER_TASK)]

        def read_chunk(chunk: list[str]) -> list[tuple[bytes, bytes, int, bool]]:
            return [_read_row(self.source, name, known) for name in chunk]

        for rows in _parallel(read_chunk, chunks):
            for name, row, size, read in rows:
                self.rows[name] = row
                self.bytes += size
                self.read += read
            if progress:
                progress(len(self.rows), len(names))
        return self

    def changes(self, new: Catalogue) -> Changes:
        """The files that are changed, added or removed in `new`."""
        out = Changes()
        for name, row in new.rows.items():
            old = self.rows.get(name)
            if old is None:
                out.added.append(new.source.file(name))
            elif _content(old) != _content(row):
                out.changed.append(new.source.file(name))
        out.removed = [self.source.file(n) for n in self.rows if n not in new.rows]
        for names in (out.changed, out.added, out.removed):
            names.sort()
        return out

    def write(self, path: Path) -> None:
        """Writes the catalogue, with the SHA-256 of the text in its first line."""
        body = self.source.key().encode() + b"\0"
        body += b"\0".join(row + b"\t" + name for name, row in sorted(self.rows.items()))
        write_atomic(path, _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@dataclass
class Changes:
    """Paths of files that were changed, added or removed."""

    changed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed)

    def __iadd__(self, later: Changes) -> Changes:
        for paths, later_paths in zip(self._lists(), later._lists(), strict=True):
            paths[:] = sorted({*paths, *later_paths})
        return self

    def _lists(self) -> tuple[list[str], list[str], list[str]]:
        return self.changed, self.added, self.removed

    def __str__(self) -> str:
        """For example "test.json changed, 3 files added (a.png, b.png, ...), 1 removed (d.png)"."""
        parts: list[str] = []
        needs_noun = True
        if self.changed:
            parts.append(f"{first_of(map(_short, self.changed), MAX_NAMED_FILES)} changed")
        for names, word in ((self.added, "added"), (self.removed, "removed")):
            if names:
                names_text = ", ".join(_short(n) for n in names[:MAX_NAMED_FILES])
                dots = ", ..." if len(names) > MAX_NAMED_FILES else ""
                noun = f" file{'s' * (len(names) > 1)}" if needs_noun else ""
                parts.append(f"{len(names)}{noun} {word} ({names_text}{dots})")
                needs_noun = False
        return ", ".join(parts)

    def first(self) -> str:
        """The printable path of the first changed file; if none, of a removed or an added file."""
        return shown((self.changed or self.removed or self.added)[0])


def read_catalogue(path: Path, source: Source | None = None) -> Catalogue | None:
    """Reads a catalogue; None if the file is missing, damaged, or of another source.

    Args:
        path: written by `Catalogue.write`.
        source: the expected source; None accepts any.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as f:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            head, _, body = f.read().partition(b"\n")
        if head != _MAGIC + hashlib.sha256(body).hexdigest().encode():
            return None
        key, *rows = body.split(b"\0")
        path_, kind, skip = json.loads(key)
        stored_source = Source(Path(path_), kind, frozenset(skip))
        if source is not None and stored_source.key() != source.key():
            return None
        pairs = (row.partition(b"\t") for row in rows if row)
        return Catalogue(stored_source, {name: row for row, _, name in pairs})
    except (OSError, ValueError, TypeError):
        return None


class Index:
    """A folder with the last catalogue of each source, one file per source.

    Several processes may use one folder, because files are replaced atomically and every version is
    valid. If a file is damaged or cannot be written, the data is read again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, source: Source) -> Path:
        """The file with the catalogue of `source`."""
        return self.folder / f"{hashlib.sha256(source.key().encode()).hexdigest()[:24]}.content"

    def stored(self, source: Source) -> Catalogue | None:
        """The last catalogue of the source; its files may have changed since."""
        return read_catalogue(self.path(source), source)

    def read(
        self,
        source: Source,
        *,
        verify: bool = False,
        also: Catalogue | None = None,
        progress: Progress | None = None,
    ) -> Catalogue:
        """The catalogue of the source as it is now; files with a known signature are not read.

        Args:
            source: the file or folder.
            verify: read every file.
            also: another catalogue with known signatures.
            progress: called with (files done, files).

        Raises:
            KdepError: a folder that cannot be read, or a file that changes while it is read.
        """
        stored, now = self.stored(source), Catalogue(source)
        known = [] if verify else [c.rows for c in (also, stored) if c is not None]
        try:
            now.scan(known, progress)
        except BaseException:  # interrupted: keep the rows so far, so that they are not read again
            if now.rows:
                self._store(Catalogue(source, {**(stored.rows if stored else {}), **now.rows}))
            raise
        if stored is None or stored.rows != now.rows:
            self._store(now)
        return now

    def _store(self, catalogue: Catalogue) -> None:
        with contextlib.suppress(OSError):
            catalogue.write(self.path(catalogue.source))


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """The SHA-256 of all parts, from the digest of each part by name."""
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()


def _parallel(work: Callable[[list[str]], list], chunks: list[list[str]]) -> Iterator[list]:
    if len(chunks) < 2:
        yield from map(work, chunks)
        return
    # More threads than cores: on a network disk the threads mostly wait for data.
    pool = ThreadPoolExecutor(max(8, cores()))
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _read_row(
    source: Source, name: str, known: Sequence[Mapping[bytes, bytes]]
) -> tuple[bytes, bytes, int, bool]:
    """Hashes a file unless its signature is known: (name, row, size, whether it was read)."""
    path, key = source.file(name), os.fsencode(name)
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            signature = _signature(status)
            for rows in known:
                row = rows.get(key)
                if row is not None and row[65:] == signature:  # after 64 hex digits and a space
                    return key, row, status.st_size, False
            return key, _read(path), status.st_size, True
        reason = "no regular file"  # part of the data's hash: do not reword
    except OSError as e:
        reason = e.strerror or type(e).__name__
    return key, b"!" + reason.encode() + b" " + _UNSETTLED, 0, True


def _read(path: str) -> bytes:
    """The row of a regular file.

    Raises:
        OSError: it cannot be read.
        KdepError: it changed during each of _ATTEMPTS attempts to read it.
    """
    for _ in range(_ATTEMPTS):
        begun = time.time_ns()
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before, h = os.fstat(fd), hashlib.sha256()
            while piece := os.read(fd, _READ_BYTES):
                h.update(piece)
            after = os.fstat(fd)
        finally:
            os.close(fd)
        signature = _signature(before)
        if signature == _signature(after):
            return (
                h.hexdigest().encode() + b" " + (_UNSETTLED if _racy(before, begun) else signature)
            )
    raise KdepError(
        f"the file {shown(path)} changed while it was read",
        fix="wait until no program writes to it, then run again",
    )


def _racy(status: os.stat_result, begun: int) -> bool:
    """Whether a change of the file after `begun` (ns) could leave its time stamps the same."""
    # A ctime in the future means a wrong clock. An mtime in the future proves nothing, because any
    # program can set it.
    recent = abs(begun - status.st_mtime_ns) <= RACY_NS
    return recent or status.st_ctime_ns >= begun - RACY_NS


def _signature(status: os.stat_result) -> bytes:
    return b"%d %d %d %d" % (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )


def _content(row: bytes) -> bytes:
    """The SHA-256 of a row, or "!<reason>"."""
    return row.rpartition(b" ")[0] if row.startswith(b"!") else row[:64]


def _short(path: str) -> str:
    return shown(os.path.basename(path))
