"""Label-free weights of several teachers by the entropy of their outputs (Kwon et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from kdep_bench.objectives.base import Context
from kdep_bench.objectives.weighting import Weighting


class EntropyWeights(Weighting):
    """w_k = (1 - H_k / sum_j H_j) / K, with H_k the entropy of teacher k's softmax per sample.

    The temperature is 1. The weights of a sample sum to (K - 1) / K, as in the published code; they
    are equal if every H is 0. The keys of the terms are the teachers' roles.

    Source: Kwon et al., ICASSP 2020, "Adaptive Knowledge Distillation based on Entropy", as EBKD in
    Rorozhl/CA-MKD `helper/loops.py`.
    """

    needs = frozenset({"logits"})
    every_teacher = True

    def weigh(self, ctx: Context, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits_KBC = torch.stack([_logits(ctx, role) for role in ctx.teachers])
        # special.entr defines 0 log 0 as 0; the published p * log(p) is NaN there.
        entropy_KB = torch.special.entr(F.softmax(logits_KBC, 2)).sum(2)
        total_B, count = entropy_KB.sum(0), len(entropy_KB)
        equal = torch.full_like(entropy_KB, 1 / count)
        fraction_KB = torch.where(total_B > 0, entropy_KB / total_B.clamp_min(1e-30), equal)
        return dict(zip(ctx.teachers, (1 - fraction_KB) / count, strict=True))


def _logits(ctx: Context, role: str) -> Tensor:
    logits = ctx.teachers[role].logits
    assert logits is not None
    return logits
