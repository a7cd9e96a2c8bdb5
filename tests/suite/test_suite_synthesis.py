"""Methods that make their own images, and black-box teachers: plans and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite
from tests.suite.test_suite_methods import plan

BLACK_BOX = "efficientnet_lite0_black_box"


def of_kind(planned: Any, kind: str) -> list[Any]:
    """The plan's stages of a kind."""
    return [s for s in planned.stages.values() if s.kind == kind]


def test_images_are_made_from_the_data_fraction_and_all_of_them_are_cached_and_trained_on():
    planned = plan("fs_bbt", "tinyvit", shares=[0.5])
    data, made = of_kind(planned, "prepare")
    assert made.needs == {"prepare": data.id}
    assert made.spec["share"] == 0.5
    views = {s.needs["prepare"]: s for s in of_kind(planned, "views")}
    assert set(views) == {data.id, made.id}
    (run,) = [r for r in planned.runs if r.method["name"] == "fs_bbt"]
    pretrain, cache = planned.stages[run.chain["pretrain"]], planned.stages[run.chain["cache"]]
    assert run.chain["synthesis"] == made.id
    assert pretrain.needs["views"] == cache.needs["views"] == views[made.id].id
    assert "share" not in cache.spec  # all images that were made, not half of them
    assert pretrain.spec["share"] == 1.0
    assert "synthesis" not in pretrain.spec["method"]  # its settings are in the first stage only
    (tinyvit,) = [r for r in planned.runs if r.method["name"] == "tinyvit"]
    assert planned.stages[tinyvit.chain["cache"]].needs["prepare"] == data.id
    assert "synthesis" not in tinyvit.chain


def test_the_stage_that_makes_images_has_the_resources_of_its_own_kind():
    suite_runtime = dict(memory=dict(prepare=1000, synthesis=9000))
    data, made = of_kind(plan("fs_bbt", shares=[0.5], runtime=suite_runtime), "prepare")
    assert (data.gpus, made.gpus) == (0, 1)
    assert (data.memory, made.memory) == (1000, 9000)
    assert made.function == "kdep_bench.features.synthetic_pool:prepare"
    assert "features/few_shot.py" in made.source_paths


def test_the_images_of_two_settings_and_of_two_fractions_are_different_stages():
    changed = dict(base="fs_bbt", name="more", synthesis=dict(alpha=0.5))
    assert len(of_kind(plan("fs_bbt", changed), "prepare")) == 3
    assert len(of_kind(plan("fs_bbt", shares=[0.5, 1.0]), "prepare")) == 3


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dict(base="fs_bbt", synthesis=dict(images=0)), "images = 0"),
        (dict(base="fs_bbt", synthesis=dict(vae_px=40)), "vae_px = 40"),
        (dict(base="fs_bbt", synthesis=dict(alpha=0.0)), "alpha = 0"),
        (dict(base="fs_bbt", synthesis=dict(threshold=1.5)), r"threshold = 1\.5"),
        (dict(base="fs_bbt", synthesis=dict(latents=3)), "latents"),
        (
            dict(
                base="supervised", synthesis=dict(type="kdep_bench.features.few_shot.FewShotImages")
            ),
            "reads labels, which these images do not have",
        ),
        (
            dict(base="fs_bbt", teacher=dict(student="resnet18_w48", method="logit_kd")),
            "has a `teacher` of its own",
        ),
    ],
)
def test_methods_that_cannot_make_their_images_are_refused(method: dict[str, Any], message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(name="changed", **method))


@pytest.mark.parametrize("method", ["fs_bbt", "tinyvit"])
def test_a_black_box_teacher_serves_methods_that_read_probabilities(method: str):
    planned = plan(method, teacher=BLACK_BOX)
    (cache,) = of_kind(planned, "cache")
    assert cache.spec["pooled"] is False
    assert cache.spec["outputs"] == ["probabilities.10"]


@pytest.mark.parametrize(
    ("method", "hidden"),
    [
        ("kdep", "pooled"),
        ("logit_kd", "logits"),
        ("fitnets", "maps"),
        (dict(base="kdep", name="live", teacher_source="live"), "pooled"),
    ],
)
def test_a_black_box_teacher_that_is_asked_for_more_is_refused(method: Any, hidden: str):
    with pytest.raises(KdepError, match=f"reads {hidden} of the teacher '{BLACK_BOX}'"):
        plan(method, teacher=BLACK_BOX)


def test_a_probe_that_compares_with_the_feature_of_a_black_box_is_refused():
    with pytest.raises(KdepError, match="class probabilities only"):
        plan("fs_bbt", teacher=BLACK_BOX, probes=["cka"])


def test_a_batch_larger_than_the_few_images_is_no_reason_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
):
    from kdep_bench.suite import image_counts

    suite = load_suite("smoke")
    method = dict(name="fs_bbt", synthesis=dict(images=3200), objective=dict(type="x"))
    monkeypatch.setattr(image_counts, "teachers_by_role", lambda *_: [])
    (run,) = image_counts._chain(suite, suite.students[0], method, None, 1.0, 0.1, 100)
    # A tenth of the 100 images of the pool, and 3200 that the method makes from them.
    assert (run.images, run.pool) == (3210, 3210)


def test_a_probe_does_not_compare_pool_images_with_the_images_that_a_method_made():
    """Rows of the pool would be read from the cache of other images."""
    method = dict(
        base="fs_bbt",
        name="fs_logits",
        needs=["logits"],
        objective=dict(_delete_=True, type="kdep_bench.objectives.logit_kd.LogitKD"),
    )
    with pytest.raises(KdepError, match=r"only seen the images that the method makes"):
        plan(method, probes=["teacher"])
    assert plan(method, probes=["knn"]).probes
