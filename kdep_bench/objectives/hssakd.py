"""HSSAKD: every level learns a teacher's distribution over class and rotation (TNNLS 2022)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.augments.rotations import TURNS
from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.maps import Maps, check_levels
from kdep_bench.objectives.players import Player, Players
from kdep_bench.teachers.base import TeacherOutput

SGD: Mapping[str, Any] = {
    "type": "SGD",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "nesterov": True,
}


def joint_labels(labels_B: Tensor, rotation_B: Tensor) -> Tensor:
    """[B] int64: 4 y + r, so that the outputs of a class are consecutive."""
    return TURNS * labels_B + rotation_B


def branch(channels: Sequence[int], outputs: int) -> nn.Sequential:
    """Classifier of a map with `channels[0]` channels: convolutions, mean over places, linear.

    One 3x3 convolution of stride 2 with BatchNorm and ReLU for each further number in `channels`;
    one of stride 1 where there is none.
    """
    steps = [(a, b, 2) for a, b in itertools.pairwise(channels)]
    layers: list[nn.Module] = []
    for cin, cout, stride in steps or [(channels[0], channels[0], 1)]:
        layers += [
            nn.Conv2d(cin, cout, 3, stride, 1, bias=False),
            nn.BatchNorm2d(cout),
            nn.ReLU(),
        ]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], outputs)
    )


def branches(names: Sequence[str], maps: Maps, outputs: int) -> nn.ModuleDict:
    """{name: branch} of maps, the largest first; each goes through the channels of the later."""
    channels = [int(maps[name]["channels"]) for name in names]
    return nn.ModuleDict({name: branch(channels[k:], outputs) for k, name in enumerate(names)})


class TeacherHeads(nn.Module):
    """Classifiers on a frozen teacher: of its pooled feature, and of class and rotation on maps."""

    def __init__(self, width: int, names: Sequence[str], maps: Maps, classes: int) -> None:
        super().__init__()
        self.main = nn.Linear(width, classes)
        self.joint = branches(names, maps, TURNS * classes)

    def forward(self, teacher: TeacherOutput) -> tuple[Tensor, dict[str, Tensor]]:
        """(logits [B, C], {map: joint logits [B, 4 C]})."""
        joint = {name: head(teacher.maps[name]) for name, head in self.joint.items()}
        return self.main(teacher.pooled), joint


class Hssakd(Objective):
    """a CE(y, s; upright images) + b KL(t || s) + c sum over levels l of KL(t_l || s_l).

    Every image is in the batch in four rotations (augments.rotations.Rotations). s and t are logits
    of the C classes of the labels, s_l and t_l of the 4 C pairs of class and rotation, from one
    classifier per level; KL is tau^2 KL at temperature tau over all rotations, and the
    cross-entropy is the mean over the upright ones. The teacher's network is frozen. Its
    classifiers learn, with an optimiser of their own, CE(y, t; upright) + sum_l CE(4 y + r, t_l);
    they give their targets in evaluation mode. All classifiers are dropped at export.

    Source: Yang et al., TNNLS 2022, IJCAI 2021; winycg/HSAKD `train_student_cifar.py`,
    `train_teacher_cifar.py` (frozen backbone), tau 3 and all weights 1. Four departures: the
    teacher's classifiers are trained in the same run, before each of the student's steps, there in
    100 epochs of their own before it; the teacher's main classifier is a new one on the labels'
    classes, because a teacher here may have others or none; a branch has one convolution per later
    level, there the network's own blocks; and the student's branches take part in its optimiser.

    Args:
        levels: {student level: teacher map}.
        tau: temperature.
        cross_entropy, main, joint: a, b, c.
        optimizer: of the teacher's classifiers; its rate follows the shape of the student's.
        width, classes, teacher_width, student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"labels", "pooled", "maps"})
    requires = frozenset({"width", "classes", "teacher_width", "student_maps", "teacher_maps"})
    has_players = True
    reads_extra = frozenset({"rotation"})

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

    def players(self) -> dict[str, Player]:
        return {"teacher_heads": Player(self.teacher, self.optimizer)}

    def play(self, ctx: Context, players: Players) -> None:
        assert ctx.teacher is not None
        assert ctx.labels is not None
        main, joint = self.teacher(ctx.teacher)
        labels = joint_labels(ctx.labels, ctx.extra["rotation"])
        loss = self.upright(ctx, main).mean()
        for logits in joint.values():
            loss = loss + F.cross_entropy(logits, labels)
        players.minimise("teacher_heads", loss)

    def upright(self, ctx: Context, logits_BC: Tensor) -> Tensor:
        """[4 B]: cross-entropies whose mean is that over the upright images; 0 for the others."""
        assert ctx.labels is not None
        hard = F.cross_entropy(logits_BC, ctx.labels, reduction="none")
        return TURNS * hard * (ctx.extra["rotation"] == 0)

    @torch.no_grad()
    def targets(self, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The teacher's logits, as TeacherHeads gives them in evaluation mode."""
        assert ctx.teacher is not None
        mode = self.teacher.training
        self.teacher.eval()
        logits = self.teacher(ctx.teacher)
        self.teacher.train(mode)
        return logits

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        teacher, teacher_joint = self.targets(ctx)
        student, (a, b, c) = self.head(ctx.after), self.weights
        terms = {
            "cross_entropy": a * self.upright(ctx, student),
            "main": b * soft_kl(teacher, student, self.tau),
        }
        for level, name in self.levels.items():
            logits = self.joint[level](ctx.maps[level])
            terms[f"joint_{level}"] = c * soft_kl(teacher_joint[name], logits, self.tau)
        return terms
