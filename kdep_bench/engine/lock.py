"""Stage locks: one process per stage, with a heartbeat and takeover from a dead owner.

The file `<work>/.locks/<stage id>` is locked with flock(2) and names its owner. On the owner's
machine the kernel frees the lock when the owner ends, for whatever reason. On some network file
systems, flock does not work between machines, or the lock remains after its machine has crashed.
The owner therefore also increments a counter in the file (the heartbeat). If the counter of an
owner on another machine has not changed for HEARTBEAT_TIMEOUT seconds, the owner counts as dead.
Each watcher measures these seconds with its own monotonic clock: clocks of different machines are
not compared.

If flock does not work, two processes that start a stage at the same moment both find it free. The
process whose entry was written later keeps the lock; the other process stops at its next heartbeat.
Before a result is written, `still_held()` is called, so that only one process writes it.

A lock must be a regular file in a real folder; symbolic links are refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.safe_files import is_real_folder, open_regular, read_bytes, real_folder

LOCKS = ".locks"
HEARTBEAT_INTERVAL = 10.0  # seconds between heartbeats
_ENTRY_BYTES = 4096  # bytes; a lock file is read up to this size
# Seconds without a heartbeat after which an owner on another machine is dead.
HEARTBEAT_TIMEOUT = 120.0


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
        host: name of its machine.
        boot: boot id of its kernel; under the same kernel flock alone decides.
        pid: process number.
        started: start of the process in clock ticks since boot (proc(5), field 22), because
            another process may have had the same number.
        since: local time at which it took the lock; only for messages.
        token: random text, new each time a lock is taken.
    """

    host: str
    boot: str
    pid: int
    started: int
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


@cache
def boot_id() -> str:
    """This kernel's boot id; '' if it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def process_start(pid: int) -> int:
    """Start of a process in clock ticks since boot; 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def this_process() -> Owner:
    """An Owner entry for this process, with a new token."""
    pid = os.getpid()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Owner(
        socket.gethostname(), boot_id(), pid, process_start(pid), since, uuid.uuid4().hex[:16]
    )


class StageLock:
    """The lock of one stage; held by the process that runs it."""

    def __init__(self, work: Path, stage_id: str) -> None:
        self.path = work / LOCKS / stage_id
        self.entry: Owner | None = None  # while this process holds the lock
        self._fd: int | None = None
        self._is_written = False  # whether the entry is in the file
        self._free = threading.Event()
        # Held while the descriptor is written or closed. Otherwise the heartbeat could write to
        # another file that has got the number of the closed descriptor.
        self._writing = threading.Lock()

    # --- for the owner ---

    def take(self, on_loss: Callable[[], None] | None = None, beat: float | None = None) -> bool:
        """Tries to take the lock, without waiting.

        The lock of a dead owner on this machine is free. The lock of a dead owner on another
        machine is free only after a `Watch` has cleared it.

        Args:
            on_loss: called from the heartbeat thread if another process has taken the lock over.
            beat: seconds between heartbeats; default HEARTBEAT_INTERVAL.

        Returns:
            whether this process holds the lock now.

        Raises:
            KdepError: the lock file or its folder is a link, or cannot be written.
        """
        real_folder(self.path.parent)
        try:
            fd = open_regular(self.path, os.O_RDWR | os.O_CREAT)
        except PermissionError as e:
            raise KdepError(
                f"the lock file {self.path} cannot be opened ({e.strerror})",
                expected="read and write permission for everybody who uses the work dir",
                fix=f"ask its owner to run: chmod g+rw {self.path} (with `umask 002` new lock "
                "files get these permissions)",
            ) from None
        if not _flock(fd) or _is_foreign(_read(fd)):
            os.close(fd)
            return False
        self._fd, self.entry = fd, this_process()
        _close_in_children(self)
        self._is_written = False
        with contextlib.suppress(OSError):  # on a full disk, rely on flock alone
            _write(fd, _text(self.entry, 0))
            self._is_written = True
        self._free.clear()
        interval = HEARTBEAT_INTERVAL if beat is None else beat
        threading.Thread(target=self._beat, args=(interval, on_loss), daemon=True).start()
        return True

    def _beat(self, interval: float, on_loss: Callable[[], None] | None) -> None:
        """Body of the heartbeat thread; ends when the lock is freed or lost."""
        entry, count = self.entry, 0
        while not self._free.wait(interval):
            if not self.still_held():
                if on_loss is not None and not self._free.is_set():
                    on_loss()
                return
            count += 1
            with self._writing, contextlib.suppress(OSError):
                if self._fd is not None and entry is not None:
                    _write(self._fd, _text(entry, count))

    def still_held(self) -> bool:
        """Whether this process still holds the lock; False if another process took it over."""
        if self.entry is None:
            return False
        try:
            text = self._entry()
        except (OSError, KdepError):
            return True  # a file that cannot be read was not taken over
        if not text.strip():  # never written (full disk), or cleared by a `Watch`
            return not self._is_written
        current_owner = _owner(text)
        return current_owner is None or current_owner.token == self.entry.token

    def free(self) -> None:
        """Releases the lock; does nothing if it is not held."""
        self._free.set()
        with self._writing:
            fd, self._fd = self._fd, None
        if fd is None:
            return
        with contextlib.suppress(OSError):
            if self.still_held():
                os.ftruncate(fd, 0)
        self.entry = None
        os.close(fd)

    # --- for every process ---

    def _open(self) -> int:
        if not is_real_folder(self.path.parent):
            raise FileNotFoundError(self.path)
        return open_regular(self.path, os.O_RDWR)

    def _entry(self) -> bytes:
        if not is_real_folder(self.path.parent):
            raise FileNotFoundError(self.path)
        return read_bytes(self.path, _ENTRY_BYTES)

    def content(self) -> bytes | None:
        """The content of the lock file; None if the lock is free.

        The lock of an owner on another machine is not free, even if the owner is dead; only `Watch`
        detects that.
        """
        try:
            fd = self._open()
        except (OSError, KdepError):
            return None
        try:
            is_held = not _flock(fd, fcntl.LOCK_SH)
            text = _read(fd)
            return text if is_held or _is_foreign(text) else None
        finally:
            os.close(fd)

    def is_held_by_any(self) -> bool:
        """Whether any process holds the lock, here or on another machine."""
        return self.content() is not None

    def owner(self) -> str:
        """Text that names the last owner, for messages."""
        try:
            text = self._entry()
        except (OSError, KdepError):
            text = b""
        return str(_owner(text) or "another process")

    def clear(self, expected: bytes) -> bool:
        """Removes the entry of a dead owner.

        `expected` is the content that the file must still have.

        Returns:
            False, and changes nothing, if the file has changed or is locked: the owner is alive.
        """
        fd = self._open()
        try:
            if not _flock(fd) or _read(fd) != expected:
                return False
            os.ftruncate(fd, 0)
            return True
        finally:
            os.close(fd)


