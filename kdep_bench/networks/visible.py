"""Patches that a network does not see, and passes that stop after a layer."""

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
    """Where a transformer's patches have become tokens and no block has run yet.

    Attributes:
        module: its output is [B, prefix + L, D], the positions added.
        prefix: number of tokens before the L patches (class token, registers).
    """

    module: nn.Module
    prefix: int


def token_source(net: nn.Module) -> TokenSource | None:
    """The token source of a vision transformer inside `net`; None for other networks.

    Known are those of timm, torchvision, mmpretrain and Hugging Face (ViT, DINOv2, CLIP).
    """
    for module in net.modules():
        source = timm_source(module) or _other_source(module)
        if source is not None:
            return source
    return None


def timm_source(module: Any) -> TokenSource | None:
    """`token_source` of one module, if it is a vision transformer of timm."""
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
    """[B, prefix + n, D]: the first `prefix` tokens and those of the visible patches."""
    patches = tokens_BTD[:, prefix:]
    index = visible_Bn[:, :, None].expand(-1, -1, tokens_BTD.shape[2])
    return torch.cat([tokens_BTD[:, :prefix], patches.gather(1, index)], 1)


@contextmanager
def only_visible(
    source: TokenSource, visible_Bn: Tensor, patches: int, name: str
) -> Iterator[None]:
    """Inside, the transformer's blocks get the visible patches alone.

    Raises KdepError, in the pass, for a transformer that has not `patches` patches.
    """

    def hook(_module: nn.Module, _args: Any, tokens: Tensor) -> Tensor:
        count = tokens.shape[1] - source.prefix
        if count != patches:
            raise KdepError(
                f"{name} has {count} patches and the student {patches}, so that they cannot see "
                "the same ones",
                expected="equal numbers",
                fix=f"set input_px of the teacher to {round(patches**0.5)} times the side of its "
                "patches",
            )
        return select(tokens, source.prefix, visible_Bn)

    handle = source.module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def blanked(x_B3HW: Tensor, hidden_Bss: Tensor) -> Tensor:
    """Normalised images whose hidden patches, a grid of s x s, are 0: the mean colour."""
    seen = (~hidden_Bss)[:, None].to(x_B3HW.dtype)
    size = (int(x_B3HW.shape[2]), int(x_B3HW.shape[3]))
    return x_B3HW * F.interpolate(seen, size=size, mode="nearest")


def at_patches(x_BCHW: Tensor, visible_Bn: Tensor, side: int) -> Tensor:
    """[B, n, C]: a map at the visible patches of a grid of side x side, in their order."""
    tokens = resize_map(x_BCHW, (side, side)).flatten(2).transpose(1, 2)
    return select(tokens, 0, visible_Bn)


class _Stopped(Exception):
    """Ends a forward pass."""


def output_of(module: nn.Module, forward: Callable[[], Any]) -> Any:
    """The output of a module in the forward pass `forward`, which ends there.

    No module after it runs. None where the pass does not reach it.
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
    """Lets a timm transformer inside `net` see chosen patches alone, and keeps its last tokens.

    It hooks `patch_drop`, after which timm's transformers hold the tokens with their positions, and
    `norm`, the last one. The network's parameters, names and other callers are unaffected: without
    `keep`, all patches are seen.

    Args:
        net: a network with a transformer of timm inside.
        block: number, from 0, of a block whose output is kept as well.

    Attributes:
        keep: [B, n] int64 numbers of the patches that the next pass sees; None for all.
        patch: side of a patch in pixels.
        prefix: number of tokens before the patches (class token, registers).
    """

    def __init__(self, net: nn.Module, block: int | None = None) -> None:
        capable = [(m, s) for m in net.modules() if (s := timm_source(m)) is not None]
        if not capable:
            raise KdepError(
                f"the student {type(net).__name__} is not a vision transformer of timm, so no "
                "patches can be hidden from it",
                fix="use such a student (vit_t), or another method",
            )
        vit: Any = capable[0][0]
        self.patch, self.prefix = int(vit.patch_embed.patch_size[0]), capable[0][1].prefix
        self.keep: Tensor | None = None
        self._tokens: Tensor | None = None
        self._of_block: Tensor | None = None
        capable[0][1].module.register_forward_hook(self._select)
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
        return None if self.keep is None else select(tokens, self.prefix, self.keep)

    def _record(self, _module: nn.Module, _args: Any, tokens: Tensor) -> None:
        self._tokens = tokens if self.keep is not None else None

    def _record_block(self, _module: nn.Module, _args: Any, tokens: Tensor) -> None:
        self._of_block = tokens if self.keep is not None else None

    def tokens(self) -> tuple[Tensor, Tensor]:
        """(tokens [B, prefix + n, D] float32, keep [B, n]) of the last pass, which are released."""
        assert self._tokens is not None
        assert self.keep is not None
        out = self._tokens.float(), self.keep
        self._tokens = self.keep = None
        return out

    def of_block(self) -> Tensor:
        """[B, prefix + n, D] float32: the block's output in the last pass, which is released."""
        assert self._of_block is not None
        out, self._of_block = self._of_block.float(), None
        return out
