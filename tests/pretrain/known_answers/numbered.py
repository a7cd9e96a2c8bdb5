"""Numbered images, a teacher whose output is read off its pictures, objectives that keep a log.

Image i has the red value 16 * i + 8 everywhere; green rises from left to right and blue from top to
bottom, so that a view (crop and flip) can be told from every other one by a few means.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kdep_bench.data import views
from kdep_bench.features import cache
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.mean_teacher import MeanTeacher
from kdep_bench.teachers.base import Teacher, TeacherOutput
from tests.pretrain.conftest import STUDENT, silent

IMAGES, VIEWS, SOURCE_PX, PX, TEACHER_PX = 12, 2, 96, 32, 16
# ImageNet's, in full: the code under test must not lend its own.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LABELS = [(5 * i + 3) % IMAGES for i in range(IMAGES)]
TOLERANCE = 2.5  # of 255: rounding of two resizes of one crop
BUDGET: dict[str, Any] = dict(
    epochs=4, batch=4, optimizer=dict(type="SGD", lr=0.01), schedule="cosine"
)


def means(pictures: Tensor) -> Tensor:
    """[B, 3, H, W] of 0..255 -> [B, 5]: red; green left and right; blue above and below."""
    h, w = pictures.shape[2] // 2, pictures.shape[3] // 2
    x = pictures.float()
    parts = (
        x[:, 0],
        x[:, 1, :, :w],
        x[:, 1, :, w:],
        x[:, 2, :h],
        x[:, 2, h:],
    )
    return torch.stack([p.mean((1, 2)) for p in parts], 1)


class Reader(Teacher):
    """Feature: the `means` of its pictures; logits: twice that."""

    name, width, input_px, has_logits, tap = "reader", 5, TEACHER_PX, True, "means"

    def __init__(self) -> None:
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.factor = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        pooled = means(x_B3HW)
        return TeacherOutput(pooled, pooled * self.factor)


TEACHER: dict[str, Any] = dict(type=f"{__name__}.Reader")


def prepare(root: Path) -> dict[str, Path]:
    """Finished stages: prepare, views and cache, the last two by the real code."""
    pool = root / "prepare/data/pool"
    ramp = np.broadcast_to(np.linspace(0, 255, SOURCE_PX), (SOURCE_PX, SOURCE_PX))
    labels = {}
    for i in range(IMAGES):
        red = np.full_like(ramp, 16 * i + 8)
        # Sub-folders and names are not in the order in which they are written.
        name = f"{i % 2}/{i:02}.png" if i else "0/00.png"
        path = pool / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack([red, ramp, ramp.T], 2).round().astype(np.uint8)).save(path)
        labels[name] = LABELS[i]
    # In another order than that of the files, which the labels must not be read by.
    table = dict(sorted(labels.items(), key=lambda kv: kv[1]))
    classes = [f"c{i}" for i in range(IMAGES)]
    (pool / "labels.json").write_text(json.dumps({"classes": classes, "labels": table}))
    done = {"prepare": root / "prepare"}
    recipe = dict(views=VIEWS, px=PX, seed=5, scale=[0.3, 1.0], ratio=[0.75, 1.33])
    for kind, function, spec in (
        ("views", views.run, recipe),
        ("cache", cache.run, {"teacher": TEACHER, "batch": 5, "outputs": ["logits"]}),
    ):
        (root / kind).mkdir()
        function(spec, done, root / kind, silent)
        done[kind] = root / kind
    return done


class Log(Objective):
    """Notes what each step reads; the loss is that of a feature of zero, with dropout."""

    needs = frozenset({"labels", "pooled", "logits"})
    seen: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        note(self.seen, ctx)
        return {"a": self.drop(ctx.before).square().mean(1)}


class Apart(Log):
    """The same without labels."""

    needs = frozenset({"pooled", "logits"})


def note(seen: list[dict[str, Any]], ctx: Context) -> None:
    assert ctx.images is not None
    assert ctx.rows is not None
    mean, std = (ctx.images.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    teacher_output = ctx.teacher
    seen.append(
        dict(
            step=ctx.step,
            rows=ctx.rows.tolist(),
            pictures=means(ctx.images * std + mean).tolist(),
            labels=None if ctx.labels is None else ctx.labels.tolist(),
            pooled=None if teacher_output is None else teacher_output.pooled.tolist(),
            logits=None
            if teacher_output is None or teacher_output.logits is None
            else teacher_output.logits.tolist(),
        )
    )


class Readable(nn.Module):
    """In place of the average of the student: `means` of its images, as (before, after)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        out = means(x * std + mean)
        return out, out


class ReadableMeanTeacher(MeanTeacher):
    """A mean teacher whose opinion of a picture can be computed by hand; see `Readable`."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def attach(self, student: nn.Module, another: Callable[[], nn.Module]) -> None:
        super().attach(student, another)
        self.teacher = Readable(self.teacher.get_submodule("backbone"))
        self.teacher.requires_grad_(False)
        self.teacher_head = nn.Linear(5, IMAGES)
        self.teacher_head.requires_grad_(False)
        with torch.no_grad():
            self.teacher_head.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
            self.teacher_head.bias.zero_()

    def after_step(self) -> None:
        """The opinion must stay what it is."""

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        note(self.seen, ctx)
        self.seen[-1]["opinion"] = self.opinion(ctx)
        self.seen[-1]["head"] = self.teacher_head.weight.clone()
        return super().terms(ctx)


def method(kind: type[Objective], labels: bool = True, **objective: Any) -> dict[str, Any]:
    return dict(
        name="log",
        labels_used=labels,
        objective=dict(type=f"{__name__}.{kind.__name__}", **objective),
        transform=None,
    )


def spec(**more: Any) -> dict[str, Any]:
    one = dict(student=STUDENT, method=method(Log), budget=BUDGET, share=1.0, share_seed=0, seed=3)
    return one | more


def expected_rows(
    images: np.ndarray, seed: int, samples: int, together: bool = False
) -> list[list[int]]:
    """The documented sequence: epoch e is default_rng([seed, e])'s permutation, view e mod V.

    With `together` the views of an image follow each other.
    """
    rows: list[int] = []
    for epoch in range(samples):
        order = np.random.default_rng([seed, epoch]).permutation(images)
        for image in order:
            which = range(VIEWS) if together else [epoch % VIEWS]
            rows += [int(image) * VIEWS + view for view in which]
    batch = BUDGET["batch"]
    return [rows[i : i + batch] for i in range(0, samples, batch)]
