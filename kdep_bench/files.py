"""Small file habits shared by every room: atomic writes, checksums, safe names. No torch."""

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


def safe_name(name: str, what: str = "name") -> str:
    """Returns `name` if it can be one path component; raises KdepError otherwise."""
    if not _SAFE.fullmatch(name):
        raise KdepError(
            f"the {what} {name[:60]!r} cannot be used as a file name",
            expected="a letter or digit, then up to 119 of letters, digits, '_', '-', '+' and '.'",
            fix="rename it in the config",
        )
    return name


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes `data` so that readers see the old file or the whole new one, also after a crash.

    A link at `path` is replaced, not written through. Mode: 0666 less the umask.
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
    """Atomic, sorted, strict JSON (a NaN or infinity raises ValueError)."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


LARGEST_JSON = 4 << 30  # bytes; the largest official annotation file has 0.5 GB
LARGEST_NUMBER = 1e100  # sums and squares of what we store stay finite
DEEPEST = 50  # levels of lists and objects in a file that kdep_bench wrote
_DIGITS = 20  # of a whole number; more is no count, id or size


def read_json(path: str | Path, most: int = LARGEST_JSON) -> Any:
    """The content of a JSON file that a person may have written.

    A key that occurs twice in one object is refused: which of the two is meant, nobody knows. NaN
    and infinities, which Python's writer puts into JSON, are read: the caller's checks name the
    entry they stand in.

    Raises:
        KdepError: no regular file, one of more than `most` bytes, no valid JSON, a doubled key, or
            too deeply nested or too large for this machine's memory.
    """
    return _parse(read_bytes(path, most), str(path), False, "correct it: JSON in UTF-8 is read")


def read_strict(path: str | Path, most: int = LARGEST_JSON, follow: bool = True) -> Any:
    """The content of a JSON file that kdep_bench wrote; what `write_json` never writes is refused.

    Args:
        path: the file.
        most: bytes of the largest file that is read.
        follow: whether `path` may be a link; not below a work dir or a results folder.

    Raises:
        KdepError: as `read_json`; besides NaN, infinities, numbers beyond `LARGEST_NUMBER`, and
            nesting beyond `DEEPEST`.
    """
    return parse_strict(read_bytes(path, most, follow), str(path))


def parse_strict(raw: bytes | str, where: str) -> Any:
    """`read_strict` of a text; `where` names it in errors."""
    return _parse(raw, where, True, "delete it and run again")


def read_bytes(path: str | Path, most: int, follow: bool = True) -> bytes:
    """The bytes of a regular file of at most `most` bytes; KdepError that names it otherwise.

    A pipe or device is refused before it is read: reading one can last for ever. Without `follow`,
    a link is refused as well.
    """
    try:
        return safe_files.read_bytes(path, most, follow=follow)
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
    more: dict[str, Any] = dict(parse_float=_bounded, parse_constant=_no_constant) if strict else {}
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_once, parse_int=_whole, **more)
        if strict:
            _check_depth(value)
        return value
    except RecursionError:
        got = f"the file {where} is nested too deeply"
    except MemoryError:
        got = f"the content of the file {where} does not fit into memory"
    except UnicodeDecodeError as e:
        got = f"the file {where} is not text in UTF-8 (byte {e.start})"
    except ValueError as e:
        got = f"the file {where} is not valid JSON ({str(e)[:200]})"
    raise KdepError(got, fix=fix)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [k for k, _ in pairs]
        twice = next(k for k in keys if keys.count(k) > 1)
        raise ValueError(f"the key {twice[:60]!r} occurs twice in one object")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS + text.startswith("-"):
        raise ValueError(f"the number {text[:25]}... has {len(text)} digits")
    return int(text)


def _bounded(text: str) -> float:
    value = float(text)
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise RecursionError
        depth += 1
        level = [
            part
            for whole in level
            if isinstance(whole, (dict, list))
            for part in (whole.values() if isinstance(whole, dict) else whole)
            if isinstance(part, (dict, list))
        ]


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain_text(error: object, most: int = 160) -> str:
    """The first line of a foreign error's text, without colours, cut to `most` characters."""
    lines = _ANSI.sub("", str(error)).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, strict. Hash input, never for people."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def text_hash(text: str, digits: int = 12) -> str:
    """First `digits` hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex, read in 1 MiB pieces. Links are followed.

    Raises:
        KdepError: `path` is no regular file.
    """
    h = hashlib.sha256()
    with open(open_regular(path, follow=True), "rb") as f:
        while piece := f.read(1 << 20):
            h.update(piece)
    return h.hexdigest()
