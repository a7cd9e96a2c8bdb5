"""Detection on VOC07+12 and COCO with Faster R-CNN (C4 or FPN) and mmdet's data sets."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdep_bench.data.official import coco, voc
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import read_json
from kdep_bench.transfer import full_scale, mm_config
from kdep_bench.transfer.base import MEAN, STD
from kdep_bench.transfer.counts import SplitCount, omission_note, trained_images
from kdep_bench.transfer.detection import Detection

MIN_SIZE = 32  # pixels; training images with a shorter side below it are omitted by mmdet
TEST_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")


def datasets(
    name: str, root: Path, *, train: bool, pipeline: list[dict[str, Any]]
) -> dict[str, Any]:
    """The config of mmdet's data set for the official training or test split.

    Args:
        name: name of the set.
        root: folder of the set.
        train: whether to return the training set.
        pipeline: transforms of the images.
    """
    common: dict[str, Any] = dict(pipeline=pipeline, test_mode=not train)
    if train:
        common["filter_cfg"] = dict(filter_empty_gt=True, min_size=MIN_SIZE)
    if name == "coco":
        split = "train2017" if train else "val2017"
        return dict(
            common,
            type="KdepCocoDataset",
            data_root=str(root),
            ann_file=f"annotations/instances_{split}.json",
            data_prefix=dict(img=f"{split}/"),
        )
    if name != "voc":
        raise unknown_name("detection set", name, ("coco", "voc"))

    def part(year: str, split: str) -> dict[str, Any]:
        return dict(
            common,
            type="VOCDataset",
            data_root=str(root / voc.DEVKIT),
            ann_file=f"{year}/ImageSets/Main/{split}.txt",
            data_prefix=dict(sub_data_root=f"{year}/"),
        )

    if not train:
        return part(*voc.DETECTION[2])
    return dict(type="ConcatDataset", datasets=[part(*d) for d in voc.DETECTION[:2]])


class OfficialDetection(Detection):
    """Trains for a fixed number of steps; the AP on val2017 or 07 test is computed once.

    Keys of the recipe: `set` is the name of the set. With `head` 'c4', the RPN reads the output of
    the backbone's third stage, and the backbone's last stage is applied to every RoI; with 'fpn',
    the FPN reads all four stages. In both cases all tensors of the exported backbone are in the
    detector, and are compared with the file before training (`gate.LoadGate`). `scales` are lengths
    of the short edge in training; one is drawn for each image. `test_scale` is the short edge in
    testing, and `long_edge` limits the long edge. `steps` are fractions of `iters`.

    COCO is scored by CocoMetric, VOC by the 11-point AP over ten IoU thresholds.
    """

    voc_measures = frozenset({"AP", "AP50", "AP75"})
    aspect: ClassVar[float] = 4 / 3  # width / height of most images of COCO and VOC
    recipe_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "set",
            "head",
            "model",
            "scales",
            "test_scale",
            "long_edge",
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
            "workers",
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
        root = Path(data_root) / recipe["set"]
        cfg = mm_config.runtime_cfg(self.scope, work_dir, seed, checkpoint)
        cfg["custom_imports"]["imports"] += [
            "kdep_bench.transfer.coco_sets",
            "kdep_bench.transfer.datasets",
        ]
        if recipe["head"] == "c4":
            cfg["custom_hooks"][0]["parts"] = ["backbone", "roi_head.shared_head"]
        train, test = self._datasets(root, train=True), self._datasets(root, train=False)
        model = self._full_model(student, checkpoint)
        cfg.update(
            model=model,
            train_dataloader=full_scale.loader(recipe, train, train=True, infinite=True),
            train_cfg=dict(
                type="IterBasedTrainLoop",
                max_iters=iters,
                val_interval=max(iters + 1, mm_config.NEVER),
            ),
            val_dataloader=None,
            val_cfg=None,
            val_evaluator=None,
            test_dataloader=full_scale.loader(recipe, test, train=False),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=self._evaluator(root),
            optim_wrapper=mm_config.sgd(recipe, recipe["head_lr_mult"]),
            param_scheduler=mm_config.step_schedule(recipe, iters),
        )
        return Config(mm_config.without_sync_bn(cfg))

    def check_data(self, data_root: Path) -> list[SplitCount]:
        name, root = self.recipe["set"], Path(data_root) / self.recipe["set"]
        counts = full_scale.verified_counts(name, data_root)
        if name == "coco":
            file = root / "annotations" / "instances_train2017.json"
            trained, note = trained_images(read_json(file), coco.NAMES.values(), MIN_SIZE)
            tested = counts["val2017_images"]
        else:
            objects = voc.training_objects(root)
            trained = sum(n > 0 and side >= MIN_SIZE for n, side in objects)
            small = sum(side < MIN_SIZE for _, side in objects)
            note = omission_note(len(objects), trained, small, MIN_SIZE)
            tested = counts["2007_test_images"]
        return [
            SplitCount("train", "train", trained, root, note),
            SplitCount("test", "test", tested, root),
        ]

    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        if self.recipe["set"] != "voc":
            named = copy.deepcopy(cfg)
            named.test_dataloader.dataset.metainfo = dict(classes=self._class_names())
            return super().read_metrics(raw, named, count)
        metrics = {k: float(raw[f"pascal_voc/{k}"]) for k in ("AP", "AP50", "AP75")}
        return metrics, {c: float(raw[f"pascal_voc/AP.{c}"]) for c in voc.CLASSES}, []

    def draw(self, runner: Any, out: Path) -> list[str]:
        return []  # because of their licences, images of official sets are not copied

    def training_model(self, student: Mapping[str, Any]) -> dict[str, Any]:
        return mm_config.without_sync_bn(self._full_model(student, Path("none")))

    def training_size(self) -> tuple[int, int]:
        """(height, width) of a typical training image.

        The aspect ratio is `aspect`. The short edge is the root mean square of the recipe's
        `scales`.
        """
        scales = self.recipe["scales"]
        short = math.sqrt(sum(s * s for s in scales) / len(scales))
        return self._padded(short, min(short * self.aspect, self.recipe["long_edge"]))

    def _datasets(self, root: Path, *, train: bool) -> dict[str, Any]:
        """The config of mmdet's data set for the training or test split; `root`: the set's."""
        pipeline = self._pipeline(train=train)
        return datasets(self.recipe["set"], root, train=train, pipeline=pipeline)

    def _class_names(self) -> tuple[str, ...]:
        return voc.CLASSES if self.recipe["set"] == "voc" else tuple(coco.NAMES.values())

    def _evaluator(self, root: Path) -> dict[str, Any]:
        if self.recipe["set"] == "voc":
            return dict(type="KdepVOCMetric", metric="mAP", eval_mode="11points")
        file = root / "annotations" / "instances_val2017.json"
        return dict(type="KdepCocoMetric", ann_file=str(file), metric="bbox", classwise=True)

    def _full_model(self, student: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
        """The recipe's detector with the student's backbone; see the class for both heads."""
        recipe, pyramid = self.recipe, mm_config.pyramid(student, f"task {self.name}")
        model = copy.deepcopy(recipe["model"])
        model["data_preprocessor"].update(mean=MEAN, std=STD, bgr_to_rgb=True)
        stages: dict[str, Any] = {}
        indices = pyramid["out_indices"]
        if recipe["head"] == "c4":
            if not str(student["backbone"]["type"]).endswith("ResNet"):
                raise KdepError(
                    f"task {self.name} builds a C4 detector, which needs a ResNet, but the "
                    f"student {student['name']} is a {student['backbone']['type']}",
                    fix="use the FPN task of the same data set",
                )
            indices = pyramid["out_indices"][2:3]
            stages = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1))
            self._share_last_stage(model, student, checkpoint, pyramid["channels"])
        else:
            model["neck"]["in_channels"] = list(pyramid["channels"])
        model["backbone"] = mm_config.backbone_cfg(
            student,
            checkpoint,
            indices,
            frozen_stages=recipe["frozen_stages"],
            norm_eval=recipe["norm_eval"],
            **stages,
        )
        model["roi_head"]["bbox_head"]["num_classes"] = len(self._class_names())
        return model

    def _share_last_stage(
        self,
        model: dict[str, Any],
        student: Mapping[str, Any],
        checkpoint: Path,
        channels: list[int],
    ) -> None:
        """Adds stage 4 of the backbone to the RoI head, with weights of the same exported file."""
        roi = model["roi_head"]
        roi["shared_head"] = dict(
            type="ResLayer",
            depth=int(student["backbone"]["depth"]),
            stage=3,
            stride=2,
            style="pytorch",
            norm_cfg=dict(type="BN", requires_grad=True),
            norm_eval=self.recipe["norm_eval"],
            init_cfg=dict(type="Pretrained", checkpoint=str(checkpoint)),
        )
        model["rpn_head"]["in_channels"] = channels[2]
        roi["bbox_roi_extractor"]["out_channels"] = channels[2]
        roi["bbox_head"]["in_channels"] = channels[3]

    def _pipeline(self, *, train: bool) -> list[dict[str, Any]]:
        recipe = self.recipe
        load = dict(type="LoadImageFromFile")
        labels = dict(type="LoadAnnotations", with_bbox=True)
        if train:
            scales = [(recipe["long_edge"], s) for s in recipe["scales"]]
            resize = dict(type="RandomChoiceResize", scales=scales, keep_ratio=True)
            flip = dict(type="RandomFlip", prob=0.5)
            return [load, labels, resize, flip, dict(type="PackDetInputs")]
        scale = (recipe["long_edge"], recipe["test_scale"])
        resize = dict(type="Resize", scale=scale, keep_ratio=True)
        # Annotations are loaded after the resize: VOCMetric needs them at the original size.
        return [load, resize, labels, dict(type="PackDetInputs", meta_keys=TEST_KEYS)]
