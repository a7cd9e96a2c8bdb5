"""Opens, reads and removes files of a work dir or a results folder without following links.

"Link" means symbolic link. A work dir, a results folder and the folders above them may be links (to
another disk). Below them, everything that the engine reads, writes or removes must be a real folder
or a regular file: through a link it could delete, overwrite or read files elsewhere, and reading a
FIFO or a device may never end. The exception is data: a `prepare` stage links to the user's images,
and these links are followed for reading (`kdep_bench.files.file_hash`).

Imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

from kdep_bench.errors import KdepError

# Flags of open(2): no link as the last component, and no waiting for the other end of a FIFO.
_GUARDS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
MAX_BYTES = 256 << 20  # bytes of the largest file that is read, by default
MODE, FOLDER_MODE = 0o666, 0o777  # minus the umask, which a user sets to share a work dir


def _kind(mode: int) -> str:
    """The file type of a mode from stat(2), in words."""
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
    """Opens the regular file `path` and returns its descriptor; never blocks.

    Args:
        path: the file.
        flags: flags of open(2); a new file gets the mode 0666 minus the umask.
        dir_fd: descriptor of the folder from which a relative path starts.
        follow: whether `path` may be a link (to a regular file).

    Raises:
        KdepError: `path` is a link, a folder, a FIFO, a socket or a device.
        OSError: open(2) fails, for example with FileNotFoundError.
    """
    return _open(path, flags, dir_fd, follow)[0]


def _open(
    path: str | os.PathLike[str], flags: int, dir_fd: int | None, follow: bool
) -> tuple[int, int]:
    """Like `open_regular`; returns (descriptor, size in bytes)."""
    guards = _GUARDS & ~os.O_NOFOLLOW if follow else _GUARDS
    try:
        fd = os.open(path, flags | guards, MODE, dir_fd=dir_fd)
    except OSError:
        # ELOOP (a link), EISDIR (a folder), ENXIO (a FIFO or socket): name the kind in the error.
        with contextlib.suppress(OSError):
            mode = os.stat(path, dir_fd=dir_fd, follow_symlinks=follow).st_mode
            if not stat.S_ISREG(mode):
                raise _not_a_file(path, mode) from None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise _not_a_file(path, status.st_mode)
    return fd, status.st_size


def _not_a_file(path: str | os.PathLike[str], mode: int) -> KdepError:
    return KdepError(
        f"{os.fspath(path)} is {_kind(mode)}",
        expected="a regular file",
        fix="give another path, or move it elsewhere and run again",
    )


def read_bytes(
    path: str | os.PathLike[str],
    limit: int = MAX_BYTES,
    dir_fd: int | None = None,
    follow: bool = False,
) -> bytes:
    """The content of a regular file of at most `limit` bytes; see `open_regular`.

    Raises:
        KdepError: it is not a regular file, or is larger.
        OSError: open(2) or read(2) fails.
    """
    fd, size = _open(path, os.O_RDONLY, dir_fd, follow)
    try:
        if size <= limit:
            raw = os.read(fd, size + 1)
            if len(raw) == size:  # the file is complete, as no extra byte was read
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


def real_folder(path: Path, label: str = "folder") -> Path:
    """Returns `path`, a folder that is not a link; creates it and its parents if they are missing.

    `label` is what the folder is called in the error.

    Raises:
        KdepError: something else exists at `path`.
        OSError: it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        os.makedirs(path, FOLDER_MODE)
    mode = os.lstat(path).st_mode
    if stat.S_ISDIR(mode):
        return path
    raise not_a_folder(path, mode, label)


def not_a_folder(path: str | os.PathLike[str], mode: int, label: str = "folder") -> KdepError:
    """The error for `path`, which should be a folder but has the file type of `mode`."""
    problem = f"the {label} {os.fspath(path)} is {_kind(mode)}"
    if stat.S_ISLNK(mode):
        with contextlib.suppress(OSError):
            problem += f" to {os.readlink(path)}"
        fix = (
            "replace the link by the folder itself; only a whole work dir or results folder may be "
            "a link"
        )
    else:
        fix = "move it elsewhere and run again"
    return KdepError(problem, expected="a folder that is not a link", fix=fix)


def is_real_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder, and not a link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file, a link (not its target) or a folder with its content, if it exists."""
    if is_real_folder(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def new_temporary(target: Path, prefix: str = "") -> tuple[int, Path]:
    """(descriptor, path) of a new file in the folder of `target`, to be renamed to `target`.

    Unlike files of mkstemp, which only their owner can read, it has the mode 0666 minus the umask.
    """
    tmp = target.with_name(f"{prefix or f'.{target.name[:60]}.'}{os.urandom(6).hex()}.tmp")
    return open_regular(tmp, os.O_RDWR | os.O_CREAT | os.O_EXCL), tmp


def write_in_folder(folder: int, name: str, raw: bytes, sync: bool = True) -> None:
    """Writes the file `name` of an open folder atomically, also if the folder was moved meanwhile.

    Args:
        folder: descriptor of the folder.
        name: name of the file.
        raw: content of the file.
        sync: whether to flush it to the disk before returning.
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
    """Copies a regular file; `target` is replaced atomically, also if it is a link."""
    with open(open_regular(source), "rb") as source_file:
        fd, tmp = new_temporary(target)
        try:
            with open(fd, "wb") as target_file:
                shutil.copyfileobj(source_file, target_file, 1 << 20)
            os.replace(tmp, target)
        finally:
            tmp.unlink(missing_ok=True)
