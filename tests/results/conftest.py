"""Fixtures of the tests of results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kdep_bench.results.records import store
from kdep_bench.results.records.record import Record


@pytest.fixture
def results(tmp_path: Path) -> Callable[[Iterable[Record]], Path]:
    """A function that writes records into a results folder and returns the folder."""

    def fill(records: Iterable[Record], name: str = "golden") -> Path:
        """Writes the records into the folder `name`, which may have other records already."""
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for r in records:
            store.write(folder, r)
        return folder

    return fill
