"""ProC-KD at transfer: the task is also learned from features augmented with prototypes.

f is the pooled feature that the classifier reads, and F_l the student's map of a level l. The
prototypes P_l (rows p_k) and projectors phi_l are those of the pre-training with
`objectives.proc_kd`:

r_l = sum_k a_k p_k, a = softmax_k(cos(v_l, p_k) / tau), at every position of the map,
f'  = f + sum_l W_l mean_positions(r_l),
L   = (1 - augmented) L_task(f) + augmented L_task(f') + weight sum_l |v_l - sg(r_l)|^2.

v_l = phi_l(F_l) / |phi_l(F_l)|. |.|^2 is the sum over channels, averaged over the positions; sg: no
gradient. One classifier reads f and f'. W_l is learned and begins at 0, so f' = f in the first
step; phi_l and P_l are constant. So prototypes that were learned from the teacher, on other images
and classes, guide the task without the teacher. Only f is used after the training, as in the
authors' evaluation.

Source: Li et al., arXiv 2212.13180 (FITEE 2025): the abstract, and Daniel00008/ProC-KD `models.py`,
where a softmax over prototypes augments the student's features, and one classifier reads the
features and the augmented ones. The published code has no loss of the augmented features. This is a
re-implementation: in the authors' code, one learned layer encodes features and prototypes, two more
follow, and the prototypes are trained on the task, with the teacher. The losses, the linear W_l,
the constant phi_l and the weights were chosen in this project.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Fraction, NotNegative, Positive
from kdep_bench.errors import KdepError
from kdep_bench.networks.prototypes import reconstruct
from kdep_bench.objectives.maps import Maps
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import TransferContext, TransferMethod

# Prefixes of the names of these tensors in the state dict of the pre-training.
PROTOTYPES, PROJECTORS = "objective.prototypes.", "objective.projectors."


class PrototypeAugmentation(TransferMethod):
    """Augmentation with prototypes; see the top of this module.

    Args:
        augmented: fraction of the task's loss that is computed from the augmented features.
        weight: weight of the distance to the prototypes.
        tau: temperature of the assignment; should be that of the pre-training.
        student_maps, pretrained: set by the transfer stage.
    """

    families = frozenset({"classification"})
    requires = frozenset({"student_maps", "pretrained"})
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
        self._model: list[Any] = []  # in a list, so that torch does not register it
        self._features: list[Tensor] = []  # [classifier's input [B, D] in the last pass]

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        self._model = [model]
        head = self._model[0].head
        for level, prototypes_KC in self.prototypes.items():
            layer = nn.Linear(prototypes_KC.shape[1], int(head.in_channels), bias=False)
            nn.init.zeros_(layer.weight)
            self.augmenters[level] = layer
        head.register_forward_pre_hook(self._record)

    def _record(self, _module: nn.Module, args: Any) -> None:
        self._features = [args[0][-1]]

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        augmented, distance = self._features.pop(), ctx.inputs.new_zeros(len(ctx.inputs))
        for level, prototypes_KC in self.prototypes.items():
            v_BCHW = F.normalize(self.projectors[level](ctx.maps[level]), dim=1)
            r_BCHW = reconstruct(v_BCHW, prototypes_KC, self.tau)
            augmented = augmented + self.augmenters[level](r_BCHW.mean((2, 3)))
            distance = distance + (v_BCHW - r_BCHW.detach()).square().sum(1).mean((1, 2))
        head_losses = self._model[0].head.loss((augmented,), ctx.samples)
        self._features = []  # the head's second pass recorded the augmented features
        # L_task(f) is already added with weight 1; this makes its weight 1 - augmented.
        difference = head_losses["loss"] - ctx.task_losses["loss"]
        return {"augmented": self.augmented * difference, "prototypes": self.weight * distance}


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
