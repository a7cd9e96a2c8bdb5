"""Views, teacher cache, stream of batches and the pre-training stage, on tiny real files.

A view is a fixed random crop and flip of an image; row 2 i + v is view v of image i. The teacher is
EfficientNet-Lite0 with its real weights.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.data import views
from kdep_bench.data.views import draw_recipe, open_views, subset
from kdep_bench.errors import KdepError
from kdep_bench.features import align, cache, cache_check, cache_read
from kdep_bench.features.basis import open_basis
from kdep_bench.features.target import build_target
from kdep_bench.objectives.base import demands
from kdep_bench.objectives.feature_regression import DEFAULT_LOSS_AT_ZERO, FeatureRegression
from kdep_bench.pretrain import assemble, checkpoint, stage
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.pretrain.stream import ViewStream
from kdep_bench.pretrain.teaching import open_teacher_source
from kdep_bench.teachers.base import build_teacher
from tests.pretrain.conftest import BUDGET, IMAGES, PX, STUDENT, TEACHER, VIEWS, silent

KDEP: dict[str, Any] = dict(
    name="kdep",
    labels_used=False,
    objective=dict(type="kdep_bench.objectives.feature_regression.FeatureRegression"),
    transform=dict(type="kdep_bench.features.transform.PowerTemperature"),
)
SUPERVISED: dict[str, Any] = dict(
    name="supervised",
    labels_used=True,
    objective=dict(type="kdep_bench.objectives.cross_entropy.CrossEntropy"),
    transform=None,
)
LONG = BUDGET | dict(epochs=10)
# A method whose weight schedule depends on the step number, which a resumed run must restore.
STATEFUL = KDEP | dict(
    objective=dict(
        type="kdep_bench.objectives.weighted_sum.WeightedSum",
        parts=dict(
            feature=dict(
                objective=KDEP["objective"],
                weight=dict(type="kdep_bench.schedules.cosine.Cosine", start=1.0, end=0.2),
            ),
            logits=dict(objective=dict(type="kdep_bench.objectives.logit_kd.LogitKD")),
        ),
    )
)
EMA_AND_ACCUMULATION = BUDGET | dict(ema=0.9, accumulate=2)
SCRATCH: dict[str, Any] = dict(name="scratch", labels_used=False, objective=None, transform=None)


def spec(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The spec of a pre-training stage, with changes."""
    default = dict(student=STUDENT, method=method, budget=BUDGET, share=1.0, share_seed=0, seed=0)
    return default | changes


def pretrain(out: Path, stages: dict[str, Path], method: dict[str, Any], **changes: Any):
    """Runs the stage; returns (its outputs, the saved tensors)."""
    out.mkdir(parents=True, exist_ok=True)
    outputs = stage.run(spec(method, **changes), stages, out, silent)
    return outputs, torch.load(out / checkpoint.CHECKPOINT, weights_only=True)


def configured(method: dict[str, Any], stages: dict[str, Path]):
    """(objective config, target config, measured values) as the stage computes them."""
    stage_spec = spec(method)
    needs = demands(method["objective"]).needs
    teacher_source = open_teacher_source(needs, stage_spec, stages, open_views(stages["views"]))
    return assemble.objective_config(stage_spec, stages, teacher_source, stages["views"].parent)


# -- views and subsets --------------------------------------------------------------------------


