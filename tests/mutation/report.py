"""Writes results/mutation.md: planted, noticed, equivalent and unnoticed faults of each package."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.mutation.faults import Fault
from tests.mutation.targets import PACKAGES, REPO

EQUIVALENT = Path(__file__).parent / "equivalent.txt"
BAR = 95.0  # per cent of the faults that tests must notice


def equivalent(path: Path = EQUIVALENT) -> dict[str, str]:
    """Reads {name of a fault: why it changes no result}.

    In the file, the reason is on indented lines below the name.
    """
    known: dict[str, str] = {}
    name = ""
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith("    "):
            known[name] = f"{known[name]} {line.strip()}".strip()
        else:
            name = line
            known[name] = ""
    empty = [n for n, reason in known.items() if not reason]
    if empty:
        raise SystemExit(f"{path}: no reason for {empty[0]}")
    return known


def cell(text: str, limit: int = 160) -> str:
    """The text as code in a cell of a Markdown table, shortened to `limit` characters."""
    short = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return f"`{short}`".replace("|", "\\|")


def write(
    rows: list[tuple[str, Fault, dict[str, Any] | None]],
    known: dict[str, str],
    out: Path,
    seed: int,
) -> None:
    """Writes a table of counts, the equivalent faults with their reasons, and the unnoticed faults.

    `rows` are (package, fault, its result or None), `known` is what `equivalent` returns.
    """
    lines = [
        "# Mutation testing",
        "",
        "`make mutation` changes one line of the code that computes scores and statistics (a "
        "fault), and runs",
        "the tests that call the changed function; then the next fault. A fault is *noticed* if a "
        "test fails.",
        f"*Equivalent*: it changes no result; the reasons are below. Required: {BAR:g} % of the "
        "other faults are",
        "noticed in every package. *Not tried*: the function has changed since the last run. "
        "*Unnoticed*:",
        "in the last run; tests written since then count after `--again`. The sample of faults is "
        "drawn with",
        f"seed {seed}. Code and file names are those of commit {current_commit()}.",
        "",
        "| package | planted | noticed | equivalent | unnoticed | not tried | noticed, % |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    equivalent_rows: list[str] = []
    unnoticed_rows: list[str] = []
    total = [0] * 5
    for package in PACKAGES:
        rows_of_package = [(f, r) for p, f, r in rows if p == package]
        equal = [f for f, _ in rows_of_package if f.key in known]
        rest = [(f, r) for f, r in rows_of_package if f.key not in known]
        noticed = [f for f, r in rest if r and r["result"] == "noticed"]
        unnoticed = [f for f, r in rest if r and r["result"] == "unnoticed"]
        counts = [len(rows_of_package), len(noticed), len(equal), len(unnoticed)]
        counts.append(counts[0] - sum(counts[1:]))
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(table_row(package, counts))
        equivalent_rows += [f"| {cell(f.key)} | {known[f.key]} |" for f in equal]
        unnoticed_rows += [f"| {cell(f.key)} | {f.kind} |" for f in unnoticed]
    lines.append(table_row("all", total))
    lines += [
        "",
        "## Equivalent",
        "",
        "| fault | why no result changes |",
        "|---|---|",
        *equivalent_rows,
    ]
    if unnoticed_rows:
        lines += ["", "## Unnoticed", "", "| fault | kind |", "|---|---|", *unnoticed_rows]
    out.write_text("\n".join(lines) + "\n")
    print(f"wrote {out}")
    print("\n".join(lines[9 : 12 + len(PACKAGES)]))  # the table of counts


def current_commit() -> str:
    """The short name of the commit that is checked out."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(
        command, cwd=REPO, check=True, capture_output=True, text=True
    ).stdout.strip()


def table_row(name: str, counts: list[int]) -> str:
    """A row of the table: the counts and the percentage noticed."""
    tried = counts[1] + counts[3]
    percentage = f"{100 * counts[1] / tried:.1f}" if tried else "-"
    return f"| {name} | {' | '.join(map(str, counts))} | {percentage} |"
