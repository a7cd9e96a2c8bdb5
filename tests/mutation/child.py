"""Runs pytest in a forked child process, either to map the calls of tests or to try a fault."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class ForkInsteadOfServer(multiprocessing.context.ForkContext):
    """Forks this process instead of a fork server: the toolkits are already imported here (6 s).

    Its start method is named "forkserver", as the standard library refuses `max_tasks_per_child`
    for "fork".
    """

    def get_start_method(self, allow_none: bool = False) -> str:
        return "forkserver"

    def set_forkserver_preload(self, module_names: list[str]) -> None:
        """Does nothing: the modules are already imported."""


original_get_context = multiprocessing.get_context


def get_context(method: str | None = None) -> Any:
    """`multiprocessing.get_context`, but with a fork in place of a fork server."""
    return ForkInsteadOfServer() if method == "forkserver" else original_get_context(method)


def enter(tree: Path, log: Path) -> None:
    """Makes this process a group leader that works in `tree` and writes its output to `log`."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(tree)
    multiprocessing.get_context = get_context
    # Otherwise the pool of the transfer tests would fork from a thread. If another thread held an
    # import lock at that moment, the lock would never be released in the child.
    os.environ["KDEP_TESTS_FORK"] = "1"


def fixture_name(fixturedef: Any) -> str:
    """The name of the fixture with the place of its definition."""
    return f"{fixturedef.baseid}::{fixturedef.argname}"


class Mapper:
    """pytest plugin: marks in the log where tests and shared fixtures begin and end."""

    def __init__(self, trace: Any) -> None:
        self.trace = trace
        self.open: list[str] = []

    def mark(self, line: str) -> None:
        """Writes a line to the log; after it, the next call of each function is logged again."""
        self.trace.note(line)
        self.trace.forget()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        self.mark(f"F+ {fixture_name(fixturedef)}")
        try:
            return (yield)
        finally:
            self.mark(f"F- {fixture_name(fixturedef)}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Iterator[None]:
        shared = [
            fixture_name(d[-1])
            for d in item._fixtureinfo.name2fixturedefs.values()
            if d[-1].scope != "function"
        ]
        self.mark("\t".join([f"T+ {item.nodeid}", *shared]))
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            self.mark(f"T- {time.perf_counter() - began:.3f}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self.trace.note(f"R {report.outcome}")


class Chooser:
    """pytest plugin: runs only the named tests (or files) in this order, and writes the name of the
    current test to the file `last`."""

    def __init__(self, tests: list[str], last: Path) -> None:
        self.place = {t: i for i, t in enumerate(tests)}
        self.last = last

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        def place(item: Any) -> int:
            """The place of the test in the given order, or -1."""
            names = (item.nodeid, item.nodeid.partition("[")[0], item.nodeid.partition("::")[0])
            return next((self.place[n] for n in names if n in self.place), -1)

        items[:] = sorted((i for i in items if place(i) >= 0), key=place)

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self.last.write_text(nodeid)


def map_calls(tests: list[str], calls: Path, tree: Path) -> int:
    """Runs all of `tests`, with the calls of every process written to `calls`."""
    sys.path.insert(0, str(tree / "tests" / "mutation" / "trace"))
    import sitecustomize  # type: ignore[import-not-found]

    trace = sys.modules["sitecustomize"]
    if not hasattr(trace, "note"):
        raise RuntimeError(f"another sitecustomize is in the way: {sitecustomize.__file__}")
    folder = str(tree / "tests" / "mutation" / "trace")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ["PYTHONPATH"]])
    os.environ |= {"KDEP_CALLS": str(calls), "KDEP_CALLS_ROOT": str(tree)}
    trace.start(str(calls), str(tree))
    return int(pytest.main([*QUIET_OPTIONS, *tests], plugins=[Mapper(trace)]))


def try_fault(tests: list[str], last: Path) -> int:
    """Runs `tests` in their order, to the first that fails."""
    paths = list(dict.fromkeys(t.split("::")[0] for t in tests))
    return int(pytest.main([*QUIET_OPTIONS, "-x", *paths], plugins=[Chooser(tests, last)]))


QUIET_OPTIONS = ["-q", "-p", "no:cacheprovider", "-m", "", "--tb=short"]
