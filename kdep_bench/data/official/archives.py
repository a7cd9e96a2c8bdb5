"""Unpacking of tar and zip archives: refuses path tricks, checks sizes, goes on where it was cut.

Every name is judged before the first file is written. A file appears under its name only when it
is whole, so a second run skips what is there; a seal beside the data says that all of it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_json

SEALS = ".unpacked"
_PIECE = 1 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
_AGAIN = "download it again (a cut download is the usual cause)"

Progress = Callable[..., None]


@dataclass(frozen=True)
class Archive:
    """An official archive: file name, where a person gets it, and what is known of it.

    `md5` and `bytes` are None where no source for them was found; `md5_source` says whence.
    `optional`: the set works without it.
    """

    name: str
    page: str
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
    """The archive's file in the first of `folders` that has it."""
    for folder in folders:
        if (folder / archive.name).is_file():
            return folder / archive.name
    return None


def check_archive(path: Path, archive: Archive, progress: Progress) -> str:
    """Proves size and MD5 of a file against what is known; returns its MD5.

    Raises:
        KdepError: another size or checksum: half downloaded, or another release.
    """
    size = path.stat().st_size
    if archive.bytes is not None and size != archive.bytes:
        raise KdepError(f"the archive {path} has {size} bytes", f"{archive.bytes} bytes", _AGAIN)
    if size == 0:
        raise KdepError(f"the archive {path} has zero bytes", "the whole archive", _AGAIN)
    digest, done = hashlib.md5(usedforsecurity=False), 0
    with path.open("rb") as f:
        while piece := f.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            progress(done, size, f"checksum of {path.name}")
    if archive.md5 is not None and digest.hexdigest() != archive.md5:
        raise KdepError(
            f"the archive {path} has the MD5 {digest.hexdigest()}",
            f"{archive.md5} ({archive.md5_source})",
            _AGAIN,
        )
    return digest.hexdigest()


def unpack(path: Path, target: Path, progress: Progress, *, strip: int = 0) -> dict[str, int]:
    """Unpacks `path` into the folder `target`, unless its seal says that this was done.

    Args:
        path: a .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz or .zip file.
        target: made if absent. Files of the right size that are there already are kept.
        progress: called with (done, total, note) in members.
        strip: leading folders to drop from every name.

    Returns:
        {files, bytes, skipped}.

    Raises:
        KdepError: a name that leaves the folder (absolute, '..', drive, backslash), a link, a
            device, two members of one name; a damaged or cut archive; no room on the disk.
    """
    seal = target / SEALS / f"{path.name}.json"
    stamp = [path.name, path.stat().st_size]
    if seal.is_file() and read_json(seal)["archive"] == stamp:
        counts = read_json(seal)["counts"]
        return {**counts, "skipped": counts["files"]}
    target.mkdir(parents=True, exist_ok=True)
    try:
        counts = _unpack(path, target, progress, strip)
    except _DAMAGE as e:
        raise KdepError(f"the archive {path} is damaged or cut short ({e})", "a whole archive",
                        _AGAIN) from None  # fmt: skip
    except OSError as e:
        if e.errno != 28:
            raise
        raise KdepError(
            f"no room on the disk while unpacking {path}", "", "free space and run again"
        ) from None
    kept = {k: counts[k] for k in ("files", "bytes")}
    write_json(seal, {"archive": stamp, "counts": kept})
    return counts


def _unpack(path: Path, target: Path, progress: Progress, strip: int) -> dict[str, int]:
    listed = list(_list(path))
    names: dict[str, int] = {}
    total = 0
    for name, size in listed:
        rel = safe_member(name, path, strip)
        if rel is None:
            continue
        key = str(rel)
        if key in names:
            raise KdepError(f"the archive {path} holds {key!r} twice", "each file once", _AGAIN)
        names[key] = size
        total += size
    if not names:
        raise KdepError(f"the archive {path} holds no file", "at least one", _AGAIN)
    _check_room(path, target, names, total)
    done = skipped = 0
    for member in members(path):
        rel = safe_member(member.name, path, strip)
        if rel is None:
            continue
        skipped += not place(member, target, rel, path)
        done += 1
        progress(done, len(names), f"unpacking {path.name}")
    if done != len(names):
        raise KdepError(f"the archive {path} gave {done} of {len(names)} files", "all", _AGAIN)
    return {"files": done, "bytes": total, "skipped": skipped}


