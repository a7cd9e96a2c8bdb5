"""Selects stages of a plan by kind, name or pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.suite.graph import Plan


def select_stages(plan: Plan, patterns: Iterable[str]) -> set[str] | None:
    """Stages whose method, task, student, kind or id matches a pattern, and their upstream stages.

    Args:
        plan: the stages.
        patterns: globs, or parts of names.

    Returns:
        stage ids; None without patterns.

    Raises:
        KdepError: a pattern that matches nothing.
    """
    patterns = list(patterns)
    if not patterns:
        return None
    chosen: set[str] = set()
    for pattern in patterns:
        hit = matcher(pattern)
        matches = {s.id for s in plan.stages.values() if hit(s.kind) or hit(s.id)}
        for run in plan.runs:
            if any(hit(c["name"]) for c in (run.method, run.task, run.student)):
                matches.add(run.id)
        if not matches:
            known = sorted(
                {s.kind for s in plan.stages.values()}
                | {c[k] for run in plan.runs for c, k in _named(run)}
            )
            raise KdepError(
                f"--only {pattern!r} matches no stage of {plan.name}",
                expected="part of a stage id, a glob for it, or one of: " + ", ".join(known),
                fix="list the ids with --dry-run",
            )
        chosen |= matches
    return plan.upstream(chosen)


def _named(run: Any) -> list[tuple[dict[str, Any], str]]:
    return [(run.method, "name"), (run.task, "name"), (run.student, "name")]


def matcher(pattern: str) -> Callable[[str], bool]:
    """Test of a text: a glob where the pattern has *, ? or [, otherwise a substring."""
    import fnmatch

    if any(c in pattern for c in "*?["):
        return lambda text: fnmatch.fnmatchcase(text, pattern)
    return lambda text: pattern in text
