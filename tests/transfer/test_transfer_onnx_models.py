"""ONNX files of transferred models and of 8-bit backbones give the outputs of the networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.results.records import samples
from kdep_bench.suite.config import build_suite
from kdep_bench.suite.plan import build_plan
from kdep_bench.transfer import onnx_int8, onnx_model, stage
from kdep_bench.transfer.classification import linear_layer
from kdep_bench.transfer.onnx_file import open_session, write_onnx
from tests.transfer.conftest import config, quiet

PX = 32  # side of the images in pixels


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_layer_has_the_probabilities_of_the_fitted_probe(classes: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (60, 4)), np.arange(60) % classes
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.5)).fit(x, y)
    weight, bias = linear_layer(fitted, classes)
    assert weight.shape == (classes, 4)
    logits = x @ weight.T + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, fitted.predict_proba(x), atol=1e-9)


def backbone() -> nn.Module:
    """A small random network in evaluation mode."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(*layers).eval()


def folder_of_images(folder: Path, count: int) -> Path:
    """Writes images of 32 rows and 64 columns: noise in the middle, grey level i at both sides."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        pixels = np.full((PX, 2 * PX, 3), i, np.uint8)
        pixels[:, PX // 2 : 3 * PX // 2] = rng.integers(0, 256, (PX, PX, 3))
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def test_calibration_images_are_centre_crops_spread_over_the_folder(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "pool", 9)
    images = onnx_int8.calibration_images(folder, PX, 3)
    assert images.shape == (3, 3, PX, PX)
    for image, name in zip(images, ("000", "004", "008"), strict=True):  # 3 of 9
        pixels = np.asarray(Image.open(folder / f"{name}.png"))[:, PX // 2 : 3 * PX // 2]
        np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))


def test_a_float_file_gives_the_network_s_outputs_and_an_8_bit_file_nearly_these(
    tmp_path: Path,
) -> None:
    write_onnx(backbone(), PX, tmp_path / "float.onnx")
    images = onnx_int8.calibration_images(folder_of_images(tmp_path / "pool", 9), PX)
    onnx_int8.quantise(tmp_path / "float.onnx", images, tmp_path / "int8.onnx")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    normalised = (torch.from_numpy(images) - mean) / std
    with torch.inference_mode():
        expected = backbone()(normalised)
        of_float, of_int8 = (
            onnx_int8.OnnxBackbone(tmp_path / f"{name}.onnx")(normalised)[0]
            for name in ("float", "int8")
        )
    assert (of_float - expected).abs().max() < 1e-4
    relative_error = (of_int8 - expected).abs().max() / expected.abs().max()
    assert 1e-5 < relative_error < 0.1
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == ["float.onnx", "int8.onnx"]


def run_and_store_model(
    kind: str, student: dict[str, Any], data: Path, export: Path, out: Path, **recipe: Any
):
    """Runs a transfer stage that stores its model; returns (task config, outputs)."""
    task = config("tasks", f"smoke_{kind}")
    task["recipe"].update(recipe)
    out.mkdir()
    spec = {"task": task, "student": student, "seed": 0, "threads": 1, "keep_model": True}
    return task, stage.run(spec, {"prepare": data.parent, "export": export}, out, quiet)


def probe_probabilities(student: dict[str, Any], data: Path, export: Path, out: Path):
    """(softmax of the ONNX file's logits for the test images, outputs of the stage)."""
    from kdep_bench.registry import build
    from kdep_bench.transfer.classification import _folder_set

    task, outputs = run_and_store_model("probe", student, data, export, out)
    onnx_model._write(task, student, data, out, 0, out / "model.onnx")
    cfg = build(task).build_cfg(data, student, export / "backbone.pth", 0, out / "mm")
    dataset = _folder_set(cfg, data / "classify" / "test")
    bgr = np.stack([dataset[i]["inputs"].numpy() for i in range(len(dataset))])
    images = bgr[:, ::-1].astype(np.float32)
    (logits,) = open_session(out / "model.onnx").run(None, {"images": images})
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), outputs


