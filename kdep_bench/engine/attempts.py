"""Each try of a stage works in a directory of its own, and renames it to the stage's when it ends.

A process that was held up (SIGSTOP, a suspended machine) may be taken for dead where flock does not
reach (see `lock`), and its stage be made by another. When it wakes it goes on writing: by path into
what it was given as its directory, and through files that it holds open. Neither may reach the
finished stage of its successor. So

- a try works in `<work>/<stage id>.try-<token>`, a path that no other try has;
- a successor first renames that directory (`.old-<token>`). From then on the held-up process can
  neither write there by path nor rename it to `<work>/<stage id>`: a rename is one step on the
  server, whatever either of them believes about the lock;
- what a resumable stage left is *copied* for the successor, for a renamed file is still open in the
  process that had it. Where the earlier try ran under this very kernel and its lock is free, that
  process is dead, and its directory is taken over by a rename.

A try that ends by itself, with a result, a failure or a stop, leaves its directory as
`<work>/<stage id>`. One that was killed leaves it under the name of the try; the file `.try` in
`<work>/<stage id>`, where the log is meanwhile, names it for the next try. Who deletes
`<work>/<stage id>` by hand thereby starts afresh; `tools/work_dir.py --gc` lists what remains.
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
    """Another process has taken the stage over."""


def begin(work: Path, stage_id: str, keep: bool, still_held: Callable[[], bool]) -> Attempt:
    """A new try of the stage `one`; its directory holds what earlier tries left, if `keep`.

    The lock of the stage is held, and `<work>/<one>` is a real folder. The result of an earlier
    try, if any, is no longer one.

    Args:
        work: the work dir.
        one: the stage's id.
        keep: whether the stage goes on from what earlier tries left; else that is removed.
        mine: whether the lock is still ours.

    Raises:
        Lost: the lock is not ours any more.
        OSError: the work dir cannot be written.
    """
    out = os.open(work / stage_id, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # In this order: a successor puts another directory in the place of this one, so that from
        # here on nothing that goes through `out` can reach its result.
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
    """One try; see `begin`.

    Attributes:
        path: its directory, until it is settled.
        token: 16 hex digits; the first eight tell the kernel that it runs under.
    """

    def __init__(self, work: Path, stage_id: str, out: int) -> None:
        self.work, self.stage_id = work, stage_id
        self.token = _kernel() + os.urandom(4).hex()
        self.path = _place(work, stage_id, "try", self.token)
        self._out = out  # <work>/<one> as it was when the lock was known to be ours
        self._dir: int | None = None

    # --- the beginning ---

    def take_over(self, earlier: Iterable[str]) -> None:
        """Makes the directory of what the newest of the earlier tries left."""
        for token in earlier:
            # A name that was renamed away may have come to be again, by a process that woke.
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
        remove(self.path / state.STAGE)  # of a try that was killed before its directory was renamed
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
        """Removes what earlier tries left in the stage's directory; the log stays."""
        for entry in os.scandir(self._out):
            if entry.name not in (state.LOG, state.DAMAGED, state.POINTER):
                _remove_at(self._out, entry.name)
        # Last: a try that is killed before this line leaves the mark, so the next starts afresh.
        _remove_at(self._out, state.DAMAGED)

    def renew_log(self) -> None:
        """A new file for the log, with the content of the old, which a woken process may have."""
        with contextlib.suppress(FileNotFoundError):
            copy_file(self.work / self.stage_id / state.LOG, self.work / self.stage_id / state.LOG)

    def open(self) -> None:
        self._dir = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    # --- the end ---

    def open_log(self) -> int:
        """A descriptor of the stage's log, to append to."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            return open_regular(state.LOG, flags, self._out)
        except KdepError as e:
            raise KdepError(
                f"{self.work / self.stage_id}/{e.problem}", expected=e.expected, fix=e.fix
            ) from None

    def write(self, name: str, raw: bytes) -> None:
        """Writes a file of the engine's into the directory, wherever that has been renamed to."""
        assert self._dir is not None
        write_in_folder(self._dir, name, raw)

    def fail(self, failure: bytes) -> None:
        """Writes failed.json, and removes a stage.json that was written before the try failed."""
        if self._dir is not None:
            _remove_at(self._dir, state.STAGE)
            with contextlib.suppress(OSError):  # on a full disk the log must do
                self.write(state.FAILED, failure)

    def settle(self, still_held: Callable[[], bool]) -> bool:
        """Makes the directory the stage's; False, and nothing done, where the stage was taken over.

        It may be called again after an interruption at any point.
        """
        out = self.work / self.stage_id
        for _ in range(10):
            if self._is(out):
                break
            if not still_held() or not self._is(self.path) or os.path.lexists(out / state.STAGE):
                return False
            # Both renames fail where a successor has renamed this try: its path is gone.
            with contextlib.suppress(FileNotFoundError):
                self._bring_log(out)
                _set_aside(out, self.path)
                try:
                    os.rename(self.path, out)
                except OSError as e:  # something was written there meanwhile, as a failure's note
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
        try:  # what was planted in its place stays behind, and goes
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
        """Whether `path` is this try's directory."""
        if self._dir is None:
            return False
        try:
            return os.path.samestat(os.lstat(path), os.fstat(self._dir))
        except OSError:
            return False

    def close(self, discard: bool) -> None:
        """Ends the try. `discard`: removes what is there under its name; else that is left."""
        for fd in (self._out, self._dir):
            if fd is not None:
                os.close(fd)
        self._dir = None
        if discard:
            with contextlib.suppress(OSError):
                remove(self.path)


