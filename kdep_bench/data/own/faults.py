"""Collects the faults of a data set; one error lists the first of each kind and counts the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdep_bench.errors import KdepError

SHOWN = 10  # maximum number of faults that one error lists
ALIKE = 2  # maximum number of listed faults of the same kind


class Faults:
    """A list of faults grouped by kind, without duplicates."""

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
        n_reported = 0  # faults that are listed, or counted behind a listed fault of their kind
        for same_kind in self._kinds.values():
            listed = list(same_kind)[: min(ALIKE, SHOWN - len(lines))]
            if not listed:
                break
            lines += [f"\n  {n}. {text}" for n, text in enumerate(listed, len(lines) + 1)]
            if len(same_kind) > len(listed):
                lines[-1] += f" ({len(same_kind) - len(listed)} more of this kind)"
            n_reported += len(same_kind)
        if n_left := len(self) - n_reported:
            faults = "fault" if n_left == 1 else "faults"
            lines.append(f"\n  and {n_left} more {faults}, shown once these are fixed")
        raise KdepError(f"{subject} has {len(self)} faults:" + "".join(lines))
