"""Runs lightly-train's default distillation with a teacher, a student and a folder of images.

It runs in the virtual environment of `make lightly`. `python -m kdep_bench.benchmark.lightly_run
settings.json` writes `result.json` and `backbone.pth` next to the settings. Teacher and student are
wrapped as "custom models" of lightly-train.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdep_bench import openmmlab
from kdep_bench.allocator import keep_freed_memory
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, write_json
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.teachers.base import build_teacher
from kdep_bench.transfer.export import save_tensors


class Wrapped(nn.Module):
    """Base of custom models for lightly-train: its names for the width and the pooled feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def feature_dim(self) -> int:
        """Number of channels C."""
        return self.width

    def forward_pool(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over positions, [B, C, 1, 1]."""
        return {"pooled_features": F.adaptive_avg_pool2d(x["features"], 1)}


class WrappedStudent(Wrapped):
    """A student that gets images of the teacher's size and averages them to its input size.

    Raises:
        KdepError: the teacher's input size is not a multiple of the student's.
    """

    def __init__(self, config: dict[str, Any], teacher_px: int) -> None:
        super().__init__(config["width"])
        if teacher_px % config["input_px"]:
            raise KdepError(
                f"the teacher's input has {teacher_px} px",
                expected=f"a multiple of the student's {config['input_px']} px",
                fix="choose a student whose input_px divides that of the teacher",
            )
        self.pool_size = teacher_px // config["input_px"]
        self.net = build_backbone(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def get_model(self) -> nn.Module:
        """The backbone."""
        return self.net

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """The last feature map [B, C, H, W] of images `x` [B, 3, teacher_px, teacher_px]."""
        x = F.avg_pool2d(x, self.pool_size).contiguous(memory_format=torch.channels_last)
        return {"features": self.net(x)[-1]}


class WrappedTeacher(Wrapped):
    """A teacher that gets images in ImageNet normalisation, as lightly-train gives them.

    Attributes:
        start_times: (wall, CPU) seconds at the start of each forward pass, that is, of each step.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        teacher = build_teacher(config)
        super().__init__(teacher.width)
        self.teacher = teacher
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        self.register_buffer("scale", std / teacher.std, persistent=False)
        self.register_buffer("shift", (mean - teacher.mean) / teacher.std, persistent=False)
        self.start_times: list[tuple[float, float]] = []

    def get_model(self) -> nn.Module:
        """The teacher."""
        return self.teacher

    @torch.no_grad()
    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """The last feature map [B, C, H, W] of images `x` [B, 3, px, px]; records the time."""
        self.start_times.append((time.perf_counter(), time.process_time()))
        x = (x * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        return {"features": self.teacher.features(x).maps["last"]}


def step_seconds(start_times: list[tuple[float, float]]) -> tuple[float, float]:
    """(wall, CPU) seconds of all steps that started at these times.

    The end of the last step is unknown; it counts as long as the mean of the others.
    """
    steps = len(start_times)
    wall, cpu = (end - start for start, end in zip(start_times[0], start_times[-1], strict=True))
    return wall * steps / (steps - 1), cpu * steps / (steps - 1)


def main(path: Path) -> None:
    """Trains with the settings in `path`; writes backbone.pth and result.json next to it."""
    settings, folder = read_strict(path), path.parent
    torch.set_num_threads(settings["threads"])
    keep_freed_memory()  # as the stages of kdep_bench do
    openmmlab.setup("mmpretrain")
    lightly_train = importlib.import_module("lightly_train")
    torch.manual_seed(settings["seed"])
    teacher, px = WrappedTeacher(settings["teacher"]), settings["teacher"]["input_px"]
    student = WrappedStudent(settings["student"], px)
    lightly_train.pretrain(
        out=str(folder / "run"),
        data=settings["data"],
        model=student,
        method="distillation",
        method_args={"teacher": teacher},
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        num_workers=0,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        float32_matmul_precision="highest",
        seed=settings["seed"],
        transform_args={"image_size": (px, px)},
    )
    save_tensors(student.net.state_dict(), folder / "backbone.pth")
    seconds, cpu = step_seconds(teacher.start_times)
    write_json(
        folder / "result.json",
        {
            "version": importlib.metadata.version("lightly-train"),
            "steps": len(teacher.start_times),
            "seconds": seconds,
            "cpu_s": cpu,
        },
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
