"""Teacher outputs from the cache, recomputed from cached features, or from a live teacher."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from kdep_bench.data import views
from kdep_bench.data.views import open_views
from kdep_bench.errors import KdepError
from kdep_bench.features import cache, cache_check, cache_read
from kdep_bench.files import read_json, write_json
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.pretrain.teaching import cached_source
from kdep_bench.teachers.base import TeacherOutput, build_teacher
from kdep_bench.teachers.efficientnet_lite import EfficientNetLite
from tests.pretrain.conftest import BUDGET, STUDENT, TEACHER, VIEWS, silent
from tests.pretrain.test_pretrain import KDEP, pretrain

LOGIT_KD: dict[str, Any] = dict(
    name="logit_kd",
    labels_used=False,
    objective=dict(type="kdep_bench.objectives.logit_kd.LogitKD"),
    transform=None,
)
SVD = KDEP | dict(transform=dict(type="kdep_bench.features.transform.NoTransform"))
R18: dict[str, Any] = {  # student config with the feature maps s16 and s32
    **STUDENT,
    "pyramid": dict(out_indices=(2, 3), channels=(16, 32), strides=(16, 32)),
}


class WithLastMap(EfficientNetLite):
    """EfficientNet-Lite that also returns its last map."""

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """Pooled feature, logits and the map "last"."""
        net: Any = self.net
        last = net.forward_features(x_B3HW)
        pooled = net.global_pool(last)
        return TeacherOutput(pooled, net.classifier(pooled), {"last": last})


# The config of a teacher that also returns its last map.
MAPS = {**TEACHER, "type": f"{__name__}.WithLastMap"}


class WithoutLogits(EfficientNetLite):
    """EfficientNet-Lite without a classifier."""

    has_logits = False
    logit_head = None  # type: ignore[assignment]

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """The pooled feature alone."""
        return TeacherOutput(super().features(x_B3HW).pooled, None)


class WrongClassifier(EfficientNetLite):
    """EfficientNet-Lite with a random classifier."""

    @property
    def logit_head(self) -> torch.nn.Module:
        """A new random layer."""
        return torch.nn.Linear(1280, 1000)


class Reader(Objective):
    """Reads every kind of teacher output and records it."""

    needs = frozenset({"pooled", "logits", "maps"})
    stage_arguments = frozenset(
        {"teacher_width", "teacher_classes", "teacher_maps", "student_maps"}
    )
    seen: ClassVar[list[TeacherOutput]] = []
    arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments.update(arguments)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Records the teacher's outputs; a term that reads only the student."""
        assert ctx.teacher is not None
        self.seen.append(ctx.teacher)
        return {"a": ctx.pre_activation.square().mean(1) + ctx.maps["s16"].square().mean((1, 2, 3))}


# A method that records the teacher outputs that it receives.
READ = LOGIT_KD | dict(name="read", objective=dict(type=f"{__name__}.Reader"))


