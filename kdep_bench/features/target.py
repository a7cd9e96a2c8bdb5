"""The regression target of a feature method: a fixed alignment, then a fixed transform."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.features.basis import open_basis
from kdep_bench.features.transform import Transform
from kdep_bench.registry import build, locate, type_path


class Target(nn.Module):
    """Computes the target [B, Ds] from a teacher feature [B, Dt], without gradient.

    Ds and Dt are the numbers of channels of the student's and the teacher's pooled feature.
    """

    def __init__(self, align: nn.Module, transform: nn.Module) -> None:
        super().__init__()
        self.align, self.transform = align, transform

    @torch.no_grad()
    def forward(self, f_BD: Tensor) -> Tensor:
        return self.transform(self.align(f_BD.float()))


def build_target(align_dir: str | Path, transform: Mapping[str, Any]) -> Target:
    """The target module for a finished `align` stage.

    Args:
        align_dir: folder of that stage.
        transform: config of a Transform; its `required_args` are read from the fitted basis.

    Raises:
        KdepError: a type that is not a Transform, or a basis that cannot be read.
    """
    basis, kind = open_basis(Path(align_dir)), locate(transform["type"])
    if not (isinstance(kind, type) and issubclass(kind, Transform)):
        raise KdepError(
            f"the type {type_path(transform['type'])} in `transform` is not a Transform",
            expected="a class of kdep_bench.features, such as transform.PowerTemperature",
            fix="correct `transform` in the method",
        )
    return Target(
        basis, build(transform, **{name: getattr(basis, name) for name in kind.required_args})
    )