def place(member: Member, target: Path, rel: PurePosixPath, source: Path) -> bool:
    """Writes a member unless it is there at its full size; returns whether it wrote."""
    out = target / rel
    inside(out, target, source)
    if out.is_file() and not out.is_symlink() and out.stat().st_size == member.size:
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(prefix=".unpack.", dir=out.parent)
    try:
        left = member.size
        with os.fdopen(fd, "wb") as f, member.open() as data:
            # Never more than was declared: a lying header cannot fill the disk.
            while left and (piece := data.read(min(_PIECE, left))):
                f.write(piece)
                left -= len(piece)
        if left:
            raise KdepError(
                f"the archive {source} ends {left} bytes before its member {member.name!r} does",
                "a whole archive",
                _AGAIN,
            )
        os.chmod(tmp, 0o644)
        os.replace(tmp, out)
    finally:
        Path(tmp).unlink(missing_ok=True)
    return True


def inside(out: Path, target: Path, source: Path) -> None:
    """KdepError where a folder on the way to `out` is a link that leads out of `target`."""
    if not out.parent.resolve().is_relative_to(target.resolve()):
        raise KdepError(
            f"unpacking {source} would write to {out.parent.resolve()} through a link in {target}",
            f"a place below {target}",
            "remove the link",
        )


def safe_member(name: str, source: Path, strip: int = 0) -> PurePosixPath | None:
    """`name` as a path below the target; None for what `strip` removes whole.

    Raises KdepError for an absolute path, '..', a drive letter, a backslash or a control character.
    """
    path = PurePosixPath(name)
    bad = (
        path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or any(ord(c) < 32 for c in name)
        or (len(name) > 1 and name[1] == ":")
    )
    if bad:
        raise KdepError(
            f"the archive {source} holds the path {name[:100]!r}, which could leave its folder",
            "relative paths without '..'",
            "do not use this archive: fetch it from the official page",
        )
    parts = path.parts[strip:]
    return PurePosixPath(*parts) if parts else None


def members(path: Path) -> Iterator[Member]:
    """The regular files of an archive, in its order; links and devices are refused."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as z:
            for info in z.infolist():
                if _zip_file(info, path):
                    yield Member(info.filename, info.file_size, lambda i=info: z.open(i))
        return
    with _tar(path) as t:
        yield from tar_members(t, path)


def tar_members(t: tarfile.TarFile, source: Path) -> Iterator[Member]:
    """The regular files of an open tar."""
    for info in t:
        if _tar_file(info, source):
            yield Member(info.name, info.size, lambda i=info: _content(t, i))


def _content(t: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    data = t.extractfile(info)
    assert data is not None, "a regular file"
    return data


def _list(path: Path) -> Iterator[tuple[str, int]]:
    for member in members(path):
        yield member.name, member.size


def _tar(path: Path) -> Any:
    try:
        return tarfile.open(path)
    except (tarfile.TarError, EOFError, zlib.error) as e:
        head = path.open("rb").read(8)
        raise KdepError(
            f"the file {path} is no tar or zip archive (it begins with {head!r}; {e})",
            "the official archive",
            _AGAIN,
        ) from None


def _tar_file(info: tarfile.TarInfo, source: Path) -> bool:
    if info.isdir():
        safe_member(info.name, source)
        return False
    if info.isreg():
        return True
    kind = "link" if info.issym() or info.islnk() else "device or special file"
    raise KdepError(
        f"the archive {source} holds the {kind} {info.name[:100]!r}",
        "files and folders only",
        "do not use this archive: fetch it from the official page",
    )


def _zip_file(info: zipfile.ZipInfo, source: Path) -> bool:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise KdepError(
            f"the archive {source} holds the link or special file {info.filename[:100]!r}",
            "files and folders only",
            "do not use this archive: fetch it from the official page",
        )
    if info.is_dir():
        safe_member(info.filename, source)
        return False
    return True


def _check_room(path: Path, target: Path, names: dict[str, int], total: int) -> None:
    there = sum(s for n, s in names.items() if (target / n).is_file())
    free, need = shutil.disk_usage(target).free, total - there
    if need > free:
        raise KdepError(
            f"unpacking {path} needs {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free at "
            f"{target}",
            "room for all of it",
            "free space or choose another --root",
        )
