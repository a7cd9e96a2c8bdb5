"""Attempts of stages: each works in a separate directory, which gets the stage's name at the end.

The problem: if flock does not work (see `lock`), a paused process (SIGSTOP, a suspended machine)
looks like a dead one, and a second process runs its stage. When the paused process continues, it
still writes, by path into its directory and through files that it has open. It must not change the
result of the second process. The solution:

- An attempt works in `<work>/<stage id>.try-<token>`, a path that no other attempt has.
- The next attempt first renames that directory to `<stage id>.old-<token>`. A rename is atomic on
  the file server, also if both processes believe that they hold the lock. From then on the paused
  process can neither write there by path nor rename the directory to `<work>/<stage id>`.
- The next attempt of a resumable stage gets a *copy* of the files, because a renamed file is still
  open in the process that wrote it. If the earlier attempt ran under the same kernel and its lock
  is free, that process is dead, and its directory is renamed instead of copied.

An attempt that finishes, fails or is stopped renames its directory to `<work>/<stage id>`. The
directory of a killed attempt keeps the attempt's name. `<work>/<stage id>` then contains only the
log and the file `.try`, whose token names that directory for the next attempt. To restart a stage
from scratch, delete `<work>/<stage id>`; `tools/work_dir.py --gc` lists directories that remain.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from kdep_bench.engine import state
from kdep_bench.engine.lock import boot_id
from kdep_bench.errors import KdepError
from kdep_bench.safe_files import (
    copy_file,
    is_real_folder,
    open_regular,
    read_bytes,
    remove,
    write_in_folder,
)

#: Directory name of an attempt: <stage id>.<try, old or new>-<token>.
NAME = re.compile(r"(?P<stage>.+-[0-9a-f]{12})\.(?:try|old|new)-[0-9a-f]{16}")
_TOKEN = re.compile(rb"[0-9a-f]{16}")
_POINTER_BYTES = 4096  # bytes; the file `.try` is read up to this size


class TakenOver(Exception):
    """Another process has taken over the stage."""


def begin(work: Path, stage_id: str, resume: bool, still_held: Callable[[], bool]) -> Attempt:
    """Starts a new attempt of a stage.

    The caller must hold the stage's lock, and `<work>/<stage_id>` must be a folder, not a link.
    stage.json and failed.json of earlier attempts are removed.

    Args:
        work: the work dir.
        stage_id: id of the stage.
        resume: whether to continue from the files of the newest earlier attempt; otherwise the
            files of earlier attempts are removed.
        still_held: returns whether this process still holds the lock.

    Raises:
        TakenOver: this process no longer holds the lock.
        OSError: the work dir cannot be written.
    """
    out = os.open(work / stage_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Open `out` before checking the lock: an attempt that takes over replaces this directory,
        # and what is written through `out` afterwards cannot reach the result of that attempt.
        if not still_held():
            raise TakenOver
        attempt = Attempt(work, stage_id, out)
        earlier_tokens = _earlier_tokens(work, stage_id)
        pointer = "\n".join([attempt.token, *earlier_tokens]).encode()
        write_in_folder(out, state.POINTER, pointer, sync=False)
        for name in (state.STAGE, state.FAILED):
            _remove_at(out, name)
        if resume:
            attempt.continue_from(earlier_tokens)
        else:
            attempt.path.mkdir()
            attempt.remove_stage_files()
        for token in earlier_tokens:
            _remove_attempt(work, stage_id, token)
        if any(not _is_same_kernel(token) for token in earlier_tokens):
            attempt.copy_log()
        attempt.open()
        return attempt
    except BaseException:
        os.close(out)
        raise


class Attempt:
    """One attempt of a stage; made by `begin`.

    Attributes:
        path: directory of the attempt, until `commit` renames it.
        token: 16 hex digits; the first eight identify the running kernel.
    """

    def __init__(self, work: Path, stage_id: str, out: int) -> None:
        self.work, self.stage_id = work, stage_id
        self.token = _kernel() + os.urandom(4).hex()
        self.path = _attempt_dir(work, stage_id, "try", self.token)
        self._out = out  # descriptor of <work>/<stage_id>, opened while the lock was held
        self._dir: int | None = None  # descriptor of `path`

    # --- start ---

    def continue_from(self, tokens: Iterable[str]) -> None:
        """Makes the directory from the files of the newest earlier attempt.

        `tokens`: tokens of the earlier attempts, newest first.
        """
        for token in tokens:
            # `old` first: a paused process that continued may have made a new `try` directory.
            for kind in ("old", "try"):
                source = _attempt_dir(self.work, self.stage_id, kind, token)
                if is_real_folder(source):
                    self._rename_or_copy(source, token)
                    break
            else:
                continue
            break
        else:
            self.path.mkdir()
        # An attempt that was killed before its directory was renamed leaves its stage.json here.
        remove(self.path / state.STAGE)
        for entry in os.scandir(self._out):
            if entry.name in state.ENGINE_FILES:
                continue
            if os.path.lexists(self.path / entry.name):
                _remove_at(self._out, entry.name)
            else:
                self._move_here(entry.name)

    def _rename_or_copy(self, source: Path, token: str) -> None:
        """Makes `path` from the directory `source` of the earlier attempt `token`."""
        if _is_same_kernel(token):
            os.rename(source, self.path)
            return
        old = _attempt_dir(self.work, self.stage_id, "old", token)
        if source != old:
            os.rename(source, old)
        new = _attempt_dir(self.work, self.stage_id, "new", self.token)
        shutil.copytree(old, new, symlinks=True, ignore=_names_to_ignore)
        os.rename(new, self.path)

    def _move_here(self, name: str) -> None:
        try:
            os.rename(name, self.path / name, src_dir_fd=self._out)
        except OSError as e:
            # In a container (overlayfs) folders of the image's lower layer cannot be renamed.
            if e.errno != errno.EXDEV:
                raise
            shutil.move(self.work / self.stage_id / name, self.path / name)

    def remove_stage_files(self) -> None:
        """Removes the files of earlier attempts from the stage's directory, except the log."""
        for entry in os.scandir(self._out):
            if entry.name not in (state.LOG, state.DAMAGED, state.POINTER):
                _remove_at(self._out, entry.name)
        # Last: if this attempt is killed before this line, the next one finds the file DAMAGED
        # and starts from scratch as well.
        _remove_at(self._out, state.DAMAGED)

    def copy_log(self) -> None:
        """Copies the log into a new file, because a paused process may have the old file open."""
        with contextlib.suppress(FileNotFoundError):
            copy_file(self.work / self.stage_id / state.LOG, self.work / self.stage_id / state.LOG)

    def open(self) -> None:
        """Opens the attempt's directory; `write`, `fail` and `commit` need it open."""
        self._dir = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    # --- end ---

    def open_log(self) -> int:
        """File descriptor of the stage's log, for appending."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            return open_regular(state.LOG, flags, self._out)
        except KdepError as e:
            raise KdepError(
                f"{self.work / self.stage_id}/{e.problem}", expected=e.expected, fix=e.fix
            ) from None

    def write(self, name: str, raw: bytes) -> None:
        """Writes an engine file into the attempt's directory, also if that has been renamed."""
        assert self._dir is not None
        write_in_folder(self._dir, name, raw)

    def fail(self, failure: bytes) -> None:
        """Writes failed.json, and removes a stage.json that was written before the failure."""
        if self._dir is not None:
            _remove_at(self._dir, state.STAGE)
            with contextlib.suppress(OSError):  # on a full disk the error is only in the log
                self.write(state.FAILED, failure)

    def commit(self, still_held: Callable[[], bool]) -> bool:
        """Renames the attempt's directory to `<work>/<stage id>`, unless the stage was taken over.

        It can be called again after an interruption at any point.

        Returns:
            False if another process has taken over the stage.

        Raises:
            KdepError: another program keeps writing into the stage's directory.
        """
        out = self.work / self.stage_id
        for _ in range(10):
            if self._is_own_dir(out):
                break
            is_taken_over = not still_held() or not self._is_own_dir(self.path)
            if is_taken_over or os.path.lexists(out / state.STAGE):
                return False
            # Both renames fail if another attempt has renamed this directory.
            with contextlib.suppress(FileNotFoundError):
                self._link_log(out)
                _move_into(out, self.path)
                try:
                    os.rename(self.path, out)
                except OSError as e:  # a file was written to `out` meanwhile, e.g. failed.json
                    if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
        else:
            raise KdepError(
                f"another program keeps writing to {out}",
                fix="stop that program and run the suite again",
            )
        for entry in os.scandir(out):
            if entry.name.startswith(state.PREVIOUS_PREFIX):
                remove(entry.path)
        return True

    def _link_log(self, out: Path) -> None:
        """Puts the log of the stage's directory `out` into the attempt's directory."""
        assert self._dir is not None
        try:  # only a regular file is kept
            if not stat.S_ISREG(os.lstat(out / state.LOG).st_mode):
                return
        except FileNotFoundError:
            return
        _remove_at(self._dir, state.LOG)
        try:
            os.link(
                state.LOG,
                state.LOG,
                src_dir_fd=self._out,
                dst_dir_fd=self._dir,
                follow_symlinks=False,
            )
        except FileNotFoundError:
            raise
        except OSError:  # a file system without hard links
            copy_file(out / state.LOG, self.path / state.LOG)

    def _is_own_dir(self, path: Path) -> bool:
        """Whether `path` is the directory of this attempt."""
        if self._dir is None:
            return False
        try:
            return os.path.samestat(os.lstat(path), os.fstat(self._dir))
        except OSError:
            return False

    def close(self, discard: bool) -> None:
        """Closes the attempt's files. `discard`: also removes its directory."""
        for fd in (self._out, self._dir):
            if fd is not None:
                os.close(fd)
        self._dir = None
        if discard:
            with contextlib.suppress(OSError):
                remove(self.path)


