"""The student's pyramid during pre-training: its levels as maps, for objectives that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone, pool
from kdep_bench.networks.taps import find_last_activation, is_rectified


def describe(student: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """{level name: {"channels": C, "stride": s, "side": places per side}} of a student's config.

    Levels are named by stride ("s8"). Raises KdepError where the config declares none, or two of
    one stride.
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
    return {
        f"s{s}": {"channels": int(c), "stride": int(s), "side": -(-int(student["input_px"]) // s)}
        for s, c in zip(strides, declared["channels"], strict=True)
    }


class Pyramid:
    """Builds a backbone that also gives its pyramid, and keeps the maps of the last forward.

    The levels are added to the outputs the backbone gives anyway, so its last output, and with it
    the tap, stays what it was; the generator is put back in between, so the initial weights are
    those of the same student without a pyramid.

    Args:
        before: levels of which what enters their last activation is kept too; for a level that
            ends in none (a linear bottleneck), that is the level itself.
    """

    def __init__(self, student: Mapping[str, Any], before: Sequence[str] = ()) -> None:
        self.student, self.levels = student, describe(student)
        state = torch.get_rng_state()
        own = build_backbone(student)
        last = getattr(own, "out_indices", None)
        if last is None:
            raise KdepError(
                f"the backbone {type(own).__name__} has no out_indices, so it cannot return "
                "several levels",
                fix="choose an objective that uses pooled features",
            )
        declared = [int(i) for i in student["pyramid"]["out_indices"]]
        indices = sorted({*declared, *last})
        torch.set_rng_state(state)
        self.backbone: nn.Module = build_backbone(student, out_indices=tuple(indices))
        self._at = [indices.index(i) for i in declared]
        self._seen: tuple[Tensor, ...] = ()
        self._entered: dict[str, Tensor] = {}
        self._before = tuple(before)
        self._activated: set[str] = set()
        if before:
            self._record_activations()
        self.backbone.register_forward_hook(self._record)

    @torch.no_grad()
    def _record_activations(self) -> None:
        """Finds the last activation of each level on noise, and records what enters it."""
        px, mode = int(self.student["input_px"]), self.backbone.training
        with torch.random.fork_rng(devices=[]):
            x = torch.randn(1, 3, px, px)
        self.backbone.eval()  # mm backbones return nothing from it
        for name, k in zip(self.levels, self._at, strict=True):
            if name not in self._before:
                continue
            path = find_last_activation(self.backbone, lambda k=k: self.backbone(x)[k])
            if path is None:
                continue

            def enter(_module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                self._entered[name] = args[0]

            module = self.backbone.get_submodule(path)
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]
            module.register_forward_pre_hook(enter)
            self._activated.add(name)
        self.backbone.train(mode)

    def _record(self, _module: nn.Module, _args: Any, out: Any) -> None:
        self._seen = tuple(out)

    def maps(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(levels, levels before their last activation) of the forward just done.

        Each {level: [B, C, H, W]} float32; both are then let go. The second holds the levels of
        `before`.
        """
        seen, entered = self._seen, self._entered
        self._seen, self._entered = (), {}
        after = {name: seen[k].float() for name, k in zip(self.levels, self._at, strict=True)}
        before = {k: entered[k].float() if k in entered else after[k] for k in self._before}
        return after, before

    @torch.no_grad()
    def verify(self) -> None:
        """Proves on noise that every level has the channels and the stride its config declares.

        And, where levels before the activation are read, that the activation gives the level.
        """
        px, mode = int(self.student["input_px"]), self.backbone.training
        self.backbone.eval()  # mm backbones return nothing from it
        self.backbone(torch.randn(1, 3, px, px))
        self.backbone.train(mode)
        after, before = self.maps()
        for name, got in after.items():
            want = self.levels[name]
            if tuple(got.shape[1:]) != (want["channels"], want["side"], want["side"]):
                raise KdepError(
                    f"the level {name} of {self.student['name']} has shape {tuple(got.shape[1:])}",
                    expected=f"({want['channels']}, {want['side']}, {want['side']})",
                    fix="correct `pyramid` in the student's config",
                )
            if name in before and name not in self._activated and is_rectified(got, pool(got)):
                raise KdepError(
                    f"the last activation of level {name} of {self.student['name']} is not a "
                    "module, so its input cannot be read",
                    fix="use tap='after'",
                )
            if name in before and before[name].shape != got.shape:
                raise KdepError(
                    f"the input of the last activation of level {name} of {self.student['name']} "
                    f"has shape {tuple(before[name].shape[1:])}",
                    expected=f"{tuple(got.shape[1:])}, the shape of the level",
                    fix="use tap='after'",
                )
