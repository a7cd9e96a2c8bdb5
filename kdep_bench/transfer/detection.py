"""Detection: mmdet's Faster R-CNN with FPN and the exported backbone, scored by CocoMetric."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from kdep_bench.data.checks import check_coco
from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict
from kdep_bench.openmmlab import read_metrics
from kdep_bench.transfer import mm_config
from kdep_bench.transfer.base import MEAN, STD, MMTask
from kdep_bench.transfer.counts import SplitCount, trained_images
from kdep_bench.transfer.pictures import draw_boxes, save_small

PICTURES = 4  # number of saved images with predictions
SHOWN_SCORE = 0.3  # detections with a lower score are not drawn
MIN_SIZE = 16  # pixels; training images with a shorter side below it are omitted by mmdet


class Detection(MMTask):
    """Trains for a fixed number of steps on `train`; the bbox AP on the split is computed once.

    `model` in the recipe is an mmdet config of a detector, without backbone, number of classes and
    normalisation.
    """

    scope: ClassVar[str] = "mmdet"
    measures = frozenset({"bbox_mAP", "bbox_mAP_50", "bbox_mAP_75"})
    families = frozenset({"detection"})
    recipe_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "folder",
            "model",
            "scale",
            "iters",
            "batch",
            "test_batch",
            "lr",
            "head_lr_mult",
            "momentum",
            "weight_decay",
            "clip_norm",
            "warmup",
            "steps",
            "frozen_stages",
            "norm_eval",
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
        classes = self._classes(root)
        cfg = mm_config.runtime_cfg(self.scope, work_dir, seed, checkpoint)
        cfg["custom_imports"]["imports"].append("kdep_bench.transfer.coco_sets")
        cfg.update(
            model=self._model(student, checkpoint, len(classes)),
            train_dataloader=mm_config.loader(
                self._dataset(root, "train", classes, train=True),
                recipe["batch"],
                train=True,
                infinite=True,
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
                self._dataset(root, self.split, classes, train=False),
                recipe["test_batch"],
                train=False,
            ),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=dict(
                type="KdepCocoMetric",
                ann_file=str(root / "annotations" / f"{self.split}.json"),
                metric="bbox",
                classwise=True,
            ),
            optim_wrapper=mm_config.sgd(recipe, recipe["head_lr_mult"]),
            param_scheduler=mm_config.step_schedule(recipe, iters),
        )
        return Config(mm_config.without_sync_bn(cfg))

    def check_data(self, data_root: Path) -> list[SplitCount]:
        root = Path(data_root) / self.recipe["folder"]
        files = {s: root / "annotations" / f"{s}.json" for s in ("train", self.split)}
        images = {s: check_coco(file, root / s)["images"] for s, file in files.items()}
        classes, test_classes = self._classes(root, "train"), self._classes(root, self.split)
        if test_classes != classes:
            train_file, test_file = (shown(files[s].resolve()) for s in ("train", self.split))
            raise KdepError(
                f"the categories of {train_file} and {test_file} differ: {classes} and "
                f"{test_classes}",
                expected="the same categories with the same ids in every split",
                fix="export both files with the same list of categories",
            )
        trained, note = trained_images(read_strict(files["train"]), classes, MIN_SIZE)
        return [
            SplitCount("train", "train", trained, files["train"], note),
            SplitCount("test", self.split, images[self.split], files[self.split]),
        ]

    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        classes = cfg.test_dataloader.dataset.metainfo.classes
        names = ("bbox_mAP", "bbox_mAP_50", "bbox_mAP_75")
        values, notes = read_metrics(raw, [f"coco/{n}" for n in names], detections=count)
        metrics = {n: values[f"coco/{n}"] for n in names}
        if notes:  # no detections at all: CocoMetric then has no values per class
            return metrics, dict.fromkeys(classes, 0.0), notes
        return metrics, {c: float(raw[f"coco/{c}_precision"]) for c in classes}, []

    def draw(self, runner: Any, out: Path) -> list[str]:
        """Saves the first images of the split with true boxes (white) and detections (red)."""
        import torch
        from mmdet.registry import DATASETS

        dataset = runner.test_dataloader.dataset
        truth_cfg = copy.deepcopy(runner.cfg.test_dataloader.dataset)
        truth = DATASETS.build(truth_cfg)
        model, names = runner.model.eval(), []
        for i in range(min(PICTURES, len(dataset))):
            with torch.inference_mode():
                sample = dataset[i]
                detections = model.test_step(
                    {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
                )[0].pred_instances
            info = truth.get_data_info(i)
            is_shown = detections.scores > SHOWN_SCORE
            class_names = dataset.metainfo["classes"]
            labels = detections.labels[is_shown].tolist()
            scores = detections.scores[is_shown].tolist()
            image = draw_boxes(
                self.shown_image(Path(info["img_path"])),
                [x["bbox"] for x in info["instances"]],
                detections.bboxes[is_shown].tolist(),
                [f"{class_names[c]} {s:.2f}" for c, s in zip(labels, scores, strict=True)],
            )
            names.append(save_small(image, out / f"prediction_{i}.png"))
        return names

    def shown_image(self, path: Path) -> Image.Image:
        """The RGB image of a file on which detections are drawn, as the detector reads it."""
        with Image.open(path) as source:
            return source.convert("RGB")

    def training_model(self, student: Mapping[str, Any]) -> dict[str, Any]:
        """The detector's config without data and checkpoint, for counting its FLOPs.

        The number of classes is not known without the data; 80 is used. The error is less than one
        percent of the FLOPs.
        """
        return mm_config.without_sync_bn(self._model(student, Path("none"), 80))

    def training_size(self) -> tuple[int, int]:
        """(height, width) of a training image after padding by the data preprocessor."""
        width, height = self.recipe["scale"]
        return self._padded(height, width)

    def _padded(self, height: float, width: float) -> tuple[int, int]:
        unit = self.recipe["model"]["data_preprocessor"].get("pad_size_divisor", 1)
        return math.ceil(height / unit) * unit, math.ceil(width / unit) * unit

    def _classes(self, root: Path, split: str = "train") -> list[str]:
        """Category names in a split's annotations, in the order of their ids."""
        categories = read_strict(root / "annotations" / f"{split}.json")["categories"]
        return [c["name"] for c in sorted(categories, key=lambda c: c["id"])]

    def _model(self, student: Mapping[str, Any], checkpoint: Path, classes: int) -> dict[str, Any]:
        """The recipe's detector with the student's backbone and `classes` classes."""
        recipe, pyramid = self.recipe, mm_config.pyramid(student, f"task {self.name}")
        model = copy.deepcopy(recipe["model"])
        model["data_preprocessor"].update(mean=MEAN, std=STD, bgr_to_rgb=True)
        model["backbone"] = mm_config.backbone_cfg(
            student,
            checkpoint,
            pyramid["out_indices"],
            frozen_stages=recipe["frozen_stages"],
            norm_eval=recipe["norm_eval"],
        )
        model["neck"]["in_channels"] = list(pyramid["channels"])
        model["roi_head"]["bbox_head"]["num_classes"] = classes
        return model

    def _dataset(
        self, root: Path, split: str, classes: list[str], *, train: bool
    ) -> dict[str, Any]:
        """A split with boxes; for the test without flips, and without boxes in the samples."""
        scale = tuple(self.recipe["scale"])
        pipeline: list[dict[str, Any]] = [
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="Resize", scale=scale, keep_ratio=True),
        ]
        if train:
            pipeline += [dict(type="RandomFlip", prob=0.5), dict(type="PackDetInputs")]
        else:
            keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
            pipeline = [pipeline[0], pipeline[2], dict(type="PackDetInputs", meta_keys=keys)]
        return dict(
            type="KdepCocoDataset",
            data_root=str(root),
            ann_file=f"annotations/{split}.json",
            data_prefix=dict(img=f"{split}/"),
            metainfo=dict(classes=tuple(classes)),
            filter_cfg=dict(filter_empty_gt=True, min_size=MIN_SIZE) if train else None,
            test_mode=not train,
            pipeline=pipeline,
        )