class Watch:
    """Monitors locks of other processes, and clears a lock whose owner died on another machine."""

    def __init__(self, work: Path, stale: float | None = None) -> None:
        self.work = work
        self.stale = HEARTBEAT_TIMEOUT if stale is None else stale
        # Stage id -> (its last entry, time.monotonic() at which this entry was first seen).
        self._seen: dict[str, tuple[bytes, float]] = {}

    def held(self, stage_id: str) -> bool:
        """Whether a live process holds the stage's lock; call it about every second.

        An owner on another machine counts as dead if its entry has not changed for `stale` seconds
        between calls.
        """
        lock = StageLock(self.work, stage_id)
        text = lock.content()
        if text is None:
            self._seen.pop(stage_id, None)
            return False
        now = time.monotonic()
        seen, since = self._seen.get(stage_id, (b"", now))
        if seen != text:
            self._seen[stage_id] = text, now
            return True
        if now - since < self.stale or not _is_foreign(text):
            return True
        with contextlib.suppress(OSError, KdepError):
            if lock.clear(text):
                del self._seen[stage_id]
                return False
        return True


def _flock(fd: int, mode: int = fcntl.LOCK_EX) -> bool:
    """Tries flock(2) without waiting; returns whether it succeeded."""
    try:
        fcntl.flock(fd, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(fd: int) -> bytes:
    return os.pread(fd, _ENTRY_BYTES, 0)


def _write(fd: int, text: bytes) -> None:
    os.pwrite(fd, text, 0)
    os.fsync(fd)  # readers on other machines see only what is on the server


def _text(owner: Owner, beat: int) -> bytes:
    """The entry of a lock file; `beat`: number of heartbeats so far."""
    # The counter has a fixed width, so that one write overwrites the whole entry in place.
    return json.dumps({**asdict(owner), "beat": f"{beat:012d}"}).encode() + b"\n"


def _owner(text: bytes) -> Owner | None:
    try:
        fields = json.loads(text)
        del fields["beat"]
        return Owner(**fields)
    except (ValueError, TypeError, KeyError):
        return None


def _is_foreign(text: bytes) -> bool:
    """Whether the owner in `text` runs under another kernel, so that flock here proves nothing."""
    # Entries of an earlier version are process numbers of this machine.
    if not text.strip() or text.strip().isdigit():
        return False
    owner = _owner(text)
    return owner is None or owner.boot != boot_id() or not owner.boot


# A forked child (a data loader's worker) shares the flock of its parent. The file would stay locked
# if the parent dies, so children close it.
_held: weakref.WeakSet[StageLock] = weakref.WeakSet()


def _close_in_children(lock: StageLock) -> None:
    _held.add(lock)


def _after_fork() -> None:
    """Closes the lock files of the parent, in a forked child."""
    for lock in list(_held):
        fd, lock._fd, lock.entry = lock._fd, None, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)


os.register_at_fork(after_in_child=_after_fork)
