"""Fixed aligners: closed forms, policies for wider students, and common properties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdep_bench.errors import KdepError
from kdep_bench.features.align import build_aligner
from kdep_bench.features.aligners import (
    Aligner,
    Identity,
    Interpolate,
    RandomBasis,
    SmallestBasis,
    Svd,
    TopVariance,
    explained_variance_ratio,
    orthogonal,
    svd_basis,
)
from kdep_bench.features.basis import BASIS, open_basis
from kdep_bench.features.policies import POLICIES
from kdep_bench.features.transform import Moments, std_ratio

ALL = (Svd, SmallestBasis, RandomBasis, TopVariance, Interpolate, Identity)


def features(n: int = 400, d: int = 24, seed: int = 0) -> torch.Tensor:
    """Correlated features [n, d] in float64 with a mean of 5."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, d)
    return x @ orthogonal(d, seed + 100) + 5.0


def moments(x: torch.Tensor, batch: int = 37) -> Moments:
    """Moments of the rows, added in batches."""
    accumulated = Moments(x.shape[1])
    for i in range(0, len(x), batch):
        accumulated.add(x[i : i + batch])
    return accumulated


def width_for(kind: type[Aligner], narrow: int, d: int) -> int:
    """The student's width; Identity needs that of the teacher."""
    return d if kind is Identity else narrow


# -- properties of all aligners -----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(ALL), st.integers(3, 12), st.integers(1, 12), st.integers(0, 3))
def test_every_aligner_is_deterministic_and_its_statistics_are_right(
    kind: type[Aligner], d: int, narrow: int, seed: int
):
    width, x = width_for(kind, min(narrow, d), d), features(60, d, seed)
    aligner = kind(seed=seed)
    basis, same_basis = aligner.fit(moments(x), width), kind(seed=seed).fit(moments(x), width)
    assert basis.components.shape == (d, width)
    assert torch.equal(basis.components, same_basis.components)
    assert not any(p.requires_grad for p in basis.parameters())
    z = basis(x.float()).double()
    torch.testing.assert_close(z.mean(0), torch.zeros(width).double(), atol=1e-4, rtol=0)
    spread = float(x.std())
    torch.testing.assert_close(
        basis.std.double(), z.std(0, correction=0), atol=1e-5 * spread, rtol=1e-4
    )
    torch.testing.assert_close(
        basis.covariance, torch.cov(z.T, correction=0).view(width, width), atol=1e-3, rtol=1e-3
    )
    assert 0 < explained_variance_ratio(moments(x), basis) <= 1 + 1e-6


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ALL), st.sampled_from(sorted(POLICIES)), st.integers(1, 6))
def test_a_wider_student_is_refused_without_a_policy_and_aligned_with_one(
    kind: type[Aligner], policy: str, extra_channels: int
):
    x = features(60, 6)
    with pytest.raises(KdepError, match="channels and the teacher only"):
        kind().fit(moments(x), 6 + extra_channels)
    basis, plain = (
        kind(policy=policy).fit(moments(x), 6 + extra_channels),
        kind().fit(moments(x), 6),
    )
    z, a = basis(x.float()), plain(x.float())
    assert z.shape == (60, 6 + extra_channels)
    assert explained_variance_ratio(moments(x), basis) == pytest.approx(
        explained_variance_ratio(moments(x), plain), rel=1e-5
    )
    if policy == "zero_pad":
        torch.testing.assert_close(z[:, :6], a, rtol=1e-4, atol=1e-4)
        assert not z[:, 6:].any()
    elif policy == "repeat":
        torch.testing.assert_close(
            z, a[:, torch.arange(6 + extra_channels) % 6], rtol=1e-4, atol=1e-4
        )
    else:  # angles and lengths are unchanged, and no channel is constant
        torch.testing.assert_close(z @ z.T, a @ a.T, rtol=1e-3, atol=1e-3)
        assert (z.std(0) > 0).all()


@pytest.mark.parametrize("kind", ALL)
def test_too_few_rows_constant_features_and_nan_raise_kdep_error(kind: type[Aligner]):
    with pytest.raises(KdepError, match="too few to estimate 6 directions"):
        kind().fit(moments(features(6, 6)), 6)
    with pytest.raises(KdepError, match="the same for every image"):
        kind().fit(moments(torch.full((50, 6), 0.7).double()), 6)
    with_nan = features(50, 6)
    with_nan[3, 2] = torch.nan
    with pytest.raises(KdepError, match="NaN"):
        kind().fit(moments(with_nan), 6)


def test_there_are_three_policies_for_wider_students():
    assert set(POLICIES) == {"zero_pad", "random_rotation", "repeat"}


def test_an_unknown_policy_gives_an_error_with_the_most_similar_name():
    with pytest.raises(KdepError, match="did you mean zero_pad"):
        Svd(policy="zero_padd")


def test_a_class_that_is_not_an_aligner_and_an_unknown_argument_are_refused():
    with pytest.raises(KdepError, match="is not an Aligner"):
        build_aligner({"type": "torch.nn.Linear"})
    with pytest.raises(KdepError, match="does not accept the arguments"):
        build_aligner({"type": "svd", "whiten": True})
    assert isinstance(build_aligner({"type": "svd"}), Svd)
    assert isinstance(build_aligner({"type": "kdep_bench.features.aligners.Interpolate"}), Aligner)


# -- single aligners ----------------------------------------------------------------------------


def test_svd_keeps_the_most_variance_and_smallest_basis_the_least():
    feature_moments = moments(features())
    ratios = {
        kind: explained_variance_ratio(feature_moments, kind().fit(feature_moments, 8))
        for kind in ALL
        if kind is not Identity
    }
    _, values = svd_basis(feature_moments, 8)
    assert ratios[Svd] == pytest.approx(float(values[:8].sum() / values.sum()), rel=1e-6)
    assert ratios[SmallestBasis] == pytest.approx(float(values[-8:].sum() / values.sum()), rel=1e-3)
    assert max(ratios, key=lambda k: ratios[k]) is Svd
    assert min(ratios, key=lambda k: ratios[k]) is SmallestBasis