@pytest.fixture(scope="module")
def stages_with_maps(
    stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The stages with a cache that also stores logits and maps."""
    out = tmp_path_factory.mktemp("with_maps")
    progress_notes: list[str] = []
    outputs = cache.run(
        {"teacher": MAPS, "batch": 16, "outputs": ["logits", "maps"]},
        stages,
        out,
        lambda done, total, note="": progress_notes.append(f"{done}: {note}"),
    )
    # Per view, in float16: 1280 features, 1000 logits, a map of 1280 channels and one position.
    bytes_per_view = 2 * (1280 + 1000 + 1280)
    estimate = cache.estimate(outputs["rows"], bytes_per_view, VIEWS["views"])
    assert progress_notes[0] == f"0: {estimate}"
    assert outputs["bytes"] == outputs["rows"] * bytes_per_view
    assert (outputs["rows"], outputs["forwards"]) == (96, 96)  # 48 images in two views
    assert outputs["teacher"]["width"] == 1280
    assert outputs["teacher"]["flops"] > 10**6
    assert outputs["images_per_s"] == pytest.approx(96 / outputs["fill_s"], rel=0.2)
    return {**stages, "cache": out}


def test_the_cost_of_a_cache_is_printed_before_it_is_filled():
    assert cache.estimate(64000, 2560, 2) == (  # the numbers of the suite pocket
        "163.8 MB on disk (2560 bytes per view) and 64000 forward passes of the teacher; cheaper "
        "than a live teacher if the runs that share it train for more than 2 epochs in total"
    )


def test_stored_logits_and_maps_equal_those_of_the_live_teacher(stages_with_maps: dict[str, Path]):
    opened_cache = cache_read.open_cache(stages_with_maps["cache"])
    assert set(opened_cache.extras) == {"logits", "maps.last"}
    opened_views = open_views(stages_with_maps["views"], stages_with_maps["prepare"])
    rows = np.array([90, 3, 41])
    teacher_output = build_teacher(MAPS)(cache_check.render_rows(opened_views, rows, 32))
    assert teacher_output.logits is not None
    for name, expected in (
        ("logits", teacher_output.logits),
        ("maps.last", teacher_output.maps["last"]),
    ):
        stored = torch.from_numpy(opened_cache.rows(rows, name)).float()
        tolerance = 2e-3 * float(expected.abs().max())
        torch.testing.assert_close(stored, expected, atol=tolerance, rtol=0)


def test_logits_recomputed_from_the_cached_feature_are_those_stored(
    stages_with_maps: dict[str, Path],
):
    opened, rows = cache_read.open_cache(stages_with_maps["cache"]), np.arange(96)
    head = cache_check.open_head(stages_with_maps["cache"])
    recomputed = head(torch.from_numpy(opened.rows(rows)).float())
    stored = torch.from_numpy(opened.rows(rows, "logits")).float()
    assert not recomputed.requires_grad
    torch.testing.assert_close(recomputed, stored, atol=2.0**-8 * float(stored.abs().max()), rtol=0)


def test_cached_and_live_teachers_give_the_same_outputs_to_the_objective(
    stages_with_maps: dict[str, Path], tmp_path: Path
):
    outputs_by_source = {}
    live = {k: v for k, v in stages_with_maps.items() if k not in ("cache", "align")}
    live["images"] = live.pop("prepare")
    one_step = BUDGET | dict(epochs=1 / 3)
    for name, inputs, options in (
        ("cached", stages_with_maps, {}),
        ("live", live, {"teacher": MAPS}),
    ):
        Reader.seen.clear()
        outputs, _ = pretrain(
            tmp_path / name, inputs, READ, student=R18, budget=one_step, **options
        )
        assert outputs["teacher_source"] == ("live" if name == "live" else "cache")
        outputs_by_source[name] = Reader.seen[0]
        assert Reader.arguments["teacher_classes"] == 1000
        assert Reader.arguments["teacher_maps"] == {"last": {"channels": 1280, "stride": 32}}
    cached, live = outputs_by_source["cached"], outputs_by_source["live"]
    for stored, computed in (
        (cached.pooled, live.pooled),
        (cached.logits, live.logits),
        (cached.maps["last"], live.maps["last"]),
    ):
        tolerance = 2.0**-10 * float(computed.abs().max())  # stored values are float16
        torch.testing.assert_close(stored, computed, atol=tolerance, rtol=0)


def test_a_method_reads_only_the_map_levels_that_it_names(stages_with_maps: dict[str, Path]):
    opened = open_views(stages_with_maps["views"])
    for levels, names in (({"last"}, ["maps.last"]), (set(), ["maps.last"])):  # empty: all maps
        teacher_source = cached_source(
            frozenset({"maps"}), levels, stages_with_maps["cache"], opened
        )
        assert teacher_source.stream == {"cache": str(stages_with_maps["cache"]), "outputs": names}
        maps = teacher_source.build_args["teacher_maps"]()
        assert maps == {"last": {"channels": 1280, "stride": 32}}
        assert teacher_source.outputs["teacher_source"] == "cache"
    with pytest.raises(KdepError, match="has no maps"):
        cached_source(frozenset({"maps"}), {"s8"}, stages_with_maps["cache"], opened)
    logits_and_maps = cached_source(
        frozenset({"maps", "logits"}), {"last"}, stages_with_maps["cache"], opened
    )
    assert sorted(logits_and_maps.stream["outputs"]) == ["logits", "maps.last"]
    assert logits_and_maps.model == {}  # the logits are stored, so no classifier is needed


@pytest.mark.parametrize("method", [KDEP, SVD, LOGIT_KD], ids=["kdep", "svd", "logit_kd"])
def test_cached_and_live_training_give_the_same_loss_curve(
    stages: dict[str, Path], tmp_path: Path, method: dict[str, Any]
):
    """Float16 changes a feature by 2**-11 of its scale and the loss by less than 1e-4.

    The learning rate is small, so that training does not amplify the differences.
    """
    budget = BUDGET | dict(epochs=8 / 3, optimizer=BUDGET["optimizer"] | dict(lr=0.005))
    live = {**stages, "images": stages["prepare"]}
    curves = []
    for name, inputs, options in (("cached", stages, {}), ("live", live, {"teacher": TEACHER})):
        outputs, _ = pretrain(tmp_path / name, inputs, method, budget=budget, **options)
        curves.append(np.array(outputs["curves"]["pretrain_loss"])[:, 1])
    cached_curve, live_curve = curves
    assert len(cached_curve) == 8
    assert cached_curve[-1] != cached_curve[0]
    np.testing.assert_allclose(cached_curve[0], live_curve[0], rtol=5e-4)
    np.testing.assert_allclose(cached_curve, live_curve, rtol=5e-3)
    # Equal bit for bit, they would show that the live training read the cache.
    assert not np.array_equal(cached_curve, live_curve)


def test_the_loss_of_logit_kd_falls_and_the_teacher_s_classifier_is_not_saved(
    stages: dict[str, Path], tmp_path: Path
):
    budget = BUDGET | dict(epochs=10, optimizer=BUDGET["optimizer"] | dict(lr=0.5))
    outputs, state = pretrain(tmp_path, stages, LOGIT_KD, budget=budget)
    curve = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
    assert np.mean(curve[-3:]) < 0.85 * np.mean(curve[:3])
    assert outputs["cache_check"]["rows"] == 8
    assert {k.split(".")[0] for k in state} == {"backbone", "objective"}


def test_a_teacher_without_logits_is_refused_before_training(
    stages: dict[str, Path], tmp_path: Path
):
    without_logits = {**TEACHER, "type": f"{__name__}.WithoutLogits"}
    with pytest.raises(KdepError, match="lite0 has no logits"):
        cache.run({"teacher": without_logits, "outputs": ["logits"]}, stages, tmp_path, silent)
    live = {"views": stages["views"], "images": stages["prepare"]}
    with pytest.raises(KdepError, match=r"reads logits of the teacher, but .*lite0 returns none"):
        pretrain(tmp_path / "l", live, LOGIT_KD, teacher=without_logits)
    manifest = dict(read_json(stages["cache"] / cache_read.MANIFEST), config=without_logits)
    shutil.copytree(stages["cache"], tmp_path / "c")
    write_json(tmp_path / "c" / cache_read.MANIFEST, manifest)
    with pytest.raises(KdepError, match="cannot be computed from its pooled feature"):
        pretrain(tmp_path / "p", {**stages, "cache": tmp_path / "c"}, LOGIT_KD)
    with pytest.raises(KdepError, match="has no maps"):
        pretrain(tmp_path / "m", stages, READ, student=R18)


def change_manifest(stages: dict[str, Path], folder: Path, **fields: Any) -> dict[str, Path]:
    """The stages with a copy of the cache whose manifest has these fields changed."""
    shutil.copytree(stages["cache"], folder)
    manifest = folder / cache_read.MANIFEST
    write_json(manifest, {**read_json(manifest), **fields})
    return {**stages, "cache": folder}


def test_a_wrong_classifier_is_detected_by_comparing_sampled_logits(
    stages: dict[str, Path], tmp_path: Path
):
    wrong_classifier = {**TEACHER, "type": f"{__name__}.WrongClassifier"}
    inputs = change_manifest(stages, tmp_path / "c", config=wrong_classifier)
    with pytest.raises(KdepError, match="does not reproduce its logits"):
        pretrain(tmp_path / "p", inputs, LOGIT_KD)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(config={**TEACHER, "variant": 2}), "was made by teacher lite0"),
        (dict(config={**TEACHER, "input_px": 64}), "was computed with px 32"),
        (dict(normalisation={"mean": [0] * 3, "std": [1] * 3}), "was computed with normalisation"),
        (dict(recipe="another"), "different crops"),
    ],
)
def test_a_cache_of_another_teacher_image_size_normalisation_or_crops_is_refused(
    stages: dict[str, Path], tmp_path: Path, fields: dict[str, Any], message: str
):
    with pytest.raises(KdepError, match=message):
        pretrain(tmp_path / "p", change_manifest(stages, tmp_path / "c", **fields), KDEP)


def test_rows_in_the_wrong_order_are_detected_before_training(
    stages: dict[str, Path], tmp_path: Path
):
    inputs = change_manifest(stages, tmp_path / "c")
    path = cache_read.shard_path(tmp_path / "c", 0)
    shard = np.load(path)
    np.save(path, np.roll(shard, 1, 0))  # every row has the feature of the row before
    with pytest.raises(KdepError, match="differ from the live teacher"):
        pretrain(tmp_path / "p", inputs, KDEP)


def test_a_cache_of_views_of_another_seed_is_refused(stages: dict[str, Path], tmp_path: Path):
    (tmp_path / "v").mkdir()
    views.run(VIEWS | dict(seed=1), stages, tmp_path / "v", silent)
    with pytest.raises(KdepError, match="different crops than these views"):
        pretrain(tmp_path / "p", {**stages, "views": tmp_path / "v"}, KDEP)


def test_a_cache_of_an_earlier_release_without_samples_is_used_unchecked(
    stages: dict[str, Path], tmp_path: Path
):
    inputs = change_manifest(stages, tmp_path / "c")
    (tmp_path / "c" / cache_read.SAMPLE).unlink()
    checked = cache_check.verify_cache(inputs["cache"], open_views(inputs["views"]))
    assert checked == {"rows": 0, "error": None}


def test_a_damaged_array_of_logits_of_an_interrupted_run_is_computed_again(
    stages_with_maps: dict[str, Path], tmp_path: Path
):
    out = tmp_path / "c"
    shutil.copytree(stages_with_maps["cache"], out)
    (out / cache_read.MANIFEST).unlink()  # as of an interrupted run
    path = cache_read.shard_path(out, 0, "logits")
    complete = path.read_bytes()
    path.write_bytes(complete[:-10])
    spec = {"teacher": MAPS, "batch": 16, "outputs": ["logits", "maps"]}
    cache.run(spec, stages_with_maps, out, silent)
    assert path.read_bytes() == complete
