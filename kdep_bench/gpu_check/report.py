"""`gpu.md`: the result of the checks as Markdown, from gpu_check.json. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdep_bench.files import write_atomic

REPORT = "gpu.md"
Json = dict[str, Any]


def write_report(result: Json, path: Path) -> None:
    """Writes the report of a result of `run_checks`."""
    write_atomic(path, "\n".join(_lines(result)) + "\n")


def _lines(result: Json) -> list[str]:
    device = "a GPU" if result["device"] == "cuda" else "a CPU"
    out = ["# GPU check", "", f"Ran on {device}: `python tools/gpu_check.py`."]
    if result["quick"]:
        out += [
            "",
            "Quick run (`--quick`): it shows that every check runs. **Its figures mean nothing.**",
        ]
    machine = result.get("machine") or {}
    if machine:
        out += ["", *(f"- {k}: {v}" for k, v in machine.items())]
    out += ["", "| check | outcome | claims that hold | seconds |", "|---|---|---:|---:|"]
    for check in result["checks"].values():
        claims = check.get("claims", [])
        n_true = f"{sum(c['ok'] for c in claims)} of {len(claims)}" if claims else "-"
        why = f": {_escape(check['why'])}" if check.get("why") else ""
        seconds = f"{check.get('seconds', 0):g}"
        out.append(f"| {check['title']} | {check['status']}{why} | {n_true} | {seconds} |")
    for check in result["checks"].values():
        out += _section(check)
    return out


def _section(check: Json) -> list[str]:
    claims, figures = check.get("claims", []), check.get("figures", [])
    if not claims and not figures:
        return []
    out = ["", f"## {check['title']}"]
    if claims:
        out += ["", "| what must hold | measured | bound | holds |", "|---|---:|---|---|"]
        out += [
            f"| {_escape(c['what'])} | {_value(c['measured'])} | {_escape(c['bound'])} | "
            f"{'yes' if c['ok'] else '**no**'} |"
            for c in claims
        ]
    if figures:
        out += ["", "| measured | value | unit |", "|---|---:|---|"]
        out += [f"| {_escape(f['what'])} | {f['value']:.4g} | {f['unit']} |" for f in figures]
    return out


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else _escape(str(value))


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
