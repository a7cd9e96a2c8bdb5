"""Trains a network with k-bit weights and activations in its backbone and neck.

In every convolution and linear layer, weights are quantised as in DoReFa-Net, and the layer's input
is quantised between a running minimum and maximum (see `kdep_bench.transfer.quantisers`). Only the
input of the first layer, the image, keeps 32 bits. The scored network is the quantised one: at the
end of the training the weights are replaced by their k-bit values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdep_bench.bounds import Bits
from kdep_bench.errors import KdepError
from kdep_bench.transfer.method import TransferContext, TransferMethod
from kdep_bench.transfer.quantisers import FLOAT_BITS, ActivationRange, dorefa_weight, quantised


@dataclass
class Layer:
    """One quantised layer.

    Attributes:
        path: its path in the task's model.
        module: the layer.
        bits: bits of its weights.
        activation: quantiser of its input; None for the first layer.
        macs: multiply-adds per image in the first training step.
    """

    path: str
    module: nn.Module
    bits: int
    activation: ActivationRange | None
    macs: int = 0

    @property
    def activation_bits(self) -> int:
        """Bits of its input."""
        return FLOAT_BITS if self.activation is None else self.activation.bits

    @property
    def is_used(self) -> bool:
        """Whether the task's network calls the layer."""
        return self.macs > 0

    def description(self) -> dict[str, Any]:
        """For the stage's outputs: path, bits, multiply-adds, and the scale of the input.

        An input is rounded to scale * (q - zero_point), for integers q of 0..2^activation_bits - 1.
        """
        scale, zero_point = (None, None)
        if self.activation is not None:
            scale, zero_point = self.activation.scale_and_zero()
        return {
            "layer": self.path,
            "bits": self.bits,
            "activation_bits": self.activation_bits,
            "scale": scale,
            "zero_point": zero_point,
            "macs": self.macs,
        }


class Quantised(TransferMethod):
    """The task's training with k-bit weights and activations; see the top of this module.

    Args:
        bits: k of weights and activations, from 2 to 8.
        parts: names of the parts of the task's model to quantise; parts that the model does not
            have are skipped. The layers of all other parts, such as the heads, keep 32 bits.
    """

    families = frozenset({"classification", "detection", "segmentation"})

    def __init__(self, bits: Bits = 8, parts: Sequence[str] = ("backbone", "neck")) -> None:
        super().__init__()
        self.bits, self.parts = bits, tuple(parts)
        self.layers: list[Layer] = []
        self.activations = nn.ModuleList()
        self.counting = True  # whether multiply-adds are counted: in the first training step
        self.image: tuple[int, ...] = ()  # (height, width) of the training images

    def bits_of(self, path: str, layer: nn.Module, teacher: nn.Module | None) -> int:
        """Bits of a layer; `path` is its path in the task's model and in the teacher."""
        return self.bits

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        for path, layer in quantisable(model, self.parts).items():
            bits = self.bits_of(path, layer, teacher)
            # The first layer reads the image.
            activation = ActivationRange(bits) if self.layers else None
            if activation is not None:
                self.activations.append(activation)
            self.layers.append(Layer(path, layer, bits, activation))
        for entry in self.layers:
            # Only the layer's `forward` is replaced, not the layer: the tensors keep their names,
            # so the check of loaded weights still passes.
            entry.module.forward = self._forward(entry)

    def _forward(self, entry: Layer) -> Callable[[Tensor], Tensor]:
        """The forward function of a layer in training."""

        def forward(x: Tensor) -> Tensor:
            if entry.activation is not None:
                x = entry.activation(x)
            weight = cast(Tensor, entry.module.weight)
            out = apply(entry.module, x, dorefa_weight(weight, entry.bits))
            if self.counting:
                entry.macs += out[0].numel() * weight[0].numel()
            return out

        return forward

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        if self.counting:
            self.counting, self.image = False, tuple(ctx.inputs.shape[2:])
        return {}

    @torch.no_grad()
    def finish(self, model: nn.Module) -> dict[str, Any]:
        """Writes the k-bit weights into the model, and fixes the ranges of the activations.

        Returns:
            bits: mean over the weights.
            megabytes, bit_operations: of the quantised parts; see `cost_of`.
            megabytes_float32, bit_operations_float32: the same with 32 bits.
            quantised: {image: [height, width], layers: one `Layer.description` per layer}.
        """
        outputs = cost_of(model, self.layers, self.parts)
        for entry in self.layers:
            del entry.module.forward
            if entry.is_used:
                weight = cast(Tensor, entry.module.weight)
                weight.copy_(dorefa_weight(weight, entry.bits))
                entry.module.forward = fixed_forward(entry)
        rows = [entry.description() for entry in self.layers if entry.is_used]
        return {**outputs, "quantised": {"image": list(self.image), "layers": rows}}