def current_dir(work: Path, stage_id: str) -> Path:
    """Directory of the newest attempt of a stage; `<work>/<stage id>` if none is unfinished."""
    for token in _earlier_tokens(work, stage_id):
        for kind in ("try", "old"):
            if is_real_folder(path := _attempt_dir(work, stage_id, kind, token)):
                return path
    return work / stage_id


def attempt_names(work: Path, stage_id: str) -> set[str]:
    """Names of the attempt directories that the next attempt of a stage reuses or removes."""
    return {
        _attempt_dir(work, stage_id, kind, token).name
        for token in _earlier_tokens(work, stage_id)
        for kind in _KINDS
    }


# --- names -----------------------------------------------------------------------------------

_KINDS = ("try", "old", "new")  # of directories: in use, to be removed, being copied


def _attempt_dir(work: Path, stage_id: str, kind: str, token: str) -> Path:
    return work / f"{stage_id}.{kind}-{token}"


def _kernel() -> str:
    """Eight hex digits that identify this kernel's boot; random if the boot id is unknown."""
    boot = boot_id()
    return hashlib.sha256(boot.encode()).hexdigest()[:8] if boot else os.urandom(4).hex()


def _is_same_kernel(token: str) -> bool:
    """Whether the attempt `token` ran under the kernel that is running now."""
    return token[:8] == _kernel()