def test_stored_views_are_the_crops_of_the_files(stages: dict[str, Path]):
    opened = open_views(stages["views"], stages["prepare"])
    assert opened.rows == IMAGES * 2
    for row in (0, 1, 50):
        image = views.read_rgb(opened.root / opened.files[row // 2])
        rendered = views.render(image, opened.box[row], bool(opened.flip[row]), PX)
        np.testing.assert_array_equal(opened.pixels[row], rendered)


def test_crops_are_reproducible_by_seed_and_stay_inside_the_image():
    def boxes(seed: int) -> np.ndarray:
        """Crops [150, 4] of 50 images in 3 views: x, y, width, height as fractions."""
        return draw_recipe(50, 3, seed, (0.4, 1), (0.75, 1.33))[0]

    drawn = boxes(7)
    np.testing.assert_array_equal(drawn, boxes(7))
    assert (drawn[:, :2] >= 0).all()
    assert (drawn[:, :2] + drawn[:, 2:] <= 1 + 1e-6).all()
    assert not np.array_equal(drawn, boxes(8))


def test_data_fractions_are_nested_and_an_empty_one_is_refused():
    one_percent, ten_percent = subset(1000, 0.01), subset(1000, 0.1)
    assert len(one_percent) == 10
    assert len(ten_percent) == 100
    assert set(one_percent) <= set(ten_percent)
    with pytest.raises(KdepError, match="selects 0 images"):
        subset(10, 0.01)
    with pytest.raises(KdepError, match=r"data fraction of 1\.5"):
        subset(10, 1.5)


def test_the_error_for_an_unreadable_image_names_its_file(stages: dict[str, Path], tmp_path: Path):
    shutil.copytree(stages["prepare"], tmp_path / "p")
    (tmp_path / "p/data/pool/images/00/000007.jpg").write_bytes(b"no picture")
    (tmp_path / "v").mkdir()
    with pytest.raises(KdepError, match=r"000007\.jpg is not an image"):
        views.run(VIEWS, {"prepare": tmp_path / "p"}, tmp_path / "v", silent)


# -- cache --------------------------------------------------------------------------------------


def test_the_cache_equals_the_live_teacher(stages: dict[str, Path]):
    teacher = build_teacher(TEACHER)
    opened_views = open_views(stages["views"], stages["prepare"])
    opened_cache = cache_read.open_cache(stages["cache"])
    assert cache_check.verify_sample(opened_cache, teacher, opened_views) <= cache_check.TOLERANCE
    assert len(opened_cache) == opened_views.rows


def test_a_cache_that_is_resumed_after_its_last_file_reports_its_complete_cost(
    stages: dict[str, Path], tmp_path: Path
):
    out = tmp_path / "c"
    out.mkdir()
    first = cache.run({"teacher": TEACHER, "batch": 16}, stages, out, silent)
    (out / cache_read.MANIFEST).unlink()  # as if it was interrupted before the end
    resumed = cache.run({"teacher": TEACHER, "batch": 16}, stages, out, silent)
    assert resumed == first
    assert resumed["forwards"] == resumed["rows"] == 2 * IMAGES
    assert resumed["fill_s"] > 0
    # 407 M multiply-adds with 224 pixels (reported, tensorflow/tpu), 1.3 M of them in the
    # classifier. With 32 pixels a map has 1/49 of the positions.
    assert resumed["teacher"]["flops"] == pytest.approx(2 * (405.7e6 / 49 + 1.3e6), rel=0.1)


def test_views_and_a_cache_that_threads_render_are_equal_bit_for_bit(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Reads ahead as on a GPU, while the teacher stays on the CPU.
    monkeypatch.setattr(cache, "compute_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(cache_check, "compute_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(cache.Teacher, "to", lambda self, *_: self)
    monkeypatch.setattr(cache, "cores", lambda: 3)
    monkeypatch.setattr(views, "cores", lambda: 3)
    for kind in ("views", "cache"):
        (tmp_path / kind).mkdir()
    views.run(VIEWS, stages, tmp_path / "views", silent)
    opened, rows_done = open_views(tmp_path / "views", stages["prepare"]), []
    order, teacher = np.arange(opened.rows), build_teacher(TEACHER)
    progress = lambda done, *_: rows_done.append(done)  # noqa: E731
    cache.fill_shard(0, order, teacher, opened, 16, [], {}, tmp_path / "cache", progress)
    assert rows_done == [*range(16, 97, 16)]  # in order
    for file in ("views/student.npy", "cache/features-00000.npy"):
        expected, actual = (np.load(folder / file) for folder in (stages["views"].parent, tmp_path))
        np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "no hash file"])
def test_a_damaged_file_of_an_interrupted_run_is_computed_again(
    stages: dict[str, Path], tmp_path: Path, damage: str
):
    out = tmp_path / "c"
    shutil.copytree(stages["cache"], out)
    (out / cache_read.MANIFEST).unlink()
    shard = cache_read.shard_path(out, 0)
    complete = shard.read_bytes()
    flipped = bytearray(complete)
    flipped[-100] ^= 4
    if damage == "no hash file":
        shard.with_suffix(".json").unlink()
    else:
        shard.write_bytes(bytes(flipped) if damage == "flipped bit" else complete[:-10])
    cache.run({"teacher": TEACHER, "batch": 16}, stages, out, silent)
    assert shard.read_bytes() == complete


def test_a_cache_of_another_teacher_view_or_normalisation_is_refused(
    stages: dict[str, Path], tmp_path: Path
):
    opened_cache = cache_read.open_cache(stages["cache"])
    opened_views = open_views(stages["views"], stages["prepare"])
    teacher = build_teacher(TEACHER)
    teacher.mean += 20
    with pytest.raises(KdepError, match="differ from the live teacher"):
        cache_check.verify_sample(opened_cache, teacher, opened_views)
    teacher.mean -= 20  # as before
    opened_views.flip[:] = ~opened_views.flip
    with pytest.raises(KdepError, match="differ from the live teacher"):
        cache_check.verify_sample(opened_cache, teacher, opened_views)
    other = build_teacher({**TEACHER, "variant": 2})
    with pytest.raises(KdepError, match="was made by teacher lite0"):
        cache_check.verify_sample(opened_cache, other, opened_views)


def test_a_truncated_file_of_a_cache_is_refused(stages: dict[str, Path], tmp_path: Path):
    shutil.copytree(stages["cache"], tmp_path / "c")
    shard = tmp_path / "c/features-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(KdepError, match=r"features-00000\.npy"):
        cache_read.open_cache(tmp_path / "c")


def test_files_of_an_interrupted_run_are_kept_for_the_same_teacher_only(tmp_path: Path):
    cache.delete_foreign_shards(tmp_path, {"teacher": "a"})
    (tmp_path / "features-00000.npy").write_bytes(b"x")
    cache.delete_foreign_shards(tmp_path, {"teacher": "a"})
    assert (tmp_path / "features-00000.npy").exists()
    cache.delete_foreign_shards(tmp_path, {"teacher": "b"})
    assert not (tmp_path / "features-00000.npy").exists()


def test_files_of_an_interrupted_run_with_another_normalisation_are_deleted(
    stages: dict[str, Path], tmp_path: Path
):
    opened_views, teacher = open_views(stages["views"], stages["prepare"]), build_teacher(TEACHER)

    def start() -> None:
        identity = cache._identity({}, teacher, teacher.checksum(), opened_views, all_rows=True)
        cache.delete_foreign_shards(tmp_path, identity)

    start()
    (tmp_path / "features-00000.npy").write_bytes(b"x")
    start()
    assert (tmp_path / "features-00000.npy").exists()
    teacher.mean += 20
    start()
    assert not (tmp_path / "features-00000.npy").exists()


def test_a_teacher_stays_in_eval_mode_and_gives_no_gradient():
    teacher = build_teacher(TEACHER)
    checksum = teacher.checksum()
    teacher.train()
    out = teacher(torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8))
    assert not out.pooled.requires_grad
    assert not any(m.training for m in teacher.modules())
    assert teacher.checksum() == checksum
    with pytest.raises(KdepError, match="uint8"):
        teacher(torch.zeros(2, 3, 32, 32))


# -- stream -------------------------------------------------------------------------------------


def test_every_epoch_reads_every_image_once_and_the_views_in_turn(stages: dict[str, Path]):
    stream = ViewStream(stages["views"], IMAGES * 2, 1.0, 0, seed=3)
    first = [stream.row(position) for position in range(IMAGES)]
    second = [stream.row(position) for position in range(IMAGES, 2 * IMAGES)]
    assert sorted(first) == [2 * i for i in range(IMAGES)]
    assert sorted(second) == [2 * i + 1 for i in range(IMAGES)]
    assert [row // 2 for row in first] != [row // 2 for row in second]  # another order of images


def test_with_together_the_views_of_an_image_are_adjacent(stages: dict[str, Path]):
    stream = ViewStream(stages["views"], IMAGES * 4, 1.0, 0, seed=3, together=True)
    rows = np.array([stream.row(position) for position in range(4 * IMAGES)])
    assert sorted(rows[: 2 * IMAGES]) == list(range(2 * IMAGES))
    np.testing.assert_array_equal(rows[1::2], rows[::2] + 1)
    assert (rows[::2] % 2 == 0).all()
    assert not np.array_equal(rows[: 2 * IMAGES], rows[2 * IMAGES :])


def test_reading_a_label_in_a_label_free_run_raises_kdep_error(stages: dict[str, Path]):
    stream = ViewStream(stages["views"], 16, 1.0, 0, seed=0, cache=stages["cache"])
    with pytest.raises(KdepError, match="labels_used=False"):
        stream.label(np.array([0]))
    assert set(stream.__getitems__([0, 1])) == {"images", "rows", "teacher"}
    without_images = ViewStream(stages["views"], 16, 1.0, 0, seed=0, teacher_px=8)
    assert set(without_images.__getitems__([0, 1])) == {"images", "rows"}


def test_teacher_rows_belong_to_the_images_of_the_batch(stages: dict[str, Path]):
    stream = ViewStream(stages["views"], IMAGES, 0.5, 0, seed=0, cache=stages["cache"])
    opened, positions = cache_read.open_cache(stages["cache"]), [3, 0, 11]
    batch = stream.__getitems__(positions)
    rows = np.array([stream.row(position) for position in positions])
    np.testing.assert_array_equal(batch["teacher"].numpy(), opened.rows(rows))
    assert set(rows // 2) <= set(subset(IMAGES, 0.5))


# -- the stage ----------------------------------------------------------------------------------


def test_the_loss_of_kdep_falls_and_only_backbone_and_target_are_saved(
    stages: dict[str, Path], tmp_path: Path
):
    outputs, state = pretrain(tmp_path, stages, KDEP, budget=LONG)
    curve = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
    assert curve[0] > 0.8 * DEFAULT_LOSS_AT_ZERO
    assert min(curve[-3:]) < 0.8 * curve[0]
    assert outputs["steps"] == 30
    assert outputs["images_seen"] == 480
    assert outputs["labels_used"] is False
    assert outputs["std_ratio_after_transform"] > 1
    assert {k.split(".")[0] for k in state} == {"backbone", "target"}


def test_bfloat16_training_stays_close_to_float32(stages: dict[str, Path], tmp_path: Path):
    float32, _ = pretrain(tmp_path / "a", stages, KDEP)
    bfloat16, state = pretrain(
        tmp_path / "b", stages, KDEP, budget=BUDGET | {"precision": "bfloat16"}
    )
    expected, losses = (
        np.array(outputs["curves"]["pretrain_loss"])[:, 1] for outputs in (float32, bfloat16)
    )
    # One step differs by rounding (2**-9); training amplifies it, so later steps agree on average.
    np.testing.assert_allclose(expected[0], losses[0], rtol=2.0**-8)
    np.testing.assert_allclose(expected[:4], losses[:4], rtol=0.03)
    np.testing.assert_allclose(expected.mean(), losses.mean(), rtol=0.05)
    assert not np.array_equal(expected, losses)
    assert all(v.dtype != torch.bfloat16 for v in state.values())


def test_kdep_trains_if_there_are_no_labels(stages: dict[str, Path], tmp_path: Path):
    without_labels = dict(stages, prepare=tmp_path / "nothing")
    outputs, _ = pretrain(tmp_path / "out", without_labels, KDEP)
    assert outputs["steps"] == 12


def test_the_loss_of_supervised_training_falls_and_the_use_of_labels_is_reported(
    stages: dict[str, Path], tmp_path: Path
):
    outputs, state = pretrain(tmp_path, stages, SUPERVISED)
    curve = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
    assert curve[-1] < curve[0]
    assert outputs["labels_used"] is True
    assert "objective.head.weight" in state


def test_an_objective_that_needs_labels_in_a_label_free_method_is_refused(
    stages: dict[str, Path], tmp_path: Path
):
    with pytest.raises(KdepError, match="needs labels"):
        pretrain(tmp_path, stages, SUPERVISED | {"labels_used": False})


def test_a_feature_objective_without_an_alignment_is_refused(
    stages: dict[str, Path], tmp_path: Path
):
    without_align = {k: v for k, v in stages.items() if k != "align"}
    with pytest.raises(KdepError, match="lacks `align`"):
        pretrain(tmp_path, without_align, KDEP)


def test_scratch_has_random_weights_of_its_seed_and_no_training_steps(
    stages: dict[str, Path], tmp_path: Path
):
    outputs, weights = pretrain(tmp_path / "a", stages, SCRATCH)
    _, repeated = pretrain(tmp_path / "b", stages, SCRATCH)
    _, with_seed_1 = pretrain(tmp_path / "c", stages, SCRATCH, seed=1)
    key = "backbone.conv1.weight"
    assert torch.equal(weights[key], repeated[key])
    assert not torch.equal(weights[key], with_seed_1[key])
    assert outputs["steps"] == 0


def test_methods_of_one_seed_start_from_the_same_student(stages: dict[str, Path]):
    students = []
    for method in (KDEP, SUPERVISED):
        objective, target, _ = configured(method, stages)
        torch.manual_seed(5)
        students.append(Distiller(STUDENT, objective, target).backbone.state_dict())
    assert all(torch.equal(v, students[1][k]) for k, v in students[0].items())


def test_every_method_of_a_seed_starts_from_the_scratch_weights(
    stages: dict[str, Path], tmp_path: Path
):
    negligible_training = BUDGET | dict(epochs=0.4, optimizer=dict(type="SGD", lr=1e-12))
    initial_weights = []
    for seed in (3, 4):
        scratch = pretrain(tmp_path / f"s{seed}", stages, SCRATCH, seed=seed)[1]
        weights = [k for k in scratch if "running" not in k and "num_batches" not in k]
        for method in (KDEP, SUPERVISED):
            folder = tmp_path / f"{method['name']}{seed}"
            outputs, state = pretrain(folder, stages, method, seed=seed, budget=negligible_training)
            assert outputs["steps"] == 1
            for k in weights:
                torch.testing.assert_close(state[k], scratch[k], rtol=0, atol=1e-9)
        initial_weights.append(scratch["backbone.conv1.weight"])
    assert not torch.equal(*initial_weights)


def test_live_and_cached_training_have_the_same_target(stages: dict[str, Path]):
    teacher, opened = build_teacher(TEACHER), open_views(stages["views"], stages["prepare"])
    target = build_target(stages["align"], {"type": KDEP["transform"]["type"]})
    rows = np.arange(16)
    live = teacher(cache_check.render_rows(opened, rows, 32)).pooled
    stored = torch.from_numpy(cache_read.open_cache(stages["cache"]).rows(rows))
    # Float16 changes an SVD component by about 2**-11 of the feature's scale. The slope of power
    # temperature scaling (PTS) is unbounded at zero, so the comparison is made before it.
    torch.testing.assert_close(target.align(stored.float()), target.align(live), atol=5e-3, rtol=0)
    assert not target(live.requires_grad_()).requires_grad


def test_the_automatic_weight_gives_an_output_of_zero_the_default_loss(stages: dict[str, Path]):
    _, target, measured = configured(KDEP, stages)
    assert target is not None
    rows = torch.from_numpy(cache_read.open_cache(stages["cache"]).rows(np.arange(2 * IMAGES)))
    mean_square = float(build_target(**target)(rows).square().mean())
    weight = FeatureRegression(target_mean_square=measured["target_mean_square"]).weight
    assert mean_square * weight == pytest.approx(DEFAULT_LOSS_AT_ZERO, rel=1e-4)
    assert open_basis(stages["align"]).components.shape == (1280, STUDENT["width"])


def test_a_run_that_is_killed_within_an_epoch_and_resumed_equals_an_uninterrupted_run(
    stages: dict[str, Path], tmp_path: Path
):
    """A run is killed by SIGKILL after a checkpoint and resumed; its weights are bitwise equal.

    It uses everything that has state: momentum, schedules, the weight average and the fractions of
    the loss terms. It also accumulates micro-batches, which must not count as steps.
    """
    uninterrupted, weights = pretrain(
        tmp_path / "uninterrupted", stages, STATEFUL, budget=EMA_AND_ACCUMULATION
    )
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    # A program that runs the stage and kills itself in step 8.
    code = (
        "import os, signal, time, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from tests.pretrain.test_pretrain import EMA_AND_ACCUMULATION, STATEFUL, spec, stage\n"
        f"stages = { ({k: str(p) for k, p in stages.items()})!r}\n"
        "def kill(done, total, note=''):\n"
        "    time.sleep(0.2)\n"
        "    if done == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"stage.run(spec(STATEFUL, budget=EMA_AND_ACCUMULATION), "
        f"{{k: Path(p) for k, p in stages.items()}}, Path({str(interrupted)!r}), kill)"
    )
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ}, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert list((interrupted / "run").glob("*.pth"))
    assert not (interrupted / checkpoint.CHECKPOINT).exists()
    outputs, resumed = pretrain(interrupted, stages, STATEFUL, budget=EMA_AND_ACCUMULATION)
    # The training time includes the six steps before the checkpoint, of at least 0.2 s each.
    assert outputs["train_s"] > 1.2
    assert outputs["curves"] == uninterrupted["curves"]
    assert outputs["terms"] == uninterrupted["terms"]
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(v, resumed[k]) for k, v in weights.items())


# -- other teachers and students ------------------------------------------------------------------


def test_a_student_without_a_last_activation_learns_from_a_vision_transformer(
    stages: dict[str, Path], tmp_path: Path
):
    teacher = dict(
        type="kdep_bench.teachers.timm_models.Timm",
        name="vit",
        model="test_vit",
        input_px=32,
        weights="random",
        args=dict(dynamic_img_size=True, embed_dim=96, num_heads=3),
    )
    student = dict(
        name="convnext",
        backbone=dict(type="kdep_bench.students.timm_backbone.TimmBackbone", model="test_convnext"),
        width=64,
        input_px=32,
        tap="output",
    )
    folders = dict(stages)
    for kind, function, stage_spec in (
        ("cache", cache.run, {"teacher": teacher, "batch": 16}),
        ("align", align.run, dict(width=64, share=1.0, share_seed=0, align={"type": "svd"})),
    ):
        (tmp_path / kind).mkdir()
        function(stage_spec, folders, tmp_path / kind, silent)
        folders[kind] = tmp_path / kind
    outputs, state = pretrain(tmp_path / "p", folders, KDEP, student=student)
    assert outputs["steps"] > 0
    assert "backbone.net.head.norm.weight" in state
    wrong_tap = {**student, "tap": "net.stages.0"}
    with pytest.raises(KdepError, match="24 channels"):
        pretrain(tmp_path / "q", folders, KDEP, student=wrong_tap)