@pytest.mark.slow
def test_the_file_of_a_linear_probe_has_the_probabilities_that_were_scored(
    student, data, exported, tmp_path, in_subprocess
):
    out = tmp_path / "probe"
    probabilities, outputs = in_subprocess(probe_probabilities, student, data, exported, out)
    scored = samples.read(out / outputs["samples"]["file"], outputs["samples"]["sha256"])
    np.testing.assert_array_equal(probabilities.argmax(1), scored.arrays["prediction"])
    np.testing.assert_allclose(probabilities.max(1), scored.arrays["probability"], atol=1e-3)
    assert len(outputs["model_checksum"]) == 64  # hexadecimal digits of SHA-256


def segmentation_logits(student: dict[str, Any], data: Path, export: Path, out: Path):
    """(mmseg's logits [C, H, W] of a test image at full size, those of the ONNX file)."""
    from mmengine.registry import DATASETS

    from kdep_bench.registry import build

    task, _ = run_and_store_model("seg", student, data, export, out, iters=4, batch=2, warmup=1)
    onnx_model._write(task, student, data, out, 0, out / "model.onnx")
    model, size = onnx_model.load_model(task, student, data, out, 0)
    cfg = build(task).build_cfg(data, student, export / "backbone.pth", 0, out / "mm")
    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    with torch.inference_mode():
        expected = model.test_step(batch)[0].seg_logits.data.numpy()  # type: ignore[operator]
    images = sample["inputs"].flip(0)[None].float().numpy()
    assert images.shape[2:] == size
    (logits,) = open_session(out / "model.onnx").run(None, {"images": images})
    return expected, logits[0]


@pytest.mark.slow
def test_the_file_of_a_segmenter_has_the_toolkit_s_logits(
    student, data, exported, tmp_path, in_subprocess
):
    expected, logits = in_subprocess(segmentation_logits, student, data, exported, tmp_path / "seg")
    assert expected.shape == logits.shape == (9, 120, 160)  # 8 classes and the background
    assert expected.std() > 0.01
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())


def make_outputs_differ(model: Any, batch: dict[str, Any]) -> None:
    """Sets weights of a hardly trained detector so that its outputs differ.

    Scores and offsets then differ between boxes and between classes.
    """
    generator = torch.Generator().manual_seed(0)
    head = model.roi_head.bbox_head
    for layer, std in ((model.rpn_head.rpn_reg, 0.02), (head.fc_reg, 0.02), (head.fc_cls, 1.0)):
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
    data = model.data_preprocessor(batch, False)
    with torch.inference_mode():
        ((logits, _),) = model(data["inputs"], data["data_samples"], mode="tensor")
    # Logits of each class with mean 0 and standard deviation 1 over the boxes of the batch. (With
    # larger ones, scores are rounded to 1, and boxes of equal scores have no order.)
    scale = 1 / logits.std(0)
    head.fc_cls.weight.data.mul_(scale[:, None])
    head.fc_cls.bias.data.copy_(-logits.mean(0) * scale)


def detections(student: dict[str, Any], data: Path, export: Path, out: Path, per_class: bool):
    """The detections of two test images by mmdet and by the ONNX file.

    `per_class`: whether the detector predicts a box per class instead of one per object.

    Returns:
        ([(boxes, scores, labels) of each image], outputs of the ONNX file).
    """
    from mmengine.registry import DATASETS

    from kdep_bench.registry import build
    from kdep_bench.transfer.method import MODEL

    recipe: dict[str, Any] = dict(iters=2, batch=2, warmup=1)
    if per_class:
        network = config("tasks", "smoke_det")["recipe"]["model"]
        network["roi_head"]["bbox_head"]["reg_class_agnostic"] = False
        recipe["model"] = network
    task, _ = run_and_store_model("det", student, data, export, out, **recipe)
    model, size = onnx_model.load_model(task, student, data, out, 0)
    cfg = build(task).build_cfg(data, student, export / "backbone.pth", 0, out / "mm")
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    samples = [dataset[i] for i in range(2)]
    batch = {k: [sample[k] for sample in samples] for k in ("inputs", "data_samples")}
    make_outputs_differ(model, copy.deepcopy(batch))
    torch.save(model.state_dict(), out / MODEL)
    onnx_model._write(task, student, data, out, 0, out / "model.onnx")
    with torch.inference_mode():
        predicted = [sample.pred_instances for sample in model.test_step(batch)]  # type: ignore[operator]
    images = torch.stack([sample["inputs"].flip(0) for sample in samples]).float().numpy()
    assert images.shape[2:] == size
    outputs = open_session(out / "model.onnx").run(None, {"images": images})
    return [(p.bboxes.numpy(), p.scores.numpy(), p.labels.numpy()) for p in predicted], outputs


