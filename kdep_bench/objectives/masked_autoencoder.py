"""Masked autoencoder (MAE): a vision transformer reconstructs masked patches (CVPR 2022)."""

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

    The student encodes the visible patches only. The decoder, a small transformer that is dropped
    at export, gets the student's tokens (mapped linearly to `decoder_width`), a learned mask token
    at the position of every masked patch, and fixed sine-cosine position embeddings. It predicts
    the pixels of each patch.

    Source: He et al., CVPR 2022; facebookresearch/mae `models_mae.py`. That decoder has width 512
    and 8 blocks, for ViT-B; the defaults here are for ViT-T. The student is a timm transformer,
    with learned position embeddings.

    Args:
        decoder_width: token width of the decoder.
        decoder_depth: number of blocks of the decoder.
        decoder_heads: number of attention heads of the decoder.
        normalise: whether the target pixels of each patch are normalised to mean 0, variance 1.
        patch: side of the student's patches, in pixels.
        width: set by the pre-training stage.
    """

    needs = frozenset()
    stage_arguments = frozenset({"width"})
    reads_from_augment = frozenset({"visible"})
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
                f"the decoder has decoder_width={decoder_width} and decoder_heads={decoder_heads}",
                expected="a width that is a multiple of 4 and of the number of heads",
                fix="correct `decoder_width` or `decoder_heads` in the method's objective",
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
        self.set_tokens(VisibleTokens(student))

    def set_tokens(self, tokens: VisibleTokens) -> None:
        """Stores the reader of the student's tokens; KdepError for patches of another size."""
        if tokens.patch != self.patch:
            raise KdepError(
                f"the objective has patch={self.patch}, but the student's patches have "
                f"{tokens.patch} pixels",
                fix=f"set patch={tokens.patch} in the method's objective and augmentation",
            )
        self._student = [tokens]

    def before_student(self, extra: Mapping[str, Tensor]) -> None:
        self._student[0].visible = extra["visible"]

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.images is not None
        tokens, visible = self._student[0].tokens()
        pixels = patchify(ctx.images.float(), self.patch)
        if self.normalise:
            centred = pixels - pixels.mean(2, keepdim=True)
            pixels = centred / (pixels.var(2, keepdim=True) + 1e-6).sqrt()
        predicted = self.decode(tokens, visible, pixels.shape[1])
        error = (predicted - pixels).square().mean(2)  # [B, L] for L patches
        masked = torch.ones_like(error).scatter(1, visible, 0.0)  # 1 where masked, else 0
        return {"reconstruction": (error * masked).sum(1) / masked.sum(1).clamp(min=1)}

    def decode(self, tokens_BTD: Tensor, visible_Bn: Tensor, patches: int) -> Tensor:
        """Predicted pixels [B, L, 3 patch^2] of all L patches.

        Args:
            tokens_BTD: the student's tokens: class tokens, then those of the n visible patches.
            visible_Bn: numbers of the visible patches, row by row.
            patches: L.
        """
        x = self.embed(tokens_BTD)
        n_class_tokens = self._student[0].prefix
        class_tokens, patch_tokens = x[:, :n_class_tokens], x[:, n_class_tokens:]
        index = visible_Bn[:, :, None].expand(-1, -1, x.shape[2])
        all_patches = self.mask_token.expand(len(x), patches, -1).scatter(1, index, patch_tokens)
        all_patches = all_patches + position_embedding(round(patches**0.5), x.shape[2]).to(x)
        out = self.norm(self.blocks(torch.cat([class_tokens, all_patches], 1)))
        return self.predict(out[:, n_class_tokens:])


def patchify(images_B3HW: Tensor, patch: int) -> Tensor:
    """Splits images into L patches, row by row: [B, L, patch * patch * 3], channels last."""
    b, c, h, w = images_B3HW.shape
    x = images_B3HW.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def position_embedding(side: int, width: int) -> Tensor:
    """Fixed embedding [side^2, width] of the positions in a square grid, row by row.

    The four quarters of the channels are sine and cosine of the column, then sine and cosine of the
    row.
    """
    frequency = 10000.0 ** -(torch.arange(width // 4) / (width / 4))
    angle = torch.arange(side)[:, None] * frequency  # [side, width / 4]
    embedding = torch.cat([angle.sin(), angle.cos()], 1)
    rows = embedding[:, None].expand(side, side, -1)
    columns = embedding[None].expand(side, side, -1)
    return torch.cat([columns, rows], 2).reshape(side * side, width)
