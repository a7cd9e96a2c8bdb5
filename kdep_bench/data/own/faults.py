"""Collects the faults of a data set, so that one run reports all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdep_bench.errors import KdepError

SHOWN = 10  # maximum number of faults that one error lists
ALIKE = 2  # maximum number of listed faults of the same kind


class Faults:
    """A list of faults in order of discovery, without duplicates."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, KdepError]] = {}

    def add(self, fault: KdepError, kind: str = "") -> None:
        """Adds a fault; the error lists only the first ALIKE faults of the same `kind`."""
        self._kinds.setdefault(kind or str(fault), {})[str(fault)] = fault

    @contextlib.contextmanager
    def collect(self, kind: str = "") -> Iterator[None]:
        """Context manager: adds a KdepError raised in its block instead of raising it."""
        try:
            yield
        except KdepError as fault:
            self.add(fault, kind)

    def __len__(self) -> int:
        return sum(len(faults) for faults in self._kinds.values())

    def raise_any(self, subject: str) -> None:
        """Raises one KdepError that lists the faults of `subject`, if there are any."""
        if len(self) == 1:
            raise next(iter(next(iter(self._kinds.values())).values()))
        if not len(self):
            return
        lines: list[str] = []
        shown = 0
        for same_kind in self._kinds.values():
            for sentence in list(same_kind)[:ALIKE]:
                if len(lines) < SHOWN:
                    lines.append(f"\n  {len(lines) + 1}. {sentence}")
                    shown += 1
            if len(same_kind) > ALIKE and len(lines) <= SHOWN:
                lines[-1] += f" ({len(same_kind) - ALIKE} more of this kind)"
                shown += len(same_kind) - ALIKE
        if len(self) > shown:
            lines.append(f"\n  and {len(self) - shown} more faults, shown once these are fixed")
        raise KdepError(f"{subject} has {len(self)} faults:" + "".join(lines))
