"""Prototype-guided cross-task knowledge distillation (ProC-KD), arXiv 2212.13180.

The student learns prototypes of the teacher's local features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.networks.prototypes import reconstruct, spread_out
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.maps import Maps, check_levels, make_projectors, pairs


class PrototypeDistillation(Objective):
    """Sum over levels of w_p |u - r|^2 + w |v - sg(r)|^2, averaged over the positions of the maps.

    u = F_t / |F_t| is the teacher's local feature, a vector of its channels at one position.
    r = sum_k a_k p_k reconstructs it from K learned prototypes p_k, with the assignment
    a = softmax_k(cos(u, p_k) / tau). v = phi(F_s) / |phi(F_s)| is the student's local feature; phi
    is a learned 1x1 convolution. |.|^2 is the sum over channels; sg: no gradient. So the student
    learns what many images share, not every detail of the teacher's map, and nothing depends on the
    teacher's classes. phi and the prototypes are dropped at export; the transfer method
    `PrototypeAugmentation` reads them from the output of the pre-training stage.

    The prototypes begin as local features of the first batch (`networks.prototypes.spread_out`);
    with several processes, of the global batch.

    Source: Li et al., "Prototype-guided Cross-task Knowledge Distillation" (arXiv 2212.13180; FITEE
    2025): the abstract, and Daniel00008/ProC-KD `models.py`, which has unit-length local features,
    a softmax assignment, 72 prototypes and the augmentation of features with prototypes. The
    published code has no loss of the prototypes; theirs are trained through the task's classifier.
    The two losses, the assignment by cosine (theirs is a learned linear layer), the student's
    features of unit length (otherwise the loss diverges at the suites' learning rates), tau, the
    initial prototypes and the weights were chosen in this project.

    Args:
        levels: {student level: teacher map}; each has its own prototypes.
        prototypes: K. At most the number of positions of a level in a batch.
        tau: temperature of the assignment.
        weight: w.
        prototype_weight: w_p.
        student_maps, teacher_maps: set by the pre-training stage.
    """

    needs = frozenset({"maps"})
    stage_arguments = frozenset({"student_maps", "teacher_maps"})

    def __init__(
        self,
        levels: Mapping[str, str],
        prototypes: Count,
        student_maps: Maps,
        teacher_maps: Maps,
        tau: Positive = 0.1,
        weight: Positive = 10.0,
        prototype_weight: Positive = 10.0,
    ) -> None:
        super().__init__()
        check_levels(levels, student_maps, teacher_maps)
        self.levels, self.tau = dict(levels), float(tau)
        self.weight, self.prototype_weight = float(weight), float(prototype_weight)
        self.projectors = make_projectors(
            levels,
            student_maps,
            teacher_maps,
            lambda s, t: nn.Conv2d(s, t, 1),
            project_equal_channels=True,
        )
        # Zero until the first batch.
        self.prototypes = nn.ParameterDict(
            {
                level: nn.Parameter(torch.zeros(prototypes, teacher_maps[name]["channels"]))
                for level, name in self.levels.items()
            }
        )
        self._initialised: set[str] = set()  # avoids reading prototypes from a GPU in every step

    def initialised_prototypes(self, level: str, u_BCHW: Tensor) -> Tensor:
        """The prototypes [K, C] of a level, which the first batch of the run initialises.

        Args:
            level: the student level.
            u_BCHW: the teacher's local features, of unit length.

        Raises:
            KdepError: the teacher's map is zero for the whole global batch, or it has fewer
                positions, or fewer positions with different directions of u, than prototypes. All
                ranks raise it.
        """
        prototypes_KC = self.prototypes[level]
        if level not in self._initialised and not bool(prototypes_KC.any()):
            u_BCHW = _gather_ranks(u_BCHW)
            if not bool(u_BCHW.any()):
                raise KdepError(
                    f"the teacher's map for {level} is zero for the whole first batch, so it has "
                    "no prototypes",
                    fix="choose another teacher or another of its maps",
                )
            with torch.no_grad():
                prototypes_KC.copy_(spread_out(u_BCHW, len(prototypes_KC)))
        self._initialised.add(level)
        return prototypes_KC

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        error = ctx.pre_activation.new_zeros(len(ctx.pre_activation))
        for level, s_BCHW, t_BCHW in pairs(ctx, self.levels, self.projectors):
            u_BCHW = F.normalize(t_BCHW, dim=1)
            r_BCHW = reconstruct(u_BCHW, self.initialised_prototypes(level, u_BCHW), self.tau)
            error = error + _distance(u_BCHW, r_BCHW)
            v_BCHW = F.normalize(s_BCHW, dim=1)
            out[level] = self.weight * _distance(v_BCHW, r_BCHW.detach())
        return out | {"prototypes": self.prototype_weight * error}


def _gather_ranks(x_BCHW: Tensor) -> Tensor:
    """The maps of the global batch, which are equal on every rank."""
    if not distributed.is_initialized():
        return x_BCHW
    x_BCHW = x_BCHW.contiguous()
    gathered = [torch.empty_like(x_BCHW) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, x_BCHW)
    return torch.cat(gathered)


def _distance(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """(B,): squared distance between the vectors at one position, averaged over the positions."""
    return (x_BCHW - y_BCHW).square().sum(1).mean((1, 2))
