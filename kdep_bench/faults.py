"""Collects faults; one error lists the first of each kind and counts the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from kdep_bench.errors import KdepError

MAX_LISTED = 10  # maximum number of faults that one error lists
MAX_PER_KIND = 2  # maximum number of listed faults of the same kind


class Faults:
    """A list of faults grouped by kind, without duplicates.

    Args:
        by_fix: whether faults that are added without a kind are of one kind if they have the same
            fix; otherwise each is a kind of its own.
    """

    def __init__(self, *, by_fix: bool = False) -> None:
        self._by_fix = by_fix
        self._kinds: dict[str, dict[str, KdepError]] = {}

    def add(self, fault: KdepError, kind: str = "") -> None:
        """Adds a fault, or all that it lists; only MAX_PER_KIND of the same `kind` are listed."""
        for single in fault.faults or (fault,):
            own_kind = (single.fix if self._by_fix else "") or str(single)
            self._kinds.setdefault(kind or own_kind, {})[str(single)] = single

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
        """Raises the error of `error`, if there are any faults."""
        if (error := self.error(subject)) is not None:
            raise error

    def error(self, subject: str) -> KdepError | None:
        """One KdepError that lists the faults of `subject`, the only fault itself, or None."""
        if len(self) == 1:
            return next(iter(next(iter(self._kinds.values())).values()))
        if not len(self):
            return None
        lines: list[str] = []
        n_reported = 0  # faults that are listed, or counted behind a listed fault of their kind
        for same_kind in self._kinds.values():
            listed = list(same_kind)[: min(MAX_PER_KIND, MAX_LISTED - len(lines))]
            if not listed:
                break
            lines += [f"\n  {n}. {text}" for n, text in enumerate(listed, len(lines) + 1)]
            if len(same_kind) > len(listed):
                lines[-1] += f" ({len(same_kind) - len(listed)} more of this kind)"
            n_reported += len(same_kind)
        if n_left := len(self) - n_reported:
            faults = "fault" if n_left == 1 else "faults"
            lines.append(f"\n  and {n_left} more {faults}, shown once these are fixed")
        error = KdepError(f"{subject} has {len(self)} faults:" + "".join(lines))
        error.faults = tuple(fault for faults in self._kinds.values() for fault in faults.values())
        return error
