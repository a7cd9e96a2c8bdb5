"""Methods with their own augmentation or a live teacher: their stages, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite
from kdep_bench.teachers.efficientnet_lite import EfficientNetLite
from tests.suite.test_suite_methods import plan

CROP = "kdep_bench.augments.crop.RandomCrop"


def kdep(**changes: Any) -> dict[str, Any]:
    """The method kdep under another name, with changes."""
    return dict(base="kdep", name="changed", **changes)


def test_a_method_with_a_live_teacher_changes_no_stage_of_other_methods():
    without, with_live = plan("kdep").stages, plan("kdep", "kdep_crops").stages
    assert set(without) <= set(with_live)
    (live,) = (s for s in with_live.values() if s.kind == "pretrain" and s.id not in without)
    assert live.spec["teacher"]["name"] == "efficientnet_lite0"
    assert set(live.needs) == {"views", "cache", "align", "images"}
    assert [s.kind for i, s in with_live.items() if i not in without].count("cache") == 0


def test_the_plan_passes_an_augmentation_to_the_stage_and_keeps_the_cache():
    stages = plan("kdep", "kdep_mixup").stages.values()
    specs = [s.spec for s in stages if s.kind == "pretrain"]
    assert [s["method"].get("augment") for s in specs] == [
        None,
        {"type": "kdep_bench.augments.mixup.Mixup", "alpha": 0.2},
    ]
    assert not any("teacher" in s or "teacher_source" in s["method"] for s in specs)
    assert [s.kind for s in stages].count("cache") == 1


def test_an_augmentation_that_invalidates_cached_teacher_outputs_is_refused():
    with pytest.raises(KdepError, match=r"reads target of the teacher from a cache.*RandomCrop"):
        plan(kdep(augment=dict(type=CROP)))
    assert plan(kdep(augment=dict(type=CROP), teacher_source="live")).runs  # the fix in the error
    with pytest.raises(KdepError, match="reads logits of the teacher from a cache"):
        plan(dict(base="takd", augment=dict(type="kdep_bench.augments.mixup.Mixup")))
    budget = load_suite("smoke").budget.model_dump() | dict(teacher="live")
    assert plan(kdep(augment=dict(type=CROP)), budget=budget).runs


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            kdep(augment=dict(type=CROP, scales=[0.1, 1.0])),
            "unknown argument 'scales' in method 'changed'.augment",
        ),
        (kdep(augment=dict(scale=[0.1, 1.0])), "without `type`"),
        (kdep(augment=dict(type="torch.nn.ReLU")), "is not an Augment"),
        (kdep(augment=dict(type="kdep_bench.augments.mixup.Mixup", alpha=0.0)), "alpha = 0"),
        (dict(base="supervised", augment=dict(type="kdep_bench.augments.mixup.Mixup")), "labels"),
        (dict(base="scratch", augment=dict(type=CROP)), "takes no training step"),
        (dict(base="supervised", teacher_source="live"), "it reads no teacher"),
        (dict(base="takd", teacher_source="live"), "an intermediate teacher"),
        (kdep(teacher_source="lively"), "teacher_source"),
    ],
)
def test_an_invalid_augmentation_or_teacher_source_is_refused(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(method)


def test_mixing_samples_of_a_batch_is_refused_with_gradient_accumulation():
    budget = load_suite("smoke").budget.model_dump() | dict(accumulate=2)
    with pytest.raises(KdepError, match=r"mixes the samples of a batch \(Mixup\)"):
        plan("kdep_mixup", budget=budget)


def test_masked_image_modelling_requires_a_mask_and_a_vision_transformer():
    with pytest.raises(KdepError, match="'resnet18_w32' is not a vision transformer"):
        plan(dict(base="mae", students=["resnet18_w32"]))
    with pytest.raises(KdepError, match="reads visible, which its `augment` does not add"):
        plan(dict(base="mae", students=["vit_t"], augment=dict(type=CROP, _delete_=True)), **VIT)
    (spec,) = (s.spec for s in plan("mae", **VIT).stages.values() if s.kind == "pretrain")
    assert "teacher" not in spec


VIT: dict[str, Any] = dict(students=["vit_t"])


class NoLayers(EfficientNetLite):
    """A teacher that cannot return the output of an inner layer."""

    layers = ()


SUM = "kdep_bench.objectives.weighted_sum.WeightedSum"
DMAE_ON_LITE = dict(base="dmae", objective=dict(teacher_layer="s16"))


def test_dmae_is_planned_for_a_vision_transformer_or_a_layer_of_a_convolutional_teacher():
    vit = dict(base="dinov2_vitb14", input_px=196)
    for stages in (
        plan("dmae", teacher=vit, **VIT).stages,
        plan(DMAE_ON_LITE, **VIT).stages,
        plan("dmae_maps").stages,
    ):
        (live,) = (s for s in stages.values() if s.kind == "pretrain")
        assert live.spec["teacher"]["name"] in ("dinov2_vitb14", "efficientnet_lite0")
        assert set(live.needs) == {"views", "images"}
        assert not any(s.kind == "cache" for s in stages.values())


@pytest.mark.parametrize(
    ("method", "suite_changes", "message"),
    [
        ("dmae", VIT, r"'blocks.8', which the teacher 'efficientnet_lite0'.*one of s4, s8, s16"),
        (
            DMAE_ON_LITE,
            VIT | dict(teacher=dict(base="efficientnet_lite0", type=f"{__name__}.NoLayers")),
            "does not have; expected a teacher with `layers`",
        ),
        (DMAE_ON_LITE | dict(teacher_source="cached"), VIT, "but reads it from a cache"),
        (
            dict(base="dmae_maps", teacher=dict(student="resnet18_w48", method="svd")),
            {},
            "but reads it from a cache",
        ),
        (dict(base="dmae", students=["resnet18_w32"]), {}, "'blocks.8', which the teacher"),
        (DMAE_ON_LITE | dict(students=["resnet18_w32"]), {}, "is not a vision transformer"),
        ("dmae_maps", VIT, "needs feature maps, but the student's config has no `pyramid`"),
        (dict(base="dmae_maps", objective=dict(student_level="s64")), {}, "unknown level.*'s64'"),
        (
            dict(base="dmae_maps", augment=dict(type=CROP, _delete_=True)),
            {},
            "reads hidden, visible, which its `augment` does not add",
        ),
        (
            dict(
                base="dmae_maps",
                needs=["layer", "logits"],
                objective=dict(
                    _delete_=True,
                    type=SUM,
                    parts=dict(
                        a=dict(
                            objective=dict(
                                type="kdep_bench.objectives.dmae.DmaeMaps", teacher_layer="s16"
                            )
                        ),
                        b=dict(objective=dict(type="kdep_bench.objectives.logit_kd.LogitKD")),
                    ),
                ),
            ),
            {},
            "but also reads its logits",
        ),
    ],
)
def test_dmae_with_a_student_or_teacher_that_cannot_work_is_refused(
    method: Any, suite_changes: dict[str, Any], message: str
):
    with pytest.raises(KdepError, match=message):
        plan(method, **suite_changes)
