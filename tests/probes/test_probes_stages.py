"""The stages `features` and `probe` on a tiny data tree and a random exported student."""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import resolve


def ignore_progress(*_: object) -> None:
    """A progress function that does nothing."""


def write_cache(folder: Path, features: np.ndarray) -> None:
    """A teacher cache that holds `features` [rows, width]."""
    from kdep_bench.features.cache_read import MANIFEST, shard_path
    from kdep_bench.files import write_json

    folder.mkdir()
    np.save(shard_path(folder, 0), features.astype(np.float16))
    teacher = {"name": "t", "checksum": "0", "width": features.shape[1]}
    write_json(folder / MANIFEST, {"teacher": teacher, "rows": len(features), "shards": 1})


def run_stages(root: Path) -> dict[str, Any]:
    """Runs the stages; returns the values that the tests check.

    The fixture `results` calls it in a separate process, because the toolkits change global state.
    """
    import torch

    from kdep_bench.data import views
    from kdep_bench.probes import extract, extract_maps, stage
    from kdep_bench.teachers.base import build_teacher
    from kdep_bench.transfer import classification
    from kdep_bench.transfer.export import save_tensors
    from kdep_bench.transfer.gate import read_tensors
    from tests.transfer import tiny
    from tests.transfer.conftest import config, export_random

    torch.set_num_threads(1)
    student = config("students", "resnet18_w32")
    data = tiny.make(root / "prepare", per_class=5)
    rng = np.random.default_rng(0)
    (data / "pool" / "images").mkdir(parents=True)
    for i in range(40):
        grid = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(grid).resize((96, 96)).save(data / "pool" / "images" / f"{i:03}.png")
    export_random(student, root)
    # Residual branches start at zero: the last activation would otherwise have no negative input.
    tensors = read_tensors(root / "export" / "backbone.pth")
    norms = {k: v + 0.5 for k, v in tensors.items() if k.endswith("bn2.weight")}
    save_tensors({**tensors, **norms}, root / "export" / "backbone.pth")
    inputs = {"prepare": root / "prepare", "export": root / "export"}
    images = {"folder": "classify", "splits": ["train", "val", "test"]}
    folders = {name: root / name for name in ("features", "views", "pool", "probe")}
    for folder in folders.values():
        folder.mkdir()
    outputs = extract.run(
        {"student": student, "images": images}, inputs, folders["features"], ignore_progress
    )
    features = extract.open_features(folders["features"])

    task = classification.LinearProbe(**arguments_of(config("tasks", "pocket_probe")))
    cfg = task.build_cfg(data, student, root / "export" / "backbone.pth", 0, root / "mm")
    model, _ = classification._frozen_model(cfg, root / "export" / "backbone.pth")
    task_features = classification._features(model, cfg, data / "classify" / "test")

    (root / "maps").mkdir()
    scenes = {"folder": "cityscapes", "splits": ["train", "val", "test"], "size": [120, 160]}
    map_outputs = extract.run(
        {"student": student, "images": scenes}, inputs, root / "maps", ignore_progress
    )
    maps = extract_maps.open_maps(root / "maps")
    levels = extract_maps.map_extractor(student, root / "export" / "backbone.pth")
    path = sorted((data / "cityscapes" / "leftImg8bit" / "test").rglob("*.png"))[3]
    one_image = levels(np.asarray(Image.open(path).convert("RGB"))[None])
    half = {**scenes, "splits": ["val"], "size": [60, 80]}
    (root / "half").mkdir()
    extract.run({"student": student, "images": half}, inputs, root / "half", ignore_progress)

    lite = "kdep_bench.teachers.efficientnet_lite.EfficientNetLite"
    teacher = {"type": lite, "name": "lite0", "variant": 0, "input_px": 128}
    (root / "teacher").mkdir()
    teacher_outputs = extract.run(
        {"teacher": teacher, "images": {**images, "splits": ["val"]}},
        {"prepare": root / "prepare"},
        root / "teacher",
        ignore_progress,
    )
    paths = [p for c in sorted((data / "classify" / "val").iterdir()) for p in sorted(c.iterdir())]
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in paths])
    direct = build_teacher(teacher)(torch.from_numpy(pixels).permute(0, 3, 1, 2)).pooled.numpy()

    spec = dict(views=2, px=64, seed=0, scale=[0.4, 1.0], ratio=[0.75, 1.33])
    views.run(spec, inputs, folders["views"], ignore_progress)
    with_views = {**inputs, "views": folders["views"]}
    pool = {"student": student, "images": {"rows": 30, "seed": 0}}
    pool_outputs = extract.run(pool, with_views, folders["pool"], ignore_progress)
    backbone = extract.extractor(student, root / "export" / "backbone.pth")
    opened = views.open_views(folders["views"])
    before, after = backbone(np.asarray(opened.pixels))
    write_cache(root / "cache", before)  # a teacher whose feature is the student's own

    def probe(name: str, **change: Any) -> dict[str, Any]:
        """The outputs of the stage of this probe, with its values by name."""
        spec = {"probe": {**resolve("probe", name), **change}, "student": student}
        probe_inputs = {**inputs, "features": folders["features"], "pool": folders["pool"]}
        outputs = stage.run(
            spec, {**probe_inputs, "cache": root / "cache"}, folders["probe"], ignore_progress
        )
        return {**outputs, "values": {v["name"]: v for v in outputs["values"]}}

    probes = {
        "knn": probe("knn"),
        "cka": probe("cka", rows=30),
        "sgva_clip": probe("sgva_clip", shots=[1, 2], draws=2, steps=2),
        "robustness": probe("robustness", corruptions=["jpeg_compression"], c_grid=[1.0]),
        "other_domain": probe("other_domain", domains=["fog", "sketch"], c_grid=[1.0]),
        "flatness": probe("flatness", images=8, iterations=2, traces=2, distances=[0.5]),
    }
    config_maps = {**resolve("probe", "linear_segmentation"), "max_iter": 60}
    probes["linear_segmentation"] = stage.run(
        {"probe": config_maps, "student": student},
        {"features": root / "maps"},
        root,
        ignore_progress,
    )
    errors = {}
    with pytest.raises(KdepError) as error:
        probe("knn", type="builtins.dict")
    errors["type"] = str(error.value)
    damaged = root / "damaged"
    shutil.copytree(root / "prepare", damaged)
    target = sorted((damaged / "data" / "classify" / "val" / "bird").iterdir())[0]
    target.write_bytes(target.read_bytes()[:400])
    (root / "from-damaged").mkdir()
    spec, damaged_inputs = {"student": student, "images": images}, {**inputs, "prepare": damaged}
    with pytest.raises(KdepError) as error:
        extract.run(spec, damaged_inputs, root / "from-damaged", ignore_progress)
    errors["truncated"] = str(error.value)
    tensors = torch.load(root / "export" / "backbone.pth")
    tensors.pop(next(iter(tensors)))
    (root / "short").mkdir()
    torch.save(tensors, root / "short" / "backbone.pth")
    with pytest.raises(KdepError) as error:
        extract.extractor(student, root / "short" / "backbone.pth")
    errors["weights"] = str(error.value)
    return {
        "outputs": outputs,
        "features": features,
        "task_features": task_features,
        "pool_outputs": pool_outputs,
        "pool": extract.open_features(folders["pool"])["pool"],
        "rows": np.load(folders["pool"] / "rows.npy"),
        "all": (before, after),
        "errors": errors,
        "teacher": (extract.open_features(root / "teacher")["val"], direct, teacher_outputs),
        "map_outputs": map_outputs,
        "maps": maps["test"],
        "half": extract_maps.open_maps(root / "half")["val"],
        "one_image": one_image,
        **probes,
    }


