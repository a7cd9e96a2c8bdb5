"""Unpacks tar and zip archives: refuses unsafe paths, detects damage, resumes.

The whole archive is read and every name checked before the first file is written: headers up to the
end-of-archive blocks, a compressed stream up to its checksum. (Python's tarfile treats a damaged
header as the end.) Links and absolute names are refused; the standard library's data filter would
keep links inside the folder and rewrite names. A file gets its name only when it is complete.

A seal, a JSON file next to the data, records the SHA-256 of an unpacked archive. With the same
archive, the next run does nothing; with another one, it compares the content of existing files.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, write_json
from kdep_bench.safe_files import new_temporary

SEALS = ".unpacked"
_PIECE = 1 << 20
#: Exceptions of the libraries for damaged content; for this they also raise OSErrors without errno.
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(ValueError, LookupError, RuntimeError, OverflowError, AttributeError, TypeError),
)
_AGAIN = "download it again (an interrupted download is the usual cause)"
_HASHED_ALWAYS = 256 << 20  # bytes; smaller archives are hashed even if their time stamps are equal
_PADDING = 1 << 20  # bytes of zeros allowed after a tar; more come from an unfinished download
_EXTENDED = b"xgXLK"  # headers that describe the next member
_LONGEST_NAME = 1 << 20

Progress = Callable[..., None]


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Attributes:
        name: file name.
        homepage: the page with its download.
        md5: None if no source for it was found.
        md5_source: where the MD5 is from.
        bytes: size; None if no source for it was found.
        optional: whether the set can be used without it.
    """

    name: str
    homepage: str
    md5: str | None = None
    md5_source: str = ""
    bytes: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Member:
    """A regular file of an archive."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def find_archive(archive: Archive, folders: list[Path]) -> Path | None:
    """The archive's file in the first of `folders` that contains it; None if none does."""
    for folder in folders:
        if (folder / archive.name).is_file():
            return folder / archive.name
    return None


def check_archive(path: Path, archive: Archive, progress: Progress) -> str:
    """Compares size and MD5 of a file with the official ones, if known; returns its MD5.

    Raises:
        KdepError: another size or MD5 (an incomplete download, or another release).
    """
    try:
        size = path.stat().st_size
        return _check_archive(path, archive, size, progress)
    except OSError as e:
        raise disk_error(path, e) from None


def _check_archive(path: Path, archive: Archive, size: int, progress: Progress) -> str:
    if archive.bytes is not None and size != archive.bytes:
        raise KdepError(
            f"the archive {path} has {size} bytes", expected=f"{archive.bytes} bytes", fix=_AGAIN
        )
    if size == 0:
        raise KdepError(f"the archive {path} is empty (0 bytes)", fix=_AGAIN)
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    _read_all(path, (md5, sha256), progress)
    _hashed[_stat_of(path)] = sha256.hexdigest()  # `unpack` needs it next
    if archive.md5 is not None and md5.hexdigest() != archive.md5:
        raise KdepError(
            f"the archive {path} has the MD5 {md5.hexdigest()}",
            expected=f"{archive.md5} ({archive.md5_source})",
            fix=_AGAIN,
        )
    return md5.hexdigest()


def unpack(path: Path, target: Path, progress: Progress, *, strip: int = 0) -> dict[str, int]:
    """Unpacks `path` into the folder `target`; does nothing if its seal shows it was done before.

    Args:
        path: a .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .zip file.
        target: created if missing. Existing files with the same content are kept.
        progress: called with (files done, files, note).
        strip: number of leading folders to remove from every name.

    Returns:
        {files, bytes, skipped}.

    Raises:
        KdepError: a name that leads out of the folder (absolute, '..', drive, backslash), a link, a
            device, two members with one name; a damaged, truncated or encrypted archive; not
            enough disk space.
    """
    seal = Seal(path, target)
    if (counts := seal.counts()) is not None:
        return {**counts, "skipped": counts["files"]}
    with sentences(path):
        target.mkdir(parents=True, exist_ok=True)
        names = _listed(path, strip)
        _check_disk_space(path, target, names, sum(names.values()))
        resumed = seal.begin(progress)
        counts = _unpack(path, target, progress, strip, names, resumed)
    seal.close({k: counts[k] for k in ("files", "bytes")})
    return counts


