"""Unpacks tar and zip archives: rejects unsafe paths, detects damage, and resumes.

Before the first file is written, `unpack` checks every name. It also reads a tar completely,
including its end-of-archive blocks and the checksum of a compressed stream, because Python's
tarfile takes a damaged header for the end of the archive. Of a zip it reads only the directory at
first; the checksum of each file is compared while the file is written. Archives with links or
absolute names are rejected; tarfile's filter="data" would accept links that stay in the folder, and
would alter names. Each file is written under a temporary name and renamed when it is complete.

A seal, a JSON file next to the data, records the SHA-256 of an unpacked archive. If the archive is
unpacked again, nothing is done; for a different archive, existing files are compared with it.
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

SEALS = ".unpacked"  # folder of the seals
_PIECE = 1 << 20  # bytes per read
#: Exceptions of the libraries for damaged content, in addition to OSErrors without errno.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    RuntimeError,
    OverflowError,
    AttributeError,
    TypeError,
)
_DOWNLOAD_AGAIN = "download it again (an interrupted download is the usual cause)"
_ALWAYS_HASHED_BELOW = 256 << 20  # bytes; smaller archives are hashed even if seemingly unchanged
_MAX_PADDING = 1 << 20  # bytes; more zeros after a tar are a sign of an unfinished download
_EXTENDED_TYPES = {b"x", b"g", b"X", b"L", b"K"}  # tar headers that describe the next member
_MAX_NAME = 1 << 20  # bytes of such a description

Progress = Callable[..., None]


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Attributes:
        name: file name.
        homepage: URL of the page with the download.
        md5: MD5 of the file in hex; None if unknown.
        md5_source: where the MD5 was found.
        bytes: size of the file; None if unknown.
        optional: whether the set can be used without this archive.
    """

    name: str
    homepage: str
    md5: str | None = None
    md5_source: str = ""
    bytes: int | None = None
    optional: bool = False


@dataclass(frozen=True)
class Member:
    """A regular file in an archive: its name, its size in bytes, and a function that opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def find_archive(archive: Archive, folders: list[Path]) -> Path | None:
    """The path of the archive in the first of `folders` that contains it; None if none does."""
    for folder in folders:
        if (folder / archive.name).is_file():
            return folder / archive.name
    return None


def check_archive(path: Path, archive: Archive, progress: Progress) -> str:
    """Compares size and MD5 of a file with the official ones, if known; returns its MD5.

    Raises:
        KdepError: the size or MD5 differs (an incomplete download, or another release), or the file
            is empty or cannot be read.
    """
    try:
        size = path.stat().st_size
        return _check_archive(path, archive, size, progress)
    except OSError as e:
        raise disk_error(path, e) from None


def _check_archive(path: Path, archive: Archive, size: int, progress: Progress) -> str:
    if archive.bytes is not None and size != archive.bytes:
        raise KdepError(
            f"the archive {path} has {size} bytes",
            expected=f"{archive.bytes} bytes",
            fix=_DOWNLOAD_AGAIN,
        )
    if size == 0:
        raise KdepError(f"the archive {path} is empty (0 bytes)", fix=_DOWNLOAD_AGAIN)
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    _read_all(path, (md5, sha256), progress)
    _hashed[_identity(path)] = sha256.hexdigest()  # `unpack` needs it next
    if archive.md5 is not None and md5.hexdigest() != archive.md5:
        raise KdepError(
            f"the archive {path} has the MD5 {md5.hexdigest()}",
            expected=f"{archive.md5} ({archive.md5_source})",
            fix=_DOWNLOAD_AGAIN,
        )
    return md5.hexdigest()


def unpack(path: Path, target: Path, progress: Progress, *, strip: int = 0) -> dict[str, int]:
    """Unpacks the archive `path` into the folder `target`, unless its seal shows this was done.

    Args:
        path: a .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .zip file.
        target: created if missing. Existing files with the same content are kept.
        progress: called with (done, total, note): bytes of the checksum, then files.
        strip: number of leading folders to remove from every name.

    Returns:
        "files" and "bytes" of the archive, and "skipped", the number of files that existed.

    Raises:
        KdepError: a path that leads out of the folder (absolute, '..', drive letter, backslash), a
            link, a device, or two members with one name; a damaged, truncated or encrypted
            archive; not enough disk space.
    """
    seal = Seal(path, target)
    if (counts := seal.counts()) is not None:
        return {**counts, "skipped": counts["files"]}
    with as_kdep_errors(path):
        target.mkdir(parents=True, exist_ok=True)
        names = _sizes(path, strip)
        _check_disk_space(path, target, names, sum(names.values()))
        resumed = seal.begin(progress)
        counts = _unpack(path, target, progress, strip, names, resumed)
    seal.close({k: counts[k] for k in ("files", "bytes")})
    return counts


@contextlib.contextmanager
def as_kdep_errors(path: Path) -> Iterator[None]:
    """Context manager: converts exceptions of damaged archives and of the disk to KdepErrors.

    Args:
        path: the archive, for errors.
    """
    try:
        yield
    except OSError as e:
        raise (_damaged(path, e) if e.errno is None else disk_error(path, e)) from None
    except MemoryError:
        raise KdepError(
            f"there is not enough memory to unpack {path}", fix="free memory and run again"
        ) from None
    except DAMAGE as e:
        raise _damaged(path, e) from None


def _damaged(path: Path, e: object) -> KdepError:
    text = " ".join(str(e).split())[:200] or type(e).__name__
    return KdepError(f"the archive {path} is damaged or truncated ({text})", fix=_DOWNLOAD_AGAIN)


def disk_error(path: Path, e: OSError) -> KdepError:
    """A KdepError for an OSError that occurred while the archive `path` was read or unpacked."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return KdepError(
            f"the disk is full while unpacking {path}",
            fix="free disk space and run again; unpacking resumes",
        )
    where = f" at {e.filename}" if e.filename and str(e.filename) != str(path) else ""
    return KdepError(
        f"reading or unpacking {path} failed{where} ({e.strerror})",
        fix="check the permissions of that path, and that no other file is in its place, then run "
        "again",
    )


