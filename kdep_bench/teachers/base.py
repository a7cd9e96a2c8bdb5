"""The interface of all teachers: uint8 images to pooled features and logits, never trained."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.data.given_files import without_content
from kdep_bench.data.normalisation import check_normalisation
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.visible import (
    at_patches,
    blanked,
    only_visible,
    output_of,
    token_source,
)
from kdep_bench.registry import build


@dataclass(frozen=True)
class TeacherOutput:
    """A teacher's output for B images, float32, without gradient.

    Attributes:
        pooled: [B, Dt], the feature that KDEP regresses, read at the teacher's tap.
        logits: [B, C], or None without a classifier.
        maps: spatial maps by name (the teacher's `map_names`), each [B, C, H, W].
        tokens: [B, T, C], the token sequence after the last norm, or None for a convolutional net.
        classifier: the teacher's frozen classifier, `logits = classifier(pooled)`; set by the
            pre-training step with need "classifier". Gradient passes to its input.
        probabilities: [B, C] class probabilities of which only the largest k are exact and the
            others equal (features/sparse.py); set by the pre-training step where a method reads
            them. `pooled` is then [B, 0] if no method reads it from the cache.
        layer: [B, p + n, C], what `Teacher.up_to` returns; set by the pre-training step with need
            "layer". `pooled` is then [B, 0].
    """

    pooled: Tensor
    logits: Tensor | None
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    classifier: nn.Module | None = None
    probabilities: Tensor | None = None
    layer: Tensor | None = None


class Teacher(nn.Module, ABC):
    """A frozen network. Subclasses set the attributes and implement `features`.

    Attributes:
        name: short name used in records.
        width: Dt, the number of channels of the pooled feature.
        input_px: side of the square input in pixels.
        mean, std: [1, 3, 1, 1], normalisation per RGB channel on the 0-255 scale.
        has_logits: whether `TeacherOutput.logits` is not None.
        tap: where in the network the pooled feature is read, as text.
        map_names: names of the spatial maps in its output.
        tails: those of them for which `tail` returns the following layers.
        layers: names of layers after which `up_to` can stop.
        layers_by_path: whether `up_to` also takes the path of any module of the network.

    Raises KdepError for an implausible normalisation.
    """

    name: str
    width: int
    input_px: int
    has_logits: bool
    tap: str
    map_names: tuple[str, ...] = ()
    tails: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    layers_by_path: bool = False
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        check_normalisation(mean, std, f"the teacher ({type(self).__name__})")
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def logit_head(self) -> nn.Module | None:
        """The classifier, if the logits are exactly logit_head(pooled); otherwise None.

        The logits can then be computed from cached features. The teacher's config declares it with
        `card.logits_from_pooled`; otherwise the cache stores the logits.
        """
        return None

    def tail(self, level: str) -> nn.Module:
        """A copy of the layers after the map `level`: [B, C, H, W] -> logits [B, classes].

        Raises:
            KdepError: a map that is not in `tails`.
        """
        raise KdepError(
            f"the teacher {self.name} does not give its layers after the map {level!r}",
            expected=f"one of {', '.join(self.tails)}" if self.tails else "a teacher with `tails`",
            fix="correct `levels` in the method's objective, or choose another teacher",
        )

    def layer_module(self, layer: str) -> nn.Module:
        """The module whose output is the layer of that name; KdepError for an unknown name."""
        raise unknown_name(f"layer of the teacher {self.name}", layer, self.layers)

    def as_map(self, out: Any) -> Tensor:
        """A submodule's output as [B, C, H, W]; KdepError if it is not a spatial map."""
        out = out[-1] if isinstance(out, (tuple, list)) else out
        if not isinstance(out, Tensor) or out.ndim != 4:
            raise KdepError(
                f"a feature map of teacher {self.name} has the shape "
                f"{tuple(getattr(out, 'shape', ()))}",
                expected="[B, C, H, W]",
                fix="choose another module in `maps=`, or another layer",
            )
        return out

    @abstractmethod
    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """The output for a *normalised* float batch [B, 3, H, W]."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutput:
        """The output for `images` [B, 3, H, W], uint8 RGB with H = W; it carries no gradient.

        Raises:
            KdepError: another type of images, or a feature that is not [B, width].
        """
        out = self.features(self._normalised(images))
        if out.pooled.shape != (len(images), self.width):
            raise KdepError(
                f"teacher {self.name} returned a feature of shape {tuple(out.pooled.shape)}",
                expected=f"({len(images)}, {self.width})",
                fix="correct `width` or `features` of the teacher's class",
            )
        return out

    @torch.no_grad()
    def up_to(self, images: Tensor, layer: str, visible_Bn: Tensor, hidden_Bss: Tensor) -> Tensor:
        """A layer's output where only some patches of the images are seen; no later layer runs.

        A transformer gets the tokens of the visible patches alone. In the images of any other
        network the hidden patches have the mean colour, and the map is resized to the grid of
        patches and read at the visible ones.

        Args:
            images: [B, 3, H, W] as in `forward`.
            layer: one of `layers`, or with `layers_by_path` the path of a module.
            visible_Bn: [B, n] numbers, row by row, of the visible patches.
            hidden_Bss: [B, s, s] bool, the hidden patches of the grid.

        Returns:
            [B, p + n, C]: p class and register tokens, then the visible patches in their order; p
            is 0 where the layer has a map.

        Raises:
            KdepError: no such layer, a transformer with another number of patches or one from
                which none can be hidden.
        """
        x, module = self._normalised(images), self.layer_module(layer)
        source, side = token_source(self), hidden_Bss.shape[1]
        if source is None:
            out = output_of(module, lambda: self.features(blanked(x, hidden_Bss)))
        else:
            with only_visible(source, visible_Bn, side**2, f"the teacher {self.name}"):
                out = output_of(module, lambda: self.features(x))
        out = out[0] if isinstance(out, tuple) else out
        shape = tuple(getattr(out, "shape", ()))
        if source is None and len(shape) != 3:
            return at_patches(self.as_map(out), visible_Bn, side)
        if source is None or shape[:2] != (len(x), source.prefix + visible_Bn.shape[1]):
            raise KdepError(
                f"patches cannot be hidden from the teacher {self.name} at the layer {layer!r}",
                expected="a vision transformer of timm, torchvision, mmpretrain or Hugging Face "
                "and one of its blocks, or a network with feature maps",
                fix="choose another teacher or layer",
            )
        return out

    def _normalised(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise KdepError(
                f"the teacher's input has the type {images.dtype}",
                expected="uint8 RGB images",
                fix="pass images before normalisation; the teacher normalises them itself",
            )
        x = (images.float() - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode whatever `mode` is: BatchNorm statistics must not change."""
        return super().train(False)

    def checksum(self) -> str:
        """SHA-256 over names, shapes, types and bytes of all tensors, 16 hex digits.

        Identifies the teacher in caches and records.
        """
        h = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            h.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            h.update(value.detach().cpu().contiguous().numpy().tobytes())
        return h.hexdigest()[:16]


def freeze(module: nn.Module) -> nn.Module:
    """Sets eval mode, no gradients and channels-last memory, and returns the module."""
    module.eval()  # not chained: `eval` of mm backbones returns None
    return module.requires_grad_(False).to(memory_format=torch.channels_last)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads `tensors` into `module` and verifies it; nothing is skipped.

    Args:
        module: the network.
        tensors: its complete state dict, by name.
        source: where they come from, for errors.

    Raises:
        KdepError: missing or unexpected names, another shape or kind of number, or a value that
            differs after loading; names the first of them.
    """
    state = module.state_dict()
    missing, extra = sorted(set(state) - set(tensors)), sorted(set(tensors) - set(state))
    shapes = [k for k in state if k in tensors and state[k].shape != tensors[k].shape]
    if missing or extra or shapes:
        raise KdepError(
            f"the weights in {source} do not fit: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} unexpected {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}",
            expected=f"exactly the {len(state)} tensors of {type(module).__name__}",
            fix="use the checkpoint of exactly this architecture",
        )
    # torch would silently convert integers to floats and drop imaginary parts.
    counters = _counters(state)
    kinds = [k for k, v in state.items() if _kind(v) != _kind(tensors[k]) and k not in counters]
    if kinds:
        first = kinds[0]
        raise KdepError(
            f"{len(kinds)} tensors in {source} have another kind of number {kinds[:3]}: {first} "
            f"has {tensors[first].dtype}",
            expected=f"{state[first].dtype} or another type of that kind, as in "
            f"{type(module).__name__}",
            fix="use a checkpoint that is not quantised",
        )
    module.load_state_dict(dict(tensors), strict=True)
    unequal = [k for k, v in module.state_dict().items() if not torch.equal(v, tensors[k].to(v))]
    if unequal:
        raise KdepError(
            f"{len(unequal)} tensors differ after loading {source}: {unequal[:3]}",
            fix="check whether the class changes its weights when it loads them",
        )


def _kind(value: Tensor) -> str:
    return "complex" if value.is_complex() else "float" if value.is_floating_point() else "whole"


def _counters(state: Mapping[str, Tensor]) -> set[str]:
    """Names of batch counters: unused in eval mode, and floats in some converted checkpoints."""
    return {k for k in state if k.endswith("num_batches_tracked")}


def build_teacher(config: Mapping[str, Any]) -> Teacher:
    """Builds the teacher of a config; its `card` (facts for planning and reports) is not passed on.

    Raises:
        KdepError: a `type` that is not a Teacher, a file that changed after planning, or what the
            class raises.
    """
    teacher = build({k: v for k, v in without_content(config).items() if k != "card"})
    if not isinstance(teacher, Teacher):
        raise KdepError(
            f"{config['type']} is not a Teacher",
            expected="a subclass of kdep_bench.teachers.base.Teacher",
            fix="correct `type=` in the teacher's config",
        )
    return teacher
