"""SHA-256 of the files that a data set is read from, remembered as long as they do not change.

How a data type declares what it reads: beside the `prepare` function that a data config names as
its `type`, its module defines `reads(spec) -> dict[str, list[Source]]`, from the stage's spec to
files and folders by part. Parts are named after what reads them: "pool" for the images of
pre-training, "<folder>/<split>" for a task whose recipe has that `folder`, "<set>" for one whose
recipe has that `set`. A Source is `one_file(path)`, `images_of(folder)` or `all_of(folder)`.
`reads` opens no file and takes a path that does not exist; it raises KdepError where it cannot name
the paths. Generated data returns {}. `kdep_bench.suite.data_identity` does the rest: the hashes of
the parts enter the spec of stage `prepare`, and with it the id of every stage that follows.

A `Catalogue` holds, for each file of a source, its SHA-256 and the signature (size, mtime, ctime,
inode) under which it was read. A file with the same signature is not read again, unless it had been
changed within RACY_NS before it was read: a later change could leave it the same times. ctime is in
the signature because it shows an edit that puts the old mtime back.
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
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, write_atomic

RACY_NS = 2_000_000_000  # coarsest timestamps in use: 2 s (FAT)
NAMED = 3  # files that a sentence names
_MAGIC = b"kdep content 1 "
_UNSETTLED = b"-"  # in place of a signature: read this file again next time
_CHUNK = 256  # files that a thread takes at once
_PIECE = 1 << 20
_TRIES = 3

Progress = Callable[[int, int], object]
Rows = dict[bytes, bytes]  # name -> b"<sha256> <signature>"


@dataclass(frozen=True)
class Source:
    """A file or folder that a data type reads.

    Attributes:
        path: absolute.
        kind: "file"; "images" of a folder; or "all" files of a folder that `listing` does not skip.
        skip: names directly below `path` that no stage reads, as archives that were unpacked.
    """

    path: Path
    kind: Literal["file", "images", "all"]
    skip: frozenset[str] = frozenset()

    def key(self) -> str:
        """Text that tells two sources apart."""
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
        """The user's path of one of `names`."""
        return os.path.join(self.path, os.fsdecode(name)) if name else str(self.path)


def one_file(path: str | Path) -> Source:
    return Source(Path(path), "file")


def images_of(folder: str | Path) -> Source:
    return Source(Path(folder), "images")


def all_of(folder: str | Path, skip: Iterable[str] = ()) -> Source:
    return Source(Path(folder), "all", frozenset(skip))


@dataclass
class Catalogue:
    """Content of the files of one source.

    Attributes:
        source: what was read.
        rows: by name (bytes, relative to the source's path) the SHA-256 in hex and the signature.
            A file that cannot be read has "!<reason>" instead of a hash.
        read: how many files were read to make it.
        bytes: sum of all sizes.
    """

    source: Source
    rows: Rows = field(default_factory=dict)
    read: int = 0
    bytes: int = 0

    def digest(self) -> str:
        """SHA-256 over names and contents of all files; the path of the source does not count."""
        h = hashlib.sha256()
        for name in sorted(self.rows):
            h.update(name + b"\0" + _content(self.rows[name]) + b"\n")
        return h.hexdigest()

    def scan(
        self, known: Sequence[Mapping[bytes, bytes]] = (), progress: Progress | None = None
    ) -> Catalogue:
        """Fills an empty catalogue; reads the files whose signature is not in `known`."""
        names = self.source.names()
        chunks = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]

        def look(chunk: list[str]) -> list[tuple[bytes, bytes, int, bool]]:
            return [_look(self.source, name, known) for name in chunk]

        for chunk in _parallel(look, chunks):
            for name, row, size, read in chunk:
                self.rows[name] = row
                self.bytes += size
                self.read += read
            if progress:
                progress(len(self.rows), len(names))
        return self

    def changes(self, new: Catalogue) -> Changes:
        """Which files are other, more or fewer in `new`."""
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
    """Paths of files whose content changed, and of files that are new or gone."""

    changed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed)

    def __iadd__(self, later: Changes) -> Changes:
        for mine, hidden_count in zip(self._lists(), later._lists(), strict=True):
            mine[:] = sorted({*mine, *hidden_count})
        return self

    def _lists(self) -> tuple[list[str], list[str], list[str]]:
        return self.changed, self.added, self.removed

    def __str__(self) -> str:
        """For example "test.json changed, 3 files added (a.png, b.png, ...), 1 removed (d.png)"."""
        parts: list[str] = []
        noun = True
        if self.changed:
            names = ", ".join(_short(n) for n in self.changed[:NAMED])
            hidden_count = len(self.changed) - NAMED
            parts.append(
                names + (f" and {hidden_count} more" if hidden_count > 0 else "") + " changed"
            )
        for names, word in ((self.added, "added"), (self.removed, "removed")):
            if names:
                names_text = ", ".join(_short(n) for n in names[:NAMED])
                dots = ", ..." if len(names) > NAMED else ""
                kind = f" file{'s' * (len(names) > 1)}" if noun else ""
                parts.append(f"{len(names)}{kind} {word} ({names_text}{dots})")
                noun = False
        return ", ".join(parts)

    def first(self) -> str:
        """One path of a file, as it can be printed."""
        return shown((self.changed or self.removed or self.added)[0])