# ---- seals ----

_hashed: dict[tuple[Any, ...], str] = {}  # SHA-256 by the result of `_identity`


def _identity(path: Path) -> tuple[Any, ...]:
    """(resolved path, size in bytes, modification time in ns, inode) of a file."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino


def _read_all(path: Path, digests: tuple[Any, ...], progress: Progress) -> None:
    """Adds the content of a file to each of `digests`, which are hashlib objects."""
    size, done = path.stat().st_size, 0
    with path.open("rb") as f:
        while piece := f.read(_PIECE):
            for digest in digests:
                digest.update(piece)
            done += len(piece)
            progress(done, size, f"checksum of {path.name}")


def _sha256(path: Path, progress: Progress) -> str:
    """SHA-256 of a file; of a large file from `_hashed` if it has not changed since."""
    key = _identity(path)
    _, size, _, _ = key
    if key not in _hashed or size < _ALWAYS_HASHED_BELOW:
        digest = hashlib.sha256()
        _read_all(path, (digest,), progress)
        _hashed[key] = digest.hexdigest()
    return _hashed[key]


class Seal:
    """The record that an archive was unpacked into a folder: a JSON file in that folder.

    `<target>/.unpacked/<archive>.json` contains name, size, modification time, inode and SHA-256 of
    the archive. A large archive with the same size, time and inode is not hashed again.

    Args:
        path: the archive.
        target: the folder.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._file = target / SEALS / f"{path.name}.json"
        self._started = target / SEALS / f"{path.name}.begun"

    def counts(self) -> dict[str, int] | None:
        """{files, bytes} that were unpacked; None if this archive was not completely unpacked."""
        stored = self._read(self._file)
        if stored is None or not self._is_of_this_archive(stored):
            return None
        return stored["counts"]

    def begin(self, progress: Progress) -> bool:
        """Records that unpacking has begun; returns whether it resumes an interrupted run."""
        stored = self._read(self._started)
        resumes = stored is not None and self._is_of_this_archive(stored)
        self._file.unlink(missing_ok=True)
        if not resumes:
            write_json(self._started, self._content({"files": 0, "bytes": 0}, progress))
        return resumes

    def close(self, counts: dict[str, int]) -> None:
        """Writes the seal, which states that the archive is completely unpacked."""
        write_json(self._file, self._content(counts))
        self._started.unlink(missing_ok=True)

    def sha256(self) -> str:
        """The archive's SHA-256; from the seal if the archive has not changed since."""
        stored = self._read(self._started) or self._read(self._file)
        is_current = stored is not None and self._is_of_this_archive(stored)
        return stored["archive"]["sha256"] if stored and is_current else _sha256(self.path, _silent)

    def _content(self, counts: dict[str, int], progress: Progress | None = None) -> dict[str, Any]:
        _, size, mtime_ns, inode = _identity(self.path)
        sha256 = _sha256(self.path, progress or _silent)
        archive = {"name": self.path.name, "bytes": size, "mtime_ns": mtime_ns, "inode": inode}
        return {"archive": {**archive, "sha256": sha256}, "counts": counts}

    @staticmethod
    def _read(file: Path) -> dict[str, Any] | None:
        """The content of a seal; None if it is missing, damaged or of an older version."""
        try:
            stored = read_strict(file)
            numbers = (*stored["counts"].values(), stored["archive"]["bytes"])
            is_valid = set(stored["counts"]) == {"files", "bytes"} and all(
                type(n) is int and n >= 0 for n in numbers
            )
            return stored if is_valid and len(stored["archive"]["sha256"]) == 64 else None
        except (KdepError, AttributeError, LookupError, TypeError):
            return None

    def _is_of_this_archive(self, stored: dict[str, Any]) -> bool:
        archive = stored["archive"]
        _, size, mtime_ns, inode = _identity(self.path)
        if archive["bytes"] != size:
            return False
        is_unchanged = (archive.get("mtime_ns"), archive.get("inode")) == (mtime_ns, inode)
        if is_unchanged and size >= _ALWAYS_HASHED_BELOW:
            return True
        return archive["sha256"] == _sha256(self.path, _silent)


