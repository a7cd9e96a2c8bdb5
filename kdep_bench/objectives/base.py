"""A distillation objective: declares what it needs, returns its terms per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """One training batch as an objective sees it.

    Attributes:
        before: [B, Ds] pooled student feature before the last activation (the KDEP tap).
        after: [B, Ds] pooled student feature after it (what a classifier would read).
        target: [B, Ds] aligned and transformed teacher feature, without gradient, or None.
        labels: [B] int64 class numbers, or None in a label-free run.
    """

    before: Tensor
    after: Tensor
    target: Tensor | None
    labels: Tensor | None


class Objective(nn.Module, ABC):
    """One objective, one file.

    `needs` is a subset of {"target", "labels"}: the plan is refused when the method's config does
    not provide it. Parameters of an objective are trained and dropped at export.
    """

    needs: ClassVar[frozenset[str]]

    @abstractmethod
    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Un-reduced terms, each of shape (B,); the loss is the mean over B of their sum."""
