"""Helpers: images that show their number, a teacher that returns image means, recording objectives.

Image i has the red value 16 * i + 8 everywhere; green rises from left to right and blue from top to
bottom. The means of a view (crop and flip) therefore identify it.
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

IMAGES, VIEWS = 12, 2  # images of the pool, views per image
SOURCE_PX, PX, TEACHER_PX = 96, 32, 16  # sides of files, of the student's and the teacher's images
# ImageNet's, repeated here so that the test does not depend on the constants under test.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LABELS = [(5 * i + 3) % IMAGES for i in range(IMAGES)]  # of the images, all different
TOLERANCE = 2.5  # of 255: rounding in two resizes of the same crop
BUDGET: dict[str, Any] = dict(
    epochs=4, batch=4, optimizer=dict(type="SGD", lr=0.01), schedule="cosine"
)


def means(images: Tensor) -> Tensor:
    """[B, 5] means of images [B, 3, H, W] of 0..255.

    Of red; of green in the left and the right half; of blue in the upper and the lower half.
    """
    h, w = images.shape[2] // 2, images.shape[3] // 2
    x = images.float()
    parts = (x[:, 0], x[:, 1, :, :w], x[:, 1, :, w:], x[:, 2, :h], x[:, 2, h:])
    return torch.stack([part.mean((1, 2)) for part in parts], 1)


class Reader(Teacher):
    """A teacher whose feature is the `means` of its images and whose logits are twice that."""

    name, width, input_px, has_logits, tap = "reader", 5, TEACHER_PX, True, "means"

    def __init__(self) -> None:
        super().__init__((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.factor = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """The means as pooled feature, and the logits."""
        pooled = means(x_B3HW)
        return TeacherOutput(pooled, pooled * self.factor)


TEACHER: dict[str, Any] = dict(type=f"{__name__}.Reader")


def prepare(root: Path) -> dict[str, Path]:
    """Folders of finished stages: prepare, and views and cache made by the real code."""
    pool = root / "prepare/data/pool"
    rising = np.broadcast_to(np.linspace(0, 255, SOURCE_PX), (SOURCE_PX, SOURCE_PX))
    labels = {}
    for i in range(IMAGES):
        red = np.full_like(rising, 16 * i + 8)
        # So that the order of the names is not the order of the numbers.
        name = f"{i % 2}/{i:02}.png"
        path = pool / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.stack([red, rising, rising.T], 2).round().astype(np.uint8)
        Image.fromarray(pixels).save(path)
        labels[name] = LABELS[i]
    # Labels must be looked up by name: their order differs from that of the files.
    table = dict(sorted(labels.items(), key=lambda item: item[1]))
    classes = [f"c{i}" for i in range(IMAGES)]
    (pool / "labels.json").write_text(json.dumps({"classes": classes, "labels": table}))
    folders = {"prepare": root / "prepare"}
    recipe = dict(views=VIEWS, px=PX, seed=5, scale=[0.3, 1.0], ratio=[0.75, 1.33])
    for kind, function, spec in (
        ("views", views.run, recipe),
        ("cache", cache.run, {"teacher": TEACHER, "batch": 5, "outputs": ["logits"]}),
    ):
        (root / kind).mkdir()
        function(spec, folders, root / kind, silent)
        folders[kind] = root / kind
    return folders


class Log(Objective):
    """Records what each step reads; the loss is the feature's mean square, with dropout."""

    needs = frozenset({"labels", "pooled", "logits"})
    seen: ClassVar[list[dict[str, Any]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Records the step; a term that reads only the student."""
        append_step(self.seen, ctx)
        return {"a": self.drop(ctx.pre_activation).square().mean(1)}


class LogWithoutLabels(Log):
    """Like `Log`, without labels."""

    needs = frozenset({"pooled", "logits"})


def append_step(seen: list[dict[str, Any]], ctx: Context) -> None:
    """Appends what a step reads: rows, image means, labels, and the teacher's outputs."""
    assert ctx.images is not None
    assert ctx.rows is not None
    mean, std = (ctx.images.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    teacher_output = ctx.teacher
    seen.append(
        dict(
            step=ctx.step,
            rows=ctx.rows.tolist(),
            image_means=means(ctx.images * std + mean).tolist(),
            labels=None if ctx.labels is None else ctx.labels.tolist(),
            pooled=None if teacher_output is None else teacher_output.pooled.tolist(),
            logits=None
            if teacher_output is None or teacher_output.logits is None
            else teacher_output.logits.tolist(),
        )
    )


class MeansNetwork(nn.Module):
    """Replaces the mean teacher's network; its features are the `means` of its images."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 5] before and after the last activation, which are equal."""
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        out = means(x * std + mean)
        return out, out


class ReadableMeanTeacher(MeanTeacher):
    """A mean teacher whose output for an image can be computed by hand; see `MeansNetwork`."""

    seen: ClassVar[list[dict[str, Any]]] = []

    def attach(self, student: nn.Module, new_network: Callable[[], nn.Module]) -> None:
        """Replaces the network and its head by fixed ones."""
        super().attach(student, new_network)
        self.teacher = MeansNetwork(self.teacher.get_submodule("backbone"))
        self.teacher.requires_grad_(False)
        self.teacher_head = nn.Linear(5, IMAGES)
        self.teacher_head.requires_grad_(False)
        with torch.no_grad():
            self.teacher_head.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
            self.teacher_head.bias.zero_()

    def after_step(self) -> None:
        """Does nothing, so that the mean teacher stays constant."""

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Records the step, the mean teacher's probabilities and its head's weights."""
        append_step(self.seen, ctx)
        self.seen[-1]["probabilities"] = self.ema_probabilities(ctx)
        self.seen[-1]["head"] = self.teacher_head.weight.clone()
        return super().terms(ctx)


def method(kind: type[Objective], labels: bool = True, **objective: Any) -> dict[str, Any]:
    """Config of a method with an objective of class `kind`; `labels`: whether it reads labels."""
    return dict(
        name="log",
        labels_used=labels,
        objective=dict(type=f"{__name__}.{kind.__name__}", **objective),
        transform=None,
    )


def spec(**changes: Any) -> dict[str, Any]:
    """The spec of a pre-training stage, with changes."""
    default = dict(
        student=STUDENT, method=method(Log), budget=BUDGET, share=1.0, share_seed=0, seed=3
    )
    return default | changes


def expected_rows(
    images: np.ndarray, seed: int, samples: int, together: bool = False
) -> list[list[int]]:
    """The documented rows of each batch: epoch e reads default_rng([seed, e]).permutation(images).

    It reads view e modulo VIEWS of each image or, with `together`, all views one after another.

    Args:
        images: numbers of the images of the data fraction, in the order of the files.
        seed: seed of the run.
        samples: number of samples of the run.
        together: see above.
    """
    rows: list[int] = []
    for epoch in range(samples):  # more epochs than needed
        order = np.random.default_rng([seed, epoch]).permutation(images)
        for image in order:
            views = range(VIEWS) if together else [epoch % VIEWS]
            rows += [int(image) * VIEWS + view for view in views]
    batch = BUDGET["batch"]
    return [rows[i : i + batch] for i in range(0, samples, batch)]
