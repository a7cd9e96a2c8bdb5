"""Objectives: the inputs and arguments that they declare, construction from a config, and sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective, build_objective, demands

MODULE = __name__
REGRESSION = "kdep_bench.objectives.feature_regression.FeatureRegression"
ENTROPY = "kdep_bench.objectives.cross_entropy.CrossEntropy"
SUM = "kdep_bench.objectives.weighted_sum.WeightedSum"


class TwoTerms(Objective):
    """An objective with two terms, which counts the finished steps.

    `needs` are the inputs that `terms` reads; `stage_arguments` are those of the constructor.
    """

    needs = frozenset({"pooled"})
    stage_arguments = frozenset({"teacher_width"})
    couples_samples = True

    def __init__(self, teacher_width: int) -> None:
        super().__init__()
        self.teacher_width, self.steps_done = teacher_width, 0

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Sums of the features before (a) and after (b) the last activation."""
        return {"a": ctx.pre_activation.sum(1), "b": ctx.post_activation.sum(1)}

    def after_step(self) -> None:
        """Counts a step."""
        self.steps_done += 1


class Misspelt(TwoTerms):
    """Declares an input that does not exist."""

    needs = frozenset({"lables"})


def config(**options: Any) -> dict[str, Any]:
    """A sum of feature regression and `TwoTerms`; `options` belong to the second part."""
    return dict(
        type=SUM,
        parts=dict(
            feature=dict(objective=dict(type=REGRESSION, weight=2.0)),
            two=dict(objective=dict(type=f"{MODULE}.TwoTerms"), **options),
        ),
    )


def context(**values: Any) -> Context:
    """Three samples of width 4: 1 before, 2 after the last activation, and the target 0."""
    ones = torch.ones(3, 4)
    return Context(pre_activation=ones, post_activation=2 * ones, target=0 * ones, **values)


def test_a_weighted_sum_declares_the_inputs_and_arguments_of_all_its_parts():
    requirements = demands(config())
    assert requirements.needs == {"target", "pooled"}
    assert requirements.stage_arguments == {"epochs", "target_mean_square", "teacher_width"}
    assert requirements.couples_samples
    assert not demands({"type": REGRESSION}).couples_samples


def test_terms_are_weighted_and_named_by_part():
    arguments = dict(epochs=10, target_mean_square=1.0, teacher_width=7, width=99)
    schedule = dict(type="kdep_bench.schedules.linear.Linear", start=1.0, end=0.0, span=5)
    objective = build_objective(config(weight=schedule), arguments)
    terms = objective.terms(context(step=1, steps=10))
    assert set(terms) == {"feature", "two.a", "two.b"}
    assert terms["feature"].tolist() == [2.0] * 3  # weight 2 x mean square 1
    # The schedule falls from 1 to 0 in 5 of 10 epochs, here 5 of 10 steps: 0.8 at step 1.
    # The sums over 4 channels are 4 * 1 and 4 * 2.
    assert terms["two.a"].tolist() == pytest.approx([0.8 * 4] * 3)
    assert terms["two.b"].tolist() == pytest.approx([0.8 * 8] * 3)
    assert objective.terms(context(step=5, steps=10))["two.a"].tolist() == [0.0] * 3
    objective.after_step()
    assert objective.members["two"].steps_done == 1  # type: ignore[index]


def test_a_sum_of_one_part_equals_that_part():
    torch.manual_seed(0)
    single = build_objective({"type": ENTROPY}, dict(width=4, classes=3))
    torch.manual_seed(0)
    parts = dict(only=dict(objective=dict(type=ENTROPY)))
    summed = build_objective(dict(type=SUM, parts=parts), dict(width=4, classes=3, epochs=1))
    ctx = context(labels=torch.tensor([0, 1, 2]))
    assert torch.equal(single.terms(ctx)["cross_entropy"], summed.terms(ctx)["only"])


def test_a_required_argument_that_nothing_provides_is_named():
    with pytest.raises(KdepError, match="argument target_mean_square, teacher_width of"):
        build_objective(config(), dict(epochs=1))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(type=f"{MODULE}.Misspelt"), "did you mean labels"),
        (dict(type="torch.nn.Linear"), "is not an Objective"),
        (dict(type=SUM, parts={}), "has no parts"),
        (dict(type=SUM, parts={"a.b": dict(objective=dict(type=REGRESSION))}), "has no dot"),
        (dict(type=SUM, parts=dict(a=dict(objective=dict(type=REGRESSION), wieght=1))), "wieght"),
    ],
)
def test_wrong_objective_configs_are_refused(bad: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        build_objective(bad, dict(epochs=1, target_mean_square=1.0, teacher_width=3))


def test_progress_is_the_fraction_of_finished_steps():
    """It is below 1 in the last step; without a number of steps it is 0."""
    assert context(step=9, steps=10).progress == 0.9
    assert context().progress == 0.0
