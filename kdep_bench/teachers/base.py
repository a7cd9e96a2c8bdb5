"""Teacher, the interface of all teachers: frozen networks from images to features and logits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.data.given_files import check_and_remove_content
from kdep_bench.data.normalisation import check_normalisation
from kdep_bench.errors import KdepError, first_of, unknown_name
from kdep_bench.networks.attention import Attention, BlockRecorder
from kdep_bench.networks.visible import (
    hide_patches,
    only_visible_tokens,
    run_until,
    token_source,
    values_at_patches,
)
from kdep_bench.registry import build


@dataclass(frozen=True)
class TeacherOutput:
    """A teacher's output for B images, float32, without gradient.

    Attributes:
        pooled: [B, D], the feature at the teacher's tap, which KDEP regresses.
        logits: [B, C], or None if there is no classifier.
        maps: spatial maps by name (the teacher's `map_names`), each [B, C, H, W].
        tokens: [B, T, C], the tokens after the last norm; None for a convolutional network.
        classifier: the frozen classifier, with `logits = classifier(pooled)`. Gradients pass
            through it. Set in pre-training if the objective needs "classifier".
        probabilities: [B, C] class probabilities. Only the k largest are exact; the others are
            equal (see `kdep_bench.features.sparse`). Set in pre-training if the objective reads
            them; `pooled` is then [B, 0] unless it is also read.
        layer: [B, p + n, C], the result of `Teacher.up_to`. Set in pre-training if the objective
            needs "layer"; `pooled` is then [B, 0].
        images: [B, 3, px, px], the teacher's input images, normalised as the student's are. Set in
            pre-training if the objective needs "teacher_images".
        attention: the result of `Teacher.with_attention`. Set in pre-training if the objective
            needs "attention".
    """

    pooled: Tensor
    logits: Tensor | None
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    classifier: nn.Module | None = None
    probabilities: Tensor | None = None
    layer: Tensor | None = None
    images: Tensor | None = None
    attention: Attention | None = None


class Teacher(nn.Module, ABC):
    """A frozen network. Subclasses set the attributes and implement `features`.

    Attributes:
        name: short name used in records.
        width: Dt, the number of channels of the pooled feature.
        input_px: side of the square input in pixels.
        mean, std: [1, 3, 1, 1], normalisation per RGB channel on the 0-255 scale.
        has_logits: whether `TeacherOutput.logits` is not None.
        tap: text that states where in the network the pooled feature is read.
        map_names: names of the spatial maps in its output.
        tails: names of the maps for which `tail` returns the layers that follow.
        layers: names of the layers that `up_to` accepts.
        layers_by_path: whether `up_to` also accepts the path of any module of the network.

    Args:
        mean: mean per RGB channel on the 0-255 scale.
        std: standard deviation per RGB channel on the 0-255 scale.

    Raises:
        KdepError: an implausible normalisation.
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
        """The classifier if logits = classifier(pooled) exactly, otherwise None.

        If not None, logits are computed from cached features. The teacher's config then has
        `card.logits_from_pooled`; otherwise the cache stores the logits.
        """
        return None

    def tail(self, level: str) -> nn.Module:
        """A copy of the layers after the map `level`: [B, C, H, W] -> logits [B, classes].

        Raises:
            KdepError: a map that is not in `tails`.
        """
        raise KdepError(
            f"the layers of the teacher {self.name} after the map {level!r} are not available",
            expected=f"one of {', '.join(self.tails)}" if self.tails else "a teacher with `tails`",
            fix="correct `levels` in the method's objective, or choose another teacher",
        )

    def layer_module(self, layer: str) -> nn.Module:
        """The module whose output is the layer of that name; KdepError for an unknown name."""
        raise unknown_name("layer", layer, self.layers, place=f"the teacher {self.name}")

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
        """Runs the network on a *normalised* float batch [B, 3, H, W]."""

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutput:
        """Runs the network on `images` [B, 3, H, W], uint8 RGB with H = W, without gradient.

        Raises:
            KdepError: images of another type, or a feature that is not [B, width].
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
        """The output of a layer if some patches of the images are hidden.

        A transformer receives only the tokens of the visible patches. For any other network, hidden
        patches are filled with the mean colour; the layer's map is resized to the grid of patches,
        and its values at the visible patches are returned. Later layers of the network do not run.

        Args:
            images: [B, 3, H, W] as in `forward`.
            layer: one of `layers` or, with `layers_by_path`, the path of a module.
            visible_Bn: [B, n] indices of the visible patches, counted row by row.
            hidden_Bss: [B, s, s] bool, whether a patch of the s x s grid is hidden.

        Returns:
            [B, p + n, C]: p class and register tokens, then the visible patches in the order of
            `visible_Bn`; p is 0 for a layer with a spatial map.

        Raises:
            KdepError: an unknown layer, a transformer with another number of patches, or a network
                whose patches cannot be hidden.
        """
        x, module = self._normalised(images), self.layer_module(layer)
        source, side = token_source(self), hidden_Bss.shape[1]
        if source is None:
            out = run_until(module, lambda: self.features(hide_patches(x, hidden_Bss)))
        else:
            with only_visible_tokens(source, visible_Bn, side**2, f"the teacher {self.name}"):
                out = run_until(module, lambda: self.features(x))
        out = out[0] if isinstance(out, tuple) else out
        shape = tuple(getattr(out, "shape", ()))
        if source is None and len(shape) != 3:
            return values_at_patches(self.as_map(out), visible_Bn, side)
        if source is None or shape[:2] != (len(x), source.prefix + visible_Bn.shape[1]):
            raise KdepError(
                f"patches cannot be hidden from the teacher {self.name} at the layer {layer!r}",
                expected="a vision transformer of timm, torchvision, mmpretrain or Hugging Face "
                "and one of its blocks, or a network with feature maps",
                fix="choose another teacher or layer",
            )
        return out

    @torch.no_grad()
    def with_attention(self, images: Tensor, blocks: Sequence[int]) -> TeacherOutput:
        """The result of `forward` with `attention`: hidden states, queries, keys and values.

        Args:
            images: [B, 3, H, W] as in `forward`.
            blocks: numbers of the transformer's blocks that are recorded, from 0.

        Raises:
            KdepError: the network is no vision transformer of timm, torchvision or mmpretrain, or
                lacks a block.
        """
        recorder = BlockRecorder(self, blocks, f"the teacher {self.name}")
        try:
            return replace(self(images), attention=recorder.take())
        finally:
            recorder.remove()

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
        """Stays in eval mode for any `mode`, because BatchNorm statistics must not change."""
        return super().train(False)

    def checksum(self) -> str:
        """First 16 hex digits of the SHA-256 over names, shapes, types and values of all tensors.

        It identifies the teacher in caches and records.
        """
        h = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            h.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
            h.update(value.detach().cpu().contiguous().numpy().tobytes())
        return h.hexdigest()[:16]


def freeze(module: nn.Module) -> nn.Module:
    """Sets eval mode, no gradients and channels-last memory, and returns the module."""
    module.eval()  # not chained: `eval` of OpenMMLab backbones returns None
    return module.requires_grad_(False).to(memory_format=torch.channels_last)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Loads `tensors` into `module`, and verifies that every tensor was loaded.

    Args:
        module: the network.
        tensors: complete state dict of the network.
        source: origin of the tensors, for errors.

    Raises:
        KdepError: missing or unexpected names, another shape or kind of number, or a value that
            differs after loading; the error lists the first names.
    """
    state = module.state_dict()
    missing, extra = sorted(set(state) - set(tensors)), sorted(set(tensors) - set(state))
    shapes = [k for k in state if k in tensors and state[k].shape != tensors[k].shape]
    if missing or extra or shapes:
        faults = ((missing, "missing"), (extra, "unexpected"), (shapes, "of another shape"))
        raise KdepError(
            f"the weights in {source} do not fit: "
            + ", ".join(
                f"{len(names)} {fault} ({first_of(names, 3)})" for names, fault in faults if names
            ),
            expected=f"exactly the {len(state)} tensors of {type(module).__name__}",
            fix="use the checkpoint of exactly this architecture",
        )
    # torch would silently convert integers to floats and drop imaginary parts.
    counters = _counters(state)
    kinds = [k for k, v in state.items() if _kind(v) != _kind(tensors[k]) and k not in counters]
    if kinds:
        first = kinds[0]
        raise KdepError(
            f"{len(kinds)} tensors in {source} have another kind of number "
            f"({first_of(kinds, 3)}): {first} has {tensors[first].dtype}",
            expected=f"{state[first].dtype} or another type of that kind, as in "
            f"{type(module).__name__}",
            fix="use a checkpoint that is not quantised",
        )
    module.load_state_dict(dict(tensors), strict=True)
    unequal = [k for k, v in module.state_dict().items() if not torch.equal(v, tensors[k].to(v))]
    if unequal:
        raise KdepError(
            f"{len(unequal)} tensors differ after loading {source}: {first_of(unequal, 3)}",
            fix="check whether the class changes its weights when it loads them",
        )


def _kind(value: Tensor) -> str:
    if value.is_complex():
        return "complex"
    return "float" if value.is_floating_point() else "integer"


def _counters(state: Mapping[str, Tensor]) -> set[str]:
    """Names of batch counters: unused in eval mode, and floats in some converted checkpoints."""
    return {k for k in state if k.endswith("num_batches_tracked")}


def build_teacher(config: Mapping[str, Any]) -> Teacher:
    """Builds a teacher from its config.

    The config's `card`, information for planning and reports, is not passed to the class.

    Raises:
        KdepError: `type` is not a Teacher, a file changed after planning, or an error of the
            teacher's class.
    """
    teacher = build({k: v for k, v in check_and_remove_content(config).items() if k != "card"})
    if not isinstance(teacher, Teacher):
        raise KdepError(
            f"{config['type']} is not a Teacher",
            expected="a subclass of kdep_bench.teachers.base.Teacher",
            fix="correct `type=` in the teacher's config",
        )
    return teacher