def quantisable(model: nn.Module, parts: Sequence[str]) -> dict[str, nn.Module]:
    """{path: layer}, the convolutions and linear layers of the model's `parts`, in their order.

    Raises:
        KdepError: there is no such layer.
    """
    layers: dict[str, nn.Module] = {}
    for part in parts:
        root = getattr(model, part, None)
        if isinstance(root, nn.Module):
            named = root.named_modules(prefix=part)
            layers |= {path: m for path, m in named if isinstance(m, nn.Conv2d | nn.Linear)}
    if not layers:
        raise KdepError(
            f"the task's model has no convolution and no linear layer in {', '.join(parts)}",
            expected=f"some of its parts {', '.join(name for name, _ in model.named_children())}",
            fix="correct `parts` in the transfer method",
        )
    return layers


def apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Calls the layer's original `forward` on `x`, with `weight` in place of its parameter.

    The parameter is not changed.
    """
    stored = layer._parameters["weight"]
    layer._parameters["weight"] = cast(nn.Parameter, weight)
    try:
        return type(layer).forward(layer, x)
    finally:
        layer._parameters["weight"] = stored


def fixed_forward(entry: Layer) -> Callable[[Tensor], Tensor]:
    """The forward function of a layer after the training: k-bit inputs in the final range."""
    layer, plain_forward = entry.module, type(entry.module).forward
    if entry.activation is None:
        return lambda x: plain_forward(layer, x)
    (scale, zero_point), bits = entry.activation.scale_and_zero(), entry.activation.bits
    return lambda x: plain_forward(layer, quantised(x, scale, zero_point, bits))


def cost_of(model: nn.Module, layers: Sequence[Layer], parts: Sequence[str]) -> dict[str, float]:
    """Size and bit-operations of the quantised parts, with k bits and with 32 bits.

    Megabytes (10^6 bytes): quantised weights at their bits, with 4 bytes per layer for their scale;
    all other floating-point parameters and buffers at 4 bytes, including the weights of layers that
    the network never calls. Bit-operations of an image: multiply-adds * bits of the weights * bits
    of the input.
    """
    used = [entry for entry in layers if entry.is_used]
    weights = {f"{entry.path}.weight": entry for entry in used}
    float32_count = sum(
        value.numel()
        for name, value in model.state_dict().items()
        if name.split(".")[0] in parts and value.is_floating_point() and name not in weights
    )
    count: Mapping[str, int] = {
        name: cast(Tensor, entry.module.weight).numel() for name, entry in weights.items()
    }
    bits = sum(count[name] * entry.bits for name, entry in weights.items())
    total = sum(count.values())
    return {
        "bits": bits / total,
        "megabytes": (bits / 8 + 4 * len(used) + 4 * float32_count) / 1e6,
        "megabytes_float32": 4 * (total + float32_count) / 1e6,
        "bit_operations": float(sum(e.macs * e.bits * e.activation_bits for e in used)),
        "bit_operations_float32": float(sum(e.macs * FLOAT_BITS * FLOAT_BITS for e in used)),
    }
