"""The stage that renders fixed views: what it needs before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kdep_bench.data import views
from kdep_bench.data.official import tiny
from kdep_bench.errors import KdepError

SPEC = {"views": 3, "px": 16, "seed": 0, "scale": [0.3, 1.0], "ratio": [0.75, 4 / 3]}


@pytest.fixture
def prepared(tmp_path: Path) -> dict[str, Path]:
    for i in range(2):
        picture = tiny.picture(np.random.default_rng(i))
        tiny.save(tmp_path / "p/data/pool/images" / f"{i}.png", picture)
    return {"prepare": tmp_path / "p"}


def test_the_bytes_forecast_are_the_bytes_written(prepared: dict[str, Path], tmp_path: Path):
    told = views.run(SPEC, prepared, tmp_path, lambda *_: None)
    assert told["bytes"] == views.pixel_bytes(2, 3, 16) == 2 * 3 * 16 * 16 * 3


def test_a_disk_without_room_is_refused_before_a_byte_is_written(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4607))
    with pytest.raises(KdepError, match="2 images, 3 of each at 16 px, take"):
        views.run(SPEC, prepared, out, lambda *_: None)
    assert not list(out.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4608))
    assert views.run(SPEC, prepared, out, lambda *_: None)["rows"] == 6
