"""SVD alignment and streaming moments compared with closed forms and full SVDs."""

from __future__ import annotations

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.features.aligners import Svd, svd_basis
from kdep_bench.features.transform import Moments


def features(n: int = 500, d: int = 24, seed: int = 0) -> torch.Tensor:
    """Correlated features [n, d] in float64 with a mean of 5."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, d)
    return x @ torch.randn(d, d, generator=generator, dtype=torch.float64) + 5.0


def moments(x: torch.Tensor, batch: int = 37) -> Moments:
    """Moments of the rows, added in batches."""
    accumulated = Moments(x.shape[1])
    for i in range(0, len(x), batch):
        accumulated.add(x[i : i + batch])
    return accumulated


def test_streaming_basis_equals_the_full_svd_up_to_sign():
    x = features()
    basis, values = svd_basis(moments(x), 8)
    _, s, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    torch.testing.assert_close(values, s**2 / len(x))
    cosine = (basis.components.double() * vh[:8].T).sum(0).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-6, rtol=0)


def test_channel_std_after_svd_is_singular_value_over_sqrt_n():
    x = features()
    basis, _ = svd_basis(moments(x), 8)
    s = torch.linalg.svdvals(x - x.mean(0))[:8] / len(x) ** 0.5
    torch.testing.assert_close(basis.std, s.float())
    torch.testing.assert_close(basis(x.float()).std(0, correction=0), s.float(), rtol=1e-4, atol=0)


def test_the_reconstruction_error_is_the_variance_of_the_dropped_directions():
    x = features()
    basis, values = svd_basis(moments(x), 8)
    v, mu = basis.components.double(), x.mean(0)
    error = ((x - mu) - (x - mu) @ v @ v.T).square().sum() / len(x)
    torch.testing.assert_close(error, values[8:].sum(), rtol=1e-5, atol=1e-9)


def test_the_sign_rule_makes_the_basis_independent_of_the_order_of_rows():
    x = features()
    a, _ = svd_basis(moments(x), 8)
    b, _ = svd_basis(moments(x.flip(0), batch=11), 8)
    torch.testing.assert_close(a.components, b.components, atol=1e-6, rtol=1e-5)


def test_moments_stay_accurate_with_a_large_mean():
    x = features() + 1e6
    torch.testing.assert_close(
        moments(x).covariance, torch.cov(x.T, correction=0), rtol=1e-7, atol=1e-7
    )


def test_a_student_that_is_wider_than_the_teacher_is_refused():
    with pytest.raises(KdepError, match="channels and the teacher only"):
        svd_basis(moments(features()), 25)


def test_fewer_images_than_directions_are_refused():
    with pytest.raises(KdepError, match="too few to estimate 8 directions"):
        svd_basis(moments(features(n=8)), 8)


def test_rank_deficient_features_are_refused():
    x = features()
    low = (x - x.mean(0))[:, :4] @ torch.randn(4, 24, dtype=torch.float64)
    with pytest.raises(KdepError, match="rank 4"):
        svd_basis(moments(low), 8)


def test_rank_deficient_layer_norm_error_names_a_policy_that_works():
    x = torch.nn.functional.layer_norm(features(), (24,))  # every row sums to zero
    with pytest.raises(KdepError, match=r"rank 23.*LayerNorm.*zero_pad"):
        svd_basis(moments(x), 24)
    basis = Svd(policy="zero_pad").fit(moments(x), 24)
    assert float(basis.std[-1]) < 1e-6 * float(basis.std[0])
    assert svd_basis(moments(x), 23)[0].components.shape == (24, 23)


def test_a_nan_feature_is_refused():
    with pytest.raises(KdepError, match="NaN"):
        Moments(3).add(torch.tensor([[1.0, float("nan"), 0.0]]))
