"""Attempts of stages: each works in a separate directory, renamed to the stage's when it ends.

A paused process (SIGSTOP, a suspended machine) can be mistaken for a dead one where flock does not
work (see `lock`); another process then runs its stage. When the paused process continues, it still
writes: by path into its directory, and through files that it has open. Neither may change the
finished stage of its successor. Therefore

- an attempt works in `<work>/<stage id>.try-<token>`, a path that no other attempt has;
- a successor first renames that directory (`.old-<token>`). From then on the paused process can
  neither write there by path nor rename it to `<work>/<stage id>`: a rename is atomic on the file
  server, whatever either process believes about the lock;
- the files of a resumable stage are *copied* for the successor, because a renamed file is still
  open in the process that wrote it. Where the earlier attempt ran under the same kernel and its
  lock is free, that process is dead, and its directory is renamed instead.

An attempt that ends by itself, with a result, a failure or a stop, leaves its directory as
`<work>/<stage id>`. A killed one leaves it under the name of the attempt; the file `.try` in
`<work>/<stage id>`, which also contains the log by then, has its token for the next attempt.
Deleting `<work>/<stage id>` by hand therefore restarts the stage from scratch;
`tools/work_dir.py --gc` lists what remains.
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

NAME = re.compile(r"(?P<stage>.+-[0-9a-f]{12})\.(?:try|old|new)-[0-9a-f]{16}")
_TOKEN = re.compile(rb"[0-9a-f]{16}")
_POINTER_BYTES = 4096


class TakenOver(Exception):
    """Another process has taken over the stage."""


def begin(work: Path, stage_id: str, keep: bool, still_held: Callable[[], bool]) -> Attempt:
    """Starts a new attempt of a stage; with `keep`, its directory has the files of earlier ones.

    The caller holds the stage's lock, and `<work>/<stage_id>` is a real folder. Results of earlier
    attempts are removed.

    Args:
        work: the work dir.
        stage_id: id of the stage.
        keep: continue from the files of earlier attempts; otherwise they are removed.
        still_held: returns whether this process still holds the lock.

    Raises:
        TakenOver: this process no longer holds the lock.
        OSError: the work dir cannot be written.
    """
    out = os.open(work / stage_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # `out` is opened before the lock is checked: a successor replaces this directory, so that
        # what is written through `out` afterwards cannot reach its result.
        if not still_held():
            raise TakenOver
        attempt = Attempt(work, stage_id, out)
        earlier = _earlier(work, stage_id)
        write_in_folder(
            out, state.POINTER, "\n".join([attempt.token, *earlier]).encode(), sync=False
        )
        for name in (state.STAGE, state.FAILED):
            _remove_at(out, name)
        if keep:
            attempt.take_over(earlier)
        else:
            attempt.path.mkdir()
            attempt.empty_stage()
        for token in earlier:
            _end(work, stage_id, token)
        if any(not _same_kernel(token) for token in earlier):
            attempt.renew_log()
        attempt.open()
        return attempt
    except BaseException:
        os.close(out)
        raise


class Attempt:
    """One attempt of a stage; see `begin`.

    Attributes:
        path: its directory, until `settle`.
        token: 16 hex digits; the first eight identify the running kernel.
    """

    def __init__(self, work: Path, stage_id: str, out: int) -> None:
        self.work, self.stage_id = work, stage_id
        self.token = _kernel() + os.urandom(4).hex()
        self.path = _place(work, stage_id, "try", self.token)
        self._out = out  # <work>/<stage_id>, opened while the lock was held
        self._dir: int | None = None

    # --- the beginning ---

    def take_over(self, earlier: Iterable[str]) -> None:
        """Makes the directory from the files of the newest earlier attempt."""
        for token in earlier:
            # A paused process that continues may have made a directory of the former name again.
            for kind in ("old", "try"):
                source = _place(self.work, self.stage_id, kind, token)
                if is_real_folder(source):
                    self._take(source, token)
                    break
            else:
                continue
            break
        else:
            self.path.mkdir()
        # Left by an attempt that was killed before its directory was renamed.
        remove(self.path / state.STAGE)
        for entry in os.scandir(self._out):
            if entry.name in state.ENGINE_FILES:
                continue
            if os.path.lexists(self.path / entry.name):
                _remove_at(self._out, entry.name)
            else:
                self._move_here(entry.name)

    def _take(self, source: Path, token: str) -> None:
        if _same_kernel(token):
            os.rename(source, self.path)
            return
        old = _place(self.work, self.stage_id, "old", token)
        if source != old:
            os.rename(source, old)
        new = _place(self.work, self.stage_id, "new", self.token)
        shutil.copytree(old, new, symlinks=True, ignore=_no_files)
        os.rename(new, self.path)

    def _move_here(self, name: str) -> None:
        try:
            os.rename(name, self.path / name, src_dir_fd=self._out)
        except OSError as e:
            if e.errno != errno.EXDEV:  # a folder of an image's lower layer (overlayfs)
                raise
            shutil.move(self.work / self.stage_id / name, self.path / name)

    def empty_stage(self) -> None:
        """Removes the files of earlier attempts from the stage's directory, except the log."""
        for entry in os.scandir(self._out):
            if entry.name not in (state.LOG, state.DAMAGED, state.POINTER):
                _remove_at(self._out, entry.name)
        # Last: an attempt killed before this line leaves the mark, so that the next one starts from
        # scratch as well.
        _remove_at(self._out, state.DAMAGED)

    def renew_log(self) -> None:
        """Copies the log into a new file, as a paused process may have the old file open."""
        with contextlib.suppress(FileNotFoundError):
            copy_file(self.work / self.stage_id / state.LOG, self.work / self.stage_id / state.LOG)

    def open(self) -> None:
        self._dir = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    # --- the end ---

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
        """Writes an engine file into the directory, also after that was renamed."""
        assert self._dir is not None
        write_in_folder(self._dir, name, raw)

    def fail(self, failure: bytes) -> None:
        """Writes failed.json, and removes a stage.json that was written before the failure."""
        if self._dir is not None:
            _remove_at(self._dir, state.STAGE)
            with contextlib.suppress(OSError):  # on a full disk only the log has the error
                self.write(state.FAILED, failure)

    def settle(self, still_held: Callable[[], bool]) -> bool:
        """Renames the directory to the stage's; does nothing where the stage was taken over.

        It can be called again after an interruption at any point.

        Returns:
            False where another process has taken over the stage.

        Raises:
            KdepError: another program keeps writing into the stage's directory.
        """
        out = self.work / self.stage_id
        for _ in range(10):
            if self._is(out):
                break
            if not still_held() or not self._is(self.path) or os.path.lexists(out / state.STAGE):
                return False
            # Both renames fail where a successor has renamed this directory.
            with contextlib.suppress(FileNotFoundError):
                self._bring_log(out)
                _set_aside(out, self.path)
                try:
                    os.rename(self.path, out)
                except OSError as e:  # a file was written there meanwhile, for example failed.json
                    if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
        else:
            raise KdepError(
                f"another program keeps writing to {out}",
                fix="stop that program and run the suite again",
            )
        for entry in os.scandir(out):
            if entry.name.startswith(state.BEFORE):
                remove(entry.path)
        return True

    def _bring_log(self, out: Path) -> None:
        assert self._dir is not None
        try:  # anything but a regular file is not kept
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

    def _is(self, path: Path) -> bool:
        """Whether `path` is the directory of this attempt."""
        if self._dir is None:
            return False
        try:
            return os.path.samestat(os.lstat(path), os.fstat(self._dir))
        except OSError:
            return False

    def close(self, discard: bool) -> None:
        """Ends the attempt. `discard`: also removes its directory."""
        for fd in (self._out, self._dir):
            if fd is not None:
                os.close(fd)
        self._dir = None
        if discard:
            with contextlib.suppress(OSError):
                remove(self.path)


