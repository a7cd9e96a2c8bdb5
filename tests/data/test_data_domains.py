"""Generated domains: their formulas, and that an image of a domain is always the same image."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from kdep_bench.bounds import Domain
from kdep_bench.data.domains import DOMAINS, fog, seed_from_name, to_domain
from kdep_bench.errors import KdepError
from kdep_bench.signatures import check_value
from kdep_bench.transfer.recipes import _TYPES


def image(height: int = 120, width: int = 160) -> np.ndarray:
    """An image with a gradient and a square."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = 90
    pixels[30:70, 40:100] = (230, 40, 160)
    return pixels


def test_fog_is_a_mixture_of_image_and_light_that_grows_with_the_depth():
    """fog(x) = t x + A (1 - t), so t = fog(white) - fog(black), and A is fog(black) / (1 - t)."""
    white, black = (fog(np.full((40, 30, 3), v), np.random.default_rng(3)) for v in (1.0, 0.0))
    transmission = white - black
    light = black / (1 - transmission)
    assert np.ptp(light) < 1e-9  # the same A at every pixel
    assert 200 / 255 <= light.mean() <= 245 / 255
    # t = exp(-beta d), with beta in 1.5..2.5 and depths d in 0.05..1.25.
    assert np.exp(-2.5 * 1.25) <= transmission.min() < transmission.max() <= np.exp(-1.5 * 0.05)
    assert transmission[-5:].mean() > 1.5 * transmission[:5].mean()  # the bottom is nearer


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_image_of_a_domain_depends_only_on_the_image_and_the_seed(domain):
    """Otherwise two methods would be scored on different images."""
    first, again = (to_domain(image(), domain, [7]) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == image().shape
    np.testing.assert_array_equal(first, again)
    assert np.any(first != to_domain(image(), domain, [8]))
    assert np.abs(first.astype(int) - image()).mean() > 20  # a different domain
    assert (
        seed_from_name("test/000001.jpg")
        == seed_from_name("000001.jpg")
        != seed_from_name("000002.jpg")
    )


def test_a_sketch_is_grey_and_draws_an_even_surface_white():
    drawn = to_domain(image(), "sketch", [0])
    assert np.ptp(drawn, axis=2).max() == 0
    assert to_domain(np.full((16, 16, 3), 60, np.uint8), "sketch", [0]).min() == 255


def test_an_unknown_domain_is_refused_and_recipes_know_every_domain():
    with pytest.raises(KdepError, match="did you mean fog"):
        to_domain(image(), "fogg", [0])
    assert set(get_args(Domain)) == set(DOMAINS)
    for domain in DOMAINS:
        check_value(_TYPES["domain"], domain, "a recipe", "domain")
    with pytest.raises(KdepError):
        check_value(_TYPES["domain"], "snow", "a recipe", "domain")
