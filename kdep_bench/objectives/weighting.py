"""Base class of weightings: weights of loss terms per sample.

Weights that change over time are schedules.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Component, Context, build_component
from kdep_bench.registry import locate, type_path


class Weighting(Component):
    """Weights the terms of an objective per sample. Each subclass has its own file.

    Configured as `weighting=dict(type=...)` of a WeightedSum or of MultiTeacherKD. Parameters,
    buffers and class attributes are treated as those of an Objective. A weighting must detach
    weights that depend on the student's outputs, unless the method's paper backpropagates through
    them.
    """

    @abstractmethod
    def weigh(self, ctx: Context, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights {term: (B,)} for the losses `terms` {term: (B,)}."""

    def weighted(self, ctx: Context, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms multiplied by their weights.

        Raises:
            KdepError: `weigh` returned other terms, or not one weight per sample.
        """
        weights = self.weigh(ctx, terms)
        if weights.keys() != terms.keys():
            raise KdepError(
                f"{type(self).__name__} returns weights for the terms {', '.join(sorted(weights))}",
                expected=f"one for each of {', '.join(sorted(terms))}",
                fix="use a weighting that is made for this objective",
            )
        for name, weight in weights.items():
            if weight.shape != terms[name].shape:
                raise KdepError(
                    f"{type(self).__name__} returns weights of shape {tuple(weight.shape)} for the "
                    f"term {name!r}",
                    expected=f"{tuple(terms[name].shape)}, one value per sample",
                    fix="return one weight per sample from the `weigh` method of that class",
                )
        return {name: weights[name] * term for name, term in terms.items()}


def build_weighting(
    config: Mapping[str, Any] | None, build_args: Mapping[str, Any]
) -> Weighting | None:
    """Builds the weighting of a config; None if `config` is None.

    `build_args`: values by the names of `objectives.base.ARGUMENTS`; the class receives those that
    its `stage_arguments` lists.

    Raises:
        KdepError: a type that is not a Weighting, or a required argument that is missing.
    """
    if config is None:
        return None
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, Weighting)):
        raise KdepError(
            f"the weighting {type_path(config['type'])} is not a Weighting",
            expected="a subclass of kdep_bench.objectives.weighting.Weighting",
            fix="correct `weighting` in the method's config",
        )
    weighting = build_component(config, build_args)
    assert isinstance(weighting, Weighting)
    return weighting