@contextlib.contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Raises faults of the archive `path`, and of the disk it is unpacked to, as KdepErrors."""
    try:
        yield
    except OSError as e:
        raise (_damaged(path, e) if e.errno is None else disk_error(path, e)) from None
    except MemoryError:
        raise KdepError(
            f"unpacking {path} needs more memory than there is", fix="free memory and run again"
        ) from None
    except DAMAGE as e:
        raise _damaged(path, e) from None


def _damaged(path: Path, e: object) -> KdepError:
    text = " ".join(str(e).split())[:200] or type(e).__name__
    return KdepError(f"the archive {path} is damaged or truncated ({text})", fix=_AGAIN)


def disk_error(path: Path, e: OSError) -> KdepError:
    """The error for a file that could not be read or written while `path` was unpacked."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return KdepError(
            f"the disk is full while unpacking {path}",
            fix="free disk space and run again; unpacking resumes",
        )
    where = f" at {e.filename}" if e.filename and str(e.filename) != str(path) else ""
    return KdepError(
        f"unpacking {path} failed{where} ({e.strerror})",
        fix="check the permissions there and whether another file has that name, then run again",
    )


# ---- seals ----

_hashed: dict[tuple[Any, ...], str] = {}


def _stat_of(path: Path) -> tuple[Any, ...]:
    s = path.stat()
    return str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ino


def _read_all(path: Path, digests: tuple[Any, ...], progress: Progress) -> None:
    size, done = path.stat().st_size, 0
    with path.open("rb") as f:
        while piece := f.read(_PIECE):
            for digest in digests:
                digest.update(piece)
            done += len(piece)
            progress(done, size, f"checksum of {path.name}")


def _sha256(path: Path, progress: Progress) -> str:
    key = _stat_of(path)
    if key not in _hashed or key[1] < _HASHED_ALWAYS:
        digest = hashlib.sha256()
        _read_all(path, (digest,), progress)
        _hashed[key] = digest.hexdigest()
    return _hashed[key]


class Seal:
    """The record of an archive that was unpacked into a folder.

    `<target>/.unpacked/<archive>.json` contains name, size, modification time, inode and SHA-256 of
    the archive. A large archive of the same size, time and inode is not hashed again.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._file = target / SEALS / f"{path.name}.json"
        self._begun = target / SEALS / f"{path.name}.begun"

    def counts(self) -> dict[str, int] | None:
        """{files, bytes} that were unpacked; None if this archive was not unpacked here."""
        known = self._known(self._file)
        if known is None or not self._is_of_this_archive(known):
            return None
        return known["counts"]

    def begin(self, progress: Progress) -> bool:
        """Marks the unpacking as begun; returns whether an interrupted run with the same archive
        did so before."""
        known = self._known(self._begun)
        again = known is not None and self._is_of_this_archive(known)
        self._file.unlink(missing_ok=True)
        if not again:
            write_json(self._begun, self._content({"files": 0, "bytes": 0}, progress))
        return again

    def close(self, counts: dict[str, int]) -> None:
        """Writes the seal: the archive is completely unpacked."""
        write_json(self._file, self._content(counts))
        self._begun.unlink(missing_ok=True)

    def sha256(self) -> str:
        """The archive's SHA-256; from the seal if its time stamps show that it did not change."""
        known = self._known(self._begun) or self._known(self._file)
        same = known is not None and self._is_of_this_archive(known)
        return known["archive"]["sha256"] if known and same else _sha256(self.path, _silent)

    def _content(self, counts: dict[str, int], progress: Progress | None = None) -> dict[str, Any]:
        _, size, mtime_ns, inode = _stat_of(self.path)
        sha256 = _sha256(self.path, progress or _silent)
        archive = {"name": self.path.name, "bytes": size, "mtime_ns": mtime_ns, "inode": inode}
        return {"archive": {**archive, "sha256": sha256}, "counts": counts}

    @staticmethod
    def _known(file: Path) -> dict[str, Any] | None:
        try:
            known = read_strict(file)
            numbers = (*known["counts"].values(), known["archive"]["bytes"])
            valid = set(known["counts"]) == {"files", "bytes"} and all(
                type(n) is int and n >= 0 for n in numbers
            )
            return known if valid and len(known["archive"]["sha256"]) == 64 else None
        except (KdepError, AttributeError, LookupError, TypeError):
            return None  # no seal, a damaged or an older one: `place` compares the content

    def _is_of_this_archive(self, known: dict[str, Any]) -> bool:
        archive = known["archive"]
        _, size, mtime_ns, inode = _stat_of(self.path)
        if archive["bytes"] != size:
            return False
        same = (archive.get("mtime_ns"), archive.get("inode")) == (mtime_ns, inode)
        if same and size >= _HASHED_ALWAYS:
            return True
        return archive["sha256"] == _sha256(self.path, _silent)