def current_dir(work: Path, stage_id: str) -> Path:
    """Where the newest try of a stage works, or has left what it made so far."""
    for token in _earlier(work, stage_id):
        for kind in ("try", "old"):
            if is_real_folder(place := _place(work, stage_id, kind, token)):
                return place
    return work / stage_id


def attempt_names(work: Path, stage_id: str) -> set[str]:
    """Names of the directories that the next try of a stage goes on from, or removes."""
    kinds = ("try", "old", "new")
    return {
        _place(work, stage_id, k, token).name for token in _earlier(work, stage_id) for k in kinds
    }


# --- names -----------------------------------------------------------------------------------


def _place(work: Path, stage_id: str, kind: str, token: str) -> Path:
    return work / f"{stage_id}.{kind}-{token}"


def _kernel() -> str:
    """Eight hex digits of this kernel's boot; random, so equal to none, where it is not known."""
    boot = boot_id()
    return hashlib.sha256(boot.encode()).hexdigest()[:8] if boot else os.urandom(4).hex()


def _same_kernel(token: str) -> bool:
    return token[:8] == _kernel()


def _earlier(work: Path, stage_id: str) -> list[str]:
    """Tokens of the earlier tries that left a directory, newest first."""
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
    """Removes what an earlier try left; renamed first, so that it cannot be settled any more."""
    with contextlib.suppress(FileNotFoundError):
        old = work / f"{stage_id}.old-{token[:8]}{os.urandom(4).hex()}"
        os.rename(_place(work, stage_id, "try", token), old)
        remove(old)
    for kind in ("old", "new"):
        remove(_place(work, stage_id, kind, token))


def _set_aside(out: Path, path: Path) -> None:
    """Moves the stage's directory, which holds the log alone, into the try's."""
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
    """What is not copied: FIFOs, sockets and devices, and files that were being written."""
    with os.scandir(folder) as entries:
        plain = {
            e.name
            for e in entries
            if e.is_symlink() or e.is_dir(follow_symlinks=False) or e.is_file(follow_symlinks=False)
        }
    return [n for n in names if n not in plain or (n.startswith(".") and n.endswith(".tmp"))]
