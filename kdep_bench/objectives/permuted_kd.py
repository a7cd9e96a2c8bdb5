"""A control for LogitKD: the teacher's logits without the information which classes are similar."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdep_bench.bounds import Positive
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.logit_kd import LogitKD


class PermutedKD(LogitKD):
    """LogitKD with the teacher's logits permuted among all classes but its top class.

    Each view has its own permutation, which is the same in every epoch. The top class, its
    probability and the entropy of the outputs are unchanged, so the student is regularised as in
    LogitKD; which other classes are similar to the top class is lost. If a student of this method
    is as good as one of LogitKD, the gain of LogitKD is regularisation, not distillation.

    Source: re-implementation of the "distillation hypothesis" of Vats and Crandall (arXiv
    2112.10047), of which only the abstract was read. The permutation was chosen in this project.

    Args:
        tau: temperature, a number.
        seed: seed of the permutations.
        width, teacher_classes, epochs: set by the pre-training stage.
    """

    def __init__(
        self,
        width: int,
        teacher_classes: int,
        tau: Positive = 4.0,
        seed: int = 0,
        epochs: float | None = None,
    ) -> None:
        super().__init__(width, teacher_classes, tau, epochs=epochs)
        self.seed = seed

    def kl(self, ctx: Context, student_BC: Tensor) -> Tensor:
        assert ctx.teacher is not None
        assert ctx.teacher.logits is not None
        assert ctx.rows is not None
        permuted = permute_others(ctx.teacher.logits, ctx.rows, self.seed)
        return super().kl(replace(ctx, teacher=replace(ctx.teacher, logits=permuted)), student_BC)


def permute_others(z_BC: Tensor, rows_B: Tensor, seed: int = 0) -> Tensor:
    """[B, C]: the logits, permuted among all classes but the largest one.

    Args:
        z_BC: logits.
        rows_B: int64; equal numbers have equal permutations.
        seed: seed of the permutations.
    """
    classes = torch.arange(z_BC.shape[1], device=z_BC.device)
    is_top_BC = classes == z_BC.argmax(1, keepdim=True)
    # Multiples of a large prime, so that different seeds hash different numbers for the same row.
    keys_BC = hash_numbers(hash_numbers(rows_B + 1_000_003 * seed)[:, None] + classes)
    order_BC = classes.expand_as(z_BC).masked_fill(is_top_BC, -1).argsort(1)
    random_BC = keys_BC.masked_fill(is_top_BC, -1).argsort(1)
    return torch.zeros_like(z_BC).scatter(1, order_BC, z_BC.gather(1, random_BC))


def hash_numbers(x: Tensor) -> Tensor:
    """A hash of int64 numbers, uniform in [0, 2^31). It gives the same numbers on every device."""
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) % 2**31
    return x ^ (x >> 16)