def _silent(*_: Any) -> None:
    """No progress."""


def drop_seals(folder: Path) -> None:
    """Removes the seals of a set's folder and its subfolders, so that the next run compares every
    file with the archives."""
    with contextlib.suppress(OSError):
        for each in (folder, *(p for p in folder.iterdir() if p.is_dir())):
            if not (each / SEALS).is_symlink():
                shutil.rmtree(each / SEALS, ignore_errors=True)


# ---- members ----


def _listed(path: Path, strip: int) -> dict[str, int]:
    """Reads the whole archive; returns the size of each file by its path below the target.

    Raises:
        KdepError: no file, two files of one path, or a path that is both a file and a folder.
    """
    names: dict[str, int] = {}
    for member in members(path):
        rel = safe_member(member.name, path, strip)
        if rel is None:
            continue
        if str(rel) in names:
            raise KdepError(f"the archive {path} contains {str(rel)!r} twice", fix=_AGAIN)
        names[str(rel)] = member.size
    if not names:
        raise KdepError(f"the archive {path} contains no file", fix=_AGAIN)
    for name in names:
        if above := next((p for p in PurePosixPath(name).parents if str(p) in names), None):
            raise KdepError(
                f"the archive {path} contains {str(above)!r} both as a file and as a folder",
                fix=_AGAIN,
            )
    return names


def _unpack(  # the checked archive: `names` is the result of `_listed`
    path: Path,
    target: Path,
    progress: Progress,
    strip: int,
    names: dict[str, int],
    resumed: bool,
) -> dict[str, int]:
    done = skipped = 0
    for member in members(path):
        rel = safe_member(member.name, path, strip)
        if rel is None:
            continue
        skipped += not place(member, target, rel, path, resumed)
        done += 1
        progress(done, len(names), f"unpacking {path.name}")
    if done != len(names):
        raise KdepError(
            f"only {done} of {len(names)} files could be read from the archive {path}", fix=_AGAIN
        )
    return {"files": done, "bytes": sum(names.values()), "skipped": skipped}


def place(
    member: Member, target: Path, rel: PurePosixPath, source: Path, resumed: bool = False
) -> bool:
    """Writes a member to target/rel unless that file has its content; returns whether it wrote.

    Args:
        source: the archive, for messages.
        resumed: an interrupted run with the same archive wrote here, so a file of the same size is
            not compared.

    Raises:
        KdepError: a link that leads out of `target`, or a member of another size than declared.
    """
    out = target / rel
    inside(out, target, source)
    there = out.is_file() and not out.is_symlink() and out.stat().st_size == member.size
    if there and (resumed or _equal(member, out)):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = new_temporary(out, ".unpack.")
    try:
        left = member.size
        with os.fdopen(fd, "wb") as f, member.open() as data:
            # Never more than declared, so that a false header cannot fill the disk.
            while left and (piece := data.read(min(_PIECE, left))):
                f.write(piece)
                left -= len(piece)
            surplus = data.read(1)  # also makes zipfile compare the checksum at the end
        if left or surplus:
            excess = (
                f"ends {left} bytes before the end of"
                if left
                else "has more bytes than declared for"
            )
            raise KdepError(f"the archive {source} {excess} {member.name!r}", fix=_AGAIN)
        os.replace(tmp, out)
    finally:
        tmp.unlink(missing_ok=True)
    return True


