"""TinyBERT for vision transformers: attention scores and hidden states, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from kdep_bench.bounds import Count, NotNegative
from kdep_bench.errors import KdepError
from kdep_bench.networks.attention import Attention, BlockRecorder
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.first_batch import FirstBatch
from kdep_bench.objectives.levels import block_pairs


class TransformerLayers(Objective):
    """a sum_m |S_m - S_g(m)|^2 + h sum_m |W H_m - H_g(m)|^2 + e |W E - E_t|^2.

    |.|^2 is the mean of squares. The sums are over the student's blocks m; g(m) = m times teacher
    depth / student depth, counted from 1. S are attention scores before the softmax, H the tokens
    after a block (after the last norm for the last block), E the tokens before the first block. One
    linear layer W maps the student's tokens to the teacher's width; it is dropped at export. Class
    tokens are compared if both networks have the same number of them, otherwise only patches are.

    With `relative`, every squared difference is divided by the teacher's mean square in the first
    batch: a student whose scores and tokens are all zero then has the loss 1 for each of them, in
    every block. Otherwise a few blocks
    would dominate, because tokens of vision transformers have large values in a few channels, and
    their scale grows from block to block.

    Source: Jiao et al., "TinyBERT", EMNLP Findings 2020, general distillation (its first stage,
    without labels or logits); huawei-noah/Pretrained-Language-Model `TinyBERT/general_distill.py`:
    a = h = e = 1, `relative=False`, one W for all layers. BERT normalises tokens in every block;
    here the last norm is included, because otherwise no loss would train it. Masked scores of
    padding have no counterpart in images.

    Args:
        student_depth, teacher_depth: number of blocks of the networks. The teacher's must be a
            multiple of the student's.
        attention: a.
        hidden: h.
        embedding: e.
        average_heads: compare the means of the scores over the heads. Needed if the networks have
            different numbers of heads.
        relative: see above.
        width, teacher_attention: set by the pre-training stage.
    """

    needs = frozenset({"attention"})
    stage_arguments = frozenset({"width", "teacher_attention"})
    transformer = True

    def __init__(
        self,
        width: int,
        teacher_attention: Mapping[str, int],
        student_depth: Count = 12,
        teacher_depth: Count = 12,
        attention: NotNegative = 1.0,
        hidden: NotNegative = 1.0,
        embedding: NotNegative = 1.0,
        average_heads: bool = False,
        relative: bool = True,
    ) -> None:
        super().__init__()
        self.pairs = block_pairs(int(student_depth), int(teacher_depth))
        self.factors = (float(attention), float(hidden), float(embedding))
        self.average_heads, self.relative = bool(average_heads), bool(relative)
        self.projector = nn.Linear(width, teacher_attention["width"])
        self.mean_squares = FirstBatch(2 * len(self.pairs) + 1)
        self._recorders: list[BlockRecorder] = []

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        depth = len(self.pairs)
        self._recorders = [BlockRecorder(student, range(depth), "the student", depth)]

    def remove(self) -> None:
        """Stops recording the student's blocks."""
        self._recorders.pop().remove()

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.attention is not None
        student, teacher = self._recorders[0].take(), ctx.teacher.attention
        first = first_tokens(student, teacher)
        scores = self.scores(student, teacher, first)
        hidden = [
            (self.projector(s[:, first[0] :]), t[:, first[1] :])
            for s, t in self.hidden_states(student, teacher)
        ]
        a, h, e = self.factors
        embedding, blocks = hidden[0], hidden[1:]
        return {
            "attention": a * self.total_error(scores, 0, "attention scores"),
            "hidden": h * self.total_error(blocks, len(scores), "hidden states"),
            "embedding": e * self.total_error([embedding], 2 * len(scores), "embedding"),
        }

    def hidden_states(self, student: Attention, teacher: Attention) -> list[tuple[Tensor, Tensor]]:
        """(student's, teacher's) tokens before the first block, and after every paired block."""
        pairs = [(student.embedding, teacher.embedding)]
        pairs += [(student.blocks[s].hidden, teacher.blocks[t].hidden) for s, t in self.pairs[:-1]]
        return [*pairs, (student.final, teacher.final)]

    def scores(
        self, student: Attention, teacher: Attention, first: tuple[int, int]
    ) -> list[tuple[Tensor, Tensor]]:
        """(student's, teacher's) scores [B, heads, T, T] of every pair of blocks.

        `first`: index of the first compared token of each network, see `first_tokens`.

        Raises:
            KdepError: the numbers of heads differ and are not averaged.
        """
        out = []
        for s_block, t_block in self.pairs:
            s = student.blocks[s_block].scores[:, :, first[0] :, first[0] :]
            t = teacher.blocks[t_block].scores[:, :, first[1] :, first[1] :]
            if self.average_heads:
                s, t = s.mean(1, keepdim=True), t.mean(1, keepdim=True)
            if s.shape[1] != t.shape[1]:
                raise KdepError(
                    f"the student has {s.shape[1]} attention heads and the teacher {t.shape[1]}",
                    expected="equal numbers, or scores that are averaged over the heads",
                    fix="set average_heads=True in the method's objective",
                )
            out.append((s, t))
        return out

    def total_error(self, pairs: list[tuple[Tensor, Tensor]], first: int, name: str) -> Tensor:
        """[B]: sum over the pairs of the mean squared difference.

        Args:
            pairs: (student's, teacher's) tensors [B, ...].
            first: index of the first pair in `mean_squares`; the others follow it.
            name: name of the quantity, for errors.
        """
        errors = []
        for k, (s, t) in enumerate(pairs, first):
            error = (s - t).square().flatten(1).mean(1)
            if self.relative:
                mean_square = self.mean_squares(_mean_square_of(t), f"the teacher's {name}", k)
                # A division by `mean_square` would make autograd keep that buffer, which later
                # pairs change in place.
                error = error * (1 / mean_square)
            errors.append(error)
        return torch.stack(errors).sum(0)


def first_tokens(student: Attention, teacher: Attention) -> tuple[int, int]:
    """Index of the first compared token of each network, for `S` and `H`.

    It is 0 if both have the same number of class tokens, otherwise that of the first patch.

    Raises:
        KdepError: the networks have different numbers of patches.
    """
    patches = [a.final.shape[1] - a.prefix for a in (student, teacher)]
    if patches[0] != patches[1]:
        raise KdepError(
            f"the teacher has {patches[1]} patches, but the student has {patches[0]}",
            expected="the same number, so that tokens and attention can be compared",
            fix=f"set input_px of the teacher to {round(patches[0] ** 0.5)} times the side of its "
            "patches, or choose a teacher whose patches have the student's size",
        )
    return (0, 0) if student.prefix == teacher.prefix else (student.prefix, teacher.prefix)


def _mean_square_of(x: Tensor) -> Callable[[], Tensor]:
    return lambda: x.square().mean()
