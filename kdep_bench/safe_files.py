"""Opens, reads and removes files of a work dir or a results folder; nothing there may be a link.

A work dir and a results folder may themselves be links (to another disk), and so may the folders
above them. Below them, what the engine itself reads, writes or removes must be a real folder or a
regular file: a link would let it empty, overwrite or read a place that nobody named, and opening a
FIFO or a device waits for ever or never ends. The exception is data: a `prepare` stage links to the
user's images, and these links are followed for reading (`kdep_bench.files.file_hash`).

No torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from kdep_bench.errors import KdepError

# No link as the last component, and no waiting for the other end of a FIFO.
_NEVER = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
LARGEST = 256 << 20  # bytes of the largest JSON file that is parsed
MODE, FOLDER_MODE = 0o666, 0o777  # before the umask: who shares a work dir sets it


def _kind(mode: int) -> str:
    for test, word in (
        (stat.S_ISLNK, "a link"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    ):
        if test(mode):
            return word
    return "a file"


def open_regular(
    path: str | os.PathLike[str],
    flags: int = os.O_RDONLY,
    dir_fd: int | None = None,
    follow: bool = False,
) -> int:
    """A descriptor of the regular file `path`; never waits.

    Args:
        flags: of open(2); a file that it creates gets 0666 less the umask.
        dir_fd: what a relative path starts from.
        follow: whether `path` may be a link (to a regular file).

    Raises:
        KdepError: `path` is a link, a folder, a FIFO, a socket or a device.
        OSError: as open(2), such as FileNotFoundError.
    """
    return _open(path, flags, dir_fd, follow)[0]


def _open(
    path: str | os.PathLike[str], flags: int, dir_fd: int | None, follow: bool
) -> tuple[int, int]:
    """(descriptor, bytes) of `open_regular`."""
    never = _NEVER & ~os.O_NOFOLLOW if follow else _NEVER
    try:
        fd = os.open(path, flags | never, MODE, dir_fd=dir_fd)
    except OSError:
        # ELOOP of a link, EISDIR of a folder, ENXIO of a FIFO or socket: named by what is there.
        with contextlib.suppress(OSError):
            mode = os.stat(path, dir_fd=dir_fd, follow_symlinks=follow).st_mode
            if not stat.S_ISREG(mode):
                raise _no_file(path, mode) from None
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise _no_file(path, found.st_mode)
    return fd, found.st_size


def _no_file(path: str | os.PathLike[str], mode: int) -> KdepError:
    return KdepError(
        f"{os.fspath(path)} is {_kind(mode)}",
        expected="a regular file",
        fix="give another path, or move it elsewhere and run again",
    )


def read_bytes(
    path: str | os.PathLike[str],
    limit: int = LARGEST,
    dir_fd: int | None = None,
    follow: bool = False,
) -> bytes:
    """The content of a regular file of at most `limit` bytes; see `open_regular`.

    Raises:
        KdepError: no regular file, or a larger one.
        OSError: as open(2) and read(2).
    """
    fd, size = _open(path, os.O_RDONLY, dir_fd, follow)
    try:
        if size <= limit:
            raw = os.read(fd, size + 1)
            if len(raw) == size:  # one call: the byte more was not there
                return raw
            while len(raw) <= limit and (piece := os.read(fd, 1 << 20)):
                raw += piece
            if len(raw) <= limit:
                return raw
            size = len(raw)
    finally:
        os.close(fd)
    raise KdepError(
        f"the file {os.fspath(path)} has {size} bytes",
        expected=f"at most {limit}",
        fix="move it elsewhere and run again",
    )


def real_folder(path: Path, what: str = "folder") -> Path:
    """`path`, a folder that is no link; made, with those above it, where there is nothing.

    Raises:
        KdepError: something else is there.
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.makedirs(path, FOLDER_MODE)
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode):
        return path
    raise not_a_folder(path, mode, what)


def not_a_folder(path: str | os.PathLike[str], mode: int, what: str = "folder") -> KdepError:
    """The error for `path`, which should be a folder and is what `mode` says."""
    told = f"the {what} {os.fspath(path)} is {_kind(mode)}"
    if stat.S_ISLNK(mode):
        with contextlib.suppress(OSError):
            told += f" to {os.readlink(path)}"
        fix = "move the folder itself there, or make the whole work dir or results folder a link"
    else:
        fix = "move it elsewhere and run again"
    return KdepError(told, expected="a folder that is not a link", fix=fix)


def is_real_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file, a link (never what it points to), or a folder with all that is in it."""
    if is_real_folder(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def new_temporary(target: Path, prefix: str = "") -> tuple[int, Path]:
    """(descriptor, path) of a new file beside `target`, to be renamed to it.

    Not mkstemp, whose files are their owner's alone: this one has 0666 less the umask.
    """
    tmp = target.with_name(f"{prefix or f'.{target.name[:60]}.'}{os.urandom(6).hex()}.tmp")
    return open_regular(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL), tmp


def write_in_folder(folder: int, name: str, raw: bytes, sync: bool = True) -> None:
    """Writes the file `name` of the open folder atomically, wherever the folder is by now.

    Args:
        folder: a descriptor.
        name: of the file.
        raw: its content.
        sync: whether it is on the disk before this returns.
    """
    tmp = f".{name[:60]}.{os.urandom(6).hex()}.tmp"
    fd = open_regular(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, folder)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(raw)
            f.flush()
            if sync:
                os.fsync(f.fileno())
        os.replace(tmp, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(tmp, dir_fd=folder)
        raise


def copy_file(source: str | os.PathLike[str], target: Path) -> None:
    """Copies a regular file; `target` is replaced atomically, and never written through a link."""
    with open(open_regular(source), "rb") as read:
        fd, tmp = new_temporary(target)
        try:
            with open(fd, "wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
            os.replace(tmp, target)
        finally:
            tmp.unlink(missing_ok=True)
