"""Writes the best student of a search as a student config."""

from __future__ import annotations

from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.files import write_atomic
from kdep_bench.search.config import Search
from kdep_bench.search.log import Trial
from kdep_bench.students.python_text import python_text
from kdep_bench.suite.config import read_config


def write(search: Search, trial: Trial, folder: Path, metric: str) -> tuple[Path, bool]:
    """Writes the config of a trial's student to `folder`; returns (path, whether it is new).

    An existing file that defines the same student is not changed. The docstring of the config
    contains `metric`, the name of the metric.

    Raises:
        KdepError: the file exists and defines another student.
    """
    student = search.space.member(trial.proposal).student()
    path = folder / f"{student['name']}.py"
    if path.exists():
        if read_config(path).get("student") == student:
            return path, False
        raise KdepError(
            f"the file {path} exists and defines another student than the best of the search",
            fix="choose another folder with --out; the file is not changed",
        )
    write_atomic(path, config_text(search, trial, metric))
    return path, True


def config_text(search: Search, trial: Trial, metric: str) -> str:
    """The Python source of the config."""
    student = search.space.member(trial.proposal).student()
    file = search.file
    source = f"\nSource: {file.source}." if file.source else ""
    method = python_text(search.method(trial.proposal))
    return (
        f'"""{trial.params:,} parameters: the best student of the search `{search.name}`.\n\n'
        f"Trial {trial.trial} by {file.sampler}, seed {file.seed}: {metric} "
        f"{trial.scores[-1]:.6g} on the validation split (epochs: {trial.epochs:g});\n"
        f"{trial.flops:,} FLOPs at {student['input_px']} px.{source}\n\n"
        f"The search pre-trained it with this entry of a suite's `methods`:\n\n{method}\n"
        f'"""\n\nstudent = {python_text(student)}\n'
    )
