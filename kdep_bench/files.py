"""Atomic writes, strict JSON, checksums and safe file names. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from kdep_bench import safe_files
from kdep_bench.errors import KdepError
from kdep_bench.safe_files import new_temporary, open_regular

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,119}")


def safe_name(name: str, label: str = "name") -> str:
    """Returns `name` if it can be one component of a path; raises KdepError otherwise.

    `label` is what the name is called in the error.
    """
    if not _SAFE.fullmatch(name):
        raise KdepError(
            f"the {label} {name[:60]!r} cannot be used as a file name",
            expected="a letter or digit, then at most 119 letters, digits or any of _ - + .",
            fix="rename it in the config",
        )
    return name


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes a file so that readers see the old or the complete new content, also after a crash.

    A link at `path` is replaced, not followed. The file's mode is 0666 minus the umask.
    """
    path = Path(path)
    raw = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = new_temporary(path)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON with sorted keys atomically; NaN and infinity raise ValueError."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


MAX_JSON_BYTES = 4 << 30  # bytes; the largest official annotation file has 0.5 GB
MAX_NUMBER = 1e100  # its square is finite; so are sums of numbers up to it
MAX_DEPTH = 50  # most levels of nested lists and objects in a file that kdep_bench wrote
_MAX_DIGITS = 20  # most digits of an integer; counts, ids and sizes have fewer


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a JSON file that a user may have written.

    A key that occurs twice in one object is an error, because it is ambiguous. NaN and infinities,
    which Python's json module writes, are accepted: the caller can report which entry has them.

    Args:
        path: the file.
        max_bytes: size of the largest file that is read.

    Raises:
        KdepError: the file is not a regular file or too large, is not valid JSON, has a duplicate
            key, is nested too deeply, or does not fit into memory.
    """
    return _parse(
        read_bytes(path, max_bytes), str(path), False, "correct it; it must be JSON in UTF-8"
    )


def read_strict(path: str | Path, max_bytes: int = MAX_JSON_BYTES, follow: bool = True) -> Any:
    """The content of a JSON file that kdep_bench wrote.

    Args:
        path: the file.
        max_bytes: size of the largest file that is read.
        follow: whether `path` may be a link; False below a work dir or a results folder.

    Raises:
        KdepError: as `read_json`; also for content that kdep_bench never writes: NaN, infinities,
            numbers above MAX_NUMBER, more than MAX_DEPTH levels.
    """
    return parse_strict(read_bytes(path, max_bytes, follow), str(path))


def parse_strict(raw: bytes | str, where: str) -> Any:
    """Parses a JSON text like `read_strict`; `where` is what an error calls it."""
    return _parse(
        raw, where, True, "move it to another folder; running the command again writes a new one"
    )


def read_bytes(path: str | Path, max_bytes: int, follow: bool = True) -> bytes:
    """The bytes of a regular file.

    Raises:
        KdepError: the file has more than `max_bytes` bytes, cannot be read, is a pipe or device
            (reading these may never end), or is a link and `follow` is False.
    """
    try:
        return safe_files.read_bytes(path, max_bytes, follow=follow)
    except FileNotFoundError:
        raise KdepError(f"the file {path} does not exist", fix="check its path") from None
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        reason = getattr(e, "strerror", None) or str(e)
        raise KdepError(
            f"the file {path} cannot be read ({reason})", fix="check its permissions"
        ) from None
    except MemoryError:
        raise KdepError(
            f"the file {path} does not fit into memory", fix="free memory, or use a smaller file"
        ) from None


def _parse(raw: bytes | str, where: str, strict: bool, fix: str) -> Any:
    """Parses JSON; `strict`: like `read_strict`, otherwise like `read_json`.

    `where` is what an error calls the file, `fix` the fix in the error.
    """
    strict_options: dict[str, Any] = (
        dict(parse_float=_bounded_float, parse_constant=_refuse_constant) if strict else {}
    )
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_int=_bounded_int, **strict_options
        )
        if strict:
            _check_depth(value)
        return value
    except RecursionError:
        problem = f"the file {where} is nested too deeply"
    except MemoryError:
        problem = f"the content of the file {where} does not fit into memory"
    except UnicodeDecodeError as e:
        problem = f"the file {where} is not text in UTF-8 (byte {e.start})"
    except ValueError as e:
        problem = f"the file {where} is not valid JSON ({str(e)[:200]})"
    raise KdepError(problem, fix=fix)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of a JSON object; raises ValueError for a key that occurs twice."""
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {duplicate[:60]!r} occurs twice in one object")
    return value


def _bounded_int(text: str) -> int:
    """The integer in `text`; raises ValueError for more than _MAX_DIGITS digits."""
    if len(text) > _MAX_DIGITS + text.startswith("-"):
        raise ValueError(f"the number {text[:25]}... has {len(text)} digits")
    return int(text)


def _bounded_float(text: str) -> float:
    """The number in `text`; raises ValueError above MAX_NUMBER."""
    value = float(text)
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _refuse_constant(text: str) -> float:
    """Raises ValueError for NaN and infinities."""
    raise ValueError(f"{text} is not a JSON number")


def _check_depth(value: Any) -> None:
    """Raises RecursionError for more than MAX_DEPTH nested levels."""
    containers, depth = [value], 0  # the lists and dicts at this depth
    while containers:
        if depth > MAX_DEPTH:
            raise RecursionError
        depth += 1
        items = [
            item
            for parent in containers
            if isinstance(parent, (dict, list))
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
        containers = [item for item in items if isinstance(item, (dict, list))]


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain_text(error: object, max_chars: int = 160) -> str:
    """The first line of a library's error text, without colours, at most `max_chars` characters."""
    lines = _ANSI.sub("", str(error)).strip().splitlines()
    return lines[0][:max_chars] if lines else type(error).__name__


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal text; used for hashes.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def text_hash(text: str, digits: int = 12) -> str:
    """First `digits` hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes in hex digits. Links are followed.

    Raises:
        KdepError: `path` is not a regular file.
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(open_regular(path, follow=True), "rb") as f:
        while piece := f.read(1 << 20):  # 1 MiB
            digest.update(piece)
    return digest.hexdigest()
