"""Cross-architecture distillation: attention and tokens of a transformer, for a CNN (ACCV 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import BelowOne, Count, CountOrZero, Fraction, NotNegative, Positive
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.resize import resize_map
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.objectives.maps import Maps

# Tensors of the teacher whose mean squares are measured on the first batch.
QUANTITIES = ("queries", "keys", "values", "tokens")
ADAM: Mapping[str, Any] = {"type": "Adam", "lr": 2e-4, "betas": (0.5, 0.999)}


def attention_output(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [B, H, N, d], for H heads and N tokens."""
    scores = q_BHNd @ k_BHNd.transpose(2, 3) / math.sqrt(q_BHNd.shape[3])
    return scores.softmax(3) @ v_BHNd


def value_relations(v_BHNd: Tensor) -> Tensor:
    """v v^T / sqrt(d), [B, H, N, N]: inner products of the values of every pair of tokens."""
    return v_BHNd @ v_BHNd.transpose(2, 3) / math.sqrt(v_BHNd.shape[3])


def mean_error(student: Tensor, teacher: Tensor) -> Tensor:
    """[B]: mean of the squared difference of tensors [B, ...]."""
    return (student - teacher).square().flatten(1).mean(1)


class RegionLinear(nn.Module):
    """A linear layer per region of a square grid of tokens, after dropout.

    The grid of `side` x `side` tokens is divided into `regions` x `regions` regions, equal up to
    one row or column.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, inputs: int, outputs: int, side: int, regions: int, dropout: float) -> None:
        super().__init__()
        if side < regions:
            raise KdepError(
                f"the teacher has {side} x {side} patches, which cannot be divided into "
                f"{regions} x {regions} regions",
                fix=f"set `regions` of the method's objective to {side} or less",
            )
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(regions**2))
        line = torch.arange(side) * regions // side  # region of each row, and of each column
        region = (line[:, None] * regions + line).flatten()
        order = region.argsort(stable=True)
        self.sizes = region.bincount(minlength=regions**2).tolist()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(), persistent=False)

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """[B, N, inputs] -> [B, N, outputs]; tokens row by row."""
        parts = self.dropout(tokens_BNC)[:, self.order].split(self.sizes, 1)
        projected = [layer(part) for layer, part in zip(self.layers, parts, strict=True)]
        return torch.cat(projected, 1)[:, self.inverse]


class CrossArchitecture(Objective):
    """L_1 + L_2: projects the map of a CNN student to a transformer's attention and tokens.

    Q_s, K_s, V_s are 3x3 convolutions of the student's map, which is resized to the teacher's grid
    of patches. Q, K, V are those of a block of the teacher, of the patches only (without class
    token), in the teacher's heads of width d. With A = softmax(Q K^T / sqrt(d)) V, R = V V^T /
    sqrt(d), and means of squares |.|^2:

        L_1 = w (|A - A_s|^2 / |V|^2 + |R - R_s|^2 / (d |V|^4))     L_2 = w |h - h_s|^2 / |h|^2

    A_s is computed from g(Q_s), g(K_s), g(V_s); g replaces every entry by the teacher's with
    probability `swap`, in training. h are the teacher's patch tokens after its last norm, h_s the
    student's tokens after one linear layer per region of the grid (`regions`^2 layers) with
    dropout. L_1 compares attention and values, L_2 tokens. |V|^2 and d |V|^4 are the squared scales
    of A (a weighted mean of values) and of R (mean of its diagonal: sqrt(d) |V|^2), so one w suits
    every teacher. The divisors are measured on the first batch. The outputs of convolutions and
    linear layers are multiplied by the teacher's root mean square.

    Source: Liu et al., "Cross-Architecture Knowledge Distillation", ACCV 2022, arXiv 2207.05273;
    re-implemented from third-party notes that quote equations 1 to 10; no code of the authors is
    public. The divisors, the units, the dropout rate, and R as inner products are this project's.
    The paper also has a task loss with labels; it is left out here. Public re-implementations
    project the teacher's tokens to Q, K, V by a layer that stays random; here they are the
    teacher's.

    Args:
        teacher_block: number of the teacher's block, from 0.
        student_level: level of the student. It should be the last one, because no loss trains the
            layers after it.
        swap: probability with which g replaces an entry.
        regions: regions per side of the grid.
        dropout: fraction of the student's values that are set to 0 before the linear layers.
        attention: factor of L_1.
        tokens: factor of L_2.
        weight: w.
        student_maps, teacher_attention: set by the pre-training stage.
    """

    needs = frozenset({"attention"})
    stage_arguments = frozenset({"student_maps", "teacher_attention"})

    def __init__(
        self,
        student_maps: Maps,
        teacher_attention: Mapping[str, int],
        teacher_block: CountOrZero = 11,
        student_level: str = "s32",
        swap: Fraction = 0.5,
        regions: Count = 4,
        dropout: BelowOne = 0.1,
        attention: NotNegative = 1.0,
        tokens: NotNegative = 1.0,
        weight: Positive = 1.0,
    ) -> None:
        super().__init__()
        if student_level not in student_maps:
            raise unknown_name("level", student_level, student_maps, place="the student")
        channels, width = student_maps[student_level]["channels"], teacher_attention["width"]
        self.side = math.isqrt(teacher_attention["patches"])
        self.heads = int(teacher_attention["heads"])
        self.qkv = nn.Conv2d(channels, 3 * width, 3, padding=1)  # three convolutions in one
        self.linear = RegionLinear(channels, width, self.side, int(regions), float(dropout))
        self.block, self.level, self.swap = int(teacher_block), student_level, float(swap)
        self.factors, self.weight = (float(attention), float(tokens)), float(weight)
        self.mean_squares = FirstBatch(len(QUANTITIES))

    def teacher_qkv(self, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's queries, keys and values of the patches, [B, heads, N, d] each."""
        assert ctx.teacher is not None
        assert ctx.teacher.attention is not None
        block, first = ctx.teacher.attention.blocks[self.block], ctx.teacher.attention.prefix
        return block.queries[:, :, first:], block.keys[:, :, first:], block.values[:, :, first:]

    def teacher_tokens(self, ctx: Context) -> Tensor:
        """[B, N, D]: h."""
        assert ctx.teacher is not None
        assert ctx.teacher.attention is not None
        return ctx.teacher.attention.final[:, ctx.teacher.attention.prefix :]

    def student_map(self, ctx: Context) -> Tensor:
        """The student's map at the size of the teacher's grid."""
        return resize_map(ctx.maps[self.level], (self.side, self.side))

    def student_qkv(
        self, map_BCHW: Tensor, teacher: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q_s, K_s, V_s, [B, heads, N, d] each, in the units of the teacher's."""
        qkv = self.qkv(map_BCHW).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(3, 4)
        units = [
            self.mean_square(x, name).sqrt()
            for x, name in zip(teacher, QUANTITIES[:3], strict=True)
        ]
        return qkv[:, 0] * units[0], qkv[:, 1] * units[1], qkv[:, 2] * units[2]

    def student_tokens(self, ctx: Context, map_BCHW: Tensor) -> Tensor:
        """[B, N, D]: h_s, in the units of the teacher's tokens."""
        unit = self.mean_square(self.teacher_tokens(ctx), "tokens").sqrt()
        return self.linear(map_BCHW.flatten(2).transpose(1, 2)) * unit

    def swap_entries(self, student: Tensor, teacher: Tensor) -> Tensor:
        """g(student): entries replaced by the teacher's at random; unchanged in evaluation."""
        if not self.training:
            return student
        return torch.where(torch.rand_like(student) < self.swap, teacher, student)

    def mean_square(self, teacher: Tensor, name: str) -> Tensor:
        """The mean square, a scalar, of one of QUANTITIES in the first batch."""
        return self.mean_squares(
            lambda: teacher.square().mean(),
            f"the mean square of the teacher's {name}",
            QUANTITIES.index(name),
        )

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        student_map, (q, k, v) = self.student_map(ctx), self.teacher_qkv(ctx)
        q_s, k_s, v_s = self.student_qkv(student_map, (q, k, v))
        a = attention_output(q, k, v)
        a_s = attention_output(
            self.swap_entries(q_s, q), self.swap_entries(k_s, k), self.swap_entries(v_s, v)
        )
        r, r_s = value_relations(v), value_relations(v_s)
        h, h_s = self.teacher_tokens(ctx), self.student_tokens(ctx, student_map)
        v_square, h_square = self.mean_square(v, "values"), self.mean_square(h, "tokens")
        first, second = (self.weight * factor for factor in self.factors)
        return {
            "attention": first / v_square * mean_error(a_s, a),
            "values": first / (v.shape[3] * v_square.square()) * mean_error(r_s, r),
            "tokens": second / h_square * mean_error(h_s, h),
        }


class CrossArchitectureViews(CrossArchitecture):
    """CrossArchitecture + l L_G, with a discriminator of teacher and student tokens.

    D is a network of three linear layers on the mean token of an image, in units of the teacher's
    root mean square, with a sigmoid. A separate optimiser minimises -log D(h) - log(1 - D(h_s))
    before every step; L_G = log(1 - D(h_s)) trains the student. D is an auxiliary module: a part
    with its own optimiser (objectives/auxiliary.py). It is dropped at export. The paper's augmented
    views are made by the method's augmentation (augments.multi_view.MultiView), not here.

    Source: as for CrossArchitecture; l, the widths, slopes and optimiser of D are this project's.

    Args:
        adversarial: l.
        hidden: width of D.
        optimizer: config of the optimiser of D. Its learning rate follows the student's schedule.
        All other arguments: as in CrossArchitecture.
    """

    has_auxiliary_modules = True  # auxiliary module: a part with its own optimiser

    def __init__(
        self,
        student_maps: Maps,
        teacher_attention: Mapping[str, int],
        teacher_block: CountOrZero = 11,
        student_level: str = "s32",
        swap: Fraction = 0.5,
        regions: Count = 4,
        dropout: BelowOne = 0.1,
        attention: NotNegative = 1.0,
        tokens: NotNegative = 1.0,
        weight: Positive = 1.0,
        adversarial: NotNegative = 0.05,
        hidden: Count = 256,
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            student_maps, teacher_attention, teacher_block, student_level, swap, regions, dropout,
            attention, tokens, weight,
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Linear(teacher_attention["width"], hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )
        self.adversarial, self.optimizer = float(adversarial), dict(optimizer or ADAM)

    def auxiliary_modules(self) -> dict[str, AuxiliaryModule]:
        return {"discriminator": AuxiliaryModule(self.discriminator, self.optimizer)}

    def logit(self, ctx: Context, tokens_BND: Tensor) -> Tensor:
        """[B]: the logit of D for tokens of teacher or student."""
        unit = self.mean_square(self.teacher_tokens(ctx), "tokens").sqrt()
        return self.discriminator(tokens_BND.mean(1) / unit)[:, 0]

    def update_auxiliary(self, ctx: Context, auxiliary: AuxiliaryModules) -> None:
        student = self.student_tokens(ctx, self.student_map(ctx))
        # -log D = softplus(-logit), -log(1 - D) = softplus(logit)
        real = F.softplus(-self.logit(ctx, self.teacher_tokens(ctx)))
        loss = real + F.softplus(self.logit(ctx, student.detach()))
        auxiliary.minimise("discriminator", loss.mean())

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        student = self.student_tokens(ctx, self.student_map(ctx))
        generator = -F.softplus(self.logit(ctx, student))
        return {**super().terms(ctx), "adversarial": self.adversarial * generator}
