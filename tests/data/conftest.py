"""Fixture: tests of data do not use the user's own image memory, a database of checked images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdep_bench.data import image_memory


@pytest.fixture(autouse=True)
def separate_image_memory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """Uses a temporary image memory unless the test sets KDEP_CACHE."""
    path = tmp_path_factory.getbasetemp() / "images.sqlite"
    real_memory_path = image_memory.memory_path

    def memory_path() -> Path:
        return real_memory_path() if "KDEP_CACHE" in os.environ else path

    monkeypatch.setattr(image_memory, "memory_path", memory_path)
