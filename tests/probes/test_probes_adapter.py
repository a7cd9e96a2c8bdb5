"""The adapter of SgVA-CLIP: its formulas, its training, and its values on known features.

The adapter learns from the labels and from the guide, the logits of the classifier without adapter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from kdep_bench.errors import KdepError
from kdep_bench.probes.adapter import (
    Adapters,
    Recipe,
    SgvaClip,
    adapter_loss,
    train_adapters,
    training_logits,
)
from kdep_bench.probes.base import Features, Inputs, unit
from kdep_bench.suite.config import load_config

SEEDS = (0, 1)
SHORT_FIT: dict[str, Any] = {"shots": [1, 4], "draws": 2, "steps": 20}


def classes_in_noise(seed: int, n: int = 160, classes: int = 4, noise: float = 3.0) -> Features:
    """Classes that differ in the first 4 dimensions; the other 4 are noise, equal for all classes.

    Cosine distances to prototypes are dominated by the noise, which an adapter can remove.
    """
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), n // classes)
    x = np.hstack(
        [np.eye(classes)[y] + rng.normal(0, 0.1, (n, classes)), rng.normal(0, noise, (n, 4))]
    )
    positive = np.abs(x).astype(np.float32)
    return Features(positive, positive, y, tuple("abcd"))


def splits(**options: Any) -> Inputs:
    """Three splits, each with its own noise."""
    return Inputs(
        {s: classes_in_noise(i, **options) for i, s in enumerate(("train", "val", "test"))}
    )


def episode(shots: int, classes: int = 3, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of length 1 [2, N, D] in float64 and one-hot classes [2, N, C] of two draws."""
    x = unit(np.random.default_rng(0).normal(size=(2 * shots * classes, width)))
    member = np.tile(np.eye(classes)[np.repeat(np.arange(classes), shots)], (2, 1, 1))
    return torch.from_numpy(x.reshape(2, -1, width)), torch.from_numpy(member)


def test_training_logits_are_cosines_with_the_mean_of_the_other_images_of_the_class():
    x_END, member = episode(shots=3)
    logits, x = training_logits(x_END, member, 7.0), x_END.numpy()
    for e in range(2):
        for i in range(9):
            for c in range(3):
                same_class = [j for j in range(3 * c, 3 * c + 3) if j != i]
                expected = 7 * np.dot(x[e, i], x[e, same_class].mean(0))
                assert logits[e, i, c].item() == pytest.approx(expected, abs=1e-12)


def test_a_single_image_of_a_class_is_its_own_prototype():
    x, member = episode(shots=1)
    assert torch.allclose(training_logits(x, member, 1.0), x @ x.mT)


def test_the_loss_is_cross_entropy_with_labels_and_with_the_guide():
    rng = np.random.default_rng(1)
    adapted, guide = rng.normal(0, 3, (2, 4, 3)), rng.normal(0, 3, (2, 4, 3))
    labels = rng.integers(0, 3, (2, 4))
    terms = adapter_loss(*map(torch.from_numpy, (adapted, guide, labels)), temperature=5.0)

    def softmax(z: np.ndarray) -> np.ndarray:
        """Over the last axis."""
        return np.exp(z) / np.exp(z).sum(-1, keepdims=True)

    picked = np.take_along_axis(softmax(adapted), labels[..., None], 2)[..., 0]
    assert terms["classes"].numpy() == pytest.approx(-np.log(picked))
    distillation = -(softmax(guide / 5) * np.log(softmax(adapted / 5))).sum(-1)
    assert terms["distillation"].numpy() == pytest.approx(distillation)


def test_with_an_identity_adapter_the_distillation_is_the_entropy_of_the_guide():
    x, member = episode(shots=2)
    adapters = Adapters(SEEDS, 5, alpha=0.0).double()
    guide = training_logits(x, member, 10.0)
    adapted = training_logits(adapters(x), member, 10.0)
    term = adapter_loss(adapted, guide, member.argmax(2), 5.0)["distillation"]
    entropy = torch.distributions.Categorical(logits=guide / 5.0).entropy()
    assert torch.allclose(term, entropy)


