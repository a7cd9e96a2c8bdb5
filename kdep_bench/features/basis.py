"""The fitted alignment z = (f - mean) V, the result of every aligner, and its file format.

`basis.pt` contains `mean` [Dt], `components` V [Dt, Ds] and `std` [Ds] of z, and, if the channels
of z are correlated (after an SVD they are not), `covariance` [Ds, Ds] of z. `channels.pt` contains
the channel `std` [Dt] of the raw teacher feature, which variance matching uses. Ds and Dt are the
numbers of channels of the student's and the teacher's pooled feature.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdep_bench.checkpoints import read_checkpoint, unusable_tensors
from kdep_bench.errors import KdepError, how_to_rebuild

BASIS, CHANNELS = "basis.pt", "channels.pt"


class Basis(nn.Module):
    """z = (f - mean) V, with `mean` [Dt], `components` V [Dt, Ds] and `std` [Ds] of z.

    Attributes:
        raw_std: [Dt] channel standard deviations of f, or None if unknown (an older file).
    """

    mean: Tensor
    components: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        components: Tensor,
        std: Tensor,
        covariance: Tensor | None = None,
        raw_std: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("components", components.float())
        self.register_buffer("std", std.float())
        # Plain attributes, not buffers: checkpoints do not need them.
        self._covariance, self.raw_std = covariance, raw_std

    def forward(self, f_BD: Tensor) -> Tensor:
        return (f_BD - self.mean) @ self.components

    @property
    def correlated(self) -> bool:
        """Whether the channels of z are correlated over the alignment samples."""
        return self._covariance is not None

    @property
    def covariance(self) -> Tensor:
        """[Ds, Ds] float64 covariance of z over the alignment samples."""
        return self.std.double().square().diag() if self._covariance is None else self._covariance

    def save(self, folder: Path, **extra_tensors: Tensor) -> None:
        """Writes `basis.pt`, with `extra_tensors`, and `channels.pt` if `raw_std` is known."""
        if self._covariance is not None:
            extra_tensors["covariance"] = self._covariance
        torch.save({**self.state_dict(), **extra_tensors}, folder / BASIS)
        if self.raw_std is not None:
            torch.save({"std": self.raw_std}, folder / CHANNELS)


def open_basis(align_dir: Path) -> Basis:
    """The basis of a finished `align` stage.

    Raises:
        KdepError: a file that cannot be read, or tensors of wrong shapes.
    """
    stored = _tensors(align_dir / BASIS, ("mean", "components", "std"))
    raw = align_dir / CHANNELS
    channels = _tensors(raw, ("std",))["std"] if raw.exists() else None
    mean, components, std = stored["mean"], stored["components"], stored["std"]
    covariance = stored.get("covariance")
    width = std.shape[:1]
    shapes_agree = (
        components.ndim == 2
        and (mean.shape, std.shape) == (components.shape[:1], components.shape[1:])
        and (covariance is None or covariance.shape == width + width)
        and (channels is None or channels.shape == mean.shape)
    )
    if not shapes_agree:
        shapes = {k: list(v.shape) for k, v in stored.items()}
        raise KdepError(
            f"the alignment in {align_dir} has the shapes {shapes}",
            expected="mean [Dt], components [Dt, Ds], std [Ds]",
            fix=how_to_rebuild(align_dir),
        )
    return Basis(mean, components, std, covariance, channels)


def _tensors(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a file that the align stage wrote.

    Raises:
        KdepError: an unreadable file, one of `names` is missing, or a tensor that is not finite.
    """
    content = read_checkpoint(path, "the alignment", how_to_rebuild(path.parent))
    entries = content if isinstance(content, dict) else {}
    tensors = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
    fault_by_name = unusable_tensors(tensors)
    faulty = [k for k in names if k not in tensors or k in fault_by_name]
    faulty += [k for k in tensors if k in fault_by_name and k not in names]
    if faulty:
        raise KdepError(
            f"the alignment {path}: {faulty[0]} {fault_by_name.get(faulty[0], 'is missing')}",
            expected=f"the tensors {', '.join(names)} as the align stage wrote them",
            fix=how_to_rebuild(path.parent),
        )
    return tensors