def _equal(member: Member, out: Path) -> bool:
    with member.open() as data, out.open("rb") as f:
        while piece := data.read(_PIECE):
            if piece != f.read(len(piece)):
                return False
        return not f.read(1)


def inside(out: Path, target: Path, source: Path) -> None:
    """KdepError if a folder in the path `out` is a link that leads out of `target`."""
    if not out.parent.resolve().is_relative_to(target.resolve()):
        raise KdepError(
            f"unpacking {source} would write to {out.parent.resolve()} through a link in {target}",
            expected=f"a place below {target}",
            fix="move that link to another folder, or choose another --root",
        )


def safe_member(name: str, source: Path, strip: int = 0) -> PurePosixPath | None:
    """`name` as a path below the target, less `strip` leading folders; None if nothing is left.

    Raises:
        KdepError: an absolute path, '..', a drive letter, a backslash or a control character.
    """
    path = PurePosixPath(name)
    bad = (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or any(ord(c) < 32 for c in name)
        or SEALS in path.parts  # an archive must not contain its own seal
        or (len(name) > 1 and name[1] == ":")
    )
    if bad:
        raise KdepError(
            f"the archive {source} contains the path {name[:100]!r}, which could lead out of its "
            "folder",
            expected="relative paths without '..'",
            fix="do not use this archive; download it from the official page",
        )
    parts = path.parts[strip:]
    return PurePosixPath(*parts) if parts else None


def members(path: Path) -> Iterator[Member]:
    """Yields the regular files of an archive in its order.

    When the iteration ends without an error, the archive is complete. The checksum of a zip's
    member is compared when the member is read.

    Raises:
        KdepError: a damaged, truncated or encrypted archive, a link or a device.
    """
    with path.open("rb") as f:
        head = f.read(6)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        with zipfile.ZipFile(path) as z:
            _check_zip(z, path)
            for info in z.infolist():
                if _zip_file(info, path):
                    yield Member(info.filename, info.file_size, lambda i=info: z.open(i))
        return
    with _decompressed(path, head) as stream:
        yield from tar_members(stream, path)


def _decompressed(path: Path, head: bytes) -> IO[bytes]:
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.open(path)  # type: ignore[return-value]
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)  # type: ignore[return-value]
    return path.open("rb")


class _Header(tarfile.TarInfo):
    """A tar header that refuses impossible sizes; with a negative one, tarfile never ends."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _EXTENDED_TYPES and info.size > _LONGEST_NAME):
            raise tarfile.HeaderError(f"a header states {info.size} bytes")
        return info


_EXTENDED_TYPES = {bytes([c]) for c in _EXTENDED}


class _Stream(io.RawIOBase):
    """A stream that raises EOFError after 100 empty reads: tarfile would repeat them for ever for
    some damaged headers."""

    def __init__(self, below: IO[bytes]) -> None:
        self._below, self._empty = below, 0

    def read(self, size: int | None = -1) -> bytes:
        data = self._below.read(-1 if size is None else size)
        self._empty = 0 if data or size == 0 else self._empty + 1
        if self._empty > 100:
            raise EOFError("it ends within a header")
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._below.seek(offset, whence)

    def tell(self) -> int:
        return self._below.tell()


def tar_members(stream: IO[bytes], source: Path) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar; KdepError if it is damaged or truncated."""
    below: Any = _Stream(stream)
    try:
        t = tarfile.open(fileobj=below, mode="r:", tarinfo=_Header)  # noqa: SIM115
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise KdepError(
            f"the file {source} is not a tar or zip archive, or it is damaged or truncated ({e})",
            fix=_AGAIN,
        ) from None
    with t:
        last = -1
        while (info := t.next()) is not None:
            t.members = []  # pyright: ignore (or memory grows by every header)
            if info.size < 0 or info.offset_data <= last:
                raise _damaged(source, f"a header states {info.size} bytes")
            last = info.offset_data
            if _tar_file(info, source):
                yield Member(info.name, info.size, lambda i=info: _content(t, i))
        _check_end(below, t.offset, source)


