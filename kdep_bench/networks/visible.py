"""Hides patches of the input from a network, and runs networks only up to a given module.

In shapes, n is the number of visible patches of an image and D the number of channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from kdep_bench.errors import KdepError
from kdep_bench.networks.resize import resize_map


class TokenSource(NamedTuple):
    """The module whose output is the input of a transformer's first block.

    Attributes:
        module: its output is [B, prefix + L, D]: the tokens with position embeddings.
        prefix: number of tokens before the L patches (class token, registers).
    """

    module: nn.Module
    prefix: int


def token_source(net: nn.Module) -> TokenSource | None:
    """The token source of a vision transformer inside `net`; None for other networks.

    Supports the transformers of timm, torchvision, mmpretrain and Hugging Face (ViT, DINOv2, CLIP).
    """
    for module in net.modules():
        source = timm_source(module) or _other_source(module)
        if source is not None:
            return source
    return None


def timm_source(module: Any) -> TokenSource | None:
    """The token source of a module if it is a vision transformer of timm, otherwise None."""
    if isinstance(getattr(module, "patch_drop", None), nn.Module) and hasattr(module, "blocks"):
        return TokenSource(module.patch_drop, int(module.num_prefix_tokens))
    return None


def _other_source(module: Any) -> TokenSource | None:
    if isinstance(module, VisionTransformer):
        return TokenSource(module.encoder.dropout, 1)
    if hasattr(module, "drop_after_pos") and hasattr(module, "num_extra_tokens"):  # mmpretrain
        return TokenSource(module.drop_after_pos, int(module.num_extra_tokens))
    if hasattr(module, "embeddings") and hasattr(getattr(module, "config", None), "patch_size"):
        return TokenSource(module.embeddings, 1)  # transformers
    return None


def select(tokens_BTD: Tensor, prefix: int, visible_Bn: Tensor) -> Tensor:
    """The first `prefix` tokens and those of the n visible patches: [B, prefix + n, D]."""
    patches = tokens_BTD[:, prefix:]
    index = visible_Bn[:, :, None].expand(-1, -1, tokens_BTD.shape[2])
    return torch.cat([tokens_BTD[:, :prefix], patches.gather(1, index)], 1)


@contextmanager
def only_visible_tokens(
    source: TokenSource, visible_Bn: Tensor, patches: int, name: str
) -> Iterator[None]:
    """Context manager: the transformer's blocks receive only the tokens of the visible patches.

    Args:
        source: the transformer's token source.
        visible_Bn: [B, n] indices of the visible patches.
        patches: expected number of patches, visible and hidden.
        name: the transformer, for errors.

    Raises:
        KdepError: in the forward pass, if the transformer has another number of patches.
    """

    def hook(_module: nn.Module, _args: Any, tokens: Tensor) -> Tensor:
        count = tokens.shape[1] - source.prefix
        if count != patches:
            raise KdepError(
                f"{name} has {count} patches, but the student has {patches}",
                expected="the same number, so that the same patches can be hidden from both",
                fix=f"set input_px of the teacher to {round(patches**0.5)} times the side of its "
                "patches",
            )
        return select(tokens, source.prefix, visible_Bn)

    handle = source.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hide_patches(x_B3HW: Tensor, hidden_Bss: Tensor) -> Tensor:
    """Normalised images with the hidden patches set to 0, the mean colour.

    Args:
        x_B3HW: normalised images.
        hidden_Bss: [B, s, s] bool, whether a patch of the s x s grid is hidden.
    """
    is_visible = (~hidden_Bss)[:, None].to(x_B3HW.dtype)
    size = (int(x_B3HW.shape[2]), int(x_B3HW.shape[3]))
    return x_B3HW * F.interpolate(is_visible, size=size, mode="nearest")


def values_at_patches(x_BCHW: Tensor, visible_Bn: Tensor, side: int) -> Tensor:
    """Resizes a map to a grid of side x side, and returns its values at the patches: [B, n, C].

    Args:
        x_BCHW: the map.
        visible_Bn: [B, n] indices of the patches.
        side: number of patches per side.
    """
    tokens = resize_map(x_BCHW, (side, side)).flatten(2).transpose(1, 2)
    return select(tokens, 0, visible_Bn)


class _Stopped(Exception):
    """Raised to end a forward pass early."""


def run_until(module: nn.Module, forward: Callable[[], Any]) -> Any:
    """Runs `forward` only until `module` has run; returns the module's output, or None.

    None means that the forward pass did not run the module.
    """
    outputs: list[Any] = []

    def stop(_module: nn.Module, _args: Any, out: Any) -> None:
        outputs.append(out)
        raise _Stopped

    handle = module.register_forward_hook(stop)
    try:
        forward()
    except _Stopped:
        pass
    finally:
        handle.remove()
    return outputs[0] if outputs else None


class VisibleTokens:
    """Hides patches from a timm transformer inside `net`, and records its output tokens.

    The hooks are on the token source and the final norm of the transformer. The parameters of the
    network and their names do not change.

    Args:
        net: a network that contains a transformer of timm.
        block: index of a block whose output is also recorded.

    Attributes:
        visible: [B, n] int64 indices of the patches that are visible in the next forward pass.
            None: all patches.
        patch: side of a patch in pixels.
        prefix: number of tokens before the patches (class token, registers).

    Raises:
        KdepError: `net` contains no transformer of timm, or the block does not exist.
    """

    def __init__(self, net: nn.Module, block: int | None = None) -> None:
        transformers = [(m, s) for m in net.modules() if (s := timm_source(m)) is not None]
        if not transformers:
            raise KdepError(
                f"the student {type(net).__name__} is not a vision transformer of timm, so no "
                "patches can be hidden from it",
                fix="use such a student (vit_t), or another method",
            )
        vit: Any = transformers[0][0]
        source = transformers[0][1]
        self.patch, self.prefix = int(vit.patch_embed.patch_size[0]), source.prefix
        self.visible: Tensor | None = None
        self._tokens: Tensor | None = None
        self._block_tokens: Tensor | None = None
        source.module.register_forward_hook(self._select)
        vit.norm.register_forward_hook(self._record)
        if block is not None:
            if not 0 <= block < len(vit.blocks):
                raise KdepError(
                    f"the objective reads block {block} of the student, which has "
                    f"{len(vit.blocks)} blocks",
                    expected=f"0 to {len(vit.blocks) - 1}",
                    fix="correct `student_block` in the method's objective",
                )
            vit.blocks[block].register_forward_hook(self._record_block)

    def _select(self, _module: nn.Module, _args: Any, tokens: Tensor) -> Tensor | None:
        return None if self.visible is None else select(tokens, self.prefix, self.visible)

    def _record(self, _module: nn.Module, _args: Any, tokens: Tensor) -> None:
        self._tokens = tokens if self.visible is not None else None

    def _record_block(self, _module: nn.Module, _args: Any, tokens: Tensor) -> None:
        self._block_tokens = tokens if self.visible is not None else None

    def tokens(self) -> tuple[Tensor, Tensor]:
        """The tokens after the final norm in the last forward pass; they are then released.

        Returns:
            tokens [B, prefix + n, D] float32, and the indices `visible` [B, n] of that pass.
        """
        assert self._tokens is not None
        assert self.visible is not None
        out = self._tokens.float(), self.visible
        self._tokens = self.visible = None
        return out

    def block_tokens(self) -> Tensor:
        """The output [B, prefix + n, D] float32 of `block` in the last forward pass.

        The recorded output is then released.
        """
        assert self._block_tokens is not None
        out, self._block_tokens = self._block_tokens.float(), None
        return out
