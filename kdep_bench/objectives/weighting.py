"""Weights of loss terms per sample. Schedules, in contrast, weight a term over time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Component, Context, build_component
from kdep_bench.registry import locate, type_path


class Weighting(Component):
    """One weight per sample for every term of an objective. Each subclass has its own file.

    Where it is set: `weighting=dict(type=...)` of a WeightedSum or of MultiTeacherKD. It declares
    what it reads of a batch as an Objective does. Its parameters are trained with the student's,
    its buffers are kept in resume files, and both are dropped at export. Weights that follow from
    the student's own outputs must be detached by the weighting, unless the method's paper lets
    gradients pass.
    """

    @abstractmethod
    def weigh(self, ctx: Context, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """{term: weights (B,)}, one entry for each of `terms` ({term: losses (B,)})."""

    def weighted(self, ctx: Context, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms times their weights.

        Raises:
            KdepError: weights of other terms, or not one per sample.
        """
        weights = self.weigh(ctx, terms)
        if weights.keys() != terms.keys():
            raise KdepError(
                f"{type(self).__name__} gives weights for the terms {', '.join(sorted(weights))}",
                expected=f"one for each of {', '.join(sorted(terms))}",
                fix="use a weighting that is made for this objective",
            )
        for name, weight in weights.items():
            if weight.shape != terms[name].shape:
                raise KdepError(
                    f"{type(self).__name__} gives the term {name!r} weights of shape "
                    f"{tuple(weight.shape)}",
                    expected=f"{tuple(terms[name].shape)}, one value per sample",
                    fix="return one weight per sample from the `weigh` method of that class",
                )
        return {name: weights[name] * term for name, term in terms.items()}


def build_weighting(config: Mapping[str, Any] | None, facts: Mapping[str, Any]) -> Weighting | None:
    """Builds the weighting of a config, with the `facts` that it requires; None without one."""
    if config is None:
        return None
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, Weighting)):
        raise KdepError(
            f"the weighting {type_path(config['type'])} is not a Weighting",
            expected="a subclass of kdep_bench.objectives.weighting.Weighting",
            fix="correct `weighting` in the method's config",
        )
    weighting = build_component(config, facts)
    assert isinstance(weighting, Weighting)
    return weighting