def _silent(*_: Any) -> None:
    """A progress function that does nothing."""


def drop_seals(folder: Path) -> None:
    """Removes the seals in a set's folder and its subfolders.

    The next run then compares every file with the archives.
    """
    with contextlib.suppress(OSError):
        for path in (folder, *(p for p in folder.iterdir() if p.is_dir())):
            if not (path / SEALS).is_symlink():
                shutil.rmtree(path / SEALS, ignore_errors=True)


# ---- members ----


def _sizes(path: Path, strip: int) -> dict[str, int]:
    """{path below the target: size in bytes} of an archive's files; reads all of a tar.

    Raises:
        KdepError: no file, two files with one path, or a path that is both a file and a folder.
    """
    names: dict[str, int] = {}
    for member in members(path):
        relative_path = safe_member(member.name, path, strip)
        if relative_path is None:
            continue
        if str(relative_path) in names:
            raise KdepError(
                f"the archive {path} contains {str(relative_path)!r} twice", fix=_DOWNLOAD_AGAIN
            )
        names[str(relative_path)] = member.size
    if not names:
        raise KdepError(f"the archive {path} contains no file", fix=_DOWNLOAD_AGAIN)
    for name in names:
        if parent := next((p for p in PurePosixPath(name).parents if str(p) in names), None):
            raise KdepError(
                f"the archive {path} contains {str(parent)!r} both as a file and as a folder",
                fix=_DOWNLOAD_AGAIN,
            )
    return names


def _unpack(
    path: Path,
    target: Path,
    progress: Progress,
    strip: int,
    names: dict[str, int],
    resumed: bool,
) -> dict[str, int]:
    """Unpacks an archive that was checked by `_sizes`, whose result is `names`."""
    done = skipped = 0
    for member in members(path):
        relative_path = safe_member(member.name, path, strip)
        if relative_path is None:
            continue
        was_written = place(member, target, relative_path, path, resumed)
        skipped += not was_written
        done += 1
        progress(done, len(names), f"unpacking {path.name}")
    if done != len(names):
        raise KdepError(
            f"only {done} of {len(names)} files could be read from the archive {path}",
            fix=_DOWNLOAD_AGAIN,
        )
    return {"files": done, "bytes": sum(names.values()), "skipped": skipped}


