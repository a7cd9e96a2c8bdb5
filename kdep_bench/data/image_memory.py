"""A cache of `ImageInfo` by the SHA-256 of an image's bytes, so that images are decoded only once.

The cache is one SQLite file, `images.sqlite` in the cache folder, for all data sets and work dirs
of a user. If it is damaged, locked or cannot be written, the images are decoded again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL

from kdep_bench.data.pocket.debian import cache_dir
from kdep_bench.files import canonical_json

# Entries of another version are ignored. Raise the number when the result of `images.examine`
# changes.
VERSION = f"2 Pillow {PIL.__version__}"
_BATCH = 1000  # new entries are written in batches of this number
_LOCK_TIMEOUT = 2.0  # seconds to wait while another process has locked the file


def memory_path() -> Path:
    """Path of the cache file: $KDEP_CACHE/images.sqlite, by default in ~/.cache/kdep_bench."""
    return cache_dir() / "images.sqlite"


class ImageMemory:
    """ImageInfo by SHA-256, stored in a file; safe to use from several threads.

    It is a context manager; new entries are written when it exits, at the latest.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = memory_path() if path is None else path
        self._lock = threading.Lock()
        self._new: dict[str, str] = {}
        self._table: sqlite3.Connection | None = None

    def __enter__(self) -> ImageMemory:
        try:
            self._table = self._open()
        except (OSError, sqlite3.Error):
            self._table = None
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._write()
            if self._table is not None:
                self._table.close()
            self._table = None

    def get(self, sha256: str) -> list[Any] | None:
        """The ImageInfo of an image as a list; None if it is not stored."""
        with self._lock:
            text = self._new.get(sha256)
            if text is None and self._table is not None:
                with contextlib.suppress(sqlite3.Error):
                    query = "SELECT facts FROM images WHERE sha256 = ? AND version = ?"
                    row = self._table.execute(query, (sha256, VERSION)).fetchone()
                    text = row and row[0]
        if not isinstance(text, str):
            return None
        try:
            info = json.loads(text)
        except ValueError:
            return None
        is_valid = isinstance(info, list) and info[:1] == [sha256]
        return info if is_valid else None

    def __setitem__(self, sha256: str, info: Sequence[Any]) -> None:
        with self._lock:
            self._new[sha256] = canonical_json(list(info))
            if len(self._new) >= _BATCH and self._table is not None:
                self._write()

    def _write(self) -> None:
        if self._table is None:
            return
        rows = [(sha256, VERSION, info) for sha256, info in self._new.items()]
        with contextlib.suppress(sqlite3.Error), self._table:
            self._table.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?)", rows)
            self._new.clear()

    def _open(self) -> sqlite3.Connection:
        """Opens the file, or creates it; raises OSError or sqlite3.Error if it cannot be used."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(self.path).st_mode):
                raise OSError("not a regular file")
        try:
            return self._connect()
        except sqlite3.DatabaseError as e:
            if isinstance(e, sqlite3.OperationalError):
                raise  # locked, read-only, no space
        self.path.unlink()  # damaged; a cache can be deleted, as its content can be computed again
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        table = sqlite3.connect(self.path, timeout=_LOCK_TIMEOUT, check_same_thread=False)
        try:
            table.execute(
                "CREATE TABLE IF NOT EXISTS images "
                "(sha256 TEXT PRIMARY KEY, version TEXT, facts TEXT) WITHOUT ROWID"
            )
            table.execute("SELECT sha256, version, facts FROM images LIMIT 1").fetchone()
        except sqlite3.Error:
            table.close()
            raise
        return table
