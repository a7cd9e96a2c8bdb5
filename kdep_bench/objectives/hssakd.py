"""Hierarchical self-supervision augmented knowledge distillation (HSSAKD), TNNLS 2022.

Every level of the student learns the teacher's distribution over class and rotation.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.augments.rotations import TURNS
from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.maps import Maps, check_levels
from kdep_bench.teachers.base import TeacherOutput

SGD: Mapping[str, Any] = {
    "type": "SGD",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "nesterov": True,
}


def joint_labels(labels_B: Tensor, rotation_B: Tensor) -> Tensor:
    """[B] int64: 4 y + r for class y and r quarter turns; the labels of a class are consecutive."""
    return TURNS * labels_B + rotation_B


def branch(channels: Sequence[int], outputs: int) -> nn.Sequential:
    """Classifier of a map: 3x3 convolutions, mean over positions, linear layer.

    Every convolution is followed by BatchNorm and ReLU. The map has `channels[0]` channels; each
    further number is the output width of a convolution of stride 2. With a single number, the
    branch has one convolution of stride 1, which keeps the width.
    """
    pairs = list(itertools.pairwise(channels)) or [(channels[0], channels[0])]
    stride = 2 if len(channels) > 1 else 1
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairs:
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], outputs)
    )


def branches(names: Sequence[str], maps: Maps, outputs: int) -> nn.ModuleDict:
    """{name: branch} for maps in the order of their size, the largest first.

    The convolutions of a branch have the widths of the maps that follow its own.
    """
    channels = [int(maps[name]["channels"]) for name in names]
    return nn.ModuleDict({name: branch(channels[k:], outputs) for k, name in enumerate(names)})


class TeacherHeads(nn.Module):
    """Classifiers on a frozen teacher: classes from the pooled feature, joint labels from maps.

    Args:
        width: number of channels of the teacher's pooled feature.
        names: names of the teacher's maps, largest first.
        maps: {name: {"channels": number of channels, ...}}.
        classes: number of classes.
    """

    def __init__(self, width: int, names: Sequence[str], maps: Maps, classes: int) -> None:
        super().__init__()
        self.main = nn.Linear(width, classes)
        self.joint = branches(names, maps, TURNS * classes)

    def forward(self, teacher: TeacherOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits [B, C] of the classes, and {map: logits [B, 4 C] of the joint labels}."""
        joint = {name: head(teacher.maps[name]) for name, head in self.joint.items()}
        return self.main(teacher.pooled), joint


class Hssakd(Objective):
    """a CE(y, s) + b KL(t || s) + c sum over levels l of KL(t_l || s_l).

    The batch has every image in four rotations (augments.rotations.Rotations). s and t are the
    student's and the teacher's logits of the C classes; s_l and t_l are logits of the 4 C pairs of
    class and rotation (joint labels), from one classifier per level (a branch). CE(y, .) is
    averaged over the unrotated images only. The other terms are averaged over all rotations. KL is
    `logit_kd.soft_kl` at the temperature tau.

    The teacher's network is frozen. Its classifiers are trained in the same run, by a separate
    optimiser (`update_auxiliary`, before `terms` in every step), to minimise
    CE(y, t) + sum_l CE(4 y + r, t_l), with r the number of quarter turns. The targets t and t_l are
    computed in evaluation mode. The student's optimiser also trains the student's classifiers. All
    classifiers are dropped at export.

    Source: Yang et al., TNNLS 2022, IJCAI 2021; winycg/HSAKD `train_student_cifar.py`,
    `train_teacher_cifar.py` (frozen backbone), tau 3 and all weights 1. Three differences. The
    source trains the teacher's classifiers first, for 100 epochs; here they take one step before
    every step of the student. The classifier of t is trained here, because a teacher may have other
    classes or none. A branch has one convolution per later level; in the source it has residual
    blocks like those of the network after its level.

    Args:
        levels: {student level: teacher map}.
        tau: temperature.
        cross_entropy: a.
        main: b.
        joint: c.
        optimizer: config of the optimiser of the teacher's classifiers. Its learning rate follows
            the student's schedule.
        width, classes, teacher_width, student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"labels", "pooled", "maps"})
    stage_arguments = frozenset(
        {"width", "classes", "teacher_width", "student_maps", "teacher_maps"}
    )
    has_auxiliary_modules = True  # auxiliary module: a part with its own optimiser
    reads_from_augment = frozenset({"rotation"})

    def __init__(
        self,
        levels: Mapping[str, str],
        width: int,
        classes: int,
        teacher_width: int,
        student_maps: Maps,
        teacher_maps: Maps,
        tau: Positive = 3.0,
        cross_entropy: NotNegative = 1.0,
        main: NotNegative = 1.0,
        joint: NotNegative = 1.0,
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        by_size = sorted(levels, key=lambda level: student_maps[level]["stride"])
        maps = sorted(set(levels.values()), key=lambda name: teacher_maps[name]["stride"])
        self.levels, self.tau = dict(levels), float(tau)
        self.weights = tuple(float(w) for w in (cross_entropy, main, joint))
        self.head = nn.Linear(width, classes)
        self.joint = branches(by_size, student_maps, TURNS * classes)
        self.teacher = TeacherHeads(teacher_width, maps, teacher_maps, classes)
        self.optimizer = dict(optimizer or SGD)

    def auxiliary_modules(self) -> dict[str, AuxiliaryModule]:
        return {"teacher_heads": AuxiliaryModule(self.teacher, self.optimizer)}

    def update_auxiliary(self, ctx: Context, auxiliary: AuxiliaryModules) -> None:
        assert ctx.teacher is not None
        assert ctx.labels is not None
        main, joint = self.teacher(ctx.teacher)
        labels = joint_labels(ctx.labels, ctx.extra["rotation"])
        loss = self.unrotated_cross_entropy(ctx, main).mean()
        for logits in joint.values():
            loss = loss + F.cross_entropy(logits, labels)
        auxiliary.minimise("teacher_heads", loss)

    def unrotated_cross_entropy(self, ctx: Context, logits_BC: Tensor) -> Tensor:
        """[B]: 4 times the cross-entropy of an unrotated image, 0 for the other rotations.

        The mean over the batch is therefore the mean over the unrotated images.
        """
        assert ctx.labels is not None
        cross_entropy = F.cross_entropy(logits_BC, ctx.labels, reduction="none")
        return TURNS * cross_entropy * (ctx.extra["rotation"] == 0)

    @torch.no_grad()
    def targets(self, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The result of TeacherHeads in evaluation mode, without gradient."""
        assert ctx.teacher is not None
        was_training = self.teacher.training
        self.teacher.eval()
        logits = self.teacher(ctx.teacher)
        self.teacher.train(was_training)
        return logits

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        teacher, teacher_joint = self.targets(ctx)
        student, (a, b, c) = self.head(ctx.post_activation), self.weights
        terms = {
            "cross_entropy": a * self.unrotated_cross_entropy(ctx, student),
            "main": b * soft_kl(teacher, student, self.tau),
        }
        for level, name in self.levels.items():
            logits = self.joint[level](ctx.maps[level])
            terms[f"joint_{level}"] = c * soft_kl(teacher_joint[name], logits, self.tau)
        return terms