@pytest.mark.slow
@pytest.mark.parametrize("per_class", [False, True], ids=["one_box_per_object", "box_per_class"])
def test_the_file_of_a_detector_finds_the_objects_that_the_toolkit_finds(
    per_class, student, data, exported, tmp_path, in_subprocess
):
    expected, outputs = in_subprocess(
        detections, student, data, exported, tmp_path / "det", per_class
    )
    boxes, scores, labels = outputs
    assert boxes.shape == (2, 50, 4)  # 50: max_per_img of the small detector
    for image, (boxes_N4, scores_N, labels_N) in enumerate(expected):
        assert len(scores_N) > 10
        assert len(set(labels_N.tolist())) > 1
        count = int((scores[image] > 0).sum())
        assert count == len(scores_N)
        np.testing.assert_allclose(scores[image, :count], scores_N, atol=1e-4)
        np.testing.assert_array_equal(labels[image, :count], labels_N)
        np.testing.assert_allclose(boxes[image, :count], boxes_N4, atol=0.02)


def test_detections_that_differ_between_two_runtimes_are_counted() -> None:
    from kdep_bench.transfer.onnx_detector import compare

    boxes = np.array([[[0, 0, 10, 10], [5, 5, 50, 50], [0, 0, 1, 1]]], float)
    scores, labels = np.array([[0.9, 0.5, 0]]), np.array([[2, 1, 0]])
    swapped = [1, 0, 2]  # another order is no difference
    # (outputs, (detections of both runtimes, of these unmatched))
    altered = [
        ((boxes[:, swapped], scores[:, swapped], labels[:, swapped]), (4, 0)),
        ((boxes + 1, scores, labels), (4, 4)),
        ((boxes, scores, np.array([[2, 0, 0]])), (4, 2)),
        ((boxes, scores * np.array([[1, 0, 0]]), labels), (3, 1)),
    ]
    for outputs, counts in altered:
        assert compare((boxes, scores, labels), outputs, side=100) == counts


def test_suppression_keeps_the_best_of_overlapping_boxes_in_each_group() -> None:
    """The IoU of the first two boxes is 81 / (100 + 100 - 81) = 0.68; both have 0 with the third.

    Thresholds: IoU 0.5, then 0.7; score 0.2.
    """
    from kdep_bench.transfer.onnx_detector import kept_boxes

    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]]])
    scores = torch.tensor([[[0.5, 0.9, 0.3], [0.5, 0.0, 0.1]]])  # of two classes
    kept = kept_boxes(boxes, scores, 0.5, 0.2)
    assert kept.tolist() == [[[0, 1, 1], [1, 0, 0]]]
    assert kept_boxes(boxes, scores, 0.7, 0.2).tolist() == [[[1, 1, 1], [1, 0, 0]]]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("photos", "scored by cross-validation"),
        ("finetune", "add keep_models=True to the suite"),
    ],
)
def test_a_model_that_cannot_be_exported_raises_an_error_with_a_fix(
    kind, message, student, data, tmp_path
):
    with pytest.raises(KdepError, match=message):
        onnx_model.write_model(
            config("tasks", f"smoke_{kind}"), student, data, tmp_path, 0, tmp_path / "m.onnx"
        )


def test_keep_models_changes_only_transfer_stages() -> None:
    suite: dict[str, Any] = {
        "name": "little",
        "data": "smoke",
        "teacher": "efficientnet_lite0",
        "students": ["resnet18_w32"],
        "methods": ["kdep"],
        "tasks": ["smoke_probe", "smoke_det"],
        "budget": {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}},
        "seeds": {"pretrain": [0], "transfer": [0]},
    }
    plain = build_plan(build_suite(suite))
    with_models = build_plan(build_suite({**suite, "keep_models": True}))
    new_ids = with_models.stages.keys() - plain.stages.keys()
    assert {with_models.stages[i].kind for i in new_ids} == {"transfer"}
    assert all(with_models.stages[i].spec["keep_model"] for i in new_ids)
    assert not any("keep_model" in stage.spec for stage in plain.stages.values())
