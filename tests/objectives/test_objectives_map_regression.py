"""KDEP on feature maps: targets, loss weights, levels before the activation, refused settings.

The target of a student's map is the teacher's map at the same size, reduced to principal components
by an SVD (singular value decomposition) that has every position as a sample. `sign` decides how
negative values are represented, as a student's map after a ReLU has none. "pairs": the positive and
the negative parts of C / 2 components, where C is the student's channels; "plain": C components;
"rotation": C components in a random rotation. The formula is in the docstrings of `MapTarget` and
`MapRegression`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.features.map_moments import open_map_moments, write_moments
from kdep_bench.features.transform import Moments, SignedPairs
from kdep_bench.networks.taps import nonzero_scales
from kdep_bench.objectives.base import Context, demands
from kdep_bench.objectives.map_regression import MapRegression, level_shares
from kdep_bench.objectives.signs import check_map_targets, components
from kdep_bench.pretrain.pyramid import Pyramid
from kdep_bench.suite.config import resolve
from kdep_bench.teachers.base import TeacherOutput

CT, CS = 12, 8  # channels of the teacher's (CT) and of the student's map (CS)
SIDE = 2  # height and width of the student's map; the teacher's has 4
STUDENT = {"s16": {"channels": CS, "stride": 16, "side": SIDE}}
TEACHER = {"a": {"channels": CT, "stride": 8}}


def maps(count: int = 64, seed: int = 0) -> Tensor:
    """Teacher maps [count, CT, 4, 4] with correlated channels of falling variance, mean not 0."""
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(CT, CT, generator=torch.Generator().manual_seed(9)))[0]
    scale = torch.linspace(3, 0.2, CT)[:, None, None]
    independent = scale * torch.randn(count, CT, 4, 4, generator=generator)
    return torch.einsum("dc,bchw->bdhw", rotation, independent) + 5


def averaged(teacher: Tensor) -> Tensor:
    """Teacher maps averaged to the student's size [B, CT, SIDE, SIDE]."""
    return torch.nn.functional.avg_pool2d(teacher, 4 // SIDE)


def positions(x_BCHW: Tensor) -> Tensor:
    """[B H W, C]: every position of the maps as a sample."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with mean and covariance of the teacher's maps, at the student's size and pooled."""
    for side, x in ((SIDE, averaged(maps())), (1, maps().mean((2, 3), keepdim=True))):
        moments = Moments(CT)
        moments.add(positions(x))
        write_moments(moments, tmp_path, "a", side)
    return tmp_path


def build(folder: Path, **options: Any) -> MapRegression:
    """The objective that regresses the student's level s16 to the teacher's map a."""
    return MapRegression(
        {"s16": "a"}, student_maps=STUDENT, teacher_maps=TEACHER, map_moments=str(folder), **options
    )


def context(student: Tensor, teacher: Tensor, before: Tensor | None = None) -> Context:
    """A batch with these maps; `before` is the student's map before its activation."""
    pooled = torch.zeros(len(student), CS)
    return Context(
        pre_activation=pooled,
        post_activation=pooled,
        teacher=TeacherOutput(torch.zeros(len(student), 5), None, {"a": teacher}),
        maps={"s16": student},
        pre_activation_maps={} if before is None else {"s16": before},
    )


def principal(teacher: Tensor, count: int) -> Tensor:
    """[B, count, SIDE, SIDE]: principal components of the teacher's maps, by an SVD in float64.

    The SVD is that of the positions of `maps()`. The sign of a component is such that its largest
    entry is positive.
    """
    samples = positions(averaged(maps())).double()
    axes = torch.linalg.svd(samples - samples.mean(0), full_matrices=False)[2][:count]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    centred = averaged(teacher).double() - samples.mean(0)[:, None, None]
    return torch.einsum("kc,bchw->bkhw", axes, centred).float()


@pytest.mark.parametrize("n", [1.0, 3.0])
def test_pairs_are_the_positive_and_negative_parts_of_half_as_many_components(folder, n: float):
    """n is the power of power temperature scaling."""
    teacher, target = maps(5, seed=1), build(folder, sign="pairs", n=n).targets["s16"]
    z = principal(teacher, CS // 2)
    scaled = z.sign() * z.abs() ** (1 / n)
    expected = torch.cat([scaled.clamp(min=0), (-scaled).clamp(min=0)], 1)
    torch.testing.assert_close(target(teacher), expected, atol=2e-4, rtol=1e-3)


def test_plain_targets_are_the_components_and_rotation_is_a_rotation_of_them(folder):
    teacher = maps(5, seed=1)
    plain = build(folder, sign="plain").targets["s16"](teacher)
    torch.testing.assert_close(plain, principal(teacher, CS), atol=2e-4, rtol=1e-3)
    rotated = build(folder, sign="rotation").targets["s16"](teacher)
    # A rotation keeps the length of the channel vector of every position.
    torch.testing.assert_close(rotated.square().sum(1), plain.square().sum(1), atol=1e-3, rtol=1e-3)
    assert (rotated - plain).abs().max() > 0.1


def test_explained_variance_ratio_is_the_fraction_of_the_first_eigenvalues(folder):
    samples = positions(averaged(maps())).double()
    eigenvalues = torch.linalg.svdvals(samples - samples.mean(0)).square()
    for sign, count in (("pairs", CS // 2), ("plain", CS)):
        ratio = build(folder, sign=sign).targets["s16"].explained_variance_ratio
        expected = float(eigenvalues[:count].sum() / eigenvalues.sum())
        assert ratio == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sign", ["pairs", "plain", "rotation"])
@pytest.mark.parametrize("pooled", [False, True])
def test_loss_is_the_weight_for_output_zero_and_zero_for_output_equal_to_the_target(
    folder, sign, pooled
):
    """With `pooled`, every position has the pooled map as target."""
    teacher = maps(64, seed=2)
    objective = build(folder, sign=sign, pooled=pooled, weight=7.0)
    zero = objective.terms(context(torch.zeros(64, CS, SIDE, SIDE), teacher))["s16"]
    assert float(zero.mean()) == pytest.approx(7.0, rel=1e-4)
    target = objective.targets["s16"](teacher)
    target = target / target.square().mean().sqrt()
    exact = objective.terms(context(target.expand(-1, -1, SIDE, SIDE), teacher))["s16"]
    assert exact.shape == (64,)
    assert float(exact.max()) < 1e-9


def test_the_scale_of_the_teacher_s_maps_does_not_change_the_loss(folder, tmp_path):
    teacher, student = maps(16, seed=2), torch.rand(16, CS, SIDE, SIDE)
    scaled_folder = tmp_path / "other"
    moments = Moments(CT)
    moments.add(100 * positions(averaged(maps())))
    write_moments(moments, scaled_folder, "a", SIDE)
    expected = build(folder).terms(context(student, teacher))["s16"]
    torch.testing.assert_close(
        build(scaled_folder).terms(context(student, 100 * teacher))["s16"], expected
    )


def test_tap_before_compares_the_student_s_maps_before_the_activation(folder):
    teacher, student = maps(8, seed=2), torch.randn(8, CS, SIDE, SIDE)

    def loss(tap: str, ctx: Context) -> Tensor:
        """Loss [B] of an objective with this tap."""
        return build(folder, tap=tap, sign="plain").terms(ctx)["s16"]

    before = loss("before", context(student.relu(), teacher, before=student))
    after = loss("after", context(student.relu(), teacher))
    expected = loss("after", context(student, teacher))
    torch.testing.assert_close(before, expected)
    assert not torch.equal(before, after)
    config = dict(type="kdep_bench.objectives.map_regression.MapRegression", levels={"s16": "a"})
    assert demands(config | {"tap": "before"}).pre_activation_levels == {"s16"}
    assert not demands(config).pre_activation_levels


def test_gradients_reach_the_student_and_the_objective_has_no_parameters(folder):
    objective, student = build(folder), torch.rand(4, CS, SIDE, SIDE, requires_grad=True)
    objective.terms(context(student, maps(4, seed=3)))["s16"].sum().backward()
    assert student.grad is not None
    assert bool(student.grad.any())
    assert not list(objective.parameters())
    # The only state is the scale of the first batch; the SVD is not saved.
    assert list(objective.state_dict()) == ["scale.means"]


def test_a_signed_pair_keeps_a_component_whole_and_its_positive_part_alone_keeps_half():
    """A non-negative student can match both channels of a pair.

    Of a plain component it can match only the positive values, so half of the mean square is lost.
    """
    component = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 3
    pair = SignedPairs()(torch.stack([component, torch.zeros_like(component)], 1))
    positive, negative = pair.T
    assert torch.equal(positive - negative, component)
    assert float((component - positive).square().mean()) == pytest.approx(3**2 / 2, rel=0.02)


def test_signed_pairs_use_the_first_half_of_the_components():
    components = torch.tensor([[1.0, -8.0, 5.0, 6.0]])
    # The positive parts of 1 and -8, then their negative parts.
    assert SignedPairs()(components).tolist() == [[1.0, 0.0, 0.0, 8.0]]
    expected = torch.tensor([[1.0, 0.0, 0.0, 2.0]])  # the cube root of 8
    torch.testing.assert_close(SignedPairs(n=3.0)(components), expected)
    with pytest.raises(KdepError, match="needs an even number"):
        SignedPairs()(components[:, :3])


def test_pairs_have_half_as_many_components_as_channels_and_need_an_even_number():
    assert components("pairs", 8) == 4
    assert components("plain", 7) == 7
    with pytest.raises(KdepError, match="7 channels, but sign='pairs' needs an even number"):
        components("pairs", 7)
    with pytest.raises(KdepError, match="did you mean pairs"):
        components("pair", 8)


def test_a_student_map_wider_than_the_teacher_s_is_refused_without_a_policy():
    config = {
        "type": "kdep_bench.objectives.map_regression.MapRegression",
        "levels": {"s16": "a"},
        "sign": "plain",
    }
    with pytest.raises(KdepError, match="128 channels and map a of the teacher only 112"):
        check_map_targets(config, {"s16": 128}, {"a": 112}, "kdep_maps")
    check_map_targets(config | {"sign": "pairs"}, {"s16": 128}, {"a": 112}, "kdep_maps")
    for policy in ("zero_pad", "random_rotation", "repeat"):
        align = {"type": "svd", "policy": policy}
        check_map_targets(config | {"align": align}, {"s16": 128}, {"a": 112}, "kdep_maps")
    as_part = {"parts": {"maps": {"objective": config}}}
    with pytest.raises(KdepError, match="student has 128 channels"):
        check_map_targets(as_part, {"s16": 128}, {"a": 112}, "kdep_maps")


def test_with_a_policy_a_wider_student_map_learns_all_components_of_the_teacher(folder):
    wide = {"s16": {"channels": 16, "stride": 16, "side": SIDE}}
    target = MapRegression(
        {"s16": "a"},
        student_maps=wide,
        teacher_maps=TEACHER,
        map_moments=str(folder),
        sign="plain",
        align={"type": "svd", "policy": "zero_pad"},
    ).targets["s16"]
    output = target(maps(5, seed=1))
    torch.testing.assert_close(output[:, :CT], principal(maps(5, seed=1), CT), atol=5e-4, rtol=1e-3)
    assert not output[:, CT:].any()


def test_too_few_positions_for_an_svd_are_refused(tmp_path: Path):
    moments = Moments(CT)
    moments.add(positions(averaged(maps(1)))[:3])
    write_moments(moments, tmp_path, "a", SIDE)
    with pytest.raises(KdepError, match="3 features are too few to estimate 4 directions"):
        build(tmp_path)


def test_moments_that_are_not_in_the_folder_are_refused(tmp_path: Path):
    with pytest.raises(KdepError, match="moments of the teacher's map a at 2 x 2"):
        open_map_moments(tmp_path, "a", 2)


def test_the_weights_of_levels_must_name_every_level_and_sum_to_1():
    levels = {"s16": "a", "s32": "b"}
    assert level_shares(levels, None) == {"s16": 0.5, "s32": 0.5}
    assert level_shares(levels, {"s16": 0.25, "s32": 0.75})["s32"] == 0.75
    for wrong in ({"s16": 1.0}, {"s16": 0.5, "s32": 0.6}, {"s16": 1.5, "s32": -0.5}):
        with pytest.raises(KdepError, match="with sum 1"):
            level_shares(levels, wrong)
    with pytest.raises(KdepError, match="one positive number"):
        level_shares(levels, {"s16": 1.0, "s32": 0.0})


def test_relu_of_a_level_before_the_activation_is_the_level_after_it():
    student = copy.deepcopy(resolve("student", "resnet18_w32"))
    pyramid = Pyramid(student, ("s4", "s8", "s16", "s32"))
    pyramid.verify()
    with nonzero_scales(pyramid.backbone):
        pyramid.backbone(torch.randn(2, 3, 64, 64))
    after, before = pyramid.maps()
    assert list(before) == ["s4", "s8", "s16", "s32"]
    for level, x in before.items():
        assert bool((x < 0).any())
        assert torch.equal(x.relu(), after[level])


def test_reading_maps_before_the_activation_does_not_change_the_initial_weights():
    student = resolve("student", "resnet18_w32")
    states = []
    for before in ((), ("s16", "s32")):
        torch.manual_seed(3)
        states.append(Pyramid(student, before).backbone.state_dict())
        # Equal if both have drawn equally many random numbers.
        states[-1]["next random number"] = torch.rand(1)
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
