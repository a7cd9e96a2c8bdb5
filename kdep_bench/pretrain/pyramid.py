"""The student's feature pyramid in pre-training, for objectives that read feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone, pool
from kdep_bench.networks.taps import find_last_activation, is_rectified


def describe(student: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The levels of a student's config: {"s8": {"channels": C, "stride": 8, "side": n}, ...}.

    Levels are named by stride; side is the height and width of the map, in positions.

    Raises:
        KdepError: the config has no `pyramid`, or two levels of the same stride.
    """
    declared = student.get("pyramid") or {}
    if not declared.get("out_indices"):
        raise KdepError(
            f"the objective reads feature maps, but the config of student {student['name']} has "
            "no `pyramid`",
            fix="add pyramid=dict(out_indices=, channels=, strides=) to the student's config",
        )
    strides = declared["strides"]
    if len(set(strides)) != len(strides):
        raise KdepError(
            f"`pyramid` of the student {student['name']} has the strides {list(strides)}",
            expected="unique strides, because levels are named by stride",
            fix="keep one level per stride",
        )
    levels: dict[str, dict[str, int]] = {}
    for stride, channels in zip(strides, declared["channels"], strict=True):
        side = math.ceil(int(student["input_px"]) / stride)
        levels[f"s{stride}"] = {"channels": int(channels), "stride": int(stride), "side": side}
    return levels


class Pyramid:
    """Builds a backbone that also returns its pyramid, and records the maps of a forward pass.

    The levels are added to the backbone's default outputs, so the last output, which the tap reads,
    is unchanged. The initial weights are the same as without a pyramid.

    Args:
        student: student config with a `pyramid`.
        before: names of levels for which the input of the last activation is recorded as well. A
            level that does not end in an activation (a linear bottleneck) is recorded itself.

    Attributes:
        backbone: the network.

    Raises:
        KdepError: a wrong `pyramid`, or a backbone that cannot return several levels.
    """

    def __init__(self, student: Mapping[str, Any], before: Sequence[str] = ()) -> None:
        self.student, self.levels = student, describe(student)
        state = torch.get_rng_state()
        default = build_backbone(student)
        default_indices = getattr(default, "out_indices", None)
        if default_indices is None:
            raise KdepError(
                f"the backbone {type(default).__name__} has no out_indices, so it cannot return "
                "several levels",
                fix="choose an objective that uses pooled features",
            )
        declared = [int(i) for i in student["pyramid"]["out_indices"]]
        indices = sorted({*declared, *default_indices})
        torch.set_rng_state(state)  # so that the second network gets the same initial weights
        self.backbone: nn.Module = build_backbone(student, out_indices=tuple(indices))
        # Position of each level in the output of the backbone.
        self._positions = [indices.index(i) for i in declared]
        self._outputs: tuple[Tensor, ...] = ()
        self._activation_inputs: dict[str, Tensor] = {}
        self._before = tuple(before)
        self._activated: set[str] = set()
        if before:
            self._record_activations()
        self.backbone.register_forward_hook(self._record)

    @torch.no_grad()
    def _record_activations(self) -> None:
        """Finds the last activation of each level in `before`, and registers hooks on its input."""
        px, was_training = int(self.student["input_px"]), self.backbone.training
        with torch.random.fork_rng(devices=[]):
            x = torch.randn(1, 3, px, px)
        self.backbone.eval()  # a separate statement: `eval` of OpenMMLab backbones returns None
        for name, k in zip(self.levels, self._positions, strict=True):
            if name not in self._before:
                continue
            path = find_last_activation(self.backbone, lambda k=k: self.backbone(x)[k])
            if path is None:
                continue

            def record_input(
                _module: nn.Module, args: tuple[Tensor, ...], name: str = name
            ) -> None:
                self._activation_inputs[name] = args[0]

            module = self.backbone.get_submodule(path)
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]
            module.register_forward_pre_hook(record_input)
            self._activated.add(name)
        self.backbone.train(was_training)

    def _record(self, _module: nn.Module, _args: Any, out: Any) -> None:
        """Forward hook of the backbone: stores its outputs for `maps`."""
        self._outputs = tuple(out)

    def maps(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(maps, inputs of their last activation) of the latest forward pass.

        Both are {level: [B, C, H, W]} float32; the second dict has only the levels of `before`. The
        recorded maps are then released.
        """
        outputs, inputs = self._outputs, self._activation_inputs
        self._outputs, self._activation_inputs = (), {}
        positions = zip(self.levels, self._positions, strict=True)
        after = {name: outputs[k].float() for name, k in positions}
        before = {k: inputs[k].float() if k in inputs else after[k] for k in self._before}
        return after, before

    @torch.no_grad()
    def verify(self) -> None:
        """Checks, by a forward pass on noise, that the levels are those that the config declares.

        Raises:
            KdepError: other channels or another side; or, for a level in `before`, an activation
                that is not a module or whose input has another shape than the level.
        """
        px, was_training = int(self.student["input_px"]), self.backbone.training
        self.backbone.eval()
        self.backbone(torch.randn(1, 3, px, px))
        self.backbone.train(was_training)
        after, before = self.maps()
        for name, level in after.items():
            side = self.levels[name]["side"]
            expected = (self.levels[name]["channels"], side, side)
            if tuple(level.shape[1:]) != expected:
                raise KdepError(
                    f"the level {name} of {self.student['name']} has shape "
                    f"{tuple(level.shape[1:])}",
                    expected=f"{expected}",
                    fix="correct `pyramid` in the student's config",
                )
            if name not in before:
                continue
            if name not in self._activated and is_rectified(level, pool(level)):
                raise KdepError(
                    f"the last activation of level {name} of {self.student['name']} is not a "
                    "module, so its input cannot be read",
                    fix="set tap='after' in the method's objective",
                )
            if before[name].shape != level.shape:
                raise KdepError(
                    f"the input of the last activation of level {name} of {self.student['name']} "
                    f"has shape {tuple(before[name].shape[1:])}",
                    expected=f"{tuple(level.shape[1:])}, the shape of the level",
                    fix="set tap='after' in the method's objective",
                )