def _check_end(stream: IO[bytes], position: int, source: Path) -> None:
    """KdepError unless a tar ends at byte `position` with two zero blocks, and only zeros follow.

    POSIX: https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html ("ustar").
    """
    stream.seek(position)
    block = stream.read(2 * tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise _damaged(source, f"the header at byte {position} is damaged")
    if len(block) < 2 * tarfile.BLOCKSIZE:
        raise _damaged(
            source, f"it ends at byte {position + len(block)} without end-of-archive blocks"
        )
    rest = 0
    while piece := stream.read(_PIECE):
        rest += len(piece)
        if piece.strip(b"\0"):
            raise _damaged(source, f"other data follows its end at byte {position}")
    if rest > _PADDING:
        raise _damaged(source, f"{rest} bytes of zeros follow its end at byte {position}")


def _content(t: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    data = t.extractfile(info)
    assert data is not None, "a regular file"
    return data


def _check_zip(z: zipfile.ZipFile, path: Path) -> None:
    """KdepError unless the zip's directory lists all entries and the file has no other bytes."""
    size = path.stat().st_size
    with path.open("rb") as f:
        f.seek(max(0, size - (1 << 16) - 22))
        tail = f.read()
    position = tail.rfind(b"PK\5\6")
    end = tail[position : position + 22]
    if len(end) == 22:
        entries, comment = struct.unpack("<10xH8xH", end)
        first = min((i.header_offset for i in z.infolist()), default=0)
        if entries not in (0xFFFF, len(z.infolist())):
            raise _damaged(path, f"its directory lists {len(z.infolist())} of {entries} entries")
        if len(tail) - position - 22 != comment:
            raise _damaged(path, f"{len(tail) - position - 22 - comment} bytes follow its end")
        if first:
            raise _damaged(path, f"its first {first} bytes are not in its directory")
    locked = next((i.filename for i in z.infolist() if i.flag_bits & 1), None)
    if locked is not None:
        raise KdepError(
            f"the archive {path} is encrypted ({locked[:100]!r})",
            fix="decrypt it, or download the official archive",
        )


def _tar_file(info: tarfile.TarInfo, source: Path) -> bool:
    if info.isdir():
        safe_member(info.name, source)
        return False
    if info.isreg():
        return True
    kind = "link" if info.issym() or info.islnk() else "device or special file"
    raise KdepError(
        f"the archive {source} contains the {kind} {info.name[:100]!r}",
        expected="only files and folders",
        fix="do not use this archive; download it from the official page",
    )


def _zip_file(info: zipfile.ZipInfo, source: Path) -> bool:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise KdepError(
            f"the archive {source} contains the link or special file {info.filename[:100]!r}",
            expected="only files and folders",
            fix="do not use this archive; download it from the official page",
        )
    if info.is_dir():
        safe_member(info.filename, source)
        return False
    return True


def _check_disk_space(path: Path, target: Path, names: dict[str, int], total: int) -> None:
    there = sum(s for n, s in names.items() if (target / n).is_file())
    free, need = shutil.disk_usage(target).free, total - there
    if need > free:
        raise KdepError(
            f"unpacking {path} needs {need / 1e9:.1f} GB, but {target} has only {free / 1e9:.1f} "
            "GB free",
            fix="free disk space or choose another --root",
        )
