"""Reads JSON files of the user; every fault becomes a KdepError that names the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError

MAX_BYTES = 4 << 30  # 4 GiB


def read_user_json(path: str | Path) -> Any:
    """The parsed content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        KdepError: not a regular file, larger than MAX_BYTES, not UTF-8, truncated or invalid, with
            NaN or infinite numbers, nested too deeply, or with a key twice in one object (parsers
            differ in which value they keep).
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise KdepError(
                f"the path {path} is not a regular file",
                expected="a JSON file",
                fix="correct the path",
            )
        if status.st_size > MAX_BYTES:
            raise KdepError(
                f"the file {path} has {status.st_size / 1e9:.1f} GB",
                expected=f"at most {MAX_BYTES / 1e9:.0f} GB",
                fix="leave out what is not needed, for example segmentation polygons",
            )
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise KdepError(
            f"the file {path} is not UTF-8 text (byte {e.start})",
            fix="export it again as UTF-8, or convert it: iconv -f LATIN1 -t UTF-8 "
            f"{path} > new.json",
        ) from None
    except OSError as e:
        raise KdepError(
            f"the file {path} cannot be read ({e.strerror})",
            fix="correct the path, or its permissions",
        ) from None
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as e:
        is_truncated = e.pos >= len(text.rstrip()) or e.msg.startswith("Unterminated")
        fault = "is truncated" if is_truncated else "is not valid JSON"
        raise KdepError(
            f"the file {path} {fault} (line {e.lineno}, column {e.colno}: {e.msg})",
            fix="export or copy the file again",
        ) from None
    except RecursionError:
        raise KdepError(
            f"the file {path} is nested too deeply",
            expected="lists and objects a few levels deep",
            fix="check that it is the right file",
        ) from None
    except ValueError as e:
        raise KdepError(
            f"the file {path} is not valid JSON ({e})", fix="correct the file, or export it again"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [k for k, _ in pairs]
        repeated = next(k for k in keys if keys.count(k) > 1)
        raise ValueError(f"the key {repeated!r:.60} occurs twice in one object")
    return out


def _constant(name: str) -> float:
    raise ValueError(f"it contains {name}, which is not a JSON number")