def arguments_of(task: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the task's class."""
    return {k: v for k, v in task.items() if k not in ("type", "about", "tests_on")}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `run_stages` returns."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(run_stages, tmp_path_factory.mktemp("probes")).result()


def test_features_equal_those_of_the_linear_probe_task(results):
    """Another resizing, channel order or normalisation would give other features."""
    x, y = results["task_features"]
    test = results["features"]["test"]
    np.testing.assert_allclose(test.post_activation, x, rtol=1e-4, atol=1e-5)
    assert (test.labels == y).all()
    assert len(test.classes) == 8
    assert test.classes[test.labels[0]] == "bird"


def test_a_teacher_s_features_of_class_folders_are_those_of_the_teacher(results):
    """Another channel order, normalisation or order of images would give other features."""
    stored, direct, outputs = results["teacher"]
    # The two decoders of JPEG differ by a few grey levels.
    assert np.corrcoef(stored.post_activation.ravel(), direct.ravel())[0, 1] > 0.999
    np.testing.assert_array_equal(stored.post_activation, stored.pre_activation)
    assert stored.labels.tolist() == sorted(stored.labels.tolist())
    assert outputs["forwards"] == len(direct) == 40
    assert (outputs["width"], outputs["teacher"]["name"]) == (1280, "lite0")


def test_the_stored_feature_before_the_activation_has_negative_values(results):
    test = results["features"]["test"]
    assert (test.post_activation >= 0).all()
    assert (test.pre_activation < 0).any()
    assert (test.pre_activation <= test.post_activation + 1e-6).all()


def test_the_cost_of_the_extraction_is_in_its_outputs(results):
    assert results["outputs"]["images"] == {"train": 40, "val": 40, "test": 40}
    assert results["outputs"]["width"] == 256
    assert results["outputs"]["extract_s"] > 0
    # Two features (before and after the activation) of 120 images, 256 float32 channels.
    assert results["outputs"]["bytes"] > 2 * 120 * 256 * 4


def test_pool_features_belong_to_the_same_views_as_the_teacher_s_features(results):
    """CKA with a teacher that is the student itself is 1 only if both are of the same images."""
    rows = results["rows"]
    assert len(set(rows)) == 30
    assert (rows % 2 == 0).all()  # the first of two views
    before, after = results["all"]
    np.testing.assert_allclose(results["pool"].pre_activation, before[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results["pool"].post_activation, after[rows], rtol=1e-4, atol=1e-5)
    assert results["cka"]["values"]["CKA before activation"]["value"] == pytest.approx(1, abs=1e-3)


def test_the_probe_stage_returns_values_notes_and_its_time(results):
    knn = results["knn"]
    assert set(knn) == {"values", "notes", "probe_s"}
    assert knn["values"]["top1"]["chance"] == pytest.approx(1 / 8)
    assert knn["values"]["top1"]["value"] > 0.3  # coloured shapes: easy also for random weights
    assert "chosen on val" in knn["notes"][0]


def test_the_stage_of_the_adapter_probe_returns_two_values_for_each_number_of_images(results):
    """`source` and `reconstruction` of its config are not arguments of its class."""
    assert len(results["sgva_clip"]["values"]) == 4
    assert all(0 <= v["value"] <= 1 for v in results["sgva_clip"]["values"].values())


def test_the_robustness_stage_runs_the_backbone_on_the_images_of_the_features(results):
    """A good JPEG changes little: a wrong order of images or labels would give chance."""
    values = results["robustness"]["values"]
    clean = values["top1, clean"]["value"]
    assert values["top1, severity 1"]["value"] > clean / 2 > 1 / 8
    assert values["top1, clean - corrupted"]["value"] == pytest.approx(
        clean - values["top1, corrupted"]["value"]
    )


def test_the_stage_of_other_domains_scores_the_source_as_the_other_probes_do(results):
    """Random weights give chance in fog, so only the source has a known answer here."""
    values = {k: v["value"] for k, v in results["other_domain"]["values"].items()}
    assert values["top1, source, kNN"] == results["knn"]["values"]["top1"]["value"]
    assert values["top1, source, linear"] == results["robustness"]["values"]["top1, clean"]["value"]
    targets = {k: v for k, v in values.items() if "fog" in k or "sketch" in k}
    assert len(targets) == 4
    assert all(0 <= value <= 1 for value in targets.values())


def test_the_flatness_stage_measures_the_exported_backbone(results):
    flatness = results["flatness"]
    values = {name: v["value"] for name, v in flatness["values"].items()}
    # A classifier fitted on these images is better than a guess among 8 classes.
    assert 0 < values["loss"] < np.log(8)
    assert values["largest Hessian eigenvalue"] > 0
    assert values["sharpness, radius 0.001"] > 0
    assert values["loss increase, distance 0.5"] > 0
    assert "8 images" in flatness["notes"][0]


def test_a_wrong_type_a_truncated_image_and_other_weights_are_refused(results):
    assert "is not a probe" in results["errors"]["type"]
    assert "classify/val/bird" in results["errors"]["truncated"]
    assert "the backbone differs from the file" in results["errors"]["weights"]


def test_maps_and_mask_belong_to_the_same_image(results):
    """Levels of strides 8, 16, 32, in the order of the names."""
    maps = results["maps"]
    assert results["map_outputs"]["images"] == {"train": 8, "val": 8, "test": 8}
    assert [level.shape[1:] for level in maps.levels] == [(64, 15, 20), (128, 8, 10), (256, 4, 5)]
    assert maps.masks.shape == (8, 120, 160)
    for level, alone in zip(maps.levels, results["one_image"], strict=True):
        np.testing.assert_allclose(level[3], alone[0], rtol=2e-3, atol=2e-3)  # half precision
    assert results["half"].masks.shape == (8, 60, 80)
    assert set(np.unique(results["half"].masks)) <= set(range(9))  # class numbers are not mixed


def test_linear_segmentation_with_random_weights_is_better_than_chance(results):
    """The shapes differ in colour; a wrong mask or order of images would give about chance."""
    (miou, accuracy) = results["linear_segmentation"]["values"]
    assert (miou["name"], accuracy["name"]) == ("mIoU", "pixel accuracy")
    assert miou["value"] > 1.5 * miou["chance"]
    assert accuracy["value"] > accuracy["chance"]
    assert "chosen on val" in results["linear_segmentation"]["notes"][0]
