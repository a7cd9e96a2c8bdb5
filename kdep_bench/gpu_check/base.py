"""The classes of checks: definition, input and output. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdep_bench.files import write_json

Json = dict[str, Any]
# Modules of this package that do not define a check.
_NOT_CHECKS = {"__init__", "base", "machine", "pack", "report", "run", "synthetic"}


@dataclass(frozen=True)
class Setting:
    """Input of a check.

    Attributes:
        device: "cuda" or "cpu".
        gpus: device numbers that the checks may use.
        quick: whether to use tiny sizes, which only test that every check runs; the figures then
            mean nothing.
        folder: folder for the files of the check.
        shared: folder of stages that several checks use.
        partial: file to which every measurement is written immediately, so that the measurements
            of an interrupted check are kept.
    """

    device: str
    gpus: tuple[str, ...]
    quick: bool
    folder: Path
    shared: Path
    partial: Path


@dataclass
class Measurements:
    """Output of a check.

    Attributes:
        setting: the input of the check.
        claims: rows {"what", "measured", "bound", "ok"}: name, measured value, bound, and whether
            the value is within the bound.
        figures: rows {"what", "value", "unit"}: measurements without a bound.
    """

    setting: Setting
    claims: list[Json] = field(default_factory=list)
    figures: list[Json] = field(default_factory=list)

    def claim(self, name: str, ok: bool, measured: Any, bound: str) -> None:
        """Adds a measurement with a bound, and writes all measurements to the partial file."""
        self.claims.append({"what": name, "ok": bool(ok), "measured": measured, "bound": bound})
        self._save()

    def figure(self, name: str, value: float, unit: str) -> None:
        """Adds a measurement without a bound, and writes all to the partial file."""
        self.figures.append({"what": name, "value": float(value), "unit": unit})
        self._save()

    def _save(self) -> None:
        write_json(self.setting.partial, {"claims": self.claims, "figures": self.figures})


@dataclass(frozen=True)
class Check:
    """A check; every check module of this package has one as the constant CHECK.

    Attributes:
        title: name in the report.
        order: checks run in ascending order, the most important first.
        seconds: time limit (four times as long in a quick run). A check that reaches it is ended;
            its measurements are kept.
        min_seconds: the check is left out if fewer seconds of the time budget remain.
        run: function (setting, measurements) that fills the measurements; it raises KdepError if
            the check cannot be done.
    """

    title: str
    order: int
    seconds: float
    min_seconds: float
    run: Callable[[Setting, Measurements], None]


def checks() -> dict[str, Check]:
    """All checks by module name, in the order in which they run. Imports no torch."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _NOT_CHECKS)
    by_name = {n: importlib.import_module(f"kdep_bench.gpu_check.{n}").CHECK for n in names}
    return dict(sorted(by_name.items(), key=lambda item: item[1].order))
