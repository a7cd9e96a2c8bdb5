"""The verdict on a claim, and the claims in a folder of configs."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdep_bench.errors import KdepError
from kdep_bench.results.statistics.intervals import Estimate

Ruling = Literal["supported", "refuted", "undecided", "not testable here"]
Kind = Literal["difference", "efficiency", "rank_correlation"]
NOT_TESTABLE: Ruling = "not testable here"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a claim for one student and one scope.

    Attributes:
        scope: a task family, or "all tasks".
        interval, threshold, cost: texts for tables: the measured value, the threshold and the cost
            ratio.
        seeds_to_decide: number of seeds that would decide the claim with power 0.8; None if the
            number is unknown or the claim is decided.
        reason: basis of the verdict.
        p: two-sided p value of the hypothesis that the true value is the threshold; None without an
            interval, for a rank correlation, and for a verdict on a cost ratio.
        limit: "for one pre-trained network" if all scores have one pre-training seed.
        difference: the measured difference, a fraction, of a claim of kind `difference`.
        kind: the kind of the claim (see `judge.py`).
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
    p: float | None = None
    limit: str = ""
    difference: Estimate | None = None
    kind: Kind = "difference"

    @property
    def label(self) -> str:
        """The verdict and its limit as text for tables."""
        return f"{self.verdict} ({self.limit})" if self.limit else self.verdict


def headlines(verdicts: list[Verdict]) -> list[Verdict]:
    """One verdict per claim and student: that over all tasks, or over the only task family."""
    widest = {(v.name, v.student): v for v in verdicts}  # the widest scope is the last in `judge`
    return list(widest.values())


def load_config(path: Path) -> dict[str, Any]:
    """The dict `claim` of a claim config.

    Raises:
        KdepError: running the file raises an exception, or the file does not define `claim`.
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
            fix="correct that file",
        ) from None


def load_folder(folder: Path) -> list[dict[str, Any]]:
    """The claims of all configs in a folder, sorted by file name."""
    return [load_config(p) for p in sorted(folder.glob("*.py")) if not p.name.startswith("_")]
