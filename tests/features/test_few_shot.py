"""Images made from few images: mixtures, generated images, and the conditional VAE's loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.features.few_shot import FewShotImages
from kdep_bench.networks.conditional_vae import ConditionalVAE
from tests.pretrain.conftest import silent

PX = 32


def maker(**changes: Any) -> FewShotImages:
    """The maker of 60 images of PX pixels, trained for one epoch, with changed arguments."""
    return FewShotImages(**dict(images=60, epochs=1, px=PX) | changes)


def few_images(count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Images of one colour each, alternately dark (class 7) and bright (class 400)."""
    levels = [40 + 2 * k if k % 2 == 0 else 200 + 2 * k for k in range(count)]
    pixels = np.stack([np.full((PX, PX, 3), level, np.uint8) for level in levels])
    return pixels, np.array([7 if k % 2 == 0 else 400 for k in range(count)])


def test_the_vae_s_loss_is_the_summed_cross_entropy_plus_the_kl_divergence():
    torch.manual_seed(0)
    vae = ConditionalVAE(classes=3, px=32, latent=2).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    condition = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    noise = torch.randn(4, 2, dtype=torch.float64)
    mean, log_variance = (v.detach().numpy() for v in vae.encode(x, condition))
    z = mean + noise.numpy() * np.exp(0.5 * log_variance)
    p = vae.decode(torch.from_numpy(z), condition).detach().numpy()
    reconstruction = -(x.numpy() * np.log(p) + (1 - x.numpy()) * np.log(1 - p)).sum((1, 2, 3))
    # KL of two normal distributions, per latent number: (m^2 + s^2 - 1 - log s^2) / 2.
    kl = (0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)).sum(1)
    loss = vae.loss(x, condition, noise).detach().numpy()
    np.testing.assert_allclose(loss, reconstruction + kl, rtol=1e-9)
    assert vae.encode(x, condition.roll(1, 1))[0].sub(torch.from_numpy(mean)).abs().max() > 1e-9
    assert vae.decode(torch.from_numpy(z), condition).shape == (4, 3, 32, 32)


@pytest.mark.parametrize("threshold", [0.05, 0.3])
def test_mixtures_follow_the_formula_and_near_copies_are_replaced(threshold: float):
    pixels, classes = few_images()
    made = maker(threshold=threshold)
    mixes = made.mixes(len(pixels), np.random.default_rng(3))
    mixed, generated = made.make(pixels, classes, 3, silent)
    near = (mixes.weight <= threshold) | (mixes.weight >= 1 - threshold)
    assert np.array_equal(mixes.replaced, near)
    assert 0 < near.sum() < 60
    assert (len(mixed), len(generated)) == (60 - near.sum(), near.sum())
    expected = (
        mixes.weight[~near] * pixels[mixes.first[~near], 0, 0, 0]
        + (1 - mixes.weight[~near]) * pixels[mixes.second[~near], 0, 0, 0]
    )
    assert np.abs(mixed[:, 5, 9, 1] - expected).max() <= 0.51  # rounded to whole numbers
    for numbers in (mixes.first, mixes.second):
        assert np.bincount(numbers).tolist() == [10] * 6


def test_the_weights_have_the_beta_distribution():
    weight = maker(images=20_000, alpha=0.2).mixes(50, np.random.default_rng(0)).weight
    assert weight.mean() == pytest.approx(0.5, abs=0.01)
    assert weight.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.03)  # of Beta(a, a)


def test_generated_images_have_the_classes_of_the_teacher_equally_often():
    classes = np.array([5, 5, 5, 9, 700])
    chosen = maker().balanced_choice(classes, 100, np.random.default_rng(0))
    assert sorted(np.unique(chosen).tolist()) == [5, 9, 700]
    assert np.ptp(np.unique(chosen, return_counts=True)[1]) <= 1
    # 20 images for 50 classes: no class has two.
    assert len(set(maker().balanced_choice(np.arange(50), 20, np.random.default_rng(0)))) == 20


def test_half_of_the_latent_vectors_are_normal_and_half_uniform_in_random_order():
    z = maker().latent_vectors(20_000, np.random.default_rng(0))
    assert z.shape == (20_000, 2)
    assert z.var() == pytest.approx((1 + 3) / 2, rel=0.03)  # U(-3, 3) has variance 3
    # A normal number exceeds 3 in absolute value with probability 0.0027, a uniform one never.
    assert (np.abs(z) > 3).mean() == pytest.approx(0.0027 / 2, rel=0.5)
    first, second = z[:10_000], z[10_000:]
    assert first.var() == pytest.approx(second.var(), rel=0.05)


def test_the_vae_generates_images_that_depend_on_the_class():
    pixels, classes = few_images(20)
    made = maker(images=40, epochs=80, threshold=1.0, batch=10, lr=2e-3)
    mixed, generated = made.make(pixels, classes, 0, silent)
    assert len(mixed) == 0  # everything is replaced at this threshold
    assert generated.shape == (40, PX, PX, 3)
    means = np.sort(generated.mean((1, 2, 3)))
    # 20 dark and 20 bright images; those of the data have means of 58 and 220.
    assert means[20:].mean() - means[:20].mean() > 80


def test_images_depend_on_the_seed_only_and_one_image_is_refused():
    pixels, classes = few_images()
    first, second, third = (maker().make(pixels, classes, seed, silent) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0][:20], third[0][:20])
    with pytest.raises(KdepError, match="but there are 1 images"):
        maker().make(pixels[:1], classes[:1], 0, silent)
