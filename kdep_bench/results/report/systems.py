"""Builds results/methods.md: the systems of the literature, with configs, scores and sources.

A system is a published approach, implemented here as a method, a search, a probe or a suite.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdep_bench.errors import KdepError
from kdep_bench.files import write_atomic
from kdep_bench.results import text
from kdep_bench.results.report.glossary import REIMPLEMENTATION
from kdep_bench.results.report.markdown import md_table

SYSTEMS = Path(__file__).with_name("systems.toml")
SUITE = "methods_pocket"  # the suite whose scores are shown
HEAD = ("system", "state", "config", "labels", "source", "mean score", "step time / kdep")
INTRODUCTION = f"""# Published approaches and their configs

Each approach of the literature that this project compares (a system), with its configs: methods,
searches, probes or suites. Written by `python tools/report.py --index results` from the configs,
the published scores and `kdep_bench/results/report/systems.toml`.

* state: *implemented* from the paper or the authors' code; *re-implementation*: {REIMPLEMENTATION};
  *partly implemented* and *not implemented*, with what is missing.
* config: name of a method config; with the prefix `search:`, `probe:` or `suite:`, of a search, a
  probe or a suite. An approach with several configs has one row for each.
* labels: whether the method uses image labels.
* mean score: mean x100 over the tasks of [{SUITE}]({SUITE}/leaderboard.md). That leaderboard has
  the intervals: differences of a few points are not significant.
* step time / kdep: mean time of an optimiser step in that suite, divided by that of kdep.
* A dash: the config was not run in that suite, or the column does not apply to it.
"""


class System(NamedTuple):
    """A system of the literature; `missing`: the part that is not implemented."""

    name: str
    configs: tuple[str, ...]
    missing: str


class Score(NamedTuple):
    """Mean over the tasks, as a fraction, and the step time divided by KDEP's (None: not known)."""

    mean: float
    step_time: float | None


def read_systems(path: Path = SYSTEMS) -> list[System]:
    """The systems of the file, in its order."""
    listed = tomllib.loads(path.read_text(encoding="utf-8"))["system"]
    return [System(s["system"], tuple(s["configs"]), s.get("missing", "")) for s in listed]


def published_scores(leaderboard: Path) -> dict[str, Score]:
    """Scores by method of a leaderboard.csv; a method with a missing task has none.

    Raises:
        KdepError: there is no such file.
    """
    if not leaderboard.is_file():
        raise KdepError(
            f"{leaderboard} does not exist",
            expected=f"the published leaderboard of {SUITE}",
            fix=f"run: kdep-bench report {leaderboard.parent}",
        )
    with leaderboard.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    tasks = {line["task"] for line in lines}
    scores = {}
    for method in sorted({line["method"] for line in lines}):
        by_task = {x["task"]: x for x in lines if x["method"] == method and x["mean"]}
        if by_task.keys() == tasks:
            mean = sum(float(line["mean"]) for line in by_task.values()) / len(tasks)
            step_time = next(iter(by_task.values()))["step_time_over_kdep"]
            scores[method] = Score(mean, float(step_time) if step_time else None)
    return scores


def systems_page(
    systems: Iterable[System], configs: Mapping[str, Mapping[str, Any]], scores: Mapping[str, Score]
) -> str:
    """The text of methods.md.

    Args:
        systems: from `read_systems`.
        configs: {name: config} of methods, "probe:NAME" and "search:NAME". Read keys: `source`,
            `labels_used`, and `reconstruction` (in searches it is called `reimplementation`).
            Names of suites ("suite:NAME") are not in it.
        scores: from `published_scores`.
    """
    rows = []
    for system in systems:
        if not system.configs:
            rows.append((system.name, f"not implemented: {system.missing}", *("",) * 5))
        for k, name in enumerate(system.configs):
            config, score = configs.get(name, {}), scores.get(name)
            rows.append(
                (
                    system.name if k == 0 else "",
                    _state(system, config),
                    f"`{name}`",
                    _yes_or_no(config.get("labels_used")),
                    text.md(config.get("source", ""), 400),
                    text.points(score.mean if score else None),
                    text.ratio(score.step_time if score else None),
                )
            )
    return "\n".join([INTRODUCTION, *md_table(HEAD, rows, left=5), ""])


def write_methods_page(root: Path, configs: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes methods.md into `root`, the folder of published suites."""
    path = root / "methods.md"
    scores = published_scores(root / SUITE / "leaderboard.csv")
    write_atomic(path, systems_page(read_systems(), configs, scores))
    return path


def _state(system: System, config: Mapping[str, Any]) -> str:
    if config.get("reconstruction") or config.get("reimplementation"):  # the key of searches
        return "re-implementation"
    return f"partly implemented; missing: {system.missing}" if system.missing else "implemented"


def _yes_or_no(value: bool | None) -> str:
    return "—" if value is None else "yes" if value else "no"
