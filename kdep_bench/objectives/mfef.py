"""MFEF (multi-scale feature extraction and fusion): networks learn from their fused maps.

ICANN 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import KernelSizes, NotNegative, Positive
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.maps import Maps

REDUCTION = 16  # channels per hidden unit of the channel attention
SPATIAL_KERNEL = 7  # kernel size of the spatial attention


class MultiScale(nn.Module):
    """Divides the channels into parts, one convolution per part, and concatenates the results.

    Part j has a kernel of size `kernels[j]`, so the parts see neighbourhoods of different sizes.
    Channels and size of the map are unchanged; BatchNorm and ReLU follow.
    """

    def __init__(self, channels: int, kernels: Sequence[int]) -> None:
        super().__init__()
        sizes = [len(part) for part in torch.arange(channels).tensor_split(len(kernels))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(size, size, kernel, padding=kernel // 2, bias=False)
            for size, kernel in zip(sizes, kernels, strict=True)
        )
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        parts = x_BCHW.tensor_split(len(self.convolutions), dim=1)
        scales = [c(part) for c, part in zip(self.convolutions, parts, strict=True)]
        return F.relu(self.norm(torch.cat(scales, 1)))


class DualAttention(nn.Module):
    """Multiplies a map by weights per position, and the result by weights per channel.

    The weights per position are the sigmoid of a convolution of the mean and the maximum over the
    channels. The weights per channel are the sigmoid of a network with one hidden layer on the mean
    over the positions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.position = nn.Conv2d(2, 1, SPATIAL_KERNEL, padding=SPATIAL_KERNEL // 2)
        self.channel = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        statistics = torch.stack([x_BCHW.mean(1), x_BCHW.amax(1)], 1)
        x = x_BCHW * self.position(statistics).sigmoid()
        return x * self.channel(x.mean((2, 3))).sigmoid()[:, :, None, None]


class FusedMaps(Objective):
    """CE(y, z_f) + sum over networks k of (CE(y, z_k) + a KL(z_f || z_k) + b |F_k - M|^2).

    The networks k = 0 ... K - 1 are trained together: the student, k = 0, and its peers. F_k is the
    map of one level, z_k are the logits of a linear layer on the pooled feature. The fused map is
    M = mean over k of A_k(E_k(F_k)), where E_k is MultiScale and A_k is DualAttention; z_f are the
    logits of a linear layer on the mean of M over the positions. |.|^2 is the mean over channels
    and positions, KL is `logit_kd.soft_kl` at the temperature tau. In these two terms M and z_f
    have no gradient. CE(y, z_f) trains the fusion and all networks.

    Without peers, the student learns from its own attended map. Without attention, M is the mean of
    the E_k(F_k). Peers have the student's architecture and other random weights. One optimiser
    trains everything. Peers, fusion and linear layers are dropped at export.

    Source: re-implementation from the abstract of arXiv 2206.08224. The abstract mentions parts of
    the channels that are processed separately and concatenated, attention to channels and
    positions, and a fusion that assists the training of the students. Kernel sizes, the order of
    the attentions, the mean as fusion, and all weights were chosen in this project.

    Args:
        student_level: name of the level whose maps are fused.
        peers: number of peers, K - 1.
        kernels: kernel sizes, one per part of the channels.
        attention: whether A_k is used.
        tau: temperature.
        kl: a.
        maps: b.
        width, classes, student_maps: set by the pre-training stage.
    """

    needs = frozenset({"labels"})
    stage_arguments = frozenset({"width", "classes", "student_maps"})
    trained_peers = 1  # forecasts use it if the config does not set `peers`

    def __init__(
        self,
        width: int,
        classes: int,
        student_maps: Maps,
        student_level: str = "s32",
        peers: Literal[0, 1, 2, 3] = 1,
        kernels: KernelSizes = (1, 3, 5, 7),
        attention: bool = True,
        tau: Positive = 3.0,
        kl: NotNegative = 1.0,
        maps: NotNegative = 1.0,
    ) -> None:
        super().__init__()
        if student_level not in student_maps:
            raise unknown_name("level", student_level, student_maps, place="the student")
        channels, count = int(student_maps[student_level]["channels"]), peers + 1
        if channels < len(kernels):
            raise KdepError(
                f"the level {student_level} has {channels} channels, which cannot be divided into "
                f"{len(kernels)} parts, one per kernel size",
                fix="set fewer `kernels` in the method's objective",
            )
        self.level, self.tau, self.weights = student_level, float(tau), (float(kl), float(maps))
        self.head = nn.Linear(width, classes)
        self.peer_heads = nn.ModuleList(nn.Linear(width, classes) for _ in range(peers))
        self.scales = nn.ModuleList(MultiScale(channels, kernels) for _ in range(count))
        self.attention = nn.ModuleList(
            DualAttention(channels) if attention else nn.Identity() for _ in range(count)
        )
        self.fused_head = nn.Linear(channels, classes)
        self.peers = nn.ModuleList(nn.Identity() for _ in range(peers))

    @classmethod
    def count_forwards(cls, config: Mapping[str, Any]) -> int:
        return int(config.get("peers", 1))

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        self.peers = nn.ModuleList(new_network(maps=True) for _ in self.peers)

    def fuse(self, maps: Sequence[Tensor]) -> Tensor:
        """M [B, C, H, W] of the maps of all networks."""
        attended = [
            attention(scales(x))
            for scales, attention, x in zip(self.scales, self.attention, maps, strict=True)
        ]
        return torch.stack(attended).mean(0)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        assert ctx.images is not None
        outputs = [peer(ctx.images) for peer in self.peers]
        maps = [ctx.maps[self.level], *(output.maps[self.level] for output in outputs)]
        logits = [
            self.head(ctx.post_activation),
            *(head(o.post_activation) for head, o in zip(self.peer_heads, outputs, strict=True)),
        ]
        fused = self.fuse(maps)
        fused_logits = self.fused_head(fused.mean((2, 3)))
        terms = {"fused_cross_entropy": F.cross_entropy(fused_logits, ctx.labels, reduction="none")}
        kl, map_weight = self.weights
        for k, (z, x) in enumerate(zip(logits, maps, strict=True)):
            prefix = "peer_" if k else ""
            network_terms = {
                "cross_entropy": F.cross_entropy(z, ctx.labels, reduction="none"),
                "mutual": kl * soft_kl(fused_logits.detach(), z, self.tau),
                "maps": map_weight * (x - fused.detach()).square().mean((1, 2, 3)),
            }
            for name, term in network_terms.items():  # the terms of all peers are added
                terms[prefix + name] = terms[prefix + name] + term if k > 1 else term
        return terms
