"""HTML and SVG text in which every string is escaped unless this module made it."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = {"meta", "link", "img", "input", "br", "line", "path", "circle", "rect", "polyline"}


class Raw(str):
    """Markup; any other string is text."""

    __slots__ = ()


def text(value: object) -> Raw:
    """`value` escaped, or unchanged where it is markup already."""
    return value if isinstance(value, Raw) else Raw(html.escape(str(value), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Raw:
    """An element. Attributes: a trailing underscore is dropped, others become hyphens; None and
    False leave an attribute out, True gives it no value. Children that are None are left out."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{html.escape(str(value), quote=True)}"')
    opening = " ".join(parts)
    inner = join(children)
    if name in _VOID and not inner:
        return Raw(
            f"<{opening}/>" if name not in ("meta", "img", "input", "br") else f"<{opening}>"
        )
    return Raw(f"<{opening}>{inner}</{name}>")


def join(children: Iterable[object], between: str = "") -> Raw:
    """Children one after the other, each escaped unless it is markup."""
    return Raw(between.join(text(c) for c in children if c is not None))