def _earlier_tokens(work: Path, stage_id: str) -> list[str]:
    """Tokens of earlier attempts that left a directory, newest first."""
    if not is_real_folder(work / stage_id):
        return []
    try:
        raw = read_bytes(work / stage_id / state.POINTER, _POINTER_BYTES)
    except (OSError, KdepError):
        return []
    tokens = [t.decode() for t in _TOKEN.findall(raw)]
    return [
        token
        for token in tokens
        if any(os.path.lexists(_attempt_dir(work, stage_id, kind, token)) for kind in _KINDS)
    ]


# --- files -----------------------------------------------------------------------------------


def _remove_attempt(work: Path, stage_id: str, token: str) -> None:
    """Removes the directories of an earlier attempt.

    They are renamed first, so that this attempt can no longer be committed.
    """
    with contextlib.suppress(FileNotFoundError):
        old = work / f"{stage_id}.old-{token[:8]}{os.urandom(4).hex()}"
        os.rename(_attempt_dir(work, stage_id, "try", token), old)
        remove(old)
    for kind in ("old", "new"):
        remove(_attempt_dir(work, stage_id, kind, token))


def _move_into(out: Path, path: Path) -> None:
    """Moves the stage's directory `out`, which contains only the log, into the attempt's `path`."""
    if not os.path.lexists(out):
        return
    try:
        os.rename(out, path / f"{state.PREVIOUS_PREFIX}{os.urandom(4).hex()}")
    except OSError as e:
        if e.errno != errno.EXDEV:  # see `_move_here`
            raise
        remove(out)


def _remove_at(folder: int, name: str) -> None:
    """Removes an entry of an open folder; a link is removed, not followed."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(name, dir_fd=folder)


def _names_to_ignore(folder: str, names: list[str]) -> list[str]:
    """Names in `folder` that are not copied: FIFOs, sockets, devices and temporary files."""
    with os.scandir(folder) as entries:
        copied = {
            e.name
            for e in entries
            if e.is_symlink() or e.is_dir(follow_symlinks=False) or e.is_file(follow_symlinks=False)
        }
    return [n for n in names if n not in copied or (n.startswith(".") and n.endswith(".tmp"))]
