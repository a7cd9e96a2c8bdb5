"""The verdict on a claim, and the claims in a folder of configs."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdep_bench.errors import KdepError
from kdep_bench.results.statistics.intervals import Estimate

Ruling = Literal["supported", "refuted", "undecided", "not testable here"]
NOT_TESTABLE: Ruling = "not testable here"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a claim for one student and scope (a task family or all tasks).

    `interval`, `threshold` and `cost` (ratio) are formatted for tables. `seeds_to_decide`: seeds
    needed for power 0.8; None where that is unknown.
    """

    name: str
    title: str
    student: str
    scope: str
    verdict: Ruling
    interval: str
    threshold: str
    cost: str
    seeds_to_decide: int | None
    reason: str
    statement: str = ""
    source: str = ""
    p: float | None = None  # two-sided, of a true value at the threshold; None without an interval
    limit: str = ""  # "for one pre-trained network" where all scores have one pre-training seed
    difference: Estimate | None = None  # of kind `difference`: measured, scores from 0 to 1

    @property
    def shown(self) -> str:
        """The verdict with its limit, for tables."""
        return f"{self.verdict} ({self.limit})" if self.limit else self.verdict


def headlines(verdicts: list[Verdict]) -> list[Verdict]:
    """One verdict per claim and student: over all tasks, or over the only family."""
    last = {(v.name, v.student): v for v in verdicts}  # `judge` puts the widest scope last
    return list(last.values())


def load_config(path: Path) -> dict[str, Any]:
    """The dict `claim` of a claim config.

    Raises:
        KdepError: the file raises, or defines no `claim`.
    """
    try:
        if "read_base" in path.read_text():
            from mmengine.config import Config  # only here: importing it costs half a second

            return dict(Config.fromfile(path).to_dict()["claim"])
        return dict(runpy.run_path(str(path))["claim"])
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # a config is code and may raise anything, even SystemExit
        raise KdepError(
            f"the claim config {path} cannot be used ({type(e).__name__}: {e})",
            expected="a Python file that defines claim = dict(...)",
            fix="correct the file",
        ) from None


def load_folder(folder: Path) -> list[dict[str, Any]]:
    """Every claim of a folder of configs, by file name."""
    return [load_config(p) for p in sorted(folder.glob("*.py")) if not p.name.startswith("_")]
