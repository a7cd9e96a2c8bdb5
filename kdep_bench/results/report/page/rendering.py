"""Offline HTML files from the templates in `report/templates`.

Every value is escaped unless it is `Markup`. A template that uses an undefined name raises an
error. A file loads nothing from the network: its Content-Security-Policy allows only one inline
style and one inline script, each by its SHA-256, and images as data: URLs. jinja2 is imported when
the first file is built, so commands that build no file start faster.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from kdep_bench.results import text

if TYPE_CHECKING:
    from jinja2 import Environment

_REPORT = Path(__file__).parents[1]


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_REPORT / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["plain"] = text.plain
    return environment


def document(template: str, title: str, **values: object) -> str:
    """One HTML file.

    Args:
        template: a file of `report/templates` that extends document.html.j2.
        title: the title of the file.
        values: what the template shows.
    """
    style = (_REPORT / "chart.css").read_text() + (_REPORT / "page.css").read_text()
    script = (_REPORT / "page.js").read_text()
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            **values,
        )
    )


def _policy(style: str, script: str) -> str:
    def digest(content: str) -> str:
        raw = hashlib.sha256(content.encode()).digest()
        return f"'sha256-{base64.b64encode(raw).decode()}'"

    return (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