def place(
    member: Member, target: Path, relative_path: PurePosixPath, source: Path, resumed: bool = False
) -> bool:
    """Writes a member to target/relative_path unless that file has its content.

    Args:
        member: the member.
        target: the folder to unpack into.
        relative_path: path of the member below `target`.
        source: the archive, for errors.
        resumed: whether an interrupted run unpacked the same archive here; then a file of the right
            size is not compared.

    Returns:
        whether the file was written.

    Raises:
        KdepError: a link that leads out of `target`, or a member of another size than declared.
    """
    out = target / relative_path
    check_inside(out, target, source)
    has_right_size = out.is_file() and not out.is_symlink() and out.stat().st_size == member.size
    if has_right_size and (resumed or _has_content(out, member)):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = new_temporary(out, ".unpack.")
    try:
        remaining = member.size
        with os.fdopen(fd, "wb") as f, member.open() as data:
            # Writes no more than the header states, so that a wrong header cannot fill the disk.
            while remaining and (piece := data.read(min(_PIECE, remaining))):
                f.write(piece)
                remaining -= len(piece)
            surplus = data.read(1)  # reading past the end makes zipfile verify the checksum
        if remaining or surplus:
            fault = (
                f"ends {remaining} bytes before the end of"
                if remaining
                else "has more bytes than its header states for"
            )
            raise KdepError(f"the archive {source} {fault} {member.name!r}", fix=_DOWNLOAD_AGAIN)
        os.replace(tmp, out)
    finally:
        tmp.unlink(missing_ok=True)
    return True


def _has_content(out: Path, member: Member) -> bool:
    """Whether the file has the content of the member."""
    with member.open() as data, out.open("rb") as f:
        while piece := data.read(_PIECE):
            if piece != f.read(len(piece)):
                return False
        return not f.read(1)


def check_inside(out: Path, target: Path, source: Path) -> None:
    """Raises KdepError if a folder in the path `out` is a link that leads out of `target`."""
    if not out.parent.resolve().is_relative_to(target.resolve()):
        raise KdepError(
            f"unpacking {source} would write to {out.parent.resolve()} through a link in {target}",
            expected=f"a path below {target}",
            fix="move that link to another folder, or choose another --root",
        )


def safe_member(name: str, source: Path, strip: int = 0) -> PurePosixPath | None:
    """The path of a member below the target, or None if it consists of `strip` folders only.

    Args:
        name: name in the archive.
        source: the archive, for errors.
        strip: number of leading folders to remove.

    Raises:
        KdepError: an absolute path, '..', a drive letter, a backslash, a control character, or a
            folder named as that of the seals.
    """
    path = PurePosixPath(name)
    is_unsafe = (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or any(ord(c) < 32 for c in name)
        or SEALS in path.parts  # an archive must not contain its own seal
        or (len(name) > 1 and name[1] == ":")
    )
    if is_unsafe:
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

    If the iteration ends without an error, the archive is complete. The checksum of a member of a
    zip is compared when the member is read.

    Raises:
        KdepError: a damaged, truncated or encrypted archive, or one with a link or a device.
    """
    with path.open("rb") as f:
        head = f.read(6)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        with zipfile.ZipFile(path) as archive:
            _check_zip(archive, path)
            for info in archive.infolist():
                if _is_file_in_zip(info, path):
                    yield Member(info.filename, info.file_size, lambda i=info: archive.open(i))
        return
    with _decompressed(path, head) as stream:
        yield from tar_members(stream, path)


def _decompressed(path: Path, head: bytes) -> IO[bytes]:
    """Opens an archive for reading; decompresses gzip, bzip2 and xz. `head`: its first bytes."""
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)  # type: ignore[return-value]
    if head.startswith(b"BZh"):
        return bz2.open(path)  # type: ignore[return-value]
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)  # type: ignore[return-value]
    return path.open("rb")


class _Header(tarfile.TarInfo):
    """A tar header that rejects impossible sizes; for a negative size tarfile would never end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _EXTENDED_TYPES and info.size > _MAX_NAME):
            raise tarfile.HeaderError(f"a header states {info.size} bytes")
        return info


