"""A search whose scores have a closed form; as a script, it is a slow process that a test kills."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from kdep_bench.search.config import Search, SearchFile
from kdep_bench.search.log import Header, Trial, make_header
from kdep_bench.search.run import Score, run

DEPTHS, LRS = [1, 2, 3, 4], [0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8]


def search(**changes: Any) -> Search:
    """A search over depth3, width, stem, n and lr; the largest width is above the limit."""
    raw: dict[str, Any] = dict(
        name="toy",
        family=dict(type="kdep_bench.students.space.ResNetFamily", input_px=64),
        space=[
            dict(key="student.depth3", values=DEPTHS),
            dict(key="student.width", values=[8, 16, 24, 32, 48]),
            dict(key="student.stem", values=["7x7", "3x3"]),
            dict(key="method.transform.n", values=[1.0, 2.0, 3.0, 4.0, 5.0, 7.0]),
            dict(key="method.optimizer.lr", values=LRS),
        ],
        limits=dict(params=5_000_000),
        data="smoke",
        method="kdep",
        task="smoke_probe",
        budget=dict(batch=32),
        halving=dict(epochs=1.0, factor=3, rungs=3),
        trials=12,
    )
    return Search(SearchFile.model_validate(raw | changes))


def score_of(proposal: dict[str, Any]) -> float:
    """The score of a proposal: largest at depth 3, width 24, stem 3x3, n = 3 and lr = 0.1."""
    return (
        -abs(proposal["student.depth3"] - 3)
        - abs(proposal["student.width"] - 24) / 8
        - (proposal["student.stem"] == "7x7")
        - abs(proposal["method.transform.n"] - 3)
        - abs(LRS.index(proposal["method.optimizer.lr"]) - 3)
    )


def evaluate(proposal: dict[str, Any], epochs: float, size: Any) -> Score:
    """The score of the proposal after these epochs; more epochs give a higher score."""
    return Score(score_of(proposal) - 1 / epochs, {"transfer": f"t-{epochs:g}"})


def header(searched: Search, direction: str = "max") -> Header:
    """The header of the search's log."""
    settings = {
        "space": {d.key: list(d.values) for d in searched.space.dimensions},
        "seed": searched.file.seed,
        "direction": direction,
        "metric": "top1",
        "split": "val",
    }
    return make_header(searched.name, settings)


def run_search(
    searched: Search, path: Path, scores: Any = evaluate, direction: str = "max"
) -> list[Trial]:
    """The trials of the search, logged at `path`."""
    return run(searched, path, header(searched, direction), scores, lambda line: None)


if __name__ == "__main__":  # argument: the log's path

    def slow(proposal: dict[str, Any], epochs: float, size: Any) -> Score:
        """`evaluate` after 0.05 s, so that the process can be killed during the search."""
        time.sleep(0.05)
        return evaluate(proposal, epochs, size)

    run_search(search(), Path(sys.argv[1]), slow)
