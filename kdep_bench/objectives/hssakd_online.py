"""Hierarchical self-supervision augmented knowledge distillation (HSSAKD) without a teacher.

Two students exchange their distributions over class and rotation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.augments.rotations import TURNS
from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.hssakd import branches, joint_labels
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.maps import Maps


class HssakdOnline(Objective):
    """L_1 + L_2 of two students i that are trained together; j is the other student.

        L_i = a CE(y, s_i) + b KL(s_j || s_i) + sum over levels l of
              d CE(4 y + r, s_il) + c KL(s_jl || s_il)

    The batch has every image in four rotations (augments.rotations.Rotations); r is the number of
    quarter turns. s_i are the logits of the C classes from the pooled feature; s_il are the logits
    of the 4 C joint labels from a branch on the map of level l. KL is `logit_kd.soft_kl` at the
    temperature tau, without gradient for its first argument. CE(y, .) is averaged over the
    unrotated images only, the other terms over all rotations.

    The peer has the student's architecture and other random weights. One optimiser trains both
    networks and all classifiers. Peer and classifiers are dropped at export.

    Source: Yang et al., TNNLS 2022; winycg/HSAKD `train_online_kd_cifar.py`, tau 3 and all weights
    1. Two differences. The source saves both students, and its best accuracy is that of the better
    one on the test set; here the first is exported. A branch has one convolution per later level;
    in the source it has the blocks of the network.

    Args:
        tau: temperature.
        cross_entropy: a.
        main: b.
        joint: c.
        joint_cross_entropy: d.
        width, classes, student_maps: set by the pre-training stage.
    """

    needs = frozenset({"labels"})
    stage_arguments = frozenset({"width", "classes", "student_maps"})
    forwards = 1
    trained_peers = 1
    reads_from_augment = frozenset({"rotation"})

    def __init__(
        self,
        width: int,
        classes: int,
        student_maps: Maps,
        tau: Positive = 3.0,
        cross_entropy: NotNegative = 1.0,
        main: NotNegative = 1.0,
        joint: NotNegative = 1.0,
        joint_cross_entropy: NotNegative = 1.0,
    ) -> None:
        super().__init__()
        levels = sorted(student_maps, key=lambda level: student_maps[level]["stride"])
        self.tau, self.cross_entropy, self.main = float(tau), float(cross_entropy), float(main)
        self.joint_kl, self.joint_cross_entropy = float(joint), float(joint_cross_entropy)
        self.head, self.peer_head = nn.Linear(width, classes), nn.Linear(width, classes)
        self.joint = branches(levels, student_maps, TURNS * classes)
        self.peer_joint = branches(levels, student_maps, TURNS * classes)
        self.peer: nn.Module = nn.Identity()

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        self.peer = new_network(maps=True)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.images is not None
        peer = self.peer(ctx.images)
        main = self.head(ctx.post_activation), self.peer_head(peer.post_activation)
        joint = _logits(self.joint, ctx.maps), _logits(self.peer_joint, peer.maps)
        return {
            **self.student_terms(ctx, main[0], main[1], joint[0], joint[1]),
            **{
                f"peer_{name}": term
                for name, term in self.student_terms(
                    ctx, main[1], main[0], joint[1], joint[0]
                ).items()
            },
        }

    def student_terms(
        self,
        ctx: Context,
        own_BC: Tensor,
        other_BC: Tensor,
        own_joint_LBJ: Tensor,
        other_joint_LBJ: Tensor,
    ) -> dict[str, Tensor]:
        """The terms of L_i, each [B]; the logits of student j get no gradient.

        Args:
            ctx: the batch.
            own_BC, other_BC: the logits s_i and s_j.
            own_joint_LBJ, other_joint_LBJ: the logits s_il and s_jl of L levels and J = 4 C joint
                labels.
        """
        assert ctx.labels is not None
        rotation, n_levels = ctx.extra["rotation"], len(own_joint_LBJ)
        upright = TURNS * (rotation == 0)  # the mean over the batch is that of unrotated images
        labels = joint_labels(ctx.labels, rotation).repeat(n_levels)
        own_joint, other_joint = own_joint_LBJ.flatten(0, 1), other_joint_LBJ.flatten(0, 1)
        joint_cross_entropy = F.cross_entropy(own_joint, labels, reduction="none")
        joint_kl = soft_kl(other_joint.detach(), own_joint, self.tau)
        cross_entropy = F.cross_entropy(own_BC, ctx.labels, reduction="none")
        return {
            "cross_entropy": self.cross_entropy * upright * cross_entropy,
            "mutual": self.main * soft_kl(other_BC.detach(), own_BC, self.tau),
            "joint_cross_entropy": self.joint_cross_entropy
            * joint_cross_entropy.unflatten(0, (n_levels, -1)).sum(0),
            "joint_mutual": self.joint_kl * joint_kl.unflatten(0, (n_levels, -1)).sum(0),
        }


def _logits(heads: nn.ModuleDict, maps: Mapping[str, Tensor]) -> Tensor:
    """[levels, B, 4 C]: the logits of the joint labels of every level."""
    return torch.stack([head(maps[level]) for level, head in heads.items()])
