"""Reads the log of a mapping run: which test calls which function, and how long it takes."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple


class Test(NamedTuple):
    """A test: `calls` has "kdep_bench/x.py qualified.name" of each function that it calls;
    `seconds` is its time without a fault."""

    name: str
    seconds: float
    passed: bool
    calls: frozenset[str]


def read(log: Path) -> list[Test]:
    """The tests of a mapping run; a test's calls include those of its shared fixtures.

    The lines of the log: `T+ test` (with the test's shared fixtures, separated by tabs) and `T-
    seconds` around a test, `F+ fixture` and `F- fixture` around the set-up of a shared fixture,
    `R outcome` if a test did not pass, `C function` for a call.
    """
    fixtures: dict[str, set[str]] = defaultdict(set)
    rows: list[tuple[str, list[str], set[str], float, bool]] = []
    inside: list[str] = []
    name, shared, own, passed = "", [], set(), True
    for line in log.read_text(errors="replace").splitlines():
        word, _, rest = line.partition(" ")
        if word == "T+":
            name, *shared = rest.split("\t")
            own, passed = set(), True
        elif word == "T-":
            rows.append((name, shared, own, float(rest), passed))
            name = ""
        elif word == "F+":
            inside.append(rest)
        elif word == "F-":
            inside.remove(rest)
        elif word == "R":
            passed = False
        elif word == "C":
            (fixtures[inside[-1]] if inside else own).add(rest)
    return [
        Test(name, seconds, passed, frozenset(own.union(*(fixtures[used] for used in shared))))
        for name, shared, own, seconds, passed in rows
    ]


def save(tests: list[Test], path: Path) -> None:
    """Writes the tests as JSON, with each function's name written once."""
    names = sorted(set().union(*(t.calls for t in tests)))
    number = {n: i for i, n in enumerate(names)}
    rows = [[t.name, t.seconds, t.passed, sorted(number[c] for c in t.calls)] for t in tests]
    path.write_text(json.dumps({"functions": names, "tests": rows}))


def load(path: Path) -> list[Test]:
    """Reads the tests that `save` wrote."""
    content = json.loads(path.read_text())
    names = content["functions"]
    return [
        Test(name, seconds, passed, frozenset(names[i] for i in calls))
        for name, seconds, passed, calls in content["tests"]
    ]
