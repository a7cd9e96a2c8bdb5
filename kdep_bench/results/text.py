"""Numbers and names as text, escaped for each output format.

Names come from records, which other people may have written.
"""

from __future__ import annotations

import html
import math
import re
import shlex

from kdep_bench.results.board.board import Result, shorten
from kdep_bench.results.board.efficiency import ReductionFactor
from kdep_bench.results.statistics.intervals import Estimate

# C0 and C1 control characters, line separators, and marks that change the reading direction.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# GitHub does not read an underscore inside a word as emphasis, so it is not escaped.
_MARKDOWN = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "—": "---",
}


def plain(text: str, limit: int = 120) -> str:
    """`text` in one line, with spaces for control characters, and shortened to `limit`."""
    return shorten(_CONTROL.sub(" ", text), limit).strip()


def md(text: str, limit: int = 120) -> str:
    """`text` as literal text in a GitHub table cell."""
    line = html.escape(plain(text, limit), quote=False)
    # GitHub turns "@name" and addresses into links; an invisible word joiner prevents this.
    return _MARKDOWN.sub(r"\\\1", line).replace("@", "@\u2060").replace("://", ":\u2060//")


def code(text: str, limit: int = 300) -> str:
    """`text` as inline code in a GitHub table cell; backticks and bars are allowed."""
    line = plain(text, limit).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    ticks = "`" * (longest + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def csv_text(text: str) -> str:
    """`text` for a CSV file, with spaces for control characters.

    A single quote is added before a text that a spreadsheet could evaluate as a formula (see OWASP,
    "CSV injection").
    """
    clean = _CONTROL.sub(" ", text)
    return f"'{clean}" if clean.lstrip()[:1] in tuple("=+-@|%") else clean


def tex(text: str, limit: int = 120) -> str:
    """`text` as literal LaTeX."""
    return "".join(_TEX.get(c, c) for c in plain(text, limit))


def points(fraction: float | None, sign: bool = False) -> str:
    """A fraction x100 with one decimal; a dash for None.

    `sign`: write "+" before positive numbers.
    """
    if fraction is None:
        return "—"
    text = f"{100 * fraction:+.1f}" if sign else f"{100 * fraction:.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


def score(result: Result) -> str:
    """'mean ± sd (n)' x100, and the numbers of failed and missing seeds."""
    parts = []
    est = result.estimate
    if est is not None:
        spread = "" if est.sd is None else f" ± {100 * est.sd:.1f}"
        parts.append(f"{points(est.mean)}{spread} ({est.n})")
    if result.failed:
        parts.append(f"{len(result.failed)} failed" if est or len(result.failed) > 1 else "failed")
    if result.missing:
        parts.append(
            f"{len(result.missing)} missing" if est or len(result.missing) > 1 else "missing"
        )
    return ", ".join(parts) or "—"


def gap(est: Estimate | None) -> str:
    """A difference x100 with its 95 % interval; a dash for None."""
    if est is None:
        return "—"
    if est.low is None or est.high is None:
        return f"{points(est.mean, True)} (n = 1)"
    return f"{points(est.mean, True)} [{points(est.low, True)}, {points(est.high, True)}]"


def seconds(value: float | None) -> str:
    """A time in seconds, minutes or hours; a dash for None."""
    if value is None:
        return "—"
    if value < 120:
        return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min" if value < 600 else f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def count(value: int | None) -> str:
    """An integer with thousands separators; a dash for None."""
    return "—" if value is None else f"{value:,}"


def ratio(value: float | None, digits: int = 2) -> str:
    """A number with `digits` decimals, from 1000 in scientific notation; a dash for None."""
    if value is None:
        return "—"
    return f"{value:.{digits}f}" if value < 1000 else f"{value:.1e}"


def reduction(result: ReductionFactor) -> str:
    """A reduction factor, such as '3.2 times, interval [2.9, 3.6]'.

    A bound for some seed pairs: 'at least 3.2 times, interval of the bound [2.9, 3.6]'.

    If all seed pairs have the same bound, its reason is shown instead of the interval.
    """
    log_ratio = result.estimate
    ratio = factor(log_ratio.mean)
    if result.is_bound_for_all:
        reached = "reached with the smallest" if result.n_lower_bounds else "not reached with any"
        return f"{result.bound} a factor of {ratio} (score {reached} budget)"
    shown = f"{result.bound} {ratio} times".lstrip()
    if log_ratio.low is None or log_ratio.high is None:
        return shown
    interval = "interval of the bound" if result.bound else "interval"
    return f"{shown}, {interval} [{factor(log_ratio.low)}, {factor(log_ratio.high)}]"


def factor(log_ratio: float) -> str:
    """exp(log_ratio) with two significant digits; from 100 to 10,000 as an integer."""
    ratio = math.exp(log_ratio)
    return f"{ratio:.0f}" if 99.5 <= ratio < 10_000 else f"{ratio:.2g}"


def command(suite: str, only: str) -> str:
    """The command that runs the stages selected by `only`, quoted for a shell."""
    path = shlex.quote(f"configs/suites/{plain(suite, 200)}.py")
    return f"python tools/run_suite.py {path} --only {shlex.quote(plain(only, 200))}"


def p_value(p: float | None) -> str:
    """A p value with two decimals, below 0.1 with three; a dash for None."""
    if p is None:
        return "—"
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
