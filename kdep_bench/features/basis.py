"""The fitted alignment z = (f - mean) V: what every aligner ends in, and its file.

`basis.pt` holds `mean` [Dt], `components` V [Dt, Ds] and `std` [Ds] of z; `covariance` [Ds, Ds] of
z where its channels are correlated (an SVD's are not). `channels.pt` holds the channel `std` [Dt]
of the raw teacher feature, which variance matching needs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.openmmlab import load_weights

BASIS, CHANNELS = "basis.pt", "channels.pt"


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
    try:
        stored, raw = load_weights(align_dir / BASIS), align_dir / CHANNELS
        channels = load_weights(raw)["std"] if raw.exists() else None
        parts = stored["mean"], stored["components"], stored["std"]
    except Exception as e:  # torch.load raises whatever its pickle or zip reader meets
        raise KdepError(
            f"the alignment in {align_dir} cannot be read ({type(e).__name__}: {e})",
            f"{BASIS} as the align stage wrote it",
            "delete that stage folder and run again",
        ) from e
    return Basis(*parts, stored.get("covariance"), channels)
