"""MAE: a transformer that sees a quarter of the patches reconstructs the others (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from kdep_bench.bounds import Count
from kdep_bench.errors import KdepError
from kdep_bench.networks.visible import VisibleTokens
from kdep_bench.objectives.base import Context, Objective


class MaskedAutoencoder(Objective):
    """L = mean over masked patches of the mean squared error of their pixels.

    The student encodes the visible patches alone. A small transformer gets its tokens, mapped to
    `decoder_width`, a learned mask token at every other place and fixed sine-cosine positions, and
    predicts the pixels of each patch, by default normalised to mean 0 and variance 1 per patch.

    Source: He et al., CVPR 2022; facebookresearch/mae `models_mae.py`. There the decoder is 512
    wide and 8 blocks deep for ViT-B; its defaults here are for ViT-T. The student is a timm
    transformer, with its own (learned) positions.

    Args:
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        normalise: whether pixels are normalised per patch.
        patch: side of a patch in pixels: the student's.
        width: set by the pre-training stage.
    """

    needs = frozenset()
    requires = frozenset({"width"})
    reads_extra = frozenset({"visible"})
    transformer = True

    def __init__(
        self,
        width: int,
        decoder_width: Count = 128,
        decoder_depth: Count = 2,
        decoder_heads: Count = 4,
        normalise: bool = True,
        patch: Count = 16,
    ) -> None:
        super().__init__()
        if decoder_width % 4 or decoder_width % decoder_heads:
            raise KdepError(
                f"the decoder has width {decoder_width} and {decoder_heads} heads",
                expected="a width that is a multiple of 4 and of the number of heads",
                fix="correct `objective` in the method",
            )
        self.embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(decoder_width))
        self.blocks = nn.Sequential(
            *(Block(decoder_width, decoder_heads, qkv_bias=True) for _ in range(decoder_depth))
        )
        self.norm = nn.LayerNorm(decoder_width)
        self.predict = nn.Linear(decoder_width, 3 * patch**2)
        self.patch, self.normalise = int(patch), bool(normalise)
        self._student: list[VisibleTokens] = []

    def attach(self, student: nn.Module, new_network: Callable[[], nn.Module]) -> None:
        self.read(VisibleTokens(student))

    def read(self, tokens: VisibleTokens) -> None:
        """Sets what is read of the student; KdepError for patches of another size."""
        if tokens.patch != self.patch:
            raise KdepError(
                f"the objective has patch={self.patch}, but the student's patches have "
                f"{tokens.patch} pixels",
                fix=f"set patch={tokens.patch} in the method's objective and augmentation",
            )
        self._student = [tokens]

    def before_student(self, extra: Mapping[str, Tensor]) -> None:
        self._student[0].keep = extra["visible"]

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.images is not None
        tokens, visible = self._student[0].tokens()
        pixels = patchify(ctx.images.float(), self.patch)
        if self.normalise:
            centred = pixels - pixels.mean(2, keepdim=True)
            pixels = centred / (pixels.var(2, keepdim=True) + 1e-6).sqrt()
        predicted = self.decode(tokens, visible, pixels.shape[1])
        error = (predicted - pixels).square().mean(2)  # [B, L]
        masked = torch.ones_like(error).scatter(1, visible, 0.0)
        return {"reconstruction": (error * masked).sum(1) / masked.sum(1).clamp(min=1)}

    def decode(self, tokens_BTD: Tensor, visible_Bn: Tensor, patches: int) -> Tensor:
        """[B, L, 3 patch^2]: predicted pixels of all L patches."""
        x = self.embed(tokens_BTD)
        prefix, seen = x[:, : self._student[0].prefix], x[:, self._student[0].prefix :]
        index = visible_Bn[:, :, None].expand(-1, -1, x.shape[2])
        full = self.mask_token.expand(len(x), patches, -1).scatter(1, index, seen)
        full = full + positions(round(patches**0.5), x.shape[2]).to(x)
        out = self.norm(self.blocks(torch.cat([prefix, full], 1)))
        return self.predict(out[:, prefix.shape[1] :])


def patchify(images_B3HW: Tensor, patch: int) -> Tensor:
    """[B, L, patch * patch * 3]: patches row by row, each pixel's three channels together."""
    b, c, h, w = images_B3HW.shape
    x = images_B3HW.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def positions(side: int, width: int) -> Tensor:
    """[side^2, width] fixed embedding: sine and cosine of column and row, a quarter each."""
    rate = 10000.0 ** -(torch.arange(width // 4) / (width / 4))
    angle = torch.arange(side)[:, None] * rate  # [side, width / 4]
    waves = torch.cat([angle.sin(), angle.cos()], 1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([columns, rows], 2).reshape(side * side, width)
