"""The fitted alignment z = (f - mean) V: what every aligner ends in, and its file.

`basis.pt` holds `mean` [Dt], `components` V [Dt, Ds] and `std` [Ds] of z; `covariance` [Ds, Ds] of
z where its channels are correlated (an SVD's are not). `channels.pt` holds the channel `std` [Dt]
of the raw teacher feature, which variance matching needs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdep_bench.checkpoints import bad_tensors, read_checkpoint
from kdep_bench.errors import KdepError

BASIS, CHANNELS = "basis.pt", "channels.pt"
_FIX = "delete that stage folder and run again"


class Basis(nn.Module):
    """z = (f - mean) V, with `mean` [Dt], `components` V [Dt, Ds] and `std` [Ds] of z.

    Attributes:
        raw_std: [Dt] channel standard deviations of f, or None where the file does not say.
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
        # Plain attributes: facts for fitting a transform, no part of a checkpoint.
        self._covariance, self.raw_std = covariance, raw_std

    def forward(self, f_BD: Tensor) -> Tensor:
        return (f_BD - self.mean) @ self.components

    @property
    def correlated(self) -> bool:
        """Whether the channels of z are correlated over the fitting rows."""
        return self._covariance is not None

    @property
    def covariance(self) -> Tensor:
        """[Ds, Ds] float64 covariance of z over the fitting rows."""
        return self.std.double().square().diag() if self._covariance is None else self._covariance

    def save(self, folder: Path, **more: Tensor) -> None:
        """Writes `basis.pt` (with `more` tensors) and, if known, `channels.pt`."""
        if self._covariance is not None:
            more["covariance"] = self._covariance
        torch.save({**self.state_dict(), **more}, folder / BASIS)
        if self.raw_std is not None:
            torch.save({"std": self.raw_std}, folder / CHANNELS)


def open_basis(align_dir: Path) -> Basis:
    """The basis of a finished `align` stage; KdepError for a file that cannot be read."""
    stored = _tensors(align_dir / BASIS, ("mean", "components", "std"))
    raw = align_dir / CHANNELS
    channels = _tensors(raw, ("std",))["std"] if raw.exists() else None
    mean, components, std = stored["mean"], stored["components"], stored["std"]
    covariance = stored.get("covariance")
    width = std.shape[:1]
    fits = (
        components.ndim == 2
        and (mean.shape, std.shape) == (components.shape[:1], components.shape[1:])
        and (covariance is None or covariance.shape == width + width)
        and (channels is None or channels.shape == mean.shape)
    )
    if not fits:
        shapes = {k: list(v.shape) for k, v in stored.items()}
        raise KdepError(
            f"the alignment in {align_dir} has the shapes {shapes}",
            expected="mean [Dt], components [Dt, Ds], std [Ds]",
            fix=_FIX,
        )
    return Basis(mean, components, std, covariance, channels)


def _tensors(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a file that the align stage wrote; KdepError where one of `names` is not."""
    stored = read_checkpoint(path, "the alignment", _FIX)
    held = stored if isinstance(stored, dict) else {}
    found = {k: v for k, v in held.items() if isinstance(v, Tensor)}
    bad = bad_tensors(found)
    wrong = [k for k in names if k not in found or k in bad]
    wrong += [k for k in found if k in bad and k not in names]
    if wrong:
        raise KdepError(
            f"the alignment {path}: {wrong[0]} {bad.get(wrong[0], 'is missing')}",
            expected=f"the tensors {', '.join(names)} as the align stage wrote them",
            fix=_FIX,
        )
    return found
