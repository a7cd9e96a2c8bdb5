"""Prints values of configs as Python source."""

from __future__ import annotations

import json
from typing import Any


def python_text(value: Any, indent: int = 0) -> str:
    """A config's value as Python source: dicts as `dict(key=value)`, one key per line."""
    if isinstance(value, str):
        return json.dumps(value)
    if not isinstance(value, dict):
        return repr(value)
    pad = " " * (indent + 4)
    rows = "".join(f"{pad}{k}={python_text(v, indent + 4)},\n" for k, v in value.items())
    return f"dict(\n{rows}{' ' * indent})"
