"""Guided hybrid quantisation with one-to-one self-teaching (GHOST), TGRS 2023.

The teacher is the same student with the same pre-training, trained on the task with 32 bits. Each
layer of the student gets the fewest bits for which clusters of the teacher's weights are close (see
`quantisers.hybrid_bits`). The loss is L_task + weight * sum_i a_i mean_p (n(S_i) - n(T_i))_p^2 over
the levels i, with

* S, T: mean over the channels of the squares of the student's map F^s and the teacher's F^t, at the
  positions p;
* n(x) = x / |x|, the Euclidean norm over the positions;
* a_i, the switch of a sample: 1 if sigmoid(q k / sqrt(d) + g) > 1/2, otherwise 0, where
  k = relu(BN(W_k mean_p F^s_i)), q = BN(W_q mean_p F^t_i), d is their width and g is Gumbel noise.
  The gradient of a_i is that of the sigmoid.

Source: Zhang et al., "Guided Hybrid Quantization" (TGRS 2023); icey-zhang/GHOST
quantization_conv_automix_autodis.py, utils/distill/Self_D.py.

Differences: the authors start from the teacher's weights; here the student starts from the exported
backbone, as in every other row, and is trained as long as plain transfer. They quantise ReLU
outputs cut off at 1, with the bits of the layer before; here the input of a layer has a measured
range and the bits of the layer, because pre-trained activations exceed 1. They compare the maps of
all layers; here those of the levels that the task's backbone returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Bits, Count, NotNegative, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.maps import Maps
from kdep_bench.transfer.method import TransferContext
from kdep_bench.transfer.methods.quantised import Quantised, quantisable
from kdep_bench.transfer.parallel import can_normalise
from kdep_bench.transfer.quantisers import hybrid_bits


class Ghost(Quantised):
    """GHOST; see the top of this module.

    Args:
        threshold: a layer gets the fewest bits for which 10^6 * (mean squared distance of the
            teacher's weights to their cluster centres) is below this value.
        smallest, largest: limits of the bits of a layer.
        weight: weight of the self-teaching; 0: only the quantisation, without this loss.
        width: d, the width of keys and queries.
        parts: see `Quantised`.
        student_maps: set by the transfer stage.
    """

    needs = frozenset({"tuned_teacher"})
    stage_arguments = frozenset({"student_maps"})
    teacher_is_student = True

    def __init__(
        self,
        student_maps: Maps,
        threshold: Positive = 0.1,
        smallest: Bits = 2,
        largest: Bits = 8,
        weight: NotNegative = 400.0,
        width: Count = 128,
        parts: Sequence[str] = ("backbone", "neck"),
    ) -> None:
        super().__init__(largest, parts)
        if smallest > largest:
            raise KdepError(
                f"`smallest` of Ghost is {smallest}, more than `largest`, {largest}",
                fix="correct `smallest` and `largest` in the transfer method",
            )
        self.threshold, self.smallest, self.largest = float(threshold), smallest, largest
        self.weight = float(weight)
        self.reads_teacher_maps = self.weight > 0
        channels = {level: int(entry["channels"]) for level, entry in student_maps.items()}
        self.switch = Switch(channels if self.weight else {}, int(width))
        self._teacher_layers: Mapping[str, nn.Module] = {}
        # {level: mean of the switch over the batch, in every step}
        self._open: dict[str, list[Tensor]] = {level: [] for level in channels}

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        assert teacher is not None
        self._teacher_layers = quantisable(teacher, self.parts)
        super().attach(model, teacher)
        self._teacher_layers = {}

    def bits_of(self, path: str, layer: nn.Module, teacher: nn.Module | None) -> int:
        weight = cast(Tensor, self._teacher_layers[path].weight)
        return hybrid_bits(weight, self.threshold, self.smallest, self.largest)

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        super().losses(ctx)  # ends the counting of multiply-adds after the first step
        if not self.weight:
            return {}
        terms = []
        for level, student in ctx.maps.items():
            teacher = ctx.teacher_maps[level]
            noise = gumbel(len(student), ctx.step, list(ctx.maps).index(level)).to(student.device)
            is_open = self.switch(level, student, teacher, noise)
            self._open[level].append(is_open.detach().mean())
            terms.append(is_open * attention_distance(student, teacher))
        return {"self_teaching": self.weight * torch.stack(terms).sum(0)}

    def finish(self, model: nn.Module) -> dict[str, Any]:
        """As `Quantised.finish`; adds `switch_open`: {level: mean of the switch over training}."""
        outputs = super().finish(model)
        means = {k: float(torch.stack(v).mean()) for k, v in self._open.items() if v}
        return {**outputs, **({"switch_open": means} if means else {})}


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """(B,) mean over the positions of (n(S) - n(T))^2; see the top of this module."""
    maps = [
        F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher.to(student))
    ]
    return (maps[0] - maps[1]).square().mean(1)


def gumbel(count: int, step: int, level: int) -> Tensor:
    """[count] standard Gumbel noise of one step and level, different in every rank.

    It has its own generator, so the task's random numbers are those of a training without it.
    """
    rng = np.random.default_rng([step, level, get_dist_info()[0]])
    return torch.from_numpy(rng.gumbel(size=count)).float()


class Switch(nn.Module):
    """Whether a level of a sample is compared with the teacher's; see the top of this module.

    Args:
        channels: {level: number of channels of its map}.
        width: d.
    """

    def __init__(self, channels: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.width = width
        self.keys = nn.ModuleDict({k: _projection(c, width) for k, c in channels.items()})
        self.queries = nn.ModuleDict({k: _projection(c, width) for k, c in channels.items()})

    def forward(self, level: str, student: Tensor, teacher: Tensor, noise: Tensor) -> Tensor:
        """(B,) 1 or 0, with the gradient of the sigmoid."""
        key = F.relu(_projected(self.keys[level], student))
        query = _projected(self.queries[level], teacher.to(student))
        soft = torch.sigmoid((key * query).sum(1) / math.sqrt(self.width) + noise)
        return soft + ((soft > 0.5).to(soft) - soft).detach()


def _projection(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.BatchNorm1d(width))


def _projected(projection: nn.Module, feature_map: Tensor) -> Tensor:
    """BN(W mean_p F); without BatchNorm for a batch of one image, which has no variance."""
    linear, norm = cast(nn.Sequential, projection)
    out = linear(feature_map.mean((2, 3)))
    return norm(out) if can_normalise(len(out)) else out
