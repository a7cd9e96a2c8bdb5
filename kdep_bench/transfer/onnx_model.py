"""Exports a classifier, detector or segmenter (backbone and head) of a transfer run to ONNX."""

from __future__ import annotations

import copy
import multiprocessing
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN
from kdep_bench.errors import KdepError
from kdep_bench.registry import build
from kdep_bench.teachers.base import load_exactly
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL
from kdep_bench.transfer.onnx_file import WithPreprocessing, export_network

OUTPUT = "logits"
_CHECKED_IMAGES = 4  # test images on which the file of a detector is compared with torch


def write_model(
    task: Mapping[str, Any],
    student: Mapping[str, Any],
    data_root: Path,
    stage: Path,
    seed: int,
    path: Path,
) -> None:
    """Writes a transferred model with its preprocessing as ONNX, in a separate process.

    Input `images` [B, 3, H, W] float32, RGB from 0 to 255. H and W are the student's `input_px` in
    classification, and the task's `scale` in segmentation and detection. Output `logits`:
    [B, classes] in classification, [B, classes, H, W] in segmentation. The class with the largest
    logit is the prediction for the image or the pixel. Outputs of a detector: `boxes`, `scores` and
    `labels`; see `onnx_detector.OnnxDetector`.

    Args:
        task: the task's config.
        student: the student's config.
        data_root: root folder of the data, which contains the class names.
        stage: directory of the transfer stage, with its model.
        seed: transfer seed.
        path: file to write. An existing file is replaced only if the export succeeds.

    Raises:
        KdepError: the stage has no model, the task is scored by cross-validation, or an error of
            `write_onnx`.
    """
    if task["recipe"].get("protocol") == "folds":
        raise KdepError(
            f"the task {task['name']} is scored by cross-validation, so there is no single model",
            fix="use backbone.onnx",
        )
    if not (stage / MODEL).is_file():
        raise KdepError(
            f"the transfer stage {stage.name} has not stored its model",
            fix="add keep_models=True to the suite and run it again; the transfer stages will be "
            "run again",
        )
    # One toolkit per process: see `openmmlab.setup`.
    context = multiprocessing.get_context("spawn")
    arguments = (dict(task), dict(student), data_root, stage, seed, path)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(_write, *arguments).result()
        except BrokenProcessPool:
            raise KdepError(
                f"the process that exported {path.name} was killed",
                fix="check the free memory, and run the same command again",
            ) from None


class TransferredModel(WithPreprocessing):
    """A toolkit's model that returns (logits,) for RGB images [B, 3, H, W] from 0 to 255.

    Logits of a segmenter are resized to the image size, as the toolkit does before it chooses the
    class of each pixel.
    """

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        super().__init__(model)
        self.size = size

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor]:
        logits = self.backbone((images_B3HW - self.mean) / self.std, mode="tensor")
        if logits.ndim == 4:
            align_corners = bool(self.backbone.align_corners)
            logits = nn.functional.interpolate(
                logits, self.size, mode="bilinear", align_corners=align_corners
            )
        return (logits,)


def _write(
    task_config: Mapping[str, Any],
    student: Mapping[str, Any],
    data_root: Path,
    stage: Path,
    seed: int,
    path: Path,
) -> None:
    model, size = load_model(task_config, student, data_root, stage, seed)
    if task_config["family"] != "detection":
        export_network(TransferredModel(model, size).eval(), size, (OUTPUT,), path)
        return
    from kdep_bench.transfer.onnx_detector import OnnxDetector, write_detector

    images = test_images(task_config, student, data_root, stage, seed, size)
    write_detector(OnnxDetector(model, size).eval(), images, path)


def test_images(
    task_config: Mapping[str, Any],
    student: Mapping[str, Any],
    data_root: Path,
    stage: Path,
    seed: int,
    size: tuple[int, int],
) -> Tensor:
    """The first test images of a detection task [B, 3, H, W], float32 RGB from 0 to 255.

    Images are resized as in the test; images that are smaller than `size` (height, width) then get
    margins below and at the right in the mean colour, which the detector reads as zeros. Images
    that are larger (upright ones) are cropped.
    """
    from mmengine.registry import DATASETS

    cfg = _task_cfg(task_config, student, data_root, stage, seed)[1]
    dataset: Any = DATASETS.build(cfg.test_dataloader.dataset)
    height, width = size
    images = torch.tensor(MEAN).view(1, 3, 1, 1).repeat(_CHECKED_IMAGES, 1, height, width)
    for i in range(min(_CHECKED_IMAGES, len(dataset))):
        image = dataset[i]["inputs"].flip(0)[:, :height, :width].float()
        images[i, :, : image.shape[1], : image.shape[2]] = image
    return images[: len(dataset)]


def _task_cfg(
    task_config: Mapping[str, Any],
    student: Mapping[str, Any],
    data_root: Path,
    stage: Path,
    seed: int,
) -> tuple[Any, Any]:
    """(the task, its config for the toolkit with the weights of a transfer stage)."""
    task = build(task_config)
    with tempfile.TemporaryDirectory() as work_dir:
        return task, task.build_cfg(data_root, student, stage / MODEL, seed, Path(work_dir))


def load_model(
    task_config: Mapping[str, Any],
    student: Mapping[str, Any],
    data_root: Path,
    stage: Path,
    seed: int,
) -> tuple[nn.Module, tuple[int, int]]:
    """The toolkit's model with the weights of a transfer run, and the (height, width) of its input.

    Raises:
        KdepError: the weights do not fit the model, or the task is scored with sliding windows.
    """
    from mmengine.registry import MODELS
    from mmengine.utils import import_modules_from_strings

    from kdep_bench.openmmlab import setup

    torch.set_num_threads(1)
    setup(build(task_config).scope)
    task, cfg = _task_cfg(task_config, student, data_root, stage, seed)
    import_modules_from_strings(**cfg.custom_imports)
    config = copy.deepcopy(cfg.model)
    del config["backbone"]["init_cfg"]  # the whole model's weights are read instead
    model: Any = MODELS.build(config)
    load_exactly(model, read_tensors(stage / MODEL), str(stage / MODEL))
    if task_config["family"] == "classification":
        px = int(student["input_px"])
        return model.eval(), (px, px)
    if task_config["family"] == "segmentation" and model.test_cfg.mode != "whole":
        raise KdepError(
            f"the task {task.name} is scored with sliding windows, but the ONNX file would process "
            "whole images and give other masks",
            fix="use backbone.onnx, or model.pth of the transfer stage",
        )
    width, height = task_config["recipe"]["scale"]
    return model.eval(), (int(height), int(width))