class _Stream(io.RawIOBase):
    """A wrapper of a stream that raises EOFError after 100 empty reads.

    For some damaged headers tarfile would repeat such reads forever.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._empty_reads = stream, 0

    def read(self, size: int | None = -1) -> bytes:
        data = self._stream.read(-1 if size is None else size)
        self._empty_reads = 0 if data or size == 0 else self._empty_reads + 1
        if self._empty_reads > 100:
            raise EOFError("it ends within a header")
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def tar_members(stream: IO[bytes], source: Path) -> Iterator[Member]:
    """Yields the regular files of an uncompressed tar; KdepError if it is damaged or truncated."""
    limited: Any = _Stream(stream)
    try:
        tar = tarfile.open(fileobj=limited, mode="r:", tarinfo=_Header)  # noqa: SIM115
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise KdepError(
            f"the file {source} is not a tar or zip archive, or it is damaged or truncated ({e})",
            fix=_DOWNLOAD_AGAIN,
        ) from None
    with tar:
        last = -1
        while (info := tar.next()) is not None:
            tar.members = []  # pyright: ignore (otherwise tarfile keeps every header in memory)
            if info.size < 0 or info.offset_data <= last:
                raise _damaged(source, f"a header states {info.size} bytes")
            last = info.offset_data
            if _is_file_in_tar(info, source):
                yield Member(info.name, info.size, lambda i=info: _open_member(tar, i))
        _check_end(limited, tar.offset, source)


def _check_end(stream: IO[bytes], position: int, source: Path) -> None:
    """Raises KdepError unless a tar ends at byte `position` with two blocks of zeros.

    Only zeros may follow. Source: POSIX, format "ustar",
    https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html.
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
    if rest > _MAX_PADDING:
        raise _damaged(source, f"{rest} bytes of zeros follow its end at byte {position}")


def _open_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    data = tar.extractfile(info)
    assert data is not None, "a regular file"
    return data


def _check_zip(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises KdepError if a zip has entries that its central directory does not list.

    Also for other additional bytes, and for encrypted entries.
    """
    end_size = 22  # bytes of the end-of-central-directory record, without the comment
    size = path.stat().st_size
    with path.open("rb") as f:
        f.seek(max(0, size - (1 << 16) - end_size))  # a comment has less than 1 << 16 bytes
        tail = f.read()
    position = tail.rfind(b"PK\5\6")
    end = tail[position : position + end_size]
    if len(end) == end_size:
        # At byte 10 the number of entries, at byte 20 the length of the comment.
        entries, comment_size = struct.unpack("<10xH8xH", end)
        first_offset = min((i.header_offset for i in archive.infolist()), default=0)
        if entries not in (0xFFFF, len(archive.infolist())):  # 0xFFFF: see the Zip64 record
            raise _damaged(
                path, f"its central directory lists {len(archive.infolist())} of {entries} entries"
            )
        extra_bytes = len(tail) - position - end_size - comment_size
        if extra_bytes:
            raise _damaged(path, f"{extra_bytes} bytes follow its end")
        if first_offset:
            raise _damaged(
                path, f"the {first_offset} bytes before its first entry belong to no entry"
            )
    encrypted = next((i.filename for i in archive.infolist() if i.flag_bits & 1), None)
    if encrypted is not None:
        raise KdepError(
            f"the archive {path} is encrypted ({encrypted[:100]!r})",
            fix="decrypt it, or download the official archive",
        )


def _is_file_in_tar(info: tarfile.TarInfo, source: Path) -> bool:
    """Whether a member is a file, not a folder; raises KdepError for a link or device."""
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


def _is_file_in_zip(info: zipfile.ZipInfo, source: Path) -> bool:
    """Whether an entry is a file, not a folder; raises KdepError for a link or special file."""
    mode = info.external_attr >> 16  # the Unix mode
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
    """Raises KdepError if the disk has no space for the files that do not exist yet.

    Args:
        path: the archive, for errors.
        target: the folder to unpack into.
        names: {path below the target: size in bytes}.
        total: sum of the sizes.
    """
    existing = sum(size for name, size in names.items() if (target / name).is_file())
    free, required = shutil.disk_usage(target).free, total - existing
    if required > free:
        raise KdepError(
            f"unpacking {path} needs {required / 1e9:.1f} GB, but {target} has only "
            f"{free / 1e9:.1f} GB free",
            fix="free disk space or choose another --root",
        )
