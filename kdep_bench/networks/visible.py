"""A vision transformer that sees a part of the patches, and its tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError


class VisibleTokens:
    """Lets a timm transformer inside `net` see chosen patches alone, and keeps its last tokens.

    It hooks `patch_drop`, after which timm's transformers hold the tokens with their positions, and
    `norm`, the last one. The network's parameters, names and other callers are unaffected: without
    `keep`, all patches are seen.

    Attributes:
        keep: [B, n] int64 numbers of the patches that the next pass sees; None for all.
        patch: side of a patch in pixels.
        prefix: number of tokens before the patches (class token, registers).
    """

    def __init__(self, net: nn.Module) -> None:
        capable = [m for m in net.modules() if hasattr(m, "patch_drop") and hasattr(m, "blocks")]
        if not capable:
            raise KdepError(
                f"the student {type(net).__name__} is not a vision transformer of timm, so no "
                "patches can be hidden from it",
                fix="use such a student (vit_t), or another method",
            )
        vit: Any = capable[0]
        self.patch, self.prefix = int(vit.patch_embed.patch_size[0]), int(vit.num_prefix_tokens)
        self.keep: Tensor | None = None
        self._tokens: Tensor | None = None
        vit.patch_drop.register_forward_hook(self._select)
        vit.norm.register_forward_hook(self._record)

    def _select(self, _module: nn.Module, _args: Any, tokens: Tensor) -> Tensor | None:
        if self.keep is None:
            return None
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        index = self.keep[:, :, None].expand(-1, -1, tokens.shape[2])
        return torch.cat([prefix, patches.gather(1, index)], 1)

    def _record(self, _module: nn.Module, _args: Any, tokens: Tensor) -> None:
        self._tokens = tokens if self.keep is not None else None

    def tokens(self) -> tuple[Tensor, Tensor]:
        """(tokens [B, prefix + n, D] float32, keep [B, n]) of the last pass, which are released."""
        assert self._tokens is not None
        assert self.keep is not None
        out = self._tokens.float(), self.keep
        self._tokens = self.keep = None
        return out
