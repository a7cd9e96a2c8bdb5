"""Segmentation: mmseg's PSPNet with the exported backbone, scored by the metric of `iou.py`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdep_bench.data.checks import check_segmentation
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json
from kdep_bench.transfer import mm_config
from kdep_bench.transfer.base import MEAN, STD, MMTask
from kdep_bench.transfer.counts import SplitCount
from kdep_bench.transfer.pictures import draw_masks, save_small

PICTURES = 4  # number of saved images with predictions
IMAGE_SUFFIX = "_leftImg8bit.png"
LABEL_SUFFIX = "_gtFine_labelTrainIds.png"
IGNORE = 255  # mask value of pixels without a class


class Segmentation(MMTask):
    """Trains for a fixed number of steps on `train`; then computes the mIoU, at one image scale.

    With `dilate=True` in the recipe, and `dilated` (arguments of the backbone) in the student
    config, the backbone is dilated to stride 8 and the head reads its last stage, as in the paper.
    Otherwise the head reads the stages at strides 8, 16 and 32, resized to stride 8 and
    concatenated (mmseg's `resize_concat`).
    """

    scope: ClassVar[str] = "mmseg"
    measures = frozenset({"mIoU", "mAcc", "aAcc"})
    families = frozenset({"segmentation"})
    recipe_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "folder",
            "model",
            "classes",
            "palette",
            "scale",
            "resize_ratio",
            "crop",
            "iters",
            "batch",
            "lr",
            "head_lr_mult",
            "momentum",
            "weight_decay",
            "clip_norm",
            "warmup",
            "poly_power",
            "frozen_stages",
            "norm_eval",
            "dilate",
        }
    )

    def build_cfg(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        work_dir: Path,
    ) -> Any:
        from mmengine import Config

        recipe, iters = self.recipe, int(self.recipe["iters"])
        root = Path(data_root) / recipe["folder"]
        cfg = mm_config.runtime_cfg(self.scope, work_dir, seed, checkpoint)
        cfg["custom_imports"]["imports"].append("kdep_bench.transfer.iou")
        cfg.update(
            model=self._model(student, checkpoint),
            train_dataloader=mm_config.loader(
                self._dataset(root, "train", train=True), recipe["batch"], train=True, infinite=True
            ),
            train_cfg=dict(
                type="IterBasedTrainLoop",
                max_iters=iters,
                val_interval=max(iters + 1, mm_config.NEVER),
            ),
            val_dataloader=None,
            val_cfg=None,
            val_evaluator=None,
            test_dataloader=mm_config.loader(
                self._dataset(root, self.split, train=False), 1, train=False
            ),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=dict(type="KdepIoUMetric", iou_metrics=["mIoU"]),
            optim_wrapper=mm_config.sgd(recipe, recipe["head_lr_mult"]),
            param_scheduler=mm_config.poly_schedule(recipe, iters),
        )
        return Config(mm_config.without_sync_bn(cfg))

    def check_data(self, data_root: Path) -> list[SplitCount]:
        root = Path(data_root) / self.recipe["folder"]
        self._check_classes(root / "classes.json")
        images = check_segmentation(root, len(self.recipe["classes"]), ("train", self.split))
        folder = root / "leftImg8bit"
        return [
            SplitCount("train", "train", images["train"], folder / "train"),
            SplitCount("test", self.split, images[self.split], folder / self.split),
        ]

    def _check_classes(self, path: Path) -> None:
        """Raises KdepError if the data states other class names than the recipe."""
        if not path.is_file():
            return
        data_classes, recipe_classes = read_json(path), list(self.recipe["classes"])
        if data_classes != recipe_classes:
            raise KdepError(
                f"task {self.name} has the classes {recipe_classes}, but its data have "
                f"{data_classes}",
                expected="the same names in the same order, starting with mask value 0",
                fix=f"set classes={tuple(data_classes)} in the task's recipe",
            )

    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        # constant_mIoU: the mIoU of predicting the most frequent class everywhere, which is the
        # chance level.
        metrics = {k: float(raw[k]) / 100 for k in ("mIoU", "mAcc", "aAcc", "constant_mIoU")}
        per_class = {c: float(raw[f"IoU.{c}"]) / 100 for c in self.recipe["classes"]}
        return metrics, per_class, []

    def draw(self, runner: Any, out: Path) -> list[str]:
        """Saves the first images of the split, each with true and predicted classes."""
        import numpy as np
        import torch
        from PIL import Image

        dataset, model, names = runner.test_dataloader.dataset, runner.model.eval(), []
        for i in range(min(PICTURES, len(dataset))):
            sample = dataset[i]
            with torch.inference_mode():
                prediction = model.test_step(
                    {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
                )[0].pred_sem_seg.data[0]
            info = dataset.get_data_info(i)
            with Image.open(info["seg_map_path"]) as labels:
                truth = np.asarray(labels)
            image = draw_masks(
                Path(info["img_path"]), truth, prediction.cpu().numpy(), self.recipe["palette"]
            )
            names.append(save_small(image, out / f"prediction_{i}.png"))
        return names

    def training_model(self, student: Mapping[str, Any]) -> dict[str, Any]:
        """The segmenter's config without data and checkpoint, for counting its FLOPs."""
        return mm_config.without_sync_bn(self._model(student, Path("none")))

    def training_size(self) -> tuple[int, int]:
        """(height, width) of a training crop."""
        height, width = self.recipe["crop"]
        return int(height), int(width)

    def _model(self, student: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
        recipe, pyramid = self.recipe, mm_config.pyramid(student, f"task {self.name}")
        dilated: dict[str, Any] = {}
        if recipe["dilate"]:
            dilated = mm_config.plain(student.get("dilated")) or {}
        channels, classes = pyramid["channels"], len(recipe["classes"])
        model = copy.deepcopy(recipe["model"])
        model["data_preprocessor"].update(
            mean=MEAN, std=STD, bgr_to_rgb=True, size=tuple(recipe["crop"])
        )
        model["backbone"] = mm_config.backbone_cfg(
            student,
            checkpoint,
            pyramid["out_indices"],
            frozen_stages=recipe["frozen_stages"],
            norm_eval=recipe["norm_eval"],
            **{k: tuple(v) if isinstance(v, list) else v for k, v in dilated.items()},
        )
        head = model["decode_head"]
        head["num_classes"] = classes
        last = len(channels) - 1
        if dilated:
            head.update(in_channels=channels[last], in_index=last)
        else:
            levels = [i for i, s in enumerate(pyramid["strides"]) if s >= 8]
            head.update(
                in_channels=[channels[i] for i in levels],
                in_index=levels,
                input_transform="resize_concat",
            )
        if aux := model.get("auxiliary_head"):
            aux.update(in_channels=channels[last - 1], in_index=last - 1, num_classes=classes)
        return model

    def _dataset(self, root: Path, split: str, *, train: bool) -> dict[str, Any]:
        recipe = self.recipe
        scale = tuple(recipe["scale"])
        pipeline: list[dict[str, Any]] = [dict(type="LoadImageFromFile")]
        if train:
            pipeline += [
                dict(type="LoadAnnotations"),
                dict(
                    type="RandomResize",
                    scale=scale,
                    ratio_range=tuple(recipe["resize_ratio"]),
                    keep_ratio=True,
                ),
                dict(type="RandomCrop", crop_size=tuple(recipe["crop"]), cat_max_ratio=0.9),
                dict(type="RandomFlip", prob=0.5),
            ]
        else:  # labels are loaded after the resize, because they are scored at their original size
            pipeline += [
                dict(type="Resize", scale=scale, keep_ratio=True),
                dict(type="LoadAnnotations"),
            ]
        return dict(
            type="BaseSegDataset",
            data_root=str(root),
            img_suffix=IMAGE_SUFFIX,
            seg_map_suffix=LABEL_SUFFIX,
            ignore_index=IGNORE,
            data_prefix=dict(img_path=f"leftImg8bit/{split}", seg_map_path=f"gtFine/{split}"),
            metainfo=dict(classes=tuple(recipe["classes"]), palette=recipe["palette"]),
            test_mode=not train,
            pipeline=[*pipeline, dict(type="PackSegInputs")],
        )
