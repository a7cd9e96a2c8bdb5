"""Factors of an ablation: which combination of settings each method and student of a suite is.

A suite that changes several settings states them in the `card` of its methods and students:
`card=dict(factors=dict(knowledge="hidden", matching="last"))`. Reports then compare the levels of
each factor over the combinations that differ in this factor only. A method or student without
factors (scratch) is not part of the grid. The card is not part of any stage id.
"""

from __future__ import annotations

from collections.abc import Iterable

from kdep_bench.errors import KdepError
from kdep_bench.suite.methods import row_name
from kdep_bench.suite.schema import Json


def grid_of(methods: Iterable[Json], students: Iterable[Json]) -> Json | None:
    """The grid of a suite, as written to factors.json; None if no method or student has factors.

    Returns:
        levels: [factor, its levels] of each factor; the other levels are compared with the first.
        methods, students: name -> factor -> level.

    Raises:
        KdepError: factors that are not {name: level} of texts, a factor of both methods and
            students, or two methods (students) with equal factors.
    """
    by_method = _levels({row_name(m): m.get("card", {}).get("factors") for m in methods}, "method")
    by_student = _levels({s["name"]: s.get("card", {}).get("factors") for s in students}, "student")
    if not by_method and not by_student:
        return None
    names = {
        kind: {factor for levels in configs.values() for factor in levels}
        for kind, configs in (("method", by_method), ("student", by_student))
    }
    if shared := sorted(names["method"] & names["student"]):
        raise KdepError(
            f"the factor {shared[0]!r} is a factor of methods and of students",
            fix="rename one of them in `card.factors`",
        )
    levels: dict[str, dict[str, None]] = {}
    for config in (*by_method.values(), *by_student.values()):
        for factor, level in config.items():
            levels.setdefault(factor, {})[level] = None
    return {
        "levels": [[factor, list(values)] for factor, values in levels.items()],
        "methods": by_method,
        "students": by_student,
    }


def _levels(factors: dict[str, Json | None], kind: str) -> dict[str, dict[str, str]]:
    """Name -> {factor: level}, for the configs that have factors; raises KdepError as `grid_of`."""
    by_name, first = dict[str, dict[str, str]](), dict[tuple, str]()
    for name, levels in factors.items():
        if levels is None:
            continue
        is_valid = isinstance(levels, dict) and all(isinstance(v, str) for v in levels.values())
        if not is_valid or not levels:
            raise KdepError(
                f"`card.factors` of the {kind} {name!r} is {levels!r:.80}",
                expected="dict(<factor>='<level>', ...)",
                fix="correct it, or remove it from the card",
            )
        same = first.setdefault(tuple(sorted(levels.items())), name)
        if same != name:
            raise KdepError(
                f"the {kind}s {same!r} and {name!r} have the same `card.factors`",
                expected="another combination of levels for each",
                fix="correct one of them, or remove one of the two from the suite",
            )
        by_name[name] = dict(levels)
    return by_name
