"""Plants each fault in a copy of the repository and runs the tests that must notice it.

    python -m tests.planted.run [--table module:NAME] [--jobs N] [--unchecked]

One process imports the toolkits once; each fault is planted in a copy of the package, and its tests
run in a fork that imports the copy. First, the tests run without a fault and must pass (--unchecked
skips this). The exit status is 1 if they fail without a fault, if they do not notice a fault, or if
the line that a fault changes does not exist exactly once.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.planted.table import Fault

REPO = Path(__file__).resolve().parents[2]
PACKAGE = "kdep_bench"
COPIED = ("kdep_bench", "tests", "configs", "tools", "pyproject.toml", "README.md")
IMPORTED = ("torch", "sklearn.linear_model", "scipy.stats", "mmengine.runner", "pytest", "pydantic")


def file_of(repo: Path, fault: Fault) -> Path:
    """The file of a fault, which must contain the fault's line exactly once.

    Raises:
        LookupError: the file does not contain the line, or contains it more than once.
    """
    file = repo / fault.file
    times = file.read_text().count(fault.old) if file.is_file() else 0
    if times != 1:
        elsewhere = [
            f"{path.relative_to(repo)}"
            for path in sorted((repo / "kdep_bench").rglob("*.py"))
            if fault.old in path.read_text()
        ]
        raise LookupError(
            f"{fault.file} contains {fault.old!r} {times} times, expected once; "
            f"elsewhere: {', '.join(elsewhere) or 'nowhere'}. "
            f"Correct the fault '{fault.wrong}' in tests/planted/table.py"
        )
    return file


def plant(repo: Path, fault: Fault, folder: Path) -> Path:
    """Copies the package into the folder and plants the fault in the copy; returns the folder."""
    file_of(repo, fault)
    shutil.copytree(repo / PACKAGE, folder / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / fault.file
    file.write_text(file.read_text().replace(fault.old, fault.new))
    return folder


def copy_of(repo: Path, folder: Path) -> Path:
    """Copies what the tests need of the repository, without compiled files; returns the folder."""
    for name in COPIED:
        source = repo / name
        if source.is_dir():
            hidden = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(source, folder / name, ignore=hidden)
        elif source.is_file():
            shutil.copy2(source, folder / name)
    return folder


def import_toolkits(repo: Path) -> None:
    """Makes `repo` the current folder and imports the large libraries, for all forks.

    Of the project it imports only what these need: a module with a fault must be imported later.
    """
    sys.dont_write_bytecode = True
    sys.path[:] = [str(repo), *(p for p in sys.path if p not in ("", str(REPO)))]
    for name in [n for n in sys.modules if n.partition(".")[0] in ("kdep_bench", "tests")]:
        del sys.modules[name]
    os.chdir(repo)
    os.environ.update(
        PYTHONPATH=str(repo),
        PYTHONDONTWRITEBYTECODE="1",
        OMP_NUM_THREADS="1",
        KDEP_TESTS_FORK="1",
    )
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("tests.transfer.preload")


@dataclass
class Job:
    """One run of tests in a fork, with or without a fault."""

    tests: str
    folder: Path
    fault: Fault | None = None
    start: float = 0.0
    pid: int = 0
    status: int = -1

    @property
    def log(self) -> str:
        """The output of pytest."""
        return (self.folder / "log.txt").read_text()

    def fork(self, repo: Path) -> None:
        """Starts pytest in a fork of this process, with the fault if the job has one."""
        self.folder.mkdir()
        if self.fault is not None:
            if module_of(self.fault.file) in sys.modules:
                raise RuntimeError(f"{self.fault.file} was imported before its fault was planted")
            plant(repo, self.fault, self.folder)
        self.start, self.pid = time.perf_counter(), os.fork()
        if self.pid:
            return
        status = 70
        try:
            with (self.folder / "log.txt").open("w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            if self.fault is not None:  # from now on imports read the copy
                sys.path.insert(0, str(self.folder))
                sys.modules[PACKAGE].__path__ = [str(self.folder / PACKAGE)]
                os.environ["PYTHONPATH"] = str(self.folder)
            import pytest

            status = int(pytest.main(["-x", "-q", *shlex.split(self.tests)]))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def result_line(self) -> str:
        """The result as a line of text, with the first test that failed."""
        failed = [r for r in self.log.splitlines() if r.startswith("FAILED")]
        noticed_by = (
            failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else f"pytest {self.status}"
        )
        duration = f"{time.perf_counter() - self.start:5.1f} s"
        if self.fault is None:
            return f"without a fault, {self.tests} ends with {self.status}"
        verdict = "noticed  " if self.status == 1 else "UNNOTICED"
        return f"{verdict} {duration}  {self.fault.kind}: {self.fault.wrong}  [{noticed_by}]"


def run_all(jobs: Iterable[Job], repo: Path, cores: int) -> Iterator[Job]:
    """Runs the jobs, `cores` at a time; yields each when it has ended."""
    waiting, running = list(jobs)[::-1], {}
    while waiting or running:
        while waiting and len(running) < cores:
            job = waiting.pop()
            job.fork(repo)
            running[job.pid] = job
        pid, status = os.wait()
        job = running.pop(pid)
        job.status = os.waitstatus_to_exitcode(status)
        yield job
        shutil.rmtree(job.folder)


def module_of(file: str) -> str:
    """The name of the module in this file."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read_table(name: str) -> tuple[Fault, ...]:
    """The faults of "module:NAME"."""
    module, _, attribute = name.partition(":")
    return tuple(getattr(importlib.import_module(module), attribute))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every fault; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--table", default="tests.planted.table:FAULTS", help="module:NAME of the faults"
    )
    parser.add_argument("--jobs", type=int, default=2, help="parallel forks")
    parser.add_argument(
        "--unchecked", action="store_true", help="skip the initial run without faults"
    )
    options = parser.parse_args(arguments)
    faults, start = read_table(options.table), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        folder = Path(name)
        repo = copy_of(REPO, folder / "repo")
        missing = []
        for fault in faults:
            try:
                file_of(repo, fault)
            except LookupError as e:
                missing.append(str(e))
        if missing:
            print("\n".join(missing))
            return 1
        import_toolkits(repo)
        gc.freeze()  # forks then copy fewer pages
        print(f"{len(faults)} faults; imported in {time.perf_counter() - start:.0f} s", flush=True)
        clean = [] if options.unchecked else sorted({f.tests for f in faults})
        jobs = [Job(tests, folder / f"clean-{k}") for k, tests in enumerate(clean)]
        jobs += [Job(f.tests, folder / f"fault-{k}", f) for k, f in enumerate(faults)]
        unexpected = 0
        for job in run_all(jobs, repo, options.jobs):
            # pytest's status 1 means that tests ran and some failed. Others do not show a fault.
            expected = 0 if job.fault is None else 1
            if job.fault is not None or job.status != expected:
                print(job.result_line(), flush=True)
            if job.status not in (0, 1) or (job.fault is None and job.status):
                print(job.log[-4000:], flush=True)
            unexpected += job.status != expected
    took = time.perf_counter() - start
    print(
        f"{len(faults)} faults, {unexpected} runs with another result than expected, {took:.0f} s"
    )
    return int(unexpected > 0)


if __name__ == "__main__":
    sys.exit(main())
