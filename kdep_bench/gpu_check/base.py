"""What a check is, what it returns, and where its figures go while it runs. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdep_bench.files import write_json

Json = dict[str, Any]
# Modules of this package that are no checks.
_OTHERS = {"__init__", "base", "machine", "pack", "report", "run", "synthetic"}


@dataclass(frozen=True)
class Setting:
    """What every check is given.

    Attributes:
        device: "cuda" or "cpu".
        gpus: device numbers that the checks may use.
        quick: shrunk sizes, to show on a CPU that every line runs; its figures mean nothing.
        folder: where the check may write.
        shared: where checks leave what the next ones use too.
        partial: file that holds what was measured so far, for a check that is interrupted.
    """

    device: str
    gpus: tuple[str, ...]
    quick: bool
    folder: Path
    shared: Path
    partial: Path


@dataclass
class Outcome:
    """What a check measured.

    Attributes:
        claims: rows {"what", "measured", "bound", "ok"}: what must hold, and whether it does.
        figures: rows {"what", "value", "unit"}: what was measured for people to read.
    """

    setting: Setting
    claims: list[Json] = field(default_factory=list)
    figures: list[Json] = field(default_factory=list)

    def claim(self, what: str, ok: bool, measured: Any, bound: str) -> None:
        """Notes whether `what` holds, and writes all so far to the setting's partial file."""
        self.claims.append({"what": what, "ok": bool(ok), "measured": measured, "bound": bound})
        self._save()

    def figure(self, what: str, value: float, unit: str) -> None:
        """Notes a figure, and writes all so far to the setting's partial file."""
        self.figures.append({"what": what, "value": float(value), "unit": unit})
        self._save()

    def _save(self) -> None:
        write_json(self.setting.partial, {"claims": self.claims, "figures": self.figures})


@dataclass(frozen=True)
class Check:
    """One check, one module of this package, which defines it as CHECK.

    Attributes:
        title: for the table.
        order: checks run by rising order, the most valuable first.
        seconds: what it may take on a GPU; it is ended then, and what it measured is kept.
        least: seconds below which it is not begun.
        run: (setting, outcome) -> None. Raises KdepError for what cannot be checked.
    """

    title: str
    order: int
    seconds: float
    least: float
    run: Callable[[Setting, Outcome], None]


def checks() -> dict[str, Check]:
    """All checks by module name, in the order they run; importing them imports no torch."""
    names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _OTHERS)
    found = {n: importlib.import_module(f"kdep_bench.gpu_check.{n}").CHECK for n in names}
    return dict(sorted(found.items(), key=lambda item: item[1].order))
