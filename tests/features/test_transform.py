"""Transforms: PTS, whitening, variance matching and PHI-S compared with closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdep_bench.errors import KdepError
from kdep_bench.features.aligners import RandomBasis, Svd
from kdep_bench.features.basis import CHANNELS, Basis
from kdep_bench.features.phi_s import PhiS, balancing, hadamard, rotation
from kdep_bench.features.target import build_target
from kdep_bench.features.transform import (
    NoTransform,
    PowerTemperature,
    StdMatch,
    Transform,
    Whitening,
    std_ratio,
)
from tests.features.test_aligners import features, moments

PATHS = {
    kind: f"{kind.__module__}.{kind.__qualname__}"
    for kind in (NoTransform, PowerTemperature, Whitening, StdMatch, PhiS)
}


def fitted(kind: type[Transform], basis: Basis) -> Transform:
    """The transform with the arguments that it requires of the basis."""
    return kind(**{name: getattr(basis, name) for name in kind.required_args})


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(PATHS, key=str)), st.integers(2, 12), st.integers(0, 3))
def test_every_transform_is_deterministic_and_has_no_parameters(
    kind: type[Transform], width: int, seed: int
):
    x = features(80, 12, seed)
    basis = Svd().fit(moments(x), width)
    a = basis(x.float())
    g = fitted(kind, basis)(a)
    assert g.shape == a.shape
    assert g.dtype == torch.float32
    assert bool(torch.isfinite(g).all())
    assert torch.equal(g, fitted(kind, basis)(a))
    assert not list(fitted(kind, basis).parameters())


# -- power temperature scaling ------------------------------------------------------------------


def test_pts_with_t_1_and_n_1_is_the_identity():
    x = features()
    torch.testing.assert_close(PowerTemperature(1, 1)(x), x)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 10), st.floats(1, 6), st.floats(-100, 100), st.floats(-100, 100))
def test_pts_is_odd_and_monotone(t: float, n: float, a: float, b: float):
    pts = PowerTemperature(t, n)
    x, y = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert float(pts(-x)) == -float(pts(x))
    assert (float(pts(x)) <= float(pts(y))) == (a <= b) or a == pytest.approx(b)


@settings(max_examples=30, deadline=None)
@given(st.floats(1.0, 1000.0), st.floats(1, 6), st.floats(0.01, 10))
def test_pts_maps_a_std_ratio_r_to_its_nth_root(r: float, n: float, t: float):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1000, 1, generator=generator, dtype=torch.float64) * torch.tensor([[1.0, r]])
    assert std_ratio(PowerTemperature(t, n)(a).std(0)) == pytest.approx(r ** (1 / n), rel=1e-6)


@pytest.mark.parametrize(("t", "n"), [(0, 3), (-1, 3), (0.1, 0.5)])
def test_pts_refuses_impossible_parameters(t: float, n: float):
    with pytest.raises(KdepError, match="T > 0 and n >= 1"):
        PowerTemperature(t, n)


def test_scaling_features_and_T_by_the_same_factor_changes_no_target():
    x = features()
    torch.testing.assert_close(PowerTemperature(6.4, 3)(64 * x), PowerTemperature(0.1, 3)(x))


# -- std ratio, no transform, whitening ---------------------------------------------------------


def test_the_std_ratio_is_the_largest_over_the_smallest_std():
    assert std_ratio(torch.tensor([2.0, 0.5, 1.0])) == 4.0
    assert std_ratio(torch.tensor([2.0, 0.0])) == float("inf")


@pytest.mark.parametrize("aligner", [Svd(), RandomBasis()])
def test_whitening_gives_the_identity_covariance(aligner: Svd | RandomBasis):
    x = features()
    basis = aligner.fit(moments(x), 8)
    z = fitted(Whitening, basis)(basis(x.float())).double()
    torch.testing.assert_close(
        torch.cov(z.T, correction=0), torch.eye(8).double(), atol=1e-3, rtol=0
    )


def test_whitening_after_svd_divides_by_the_std_and_no_transform_changes_nothing():
    x = features()
    basis = Svd().fit(moments(x), 8)
    a = basis(x.float())
    torch.testing.assert_close(fitted(Whitening, basis)(a), a / basis.std)
    assert NoTransform()(a) is a


def test_whitening_of_a_constant_channel_raises_kdep_error():
    basis = Svd(policy="zero_pad").fit(moments(features(60, 6)), 8)
    with pytest.raises(KdepError, match="2 of 8 directions"):
        fitted(Whitening, basis)
    with pytest.raises(KdepError, match="2 of 8 channels"):
        fitted(StdMatch, basis)


# -- variance matching --------------------------------------------------------------------------


def test_std_match_gives_the_raw_stds_by_rank():
    x = features()
    basis = Svd().fit(moments(x), 8)
    z = fitted(StdMatch, basis)(basis(x.float())).double()
    expected = x.std(0, correction=0).sort(descending=True).values[:8]
    torch.testing.assert_close(z.std(0, correction=0), expected, rtol=1e-4, atol=0)


def test_std_match_to_a_ratio_is_linear_in_the_old_std():
    x = features()
    basis = Svd().fit(moments(x), 8)
    z = StdMatch(basis.std, None, ratio=2.98)(basis(x.float())).double()
    new_std, old_std = z.std(0, correction=0), basis.std.double()
    assert float(new_std.max()) == pytest.approx(2.98, rel=1e-4)
    assert float(new_std.min()) == pytest.approx(1.0, rel=1e-4)
    slope = (new_std[:-1] - new_std[1:]) / (old_std[:-1] - old_std[1:])
    torch.testing.assert_close(
        slope, torch.full_like(slope, 1.98) / (old_std[0] - old_std[-1]), rtol=1e-2, atol=0
    )


def test_std_match_scales_equal_stds_to_1_and_refuses_missing_or_wrong_arguments():
    equal_stds = StdMatch(torch.full((3,), 2.0), None, ratio=5)
    torch.testing.assert_close(equal_stds(torch.ones(1, 3)), torch.full((1, 3), 0.5))
    with pytest.raises(KdepError, match="no standard deviations of the teacher's channels"):
        StdMatch(torch.ones(3), None)
    with pytest.raises(KdepError, match=r"ratio=0\.5"):
        StdMatch(torch.ones(3), None, ratio=0.5)
    with pytest.raises(KdepError, match="2 of the teacher's channels"):
        StdMatch(torch.ones(3), torch.tensor([1.0, 0.0, 2.0]))


# -- PHI-S --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 20, 24, 28, 32, 40, 192, 320, 384, 768])
def test_hadamard_matrices_are_orthogonal(order: int):
    h = hadamard(order)
    assert h is not None
    assert set(np.unique(h)) <= {-1, 1}
    np.testing.assert_array_equal(h @ h.T, order * np.eye(order, dtype=int))


@pytest.mark.parametrize("order", [3, 5, 6, 10, 17, 250, 92])
def test_orders_without_a_known_hadamard_matrix_give_none(order: int):
    assert hadamard(order) is None


def test_usual_widths_have_a_hadamard_matrix():
    assert all(hadamard(w) is not None for w in (256, 512, 1280, 1792, 2048))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=40))
def test_the_rotation_is_orthogonal_and_equalises_any_variances(variances: list[float]):
    v = torch.tensor(variances, dtype=torch.float64)
    before, scale = v.clone(), max(float(v.max()), 1e-300)
    for q in (rotation(v), balancing(v)):
        torch.testing.assert_close(q @ q.T, torch.eye(len(v)).double(), atol=1e-9, rtol=0)
        rotated = (q * v) @ q.T
        torch.testing.assert_close(
            rotated.diagonal() / scale, (v.mean() / scale).expand(len(v)), atol=1e-9, rtol=0
        )
    assert torch.equal(v, before)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 16), st.sampled_from([Svd, RandomBasis]), st.integers(0, 2))
def test_phi_s_gives_unit_variance_by_a_rotation_and_one_scale(width: int, kind: type, seed: int):
    x = features(100, 16, seed)
    basis = kind().fit(moments(x), width)
    phi_s, a = fitted(PhiS, basis), basis(x.float()).double()
    assert isinstance(phi_s, PhiS)
    g = phi_s.double()(a)
    torch.testing.assert_close(
        g.std(0, correction=0), torch.ones(width).double(), atol=1e-3, rtol=0
    )
    phi2 = float(basis.std.double().square().mean())
    m = phi_s.matrix.double()
    torch.testing.assert_close(phi2 * m @ m.T, torch.eye(width).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(phi2 * g @ m.T, a, atol=1e-3, rtol=1e-3)  # its inverse


def test_phi_s_needs_no_full_rank_and_refuses_only_zero_variance():
    x = features(60, 6)
    basis = Svd(policy="zero_pad").fit(moments(x), 10)
    g = fitted(PhiS, basis)(basis(x.float()))
    torch.testing.assert_close(g.std(0, correction=0), torch.ones(10), atol=1e-3, rtol=0)
    with pytest.raises(KdepError, match="is the same for every image"):
        PhiS(torch.zeros(4, 4))


def test_phi_s_is_the_svd_target_rotated_and_scaled():
    """Mean squared error in PHI-S space = that in SVD space / phi^2: only the channels differ."""
    x = features(200, 16)
    basis = Svd().fit(moments(x), 16)
    a = basis(x.float()).double()
    student = a + torch.randn(a.shape, generator=torch.Generator().manual_seed(1)).double()
    phi_s = fitted(PhiS, basis).double()
    phi2 = basis.std.double().square().mean()
    torch.testing.assert_close(
        (phi_s(student) - phi_s(a)).square().mean(), (student - a).square().mean() / phi2
    )


# -- the target ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values())
def test_a_target_passes_each_transform_its_required_arguments(path: str, tmp_path: Path):
    x = features()
    Svd().fit(moments(x), 8).save(tmp_path)
    f = x.float().requires_grad_()
    g = build_target(tmp_path, {"type": path})(f)
    assert g.shape == (len(x), 8)
    assert not g.requires_grad


def test_a_transform_without_its_statistics_or_of_a_wrong_class_is_refused(tmp_path: Path):
    Svd().fit(moments(features()), 8).save(tmp_path)
    (tmp_path / CHANNELS).unlink()
    with pytest.raises(KdepError, match="no standard deviations of the teacher's channels"):
        build_target(tmp_path, {"type": PATHS[StdMatch]})
    build_target(tmp_path, {"type": PATHS[StdMatch], "ratio": 2.98})
    with pytest.raises(KdepError, match="is not a Transform"):
        build_target(tmp_path, {"type": "torch.nn.ReLU"})
