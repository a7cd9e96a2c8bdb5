"""Plants faults one at a time and runs the tests: `python -m tests.mutation [PACKAGE ...]`.

Why the project does not use an existing tool: *mutmut 3* rewrites functions, so that signatures,
pickling and source hashes, on which stage ids depend, are no longer those of the program; it cannot
change module constants and class defaults. *cosmic-ray* starts the whole test command again for
each fault: 6 s of imports (torch, mmdet, mmseg, mmpretrain) and minutes of tests, although the one
test that calls the line takes 0.1 s. Neither tool changes `train=`, `split=` or `seed=`, drops a
`sorted`, or draws a sample by seed. This package has the faults (`faults.py`), a map from each test
to the functions that it calls in any process (`trace/`, `calls.py`), and a fork server that has the
toolkits in memory (`server.py`).

    python -m tests.mutation                        # everything: map, plant, report
    python -m tests.mutation features --jobs 2      # one package
    python -m tests.mutation features --again       # try the unnoticed faults again
    python -m tests.mutation features --again --tests tests/features/test_cache.py
    python -m tests.mutation --list features        # the sample
    python -m tests.mutation --only kdep_bench/pretrain/stream.py   # all of its sampled faults

Results are kept in `work_dirs/mutation`, so a run can be interrupted and started again. A map is
identified by the hash of the test file, a result by the fault and the hash of its function. A fault
is noticed if a test fails, an import fails or the time limit passes. For each fault, tests of up to
`--seconds` of measured time run in this order: tests that call the function with the fault (first
those in the test file named after the module, then those of the package, then the others), and then
tests that call another function of the file. Within each group, fast tests run first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from tests.mutation import calls, report
from tests.mutation.faults import Fault, sample
from tests.mutation.targets import PACKAGES, REPO, files, mirrors

SEED = 23


def short_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def sample_of(package: str, root: Path) -> list[Fault]:
    """The sampled faults of the package."""
    sources = {name: (root / name).read_text() for name in files(package, root)}
    return sample(sources, PACKAGES[package].sample, SEED)


def copy_tree(target_tree: Path) -> None:
    """Updates the copy of the repository: all files that git tracks or does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, check=True, capture_output=True
    ).stdout.decode()
    keep = set(listed.splitlines())
    for old in (p for p in target_tree.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        if old.relative_to(target_tree).as_posix() not in keep:
            old.unlink()
    for name in sorted(keep):
        source, target = REPO / name, target_tree / name
        if not source.exists() or (target.exists() and short_hash(target) == short_hash(source)):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


class Server:
    """A fork server with its own copy of the tree."""

    def __init__(self, number: int, work: Path) -> None:
        self.tree, self.work = work / f"tree-{number}", work / f"job-{number}"
        self.work.mkdir(parents=True, exist_ok=True)
        copy_tree(self.tree)
        env = os.environ | {"PYTHONPATH": str(self.tree), "PYTHONHASHSEED": "0"}
        with (self.work / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.mutation.server", str(self.work)],
                cwd=self.tree,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def request(self, **fields: Any) -> dict[str, Any]:
        """Sends one request (see `server.py`) and returns the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(fields) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the fork server ended: see {self.work / 'server.log'}")
        return json.loads(line)


class Maps:
    """Maps from the tests of a test file to the functions they call; measured per file content."""

    def __init__(self, work: Path, root: Path) -> None:
        self.folder, self.root = work / "maps", root
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, test: str) -> Path:
        """The file of the map of this test file."""
        return self.folder / f"{test.replace('/', '.')}-{short_hash(self.root / test)}.json"

    def test_files(self, package: str) -> list[str]:
        """The package's test files, relative to the root of the repository."""
        folders = [self.root / f for f in PACKAGES[package].tests]
        paths = sorted(p for f in folders for p in f.rglob("test_*.py"))
        return [p.relative_to(self.root).as_posix() for p in paths]

    def missing(self, packages: list[str]) -> list[str]:
        """The test files of these packages that have no map."""
        return [t for p in packages for t in self.test_files(p) if not self.path(t).exists()]

    def measure(self, server: Server, test: str) -> None:
        """Runs the test file on the server and writes its map."""
        log = self.folder / f"{test.replace('/', '.')}.calls"
        log.unlink(missing_ok=True)
        reply = server.request(map=test, calls=str(log))
        tests = calls.read(log) if log.exists() else []
        failed = sum(not t.passed for t in tests)
        shutil.copy(server.work / "child.log", log.with_suffix(".log"))
        calls.save(tests, self.path(test))
        log.unlink(missing_ok=True)
        print(
            f"mapped {test}: {len(tests)} tests, {reply['seconds']} s, {failed} failed or skipped"
        )

    def load(self) -> list[calls.Test]:
        """The tests that passed, of every measured test file of all packages."""
        paths = [self.path(t) for p in PACKAGES for t in self.test_files(p)]
        return [t for path in paths if path.exists() for t in calls.load(path) if t.passed]


def choose(fault: Fault, package: str, tests: list[calls.Test], limit: float) -> list[calls.Test]:
    """Tests that call the fault's function, then those that call another function of its file.

    Their measured times sum to at most `limit` seconds, but at least one test is chosen. In each
    group, tests in a file named after the fault's file come first, then those of the package; among
    these, fast tests are first.
    """
    function_name = f"{fault.file} {fault.function}"
    file_prefix = f"{fault.file} "
    if fault.function:
        chosen = [t for t in tests if function_name in t.calls]
    else:
        chosen = [t for t in tests if any(c.startswith(file_prefix) for c in t.calls)]
    folders = PACKAGES[package].tests
    tests_of_package = [t for t in tests if t.name.startswith(folders)]
    if not fault.function:
        chosen += [
            t
            for t in tests_of_package
            if mirrors(fault.file, t.name.split("::")[0]) and t not in chosen
        ]
        chosen = chosen or tests_of_package

    calling = {t.name for t in chosen}
    # A map may be older than the source, and a function that was renamed since is in no map. So
    # tests that call another function of the file follow. For a constant, all tests of the package
    # follow, as it may be read in another file.
    chosen += [
        t
        for t in tests_of_package
        if t.name not in calling
        and (not fault.function or any(c.startswith(file_prefix) for c in t.calls))
    ]

    def order(t: calls.Test) -> tuple[bool, int, float]:
        """Sort key: calls the function or not, near the file or not, seconds."""
        file = t.name.split("::")[0]
        near = 0 if mirrors(fault.file, file) else 1 if t.name.startswith(folders) else 2
        return t.name not in calling, near, t.seconds

    kept, total = [], 0.0
    for t in sorted(chosen, key=order):
        total += t.seconds
        if total <= limit or not kept:
            kept.append(t)
    return kept


class Results:
    """A file with one JSON line per tried fault; only the last line of a fault counts."""

    def __init__(self, work: Path) -> None:
        self.path = work / "results.jsonl"
        self.lock = threading.Lock()

    def read(self) -> dict[str, dict[str, Any]]:
        """{name of a fault: its last row}."""
        if not self.path.exists():
            return {}
        rows = (json.loads(line) for line in self.path.read_text().splitlines() if line)
        return {r["key"]: r for r in rows}

    def add(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        with self.lock, self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def work_through(server: Server, queue: Queue, tests: list[calls.Test], results: Results) -> None:
    """Takes faults from the queue and tries them until none is left."""
    while True:
        try:
            package, fault, limit = queue.get_nowait()
        except Empty:
            return
        source = (server.tree / fault.file).read_text()
        tests_given = not any(t.calls for t in tests)  # those of --tests have no map of calls
        chosen = tests if tests_given else choose(fault, package, tests, limit)
        row = {"key": fault.key, "package": package, "kind": fault.kind, "line": fault.line}
        row |= {"content": fault.content, "tests": len(chosen)}
        if chosen:
            row |= server.request(
                file=fault.file,
                source=fault.plant(source),
                tests=[t.name for t in chosen],
                limit=20 + 4 * sum(t.seconds for t in chosen),
            )
        else:
            row |= {"result": "unnoticed", "by": "", "s": 0}
        results.add(row)
        left = queue.qsize()
        print(f"{left:4d} left  {row['result']:9s} {row['s']:6.1f} s  {fault.key}  {row['by']}")


def main() -> None:
    """See the module's docstring."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    # []: argparse compares also the default of nargs="*", an empty list, with the choices.
    parser.add_argument(
        "packages", nargs="*", choices=[*PACKAGES, []], help="packages (default: all)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="parallel fork servers")
    parser.add_argument("--seconds", type=float, default=30.0, help="test time per fault")
    parser.add_argument("--again", action="store_true", help="retry unnoticed faults")
    parser.add_argument("--only", help="only faults whose name contains this")
    parser.add_argument("--tests", nargs="+", help="run only these tests or test files")
    parser.add_argument("--list", action="store_true", help="list the sample and exit")
    parser.add_argument("--report", action="store_true", help="write results/mutation.md and exit")
    parser.add_argument("--work", type=Path, default=REPO / "work_dirs" / "mutation", help="state")
    args = parser.parse_args()
    packages = args.packages or list(PACKAGES)
    faults = [(p, f) for p in packages for f in sample_of(p, REPO)]
    if args.only:
        faults = [(p, f) for p, f in faults if args.only in f.key]
    if args.list:
        for package, fault in faults:
            print(f"{package:10s} {fault.kind:18s} {fault.line:4d} {fault.key}")
        return
    results = Results(args.work.resolve())
    if not args.report:
        run(args, packages, faults, results)
    known = report.equivalent()
    done = results.read()
    rows = []
    for package in PACKAGES:
        for fault in sample_of(package, REPO):
            row = done.get(fault.key)
            valid = row is not None and row["content"] == fault.content
            rows.append((package, fault, row if valid else None))
    report.write(rows, known, REPO / "results" / "mutation.md", SEED)


def run(
    args: argparse.Namespace,
    packages: list[str],
    faults: list[tuple[str, Fault]],
    results: Results,
) -> None:
    """Maps the test files without a map, then tries the faults without a result."""
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    servers = [Server(i, work) for i in range(args.jobs)]
    tree = servers[0].tree
    maps = Maps(work, tree)
    map_test_files(servers, maps, [] if args.tests else maps.missing(packages))
    done = results.read()
    known = report.equivalent()
    queue: Queue = Queue()
    for package, fault in faults:
        old = done.get(fault.key)
        same = old is not None and old["content"] == fault.content
        again = args.again and old is not None and old["result"] == "unnoticed"
        if fault.key not in known and (not same or again):
            queue.put((package, fault, args.seconds))
    tests = [calls.Test(t, args.seconds, True, frozenset()) for t in args.tests or ()]
    tests = tests or maps.load()
    threads = [
        threading.Thread(target=work_through, args=(server, queue, tests, results))
        for server in servers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def map_test_files(servers: list[Server], maps: Maps, tests: list[str]) -> None:
    """Maps these test files; each server takes the next file from a queue."""
    queue: Queue = Queue()
    for test in tests:
        queue.put(test)

    def measure(server: Server) -> None:
        """Maps test files until none is left."""
        while True:
            try:
                maps.measure(server, queue.get_nowait())
            except Empty:
                return

    threads = [threading.Thread(target=measure, args=(server,)) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
