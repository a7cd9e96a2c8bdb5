"""Distilled masked autoencoder (DMAE): reconstruction of masked patches and of a teacher's layer.

The layer is one in the middle of the teacher (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import NotNegative, Positive
from kdep_bench.errors import unknown_name
from kdep_bench.networks.visible import VisibleTokens, hide_patches, values_at_patches
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.maps import Maps
from kdep_bench.objectives.masked_autoencoder import MaskedAutoencoder


def token_distance(
    student_BTC: Tensor, teacher_BTC: Tensor, visible: int, unit_length: bool
) -> Tensor:
    """Mean over tokens and channels of |s - t| per sample, shape [B].

    Args:
        student_BTC, teacher_BTC: tokens, with C equal for both.
        visible: number of visible patches, whose tokens are the last ones. Only they are compared
            if the two networks have different numbers of tokens (class tokens).
        unit_length: divide every token by its Euclidean norm first.
    """
    s, t = student_BTC, teacher_BTC
    if s.shape[1] != t.shape[1]:
        s, t = s[:, -visible:], t[:, -visible:]
    if unit_length:
        s, t = F.normalize(s, dim=2), F.normalize(t, dim=2)
    return (s - t).abs().mean((1, 2))


class Dmae(MaskedAutoencoder):
    """L_MAE + alpha mean |u(W z_s + b) - u(z_t)|, with u(z) = z / |z|.

    L_MAE is the loss of MaskedAutoencoder. z_s are the tokens of the visible patches after block
    `student_block` of the student; z_t are those of the same patches after the layer
    `teacher_layer` of the frozen teacher, whose later layers are not run. Class tokens are compared
    as well if both networks have equally many tokens. A convolutional teacher gets the image with
    the hidden patches replaced by the mean colour, and z_t is its map at the visible patches.

    Source: Bai et al., CVPR 2023; UCSC-VLAA/DMAE `models_mae_distill.py` (alpha 1, one linear layer
    W, 9th of 12 blocks of the student and 18th of 24 of the teacher). u is in the published code
    but not in the paper's formula (`unit_length=False`).

    Args:
        teacher_layer: name or module path of the layer (`Teacher.up_to`).
        student_block: number of the block, from 0.
        alpha: weight of the distance.
        unit_length: whether u is applied.
        decoder: other arguments, passed to MaskedAutoencoder.
        width, layer_width: set by the pre-training stage.
    """

    needs = frozenset({"layer"})
    stage_arguments = frozenset({"width", "layer_width"})
    reads_from_augment = frozenset({"visible", "hidden"})

    def __init__(
        self,
        width: int,
        layer_width: int,
        teacher_layer: str,
        student_block: int = 8,
        alpha: NotNegative = 1.0,
        unit_length: bool = True,
        **decoder: Any,
    ) -> None:
        super().__init__(width, **decoder)
        self.projector = nn.Linear(width, layer_width)
        self.student_block, self.alpha = student_block, float(alpha)
        self.unit_length = bool(unit_length)

    def attach(self, student: nn.Module, new_network: Callable[[], nn.Module]) -> None:
        self.set_tokens(VisibleTokens(student, self.student_block))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.layer is not None
        distance = token_distance(
            self.projector(self._student[0].block_tokens()),
            ctx.teacher.layer,
            ctx.extra["visible"].shape[1],
            self.unit_length,
        )
        return {**super().terms(ctx), "layer": self.alpha * distance}


class DmaeMaps(Objective):
    """The second term of Dmae for a convolutional student: alpha mean |u(W z_s + b) - u(z_t)|.

    The student's input is the image with the hidden patches replaced by the mean colour. z_s is its
    level `student_level`, resized to the grid of patches and read at the visible patches. The level
    should be the last one, because no other loss trains the layers after it. There is no
    reconstruction term: a convolution mixes visible and hidden patches, so the task would differ
    from the source's.

    Source: as for Dmae; its use with a convolutional student is a choice of this project.

    Args:
        teacher_layer, alpha, unit_length: as in `Dmae`.
        student_level: level of the student's pyramid.
        student_maps, layer_width: set by the pre-training stage.
    """

    needs = frozenset({"layer"})
    stage_arguments = frozenset({"student_maps", "layer_width"})
    reads_from_augment = frozenset({"visible", "hidden"})

    def __init__(
        self,
        student_maps: Maps,
        layer_width: int,
        teacher_layer: str,
        student_level: str = "s32",
        alpha: Positive = 1.0,
        unit_length: bool = True,
    ) -> None:
        super().__init__()
        if student_level not in student_maps:
            raise unknown_name("level", student_level, student_maps, place="the student")
        self.projector = nn.Linear(student_maps[student_level]["channels"], layer_width)
        self.student_level, self.alpha = student_level, float(alpha)
        self.unit_length = bool(unit_length)
        self._hidden: Tensor | None = None

    def attach(self, student: nn.Module, new_network: Callable[[], nn.Module]) -> None:
        student.register_forward_pre_hook(self._hide)

    def before_student(self, extra: Mapping[str, Tensor]) -> None:
        self._hidden = extra["hidden"]

    def _hide(self, _module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Forward pre-hook of the student: replaces the hidden patches by the mean colour."""
        if self._hidden is None:
            return None
        hidden, self._hidden = self._hidden, None
        return (hide_patches(args[0], hidden), *args[1:])

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.teacher.layer is not None
        visible, side = ctx.extra["visible"], ctx.extra["hidden"].shape[1]
        student = self.projector(values_at_patches(ctx.maps[self.student_level], visible, side))
        distance = token_distance(student, ctx.teacher.layer, visible.shape[1], self.unit_length)
        return {"layer": self.alpha * distance}
