"""ProC-KD at transfer: the task is also learned from features augmented with prototypes.

F_l is the student's map of a level l. The prototypes P_l (rows p_k) and projectors phi_l are those
of the pre-training with `objectives.proc_kd`. At every position of the map,

r_l = sum_k a_k p_k, a = softmax_k(cos(v_l, p_k) / tau), v_l = phi_l(F_l) / |phi_l(F_l)|.

A classifier reads the pooled feature f, a detector or segmenter reads the maps. Augmented, they are

f' = f + sum_l W_l mean_positions(r_l), and F'_l = F_l + W_l r_l at every position of every level
with prototypes. With f, f' for the features of either kind,

L = (1 - augmented) L_task(f) + augmented L_task(f') + weight sum_l |v_l - sg(r_l)|^2.

|.|^2 is the sum over channels, averaged over the positions; sg: no gradient. One neck and one set
of heads reads f and f'. W_l is learned and begins at 0, so f' = f in the first step; phi_l and P_l
are constant. So prototypes that were learned from the teacher, on other images and classes, guide
the task without the teacher. Only f is used after the training, as in the authors' evaluation.

Source: Li et al., arXiv 2212.13180 (FITEE 2025): the abstract, and Daniel00008/ProC-KD `models.py`
(`aug3`), where a softmax over prototypes augments every token of a vision transformer, which keeps
its size, and one classifier reads the class token with and without it. This is a re-implementation:

* The published code trains without the augmentation (`main.py`), so it has no loss of it. The
  losses and weights were chosen in this project.
* It has classification only. The paper's augmentation is for "diverse downstream tasks", but for
  maps and other heads than a linear classifier, the form was chosen in this project.
* There, a learned layer encodes features and prototypes, two more follow, and the prototypes are
  trained on the task, with the teacher. Here W_l is linear, and phi_l is constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Fraction, NotNegative, Positive
from kdep_bench.errors import KdepError
from kdep_bench.networks.prototypes import reconstruct
from kdep_bench.objectives.maps import Maps
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import TransferContext, TransferMethod
from kdep_bench.transfer.second_pass import SecondPass

# Prefixes of the names of these tensors in the state dict of the pre-training.
PROTOTYPES, PROJECTORS = "objective.prototypes.", "objective.projectors."


class PrototypeAugmentation(TransferMethod):
    """Augmentation with prototypes; see the top of this module.

    The forecast of the cost does not count the second pass of neck and heads.

    Args:
        augmented: fraction of the task's loss that is computed from the augmented features.
        weight: weight of the distance to the prototypes.
        tau: temperature of the assignment; should be that of the pre-training.
        student_maps, pretrained: set by the transfer stage.
    """

    families = frozenset({"classification", "detection", "segmentation"})
    stage_arguments = frozenset({"student_maps", "pretrained"})
    objectives: ClassVar[frozenset[str] | None] = frozenset(
        {"kdep_bench.objectives.proc_kd.PrototypeDistillation"}
    )

    def __init__(
        self,
        student_maps: Maps,
        pretrained: str,
        augmented: Fraction = 0.5,
        weight: NotNegative = 1.0,
        tau: Positive = 0.1,
    ) -> None:
        super().__init__()
        self.augmented, self.weight, self.tau = float(augmented), float(weight), float(tau)
        self.projectors, self.prototypes = read_prototypes(pretrained, student_maps)
        self.augmenters = nn.ModuleDict()
        self._second_pass: SecondPass | None = None

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        self._second_pass = SecondPass(model)
        for level, prototypes_KC in self.prototypes.items():
            width = int(cast(nn.Conv2d, self.projectors[level]).in_channels)
            if self._second_pass.is_classifier:
                width = int(cast(Any, model).head.in_channels)
            layer = nn.Conv2d(prototypes_KC.shape[1], width, 1, bias=False)
            nn.init.zeros_(layer.weight)
            self.augmenters[level] = layer

    def finish(self, model: nn.Module) -> dict[str, Any]:
        assert self._second_pass is not None
        self._second_pass.remove()
        return {}

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        assert self._second_pass is not None
        distance, reconstructed = ctx.inputs.new_zeros(len(ctx.inputs)), {}
        for level, prototypes_KC in self.prototypes.items():
            if level not in ctx.maps:  # the backbone of a C4 detector has no stride 32
                continue
            v_BCHW = F.normalize(self.projectors[level](ctx.maps[level]), dim=1)
            r_BCHW = reconstruct(v_BCHW, prototypes_KC, self.tau)
            distance = distance + (v_BCHW - r_BCHW.detach()).square().sum(1).mean((1, 2))
            reconstructed[level] = r_BCHW
        loss = self._second_pass.loss(self._augmented(ctx.maps, reconstructed), ctx)
        if ctx.step == 0:
            self._check_is_read(loss)
        # L_task(f) is already added with weight 1; this makes its weight 1 - augmented.
        difference = loss - self._second_pass.total(ctx.task_losses)
        return {"augmented": self.augmented * difference, "prototypes": self.weight * distance}

    def _augmented(
        self, maps: Mapping[str, Tensor], reconstructed: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """f' for a classifier, else the maps of the backbone with F'_l; see the module."""
        assert self._second_pass is not None
        if not self._second_pass.is_classifier:
            added = {level: self.augmenters[level](r) for level, r in reconstructed.items()}
            return tuple(x + added[k] if k in added else x for k, x in maps.items())
        pooled = self._second_pass.pooled()
        for level, r_BCHW in reconstructed.items():
            mean_BC11 = r_BCHW.mean((2, 3), keepdim=True)
            pooled = pooled + self.augmenters[level](mean_BC11).flatten(1)
        return (pooled,)

    def _check_is_read(self, loss: Tensor) -> None:
        """Raises KdepError if no head reads an augmented level: W_l would stay 0."""
        weights = [layer.get_parameter("weight") for layer in self.augmenters.values()]
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            levels = ", ".join(self.prototypes)
            raise KdepError(
                f"no head of the task reads a level that has prototypes: {levels}",
                expected="a task that reads at least one of these levels",
                fix="pre-train with other `levels`, or list other tasks in `tasks` of `transfer`",
            )


def read_prototypes(path: str, student_maps: Maps) -> tuple[nn.ModuleDict, nn.ParameterDict]:
    """The projectors and the prototypes [K, C], by level, of a pre-training; both are constant.

    Args:
        path: the state dict of the pre-training, with the objective `PrototypeDistillation`.
        student_maps: levels of the student.

    Raises:
        KdepError: the file has no prototypes, or they do not fit the student's levels.
    """
    tensors = read_tensors(path)
    projectors, prototypes = nn.ModuleDict(), nn.ParameterDict()
    for name, value in tensors.items():
        if not name.startswith(PROTOTYPES):
            continue
        level = name.removeprefix(PROTOTYPES)
        weight = tensors[f"{PROJECTORS}{level}.weight"]
        channels = int(student_maps.get(level, {}).get("channels", 0))
        if weight.shape[1] != channels:
            raise KdepError(
                f"the pre-training in {path} has prototypes for a level {level} of "
                f"{weight.shape[1]} channels, which the student does not have",
                expected=f"levels {', '.join(student_maps)} of this student",
                fix="use the student that was pre-trained",
            )
        layer = nn.Conv2d(channels, len(weight), 1)
        layer.load_state_dict({"weight": weight, "bias": tensors[f"{PROJECTORS}{level}.bias"]})
        projectors[level] = layer.requires_grad_(False)
        prototypes[level] = nn.Parameter(value.float(), requires_grad=False)
    if not prototypes:
        raise KdepError(
            f"the pre-training in {path} has no prototypes",
            expected="a student that was pre-trained with PrototypeDistillation",
            fix="set `pretrained_by` of the method to proc_kd",
        )
    return projectors, prototypes
