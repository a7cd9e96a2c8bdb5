"""Fixtures: a tiny image pool of real files, and the real stages that ran on it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kdep_bench.data import views
from kdep_bench.features import align, cache
from kdep_bench.files import write_json

IMAGES, PX, WIDTH = 48, 32, 32  # images of the pool, side of a view in pixels, student's width
TEACHER: dict[str, Any] = dict(
    type="kdep_bench.teachers.efficientnet_lite.EfficientNetLite",
    name="lite0",
    variant=0,
    input_px=32,
)
STUDENT: dict[str, Any] = dict(
    name="r18_w4",
    backbone=dict(type="mmpretrain.ResNet", depth=18, base_channels=4, stem_channels=4),
    width=WIDTH,
    input_px=PX,
    tap="last_pre_activation",
)
VIEWS: dict[str, Any] = dict(views=2, px=PX, seed=0, scale=[0.4, 1.0], ratio=[0.75, 1.33])
BUDGET: dict[str, Any] = dict(
    epochs=4,
    batch=16,
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4),
    schedule="cosine",
    warmup=0.1,
)


def silent(*_: Any) -> None:
    """A progress callback that prints nothing."""


def make_pool(root: Path, images: int = IMAGES) -> Path:
    """Writes images of 40 pixels with a square as a `prepare` stage does; returns `root`.

    The label of an image is the colour of its square: blue, green and red in turn.
    """
    rng = np.random.default_rng(0)
    labels = {}
    pool = root / "data" / "pool" / "images" / "00"
    pool.mkdir(parents=True)
    for i in range(images):
        image = cv2.resize(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8), (40, 40))
        image[8:32, 8:32, i % 3] = 255
        cv2.imwrite(str(pool / f"{i:06d}.jpg"), image)
        labels[f"00/{i:06d}.jpg"] = i % 3
    table = {"classes": ["b", "g", "r"], "labels": labels}
    write_json(root / "data" / "pool" / "labels.json", table)
    return root


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of finished stages: prepare, views, cache, align."""
    root = tmp_path_factory.mktemp("stages")
    folders = {"prepare": make_pool(root / "prepare")}
    for kind, function, spec in (
        ("views", views.run, VIEWS),
        ("cache", cache.run, {"teacher": TEACHER, "batch": 16}),
        ("align", align.run, dict(width=WIDTH, share=1.0, share_seed=0, align={"type": "svd"})),
    ):
        out = root / kind
        out.mkdir()
        function(spec, folders, out, silent)
        folders[kind] = out
    return folders
