"""Records hidden states, queries, keys and values of the blocks of a vision transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from kdep_bench.errors import KdepError
from kdep_bench.networks.visible import timm_source


@dataclass(frozen=True)
class Block:
    """What one block of a transformer computed for B images, float32.

    T is the number of tokens, D their width, and d the number of channels of a head.

    Attributes:
        hidden: [B, T, D], the tokens after the block.
        queries, keys, values: [B, heads, T, d].
    """

    hidden: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor

    @property
    def scores(self) -> Tensor:
        """[B, heads, T, T]: the attention before the softmax, queries.keys / sqrt(d)."""
        return self.queries @ self.keys.transpose(2, 3) / math.sqrt(self.keys.shape[3])


@dataclass(frozen=True)
class Attention:
    """What a transformer computed for B images, float32; for T and D see `Block`.

    Attributes:
        embedding: [B, T, D], the tokens before the first block.
        blocks: {number of a block, from 0: its Block}; only blocks that were recorded.
        final: [B, T, D], the tokens after the last norm.
        prefix: number of tokens before the patches (class token, registers).
    """

    embedding: Tensor
    blocks: Mapping[int, Block]
    final: Tensor
    prefix: int

    def sizes(self) -> dict[str, int]:
        """`width` D, `heads`, and number of `patches`."""
        some_block = next(iter(self.blocks.values()))
        return {
            "width": int(self.final.shape[2]),
            "heads": int(some_block.queries.shape[1]),
            "patches": int(self.final.shape[1]) - self.prefix,
        }


class Projection(NamedTuple):
    """How the queries, keys and values of a block are obtained; for the sizes see `Block`.

    Attributes:
        module: a module whose output they are computed from.
        split: maps this output to queries, keys and values [B, heads, T, d].
    """

    module: nn.Module
    split: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class Transformer(NamedTuple):
    """The parts of a vision transformer.

    Attributes:
        blocks: its blocks.
        norm: its last norm.
        prefix: number of tokens before the patches.
        projection: returns the Projection of a block; None for an unknown kind of attention.
    """

    blocks: Sequence[nn.Module]
    norm: nn.Module
    prefix: int
    projection: Callable[[Any], Projection | None]


def heads_of(qkv_BTE: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, heads, T, d] from tokens [B, T, 3 heads d] in this order."""
    parts = qkv_BTE.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def _timm_projection(block: Any) -> Projection | None:
    attention: Any = getattr(block, "attn", None)
    # Some other classes add terms for positions to the scores. The class is compared by its name,
    # because importing timm takes a second.
    kind = type(attention)
    if (kind.__module__, kind.__qualname__) != ("timm.layers.attention", "Attention"):
        return None

    def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = heads_of(qkv, attention.num_heads)
        return attention.q_norm(q), attention.k_norm(k), v

    return Projection(attention.qkv, split)


def _torchvision_projection(block: Any) -> Projection | None:
    attention = block.self_attention

    def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        return heads_of(qkv, attention.num_heads)

    return Projection(block.ln_1, split)


def _mmpretrain_projection(block: Any) -> Projection | None:
    attention: Any = getattr(block, "attn", None)
    if type(attention).__name__ != "MultiheadAttention" or not hasattr(attention, "qkv"):
        return None
    return Projection(attention.qkv, lambda qkv: heads_of(qkv, attention.num_heads))


def find_transformer(net: nn.Module) -> Transformer | None:
    """The first vision transformer of timm, torchvision or mmpretrain in `net`; None without one.

    Networks with attention inside windows (Swin) are not among them: their tokens have no common
    attention.
    """
    for module in net.modules():
        vit: Any = module
        if (source := timm_source(vit)) is not None:
            return Transformer(list(vit.blocks), vit.norm, source.prefix, _timm_projection)
        if isinstance(vit, VisionTransformer):
            layers = list(vit.encoder.layers)
            return Transformer(layers, vit.encoder.ln, 1, _torchvision_projection)
        if hasattr(vit, "drop_after_pos") and hasattr(vit, "ln1"):  # mmpretrain
            prefix = int(vit.num_extra_tokens)
            return Transformer(list(vit.layers), vit.ln1, prefix, _mmpretrain_projection)
    return None


def depth_and_width(net: nn.Module, name: str) -> tuple[int, int]:
    """(number of blocks, channels of a token) of the vision transformer in `net`.

    Raises:
        KdepError: `net`, which the error calls `name`, contains none; see `find_transformer`.
    """
    transformer = find_transformer(net)
    if transformer is None:
        raise no_transformer(name)
    return len(transformer.blocks), int(transformer.norm.get_parameter("weight").numel())


def no_transformer(name: str) -> KdepError:
    """The error for a network without a vision transformer, which it calls `name`."""
    return KdepError(
        f"{name} has no transformer blocks whose attention can be read",
        expected="a vision transformer of timm, torchvision or mmpretrain",
        fix="choose such a network, or another method",
    )


class BlockRecorder:
    """Records blocks of a transformer inside `net` in every forward pass, with gradients.

    Args:
        net: a network that contains a vision transformer of timm, torchvision or mmpretrain.
        blocks: numbers of the blocks, from 0.
        name: the network, for errors.
        depth: expected number of blocks, or None for any.

    Raises:
        KdepError: there is no such transformer, it has another depth, a block does not exist, or
            its attention is of an unknown kind.
    """

    def __init__(
        self, net: nn.Module, blocks: Iterable[int], name: str, depth: int | None = None
    ) -> None:
        transformer, numbers = find_transformer(net), sorted(set(blocks))
        if transformer is None:
            raise no_transformer(name)
        n_blocks = len(transformer.blocks)
        if depth not in (None, n_blocks) or not numbers or numbers[-1] >= n_blocks:
            expected = f"{depth} blocks" if depth else f"block {numbers[-1] if numbers else 0}"
            raise KdepError(
                f"{name} has {n_blocks} blocks, but the method's objective reads {expected}",
                fix="correct the depths or the block in the method's objective",
            )
        self.prefix = transformer.prefix
        self._values: dict[str, Tensor] = {}
        self._splits: dict[int, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {}
        first: Any = transformer.blocks[0]
        self._handles = [
            first.register_forward_pre_hook(self._record_input),
            transformer.norm.register_forward_hook(self._recorder("final")),
        ]
        for number in numbers:
            block = transformer.blocks[number]
            projection = transformer.projection(block)
            if projection is None:
                raise KdepError(
                    f"block {number} of {name} has a kind of attention that cannot be read",
                    expected="softmax attention without terms for relative positions",
                    fix="choose another network or another method",
                )
            self._splits[number] = projection.split
            self._handles += [
                block.register_forward_hook(self._recorder(f"{number}.hidden")),
                projection.module.register_forward_hook(self._recorder(f"{number}.qkv")),
            ]

    def _recorder(self, key: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            self._values[key] = out[0] if isinstance(out, tuple) else out

        return hook

    def _record_input(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self._values["embedding"] = args[0]

    def take(self) -> Attention:
        """The Attention of the last forward pass; the recorded values are then released."""
        values, self._values = {k: v.float() for k, v in self._values.items()}, {}
        blocks = {
            number: Block(values[f"{number}.hidden"], *split(values[f"{number}.qkv"]))
            for number, split in self._splits.items()
        }
        return Attention(values["embedding"], blocks, values["final"], self.prefix)

    def remove(self) -> None:
        """Removes the hooks from the network."""
        for handle in self._handles:
            handle.remove()
