"""SVG elements as text; every string is escaped unless it is `Markup`."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; without children, as <name/>.

    In the names of attributes, a trailing underscore is dropped and other underscores become
    hyphens. Children that are None are left out.
    """
    parts = [name]
    for key, value in attributes.items():
        parts.append(f'{key.rstrip("_").replace("_", "-")}="{escape(value)}"')
    opening = " ".join(parts)
    inner = join(children)
    return Markup(f"<{opening}>{inner}</{name}>" if inner else f"<{opening}/>")


def join(children: Iterable[object]) -> Markup:
    """Children one after the other, each escaped unless it is markup."""
    return Markup("").join(escape(c) for c in children if c is not None)