def current_dir(work: Path, stage_id: str) -> Path:
    """Directory of the newest attempt of a stage: the one in progress, else the one it left."""
    for token in _earlier(work, stage_id):
        for kind in ("try", "old"):
            if is_real_folder(place := _place(work, stage_id, kind, token)):
                return place
    return work / stage_id


def attempt_names(work: Path, stage_id: str) -> set[str]:
    """Names of the directories that the next attempt of a stage continues from or removes."""
    kinds = ("try", "old", "new")
    return {
        _place(work, stage_id, k, token).name for token in _earlier(work, stage_id) for k in kinds
    }


# --- names -----------------------------------------------------------------------------------


def _place(work: Path, stage_id: str, kind: str, token: str) -> Path:
    return work / f"{stage_id}.{kind}-{token}"


def _kernel() -> str:
    """Eight hex digits that identify this kernel's boot; random where it is unknown."""
    boot = boot_id()
    return hashlib.sha256(boot.encode()).hexdigest()[:8] if boot else os.urandom(4).hex()


def _same_kernel(token: str) -> bool:
    return token[:8] == _kernel()


def _earlier(work: Path, stage_id: str) -> list[str]:
    """Tokens of earlier attempts that left a directory, newest first."""
    if not is_real_folder(work / stage_id):
        return []
    try:
        raw = read_bytes(work / stage_id / state.POINTER, _POINTER_BYTES)
    except (OSError, KdepError):
        return []
    tokens = [t.decode() for t in _TOKEN.findall(raw)]
    kinds = ("try", "old", "new")
    return [t for t in tokens if any(os.path.lexists(_place(work, stage_id, k, t)) for k in kinds)]


# --- files -----------------------------------------------------------------------------------


def _end(work: Path, stage_id: str, token: str) -> None:
    """Removes what an earlier attempt left; renamed first, so that it can no longer be settled."""
    with contextlib.suppress(FileNotFoundError):
        old = work / f"{stage_id}.old-{token[:8]}{os.urandom(4).hex()}"
        os.rename(_place(work, stage_id, "try", token), old)
        remove(old)
    for kind in ("old", "new"):
        remove(_place(work, stage_id, kind, token))


def _set_aside(out: Path, path: Path) -> None:
    """Moves the stage's directory, which only has the log, into the attempt's."""
    if not os.path.lexists(out):
        return
    try:
        os.rename(out, path / f"{state.BEFORE}{os.urandom(4).hex()}")
    except OSError as e:
        if e.errno != errno.EXDEV:
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


def _no_files(folder: str, names: list[str]) -> list[str]:
    """Entries that are not copied: FIFOs, sockets, devices, and temporary files."""
    with os.scandir(folder) as entries:
        plain = {
            e.name
            for e in entries
            if e.is_symlink() or e.is_dir(follow_symlinks=False) or e.is_file(follow_symlinks=False)
        }
    return [n for n in names if n not in plain or (n.startswith(".") and n.endswith(".tmp"))]
