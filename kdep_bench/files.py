"""Small file habits shared by every room: atomic writes, checksums, safe names. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,119}")


def safe_name(name: str, what: str = "name") -> str:
    """Returns `name` if it can be one path component; raises KdepError otherwise."""
    if not _SAFE.fullmatch(name):
        raise KdepError(
            f"the {what} {name[:60]!r} cannot be a file name",
            "a letter or digit, then up to 119 of letters, digits, '_', '-', '+' and '.'",
            "rename it in the config",
        )
    return name


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes `data` so that readers see the old file or the whole new one, also after a crash."""
    path = Path(path)
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(tmp, 0o644)
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Atomic, sorted, strict JSON (a NaN or infinity raises ValueError)."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parsed JSON; a missing or damaged file is a KdepError that names it."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise KdepError(f"the file {path} does not exist", "a JSON file there") from None
    except (ValueError, UnicodeDecodeError) as e:
        raise KdepError(
            f"the file {path} is not valid JSON ({e})", "", "delete it and run again"
        ) from None


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, strict. Hash input, never for people."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def text_hash(text: str, digits: int = 12) -> str:
    """First `digits` hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in 1 MiB pieces."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while piece := f.read(1 << 20):
            h.update(piece)
    return h.hexdigest()
