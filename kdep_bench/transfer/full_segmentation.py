"""Segmentation on Cityscapes, VOC12 (trainaug) and ADE20K with PSPNet and mmseg's data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdep_bench.data.official import ade20k, voc
from kdep_bench.errors import unknown_name
from kdep_bench.transfer import full_scale, mm_config
from kdep_bench.transfer.counts import SplitCount
from kdep_bench.transfer.segmentation import Segmentation

# {set: its class in mmseg}
KINDS = {"cityscapes": "CityscapesDataset", "voc": "PascalVOCDataset", "ade20k": "ADE20KDataset"}
# {set: (splits for training, splits for the test)}
SPLITS = {
    "cityscapes": (("train",), ("val",)),
    "voc": (("segmentation_train", "segmentation_aug"), ("segmentation_val",)),
    "ade20k": (("training",), ("validation",)),
}


def datasets(
    name: str, root: Path, *, train: bool, pipeline: list[dict[str, Any]]
) -> dict[str, Any]:
    """The config of mmseg's data set for the official training or validation split.

    Args:
        name: name of the set.
        root: folder of the set.
        train: whether to return the training set.
        pipeline: transforms of the images.
    """
    if name not in KINDS:
        raise unknown_name("segmentation set", name, KINDS)
    common = dict(type=KINDS[name], test_mode=not train, pipeline=pipeline)
    if name == "cityscapes":
        split = "train" if train else "val"
        prefix = dict(img_path=f"leftImg8bit/{split}", seg_map_path=f"gtFine/{split}")
        return dict(common, data_root=str(root), data_prefix=prefix)
    if name == "ade20k":
        split = "training" if train else "validation"
        prefix = dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}")
        return dict(common, data_root=str(root / ade20k.FOLDER), data_prefix=prefix)

    def part(split: str, masks: str) -> dict[str, Any]:
        return dict(
            common,
            data_root=str(root / voc.DEVKIT / "VOC2012"),
            data_prefix=dict(img_path="JPEGImages", seg_map_path=masks),
            ann_file=f"ImageSets/Segmentation/{split}.txt",
        )

    if not train:
        return part("val", "SegmentationClass")
    both = [part("train", "SegmentationClass"), part("aug", "SegmentationClassAug")]
    return dict(type="ConcatDataset", datasets=both)


def class_names(name: str) -> tuple[tuple[str, ...], list[list[int]]]:
    """Class names and palette of a set, as mmseg defines them."""
    import mmseg.datasets

    meta = getattr(mmseg.datasets, KINDS[name]).METAINFO
    return tuple(meta["classes"]), [list(c) for c in meta["palette"]]


class OfficialSegmentation(Segmentation):
    """Trains for a fixed number of steps; the mIoU on the validation split is computed once.

    The mIoU is computed at a single scale and full size. Keys of the recipe: `set` is the name of
    the set; a random factor in `resize_ratio` multiplies `scale` in training. The learning rate
    decreases to 0 as (1 - step / iters) ** `poly_power`, without warm-up.
    """

    recipe_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "set",
            "model",
            "scale",
            "resize_ratio",
            "crop",
            "iters",
            "batch",
            "test_batch",
            "lr",
            "head_lr_mult",
            "momentum",
            "weight_decay",
            "clip_norm",
            "poly_power",
            "frozen_stages",
            "norm_eval",
            "dilate",
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
        name, root = recipe["set"], Path(data_root) / self.recipe["set"]
        self._name_classes()
        cfg = mm_config.runtime_cfg(self.scope, work_dir, seed, checkpoint)
        cfg["custom_imports"]["imports"].append("kdep_bench.transfer.iou")
        train = datasets(name, root, train=True, pipeline=self._pipeline(train=True))
        test = datasets(name, root, train=False, pipeline=self._pipeline(train=False))
        model = self._model(student, checkpoint)
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
            test_evaluator=dict(type="KdepIoUMetric", iou_metrics=["mIoU"]),
            optim_wrapper=mm_config.sgd(recipe, recipe["head_lr_mult"]),
            param_scheduler=[
                dict(
                    type="PolyLR",
                    power=recipe["poly_power"],
                    eta_min=0.0,
                    by_epoch=False,
                    begin=0,
                    end=iters,
                )
            ],
        )
        return Config(mm_config.without_sync_bn(cfg))

    def check_data(self, data_root: Path) -> list[SplitCount]:
        train, test = SPLITS[self.recipe["set"]]
        return full_scale.split_counts(self.recipe["set"], data_root, train, test)

    def read_metrics(
        self, raw: Mapping[str, Any], cfg: Any, count: Any
    ) -> tuple[dict[str, float], dict[str, float], list[str]]:
        self._name_classes()
        return super().read_metrics(raw, cfg, count)

    def draw(self, runner: Any, out: Path) -> list[str]:
        return []  # because of their licences, images of official sets are not copied

    def training_model(self, student: Mapping[str, Any]) -> dict[str, Any]:
        self._name_classes()
        return super().training_model(student)

    def _name_classes(self) -> None:
        """Adds the set's class names and colours to the recipe, which `Segmentation` reads."""
        self.recipe["classes"], self.recipe["palette"] = class_names(self.recipe["set"])

    def _pipeline(self, *, train: bool) -> list[dict[str, Any]]:
        recipe = self.recipe
        labels: dict[str, Any] = dict(type="LoadAnnotations")
        if recipe["set"] == "ade20k":
            labels["reduce_zero_label"] = True
        if not train:  # images and labels at full size
            return [dict(type="LoadImageFromFile"), labels, dict(type="PackSegInputs")]
        return [
            dict(type="LoadImageFromFile"),
            labels,
            dict(
                type="RandomResize",
                scale=tuple(recipe["scale"]),
                ratio_range=tuple(recipe["resize_ratio"]),
                keep_ratio=True,
            ),
            dict(type="RandomCrop", crop_size=tuple(recipe["crop"]), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackSegInputs"),
        ]