def test_gradients_are_those_of_the_formula_and_none_goes_to_the_guide():
    x, member = episode(shots=2)
    adapters = Adapters(SEEDS, 5).double()

    def total(into: torch.Tensor, out: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The sum of both terms for these parameters of the adapters."""
        named = {"into": into, "out": out, "alpha": alpha}
        adapted = torch.func.functional_call(adapters, named, (x,))
        logits = training_logits(adapted, member, 3.0)
        guide = training_logits(x, member, 3.0)
        return sum(
            adapter_loss(logits, guide, member.argmax(2), 5.0).values(), torch.zeros(())
        ).sum()

    parameters = [
        p.detach().requires_grad_() for p in (adapters.into, adapters.out, adapters.alpha)
    ]
    assert gradcheck(total, parameters)
    guide = training_logits(x, member, 3.0).requires_grad_()
    logits = training_logits(adapters(x), member, 3.0)
    adapter_loss(logits, guide, member.argmax(2), 5.0)["distillation"].sum().backward()
    assert guide.grad is None
    assert adapters.alpha.grad is not None


def test_draws_trained_side_by_side_equal_draws_trained_alone():
    x, member = episode(shots=2)
    x, member, recipe = x.float(), member.float(), Recipe(3.5e-3, 5, 100.0, 5.0)
    both = train_adapters(x, member, SEEDS, recipe)
    for e in SEEDS:
        alone = train_adapters(x[e : e + 1], member[e : e + 1], [e], recipe)
        assert torch.allclose(alone.into[0], both.into[e], atol=1e-6)
        assert not torch.equal(alone.into, Adapters([e], 5).into)


def test_an_adapter_removes_noise_that_prototypes_cannot_and_runs_are_equal():
    data = splits()
    first, again = (
        SgvaClip(**{**SHORT_FIT, "shots": [16], "steps": 100}).measure(data) for _ in range(2)
    )
    assert first == again
    adapted, alone = (v.value for v in first.values.values())
    assert adapted > alone + 0.05
    assert "learning rate" in first.notes[0]


def test_features_and_labels_do_not_change_and_a_collapsed_backbone_is_at_chance():
    x, labels = np.full((40, 5), 1, np.float32), np.repeat(np.arange(4), 10)
    constant = Features(x, x, labels, tuple("abcd"))
    collapsed = Inputs(dict.fromkeys(("train", "val", "test"), constant))
    values = SgvaClip(**SHORT_FIT).measure(collapsed).values
    assert list(values) == [
        "top1, 1 per class",
        "top1, 1 per class, no adapter",
        "top1, 4 per class",
        "top1, 4 per class, no adapter",
    ]
    assert {v.value for v in values.values()} == {0.25}
    assert (constant.post_activation == 1).all()
    np.testing.assert_array_equal(constant.labels, np.repeat(np.arange(4), 10))


def test_shuffled_labels_give_chance():
    data = splits()
    train = data.splits["train"]
    shuffled = np.random.default_rng(0).permutation(train.labels)
    wrong = Features(train.pre_activation, train.post_activation, shuffled, train.classes)
    probe = SgvaClip(shots=[16], draws=4, steps=20)
    value = probe.measure(Inputs({**data.splits, "train": wrong})).values["top1, 16 per class"]
    assert value.value < 0.4
    assert value.chance == 0.25


def test_the_learning_rate_is_chosen_on_val_whatever_the_test_labels_are():
    data = splits()
    test = data.splits["test"]
    wrong = Features(
        test.pre_activation, test.post_activation, test.labels[::-1].copy(), test.classes
    )
    data = Inputs({**data.splits, "test": wrong})
    options = {"shots": [16], "draws": 2, "steps": 60}
    low, high = (SgvaClip(**options, rates=[rate]).measure(data) for rate in (1e-9, 3.5e-3))
    assert low.values["top1, 16 per class"] != high.values["top1, 16 per class"]
    both = SgvaClip(**options, rates=[3.5e-3, 1e-9]).measure(data)
    assert both == high  # better on val; on the wrong test labels it is worse
    assert high.values["top1, 16 per class"].value < low.values["top1, 16 per class"].value


def test_a_diverged_training_is_an_error_that_names_the_rate():
    x, member = episode(shots=2)
    with pytest.raises(KdepError, match="diverged with the learning rate"):
        train_adapters(x.float() * float("nan"), member.float(), SEEDS, Recipe(0.1, 2, 1.0, 1.0))


def test_the_config_is_marked_as_a_re_implementation_and_has_the_paper_s_numbers_of_images():
    config = load_config("probe", "sgva_clip")
    assert config["reconstruction"]
    assert list(config["shots"]) == [1, 2, 4, 8, 16]
