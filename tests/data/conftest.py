"""Tests of data leave the user's own memory of images alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdep_bench.data import image_memory


@pytest.fixture(autouse=True)
def _own_image_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path_factory.getbasetemp() / "images.sqlite"
    given = image_memory.memory_path

    def inside() -> Path:
        return given() if "KDEP_CACHE" in os.environ else path

    monkeypatch.setattr(image_memory, "memory_path", inside)
