"""The student's pyramid during pre-training: its levels as maps, for objectives that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.students.backbone import build_backbone


def describe(student: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """{level name: {"channels": C, "stride": s}} as the student's config declares its pyramid.

    Levels are named by stride ("s8"). Raises KdepError where the config declares none, or two of
    one stride.
    """
    declared = student.get("pyramid") or {}
    if not declared.get("out_indices"):
        raise KdepError(
            f"the student {student['name']} declares no pyramid",
            "pyramid=dict(out_indices=, channels=, strides=) for an objective that reads maps",
            "add it to the student's config",
        )
    strides = declared["strides"]
    if len(set(strides)) != len(strides):
        raise KdepError(
            f"the student {student['name']} declares the strides {list(strides)}",
            "each stride once: levels are named by it",
            "keep one level of each stride in `pyramid`",
        )
    return {
        f"s{s}": {"channels": int(c), "stride": int(s)}
        for s, c in zip(strides, declared["channels"], strict=True)
    }


class Pyramid:
    """Builds a backbone that also gives its pyramid, and keeps the maps of the last forward.

    The levels are added to the outputs the backbone gives anyway, so its last output, and with it
    the tap, stays what it was; the generator is put back in between, so the initial weights are
    those of the same student without a pyramid.
    """

    def __init__(self, student: Mapping[str, Any]) -> None:
        self.student, self.levels = student, describe(student)
        state = torch.get_rng_state()
        own = build_backbone(student)
        last = getattr(own, "out_indices", None)
        if last is None:
            raise KdepError(
                f"the backbone {type(own).__name__} has no out_indices",
                "a backbone that can give several levels",
                "choose an objective that reads pooled features",
            )
        declared = [int(i) for i in student["pyramid"]["out_indices"]]
        indices = sorted({*declared, *last})
        torch.set_rng_state(state)
        self.backbone: nn.Module = build_backbone(student, out_indices=tuple(indices))
        self._at = [indices.index(i) for i in declared]
        self._seen: tuple[Tensor, ...] = ()
        self.backbone.register_forward_hook(self._record)

    def _record(self, _module: nn.Module, _args: Any, out: Any) -> None:
        self._seen = tuple(out)

    def maps(self) -> dict[str, Tensor]:
        """{level: [B, C, H, W]} float32 of the forward just done, which is then let go."""
        seen, self._seen = self._seen, ()
        return {name: seen[k].float() for name, k in zip(self.levels, self._at, strict=True)}

    @torch.no_grad()
    def verify(self) -> None:
        """Proves on noise that every level has the channels and the stride its config declares."""
        px, mode = int(self.student["input_px"]), self.backbone.training
        self.backbone.eval()  # mm backbones return nothing from it
        self.backbone(torch.randn(1, 3, px, px))
        self.backbone.train(mode)
        for name, got in self.maps().items():
            want = self.levels[name]
            side = -(-px // want["stride"])
            if tuple(got.shape[1:]) != (want["channels"], side, side):
                raise KdepError(
                    f"the level {name} of {self.student['name']} has shape {tuple(got.shape[1:])}",
                    f"({want['channels']}, {side}, {side})",
                    "correct `pyramid` in the student's config",
                )