def read_catalogue(path: Path, source: Source | None = None) -> Catalogue | None:
    """The catalogue in a file; None where there is none, a damaged one, or one of another source.

    Args:
        source: what it must be of; None takes what the file says.
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
        found = Source(Path(path_), kind, frozenset(skip))
        if source is not None and found.key() != source.key():
            return None
        pairs = (row.partition(b"\t") for row in rows if row)
        return Catalogue(found, {name: row for row, _, name in pairs})
    except (OSError, ValueError, TypeError):
        return None


class Index:
    """Catalogues of everything that was read, one file per source in a folder.

    Any number of processes may use one folder: a file is replaced as a whole, and every version of
    it is true. A damaged file, or one that cannot be written, costs reading the data again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, source: Source) -> Path:
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
        """The source as it is now: files with a known signature are not read.

        Args:
            verify: read every file.
            also: a further catalogue whose signatures are known.
            progress: called with (files done, files).

        Raises:
            KdepError: a folder that cannot be read, or a file that changes while it is read.
        """
        stored, now = self.stored(source), Catalogue(source)
        known = [] if verify else [c.rows for c in (also, stored) if c is not None]
        try:
            now.scan(known, progress)
        except BaseException:  # interrupted: what was read by now is not read again
            if now.rows:
                self._keep(Catalogue(source, {**(stored.rows if stored else {}), **now.rows}))
            raise
        if stored is None or stored.rows != now.rows:
            self._keep(now)
        return now

    def _keep(self, catalogue: Catalogue) -> None:
        with contextlib.suppress(OSError):
            catalogue.write(self.path(catalogue.source))


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """One SHA-256 of the content of all parts, from that of each."""
    return hashlib.sha256(canonical_json(digests).encode()).hexdigest()


def _parallel(work: Callable[[list[str]], list], chunks: list[list[str]]) -> Iterator[list]:
    if len(chunks) < 2:
        yield from map(work, chunks)
        return
    # More threads than cores: on a network disk they wait for it, not for the processor.
    pool = ThreadPoolExecutor(max(8, cores()))
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _look(
    source: Source, name: str, known: Sequence[Mapping[bytes, bytes]]
) -> tuple[bytes, bytes, int, bool]:
    """(name, row, size, whether the file was read)."""
    path, key = source.file(name), os.fsencode(name)
    try:
        status = os.stat(path)
        if stat.S_ISREG(status.st_mode):
            signature = _signature(status)
            for rows in known:
                row = rows.get(key)
                if row is not None and row[65:] == signature:
                    return key, row, status.st_size, False
            return key, _read(path), status.st_size, True
        reason = "no regular file"
    except OSError as e:
        reason = e.strerror or type(e).__name__
    return key, b"!" + reason.encode() + b" " + _UNSETTLED, 0, True


def _read(path: str) -> bytes:
    """The row of a regular file.

    Raises:
        OSError: it cannot be read.
        KdepError: it changes while it is read, several times.
    """
    for _ in range(_TRIES):
        begun = time.time_ns()
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            before, h = os.fstat(fd), hashlib.sha256()
            while piece := os.read(fd, _PIECE):
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
    """Whether a change after `begun` (ns) could leave a file its present times."""
    # A ctime in the future comes of a clock that is wrong; an mtime there may be set by anybody.
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