def test_explained_variance_ratio_is_that_of_the_best_reconstruction_from_the_span():
    x = features()
    m, centred = moments(x), x - x.mean(0)
    for aligner in (Interpolate("linear"), RandomBasis()):
        basis = aligner.fit(m, 9)
        v = basis.components.double()
        rebuilt = centred @ v @ torch.linalg.pinv(v)
        error = (centred - rebuilt).square().sum() / centred.square().sum()
        assert explained_variance_ratio(m, basis) == pytest.approx(1 - float(error), abs=1e-6)


def test_a_random_basis_is_orthonormal_and_explains_ds_over_dt_on_average():
    feature_moments = moments(features())
    v = RandomBasis(seed=1).fit(feature_moments, 8).components
    torch.testing.assert_close(v.T @ v, torch.eye(8), atol=1e-6, rtol=0)
    assert not torch.allclose(v, RandomBasis(seed=2).fit(feature_moments, 8).components)
    ratios = [
        explained_variance_ratio(feature_moments, RandomBasis(seed=s).fit(feature_moments, 8))
        for s in range(200)
    ]
    assert sum(ratios) / 200 == pytest.approx(8 / 24, abs=0.03)


def test_random_orthogonal_matrices_are_uniform():
    """The mean entry is 0 and the mean squared entry 1 / n; QR without a sign rule would fail."""
    q = torch.stack([orthogonal(4, s) for s in range(2000)])
    assert float(q.mean(0).abs().max()) < 0.05
    torch.testing.assert_close(
        q.square().mean(0), torch.full((4, 4), 0.25).double(), atol=0.02, rtol=0
    )


def test_smallest_basis_skips_rounding_noise():
    generator = torch.Generator().manual_seed(0)
    low = (
        torch.randn(300, 5, generator=generator).double()
        @ torch.randn(5, 9, generator=generator).double()
    )
    basis = SmallestBasis().fit(moments(low), 3)
    _, s, vh = torch.linalg.svd(low - low.mean(0), full_matrices=False)
    torch.testing.assert_close(basis.std.double(), s[2:5] / 300**0.5, rtol=1e-5, atol=0)
    cosine = (basis.components.double() * vh[2:5].T).sum(0).abs()
    torch.testing.assert_close(cosine, torch.ones(3).double(), atol=1e-5, rtol=0)
    with pytest.raises(KdepError, match="rank 5"):
        SmallestBasis().fit(moments(low), 6)


def test_top_variance_selects_the_channels_of_largest_variance():
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0)).double()
    x *= torch.tensor([1.0, 5.0, 0.0, 3.0, 2.0])
    basis = TopVariance().fit(moments(x), 3)
    torch.testing.assert_close(
        basis(x.float()), (x - x.mean(0))[:, [1, 3, 4]].float(), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(KdepError, match="4 of the teacher's 5 channels"):
        TopVariance().fit(moments(x), 5)


def test_nearest_interpolation_keeps_every_kth_channel_and_linear_equals_that_of_torch():
    x = features(100, 24)
    m, centred = moments(x), (x - x.mean(0)).float()
    nearest = Interpolate().fit(m, 6)(x.float())
    torch.testing.assert_close(nearest, centred[:, ::4], atol=1e-5, rtol=1e-4)
    linear = Interpolate("linear").fit(m, 7)(x.float())
    expected = torch.nn.functional.interpolate(centred[:, None], size=7, mode="linear")[:, 0]
    torch.testing.assert_close(linear, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(KdepError, match="'nearest' or 'linear'"):
        Interpolate("cubic")


def test_identity_requires_equal_widths():
    x = features(100, 12)
    basis = Identity().fit(moments(x), 12)
    torch.testing.assert_close(basis(x.float()), (x - x.mean(0)).float(), atol=1e-5, rtol=1e-4)
    with pytest.raises(KdepError, match="equal widths"):
        Identity().fit(moments(x), 11)


# -- the file -----------------------------------------------------------------------------------


def test_a_saved_basis_is_read_back_and_damaged_files_are_refused(tmp_path: Path):
    feature_moments = moments(features())
    for k, kind in enumerate((Svd, RandomBasis)):
        (tmp_path / str(k)).mkdir()
        basis = kind().fit(feature_moments, 8)
        basis.save(tmp_path / str(k))
        read_back = open_basis(tmp_path / str(k))
        assert all(torch.equal(v, read_back.state_dict()[n]) for n, v in basis.state_dict().items())
        torch.testing.assert_close(read_back.covariance, basis.covariance)
        assert read_back.raw_std is not None
        assert std_ratio(read_back.raw_std) == std_ratio(feature_moments.std)
    svd = torch.load(tmp_path / "0" / BASIS, weights_only=True)
    assert set(svd) == {"mean", "components", "std"}
    (tmp_path / "0" / BASIS).write_bytes(b"no basis")
    with pytest.raises(KdepError, match="is a text file"):
        open_basis(tmp_path / "0")
    for damaged, message in (
        ({**svd, "std": svd["std"].clone().fill_(torch.nan)}, "std contains NaN"),
        ({**svd, "std": svd["std"][:-1]}, "has the shapes"),
        ({k: v for k, v in svd.items() if k != "mean"}, "mean is missing"),
        (list(svd.values()), "mean is missing"),
    ):
        torch.save(damaged, tmp_path / "0" / BASIS)
        with pytest.raises(KdepError, match=message):
            open_basis(tmp_path / "0")
