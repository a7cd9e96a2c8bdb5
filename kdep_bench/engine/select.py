"""Selects stages of a plan by kind, name or pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kdep_bench.errors import KdepError
from kdep_bench.suite.graph import Plan


def select_stages(plan: Plan, patterns: Iterable[str]) -> set[str] | None:
    """Selects stages by their kind or id, and transfer runs by their method, task or student.

    Args:
        plan: the stages.
        patterns: globs, or parts of names.

    Returns:
        ids of the stages that match a pattern, and of their upstream stages; None without a
        pattern.

    Raises:
        KdepError: a pattern matches no stage.
    """
    patterns = list(patterns)
    if not patterns:
        return None
    chosen: set[str] = set()
    for pattern in patterns:
        is_match = matcher(pattern)
        matches = {s.id for s in plan.stages.values() if is_match(s.kind) or is_match(s.id)}
        for run in plan.runs:
            if any(is_match(config["name"]) for config in (run.method, run.task, run.student)):
                matches.add(run.id)
        if not matches:
            kinds = {s.kind for s in plan.stages.values()}
            names = {
                config["name"]
                for run in plan.runs
                for config in (run.method, run.task, run.student)
            }
            raise KdepError(
                f"--only {pattern!r} matches no stage of {plan.name}",
                expected="part of a stage id, a glob for it, or one of: "
                + ", ".join(sorted(kinds | names)),
                fix=(did_you_mean(pattern, kinds | names) or did_you_mean(pattern, plan.stages))
                + "list the ids: --dry-run without --only",
            )
        chosen |= matches
    return plan.upstream(chosen)


def did_you_mean(pattern: str, names: Iterable[str]) -> str:
    """ "did you mean NAME or NAME? Or ", the begin of a fix for a pattern that matches no name.

    At most three names, those with the part that is most similar to the pattern; "" if no part of a
    name is similar.
    """
    import difflib

    text = pattern.strip("*?")
    similarity = difflib.SequenceMatcher(b=text)

    def likeness(name: str) -> float:
        """The largest similarity, 0 to 1, of the pattern and a part of the name as long as it."""
        ratios = [0.0]
        for start in range(max(1, len(name) - len(text) + 1)):
            similarity.set_seq1(name[start : start + len(text)])
            if similarity.quick_ratio() > max(ratios):
                ratios.append(similarity.ratio())
        return max(ratios)

    ranked = sorted((-likeness(name), name) for name in set(names))
    near = [name for negative, name in ranked[:3] if -negative >= max(0.7, -ranked[0][0] - 0.05)]
    return f"did you mean {' or '.join(near)}? Or " if near else ""


def matcher(pattern: str) -> Callable[[str], bool]:
    """Function that returns whether a text matches `pattern`.

    A pattern with *, ? or [ is a glob for the whole text; any other pattern is a part of the text.
    """
    import fnmatch

    if any(wildcard in pattern for wildcard in "*?["):
        return lambda text: fnmatch.fnmatchcase(text, pattern)
    return lambda text: pattern in text
