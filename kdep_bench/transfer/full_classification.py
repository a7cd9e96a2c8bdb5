"""Fine-tuning on CIFAR-100, CUB-200-2011, DTD and Caltech-256, with mmpretrain's data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdep_bench.data.official import caltech256, cifar100, cub200, dtd
from kdep_bench.errors import unknown_name
from kdep_bench.transfer import full_scale, mm_config
from kdep_bench.transfer.classification import FineTune, _classifier
from kdep_bench.transfer.counts import SplitCount

# Interpolation as in torchvision's transforms of PIL images, which KDEP's public code uses.
RESIZE_OPTIONS = dict(interpolation="bilinear", backend="pillow")


def datasets(name: str, root: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The configs of training and test set of a public data set, and its class names.

    DTD is trained on train and val of split 1, Caltech-256 on the first 60 images of each class.

    Args:
        name: name of the set.
        root: folder of the set.
    """
    if name == "cifar100":
        common = dict(type="KdepCIFAR100", data_root=str(root), download=False)
        return (
            {**common, "split": "train"},
            {**common, "split": "test", "test_mode": True},
            list(cifar100.read_split(root, "test")[2]),
        )
    if name == "cub200":
        from mmpretrain.datasets.categories import CUB_CATEGORIES

        common = dict(type="CUB", data_root=str(root / cub200.FOLDER))
        test = {**common, "split": "test", "test_mode": True}
        return {**common, "split": "train"}, test, list(CUB_CATEGORIES)
    if name == "dtd":
        from mmpretrain.datasets.categories import DTD_CATEGORIES

        common = dict(type="DTD", data_root=str(root / dtd.FOLDER))
        return (
            {**common, "split": "trainval"},
            {**common, "split": "test"},
            list(DTD_CATEGORIES),
        )
    if name == "caltech256":
        classes = caltech256.classes(root)
        train, test = (
            dict(
                type="CustomDataset",
                data_root=str(root),
                data_prefix="",
                ann_file=caltech256.LISTS[split],
                metainfo=dict(classes=tuple(classes)),
            )
            for split in ("train", "test")
        )
        return train, test, classes
    raise unknown_name("classification set", name, ("cifar100", "cub200", "dtd", "caltech256"))


class OfficialFineTune(FineTune):
    """Fine-tuning of all weights on a public data set with KDEP's recipe; the last epoch is scored.

    Keys of the recipe: `set` is the name of the set. The learning rate is divided by 10 every
    `step_epochs` epochs. In the test, the shorter edge is resized to `resize` times the input size
    (usually 256 / 224) before the centre crop; None: images are resized to the input size without a
    crop, for sets of tiny images.
    """

    recipe_keys: ClassVar[frozenset[str]] = frozenset(
        {
            "set",
            "epochs",
            "step_epochs",
            "batch",
            "test_batch",
            "lr",
            "head_lr_mult",
            "momentum",
            "weight_decay",
            "clip_norm",
            "crop_scale",
            "resize",
            "workers",
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

        recipe, px = self.recipe, int(student["input_px"])
        train, test, classes = datasets(recipe["set"], Path(data_root) / recipe["set"])
        train["pipeline"] = self._pipeline(px, train=True)
        test["pipeline"] = self._pipeline(px, train=False)
        cfg = mm_config.runtime_cfg("mmpretrain", work_dir, seed, checkpoint)
        cfg["custom_imports"]["imports"].append("kdep_bench.transfer.datasets")
        epochs = int(recipe["epochs"])
        cfg.update(
            model=_classifier(student, checkpoint, len(classes), recipe),
            train_dataloader=full_scale.loader(recipe, train, train=True),
            train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=mm_config.NEVER),
            val_dataloader=None,
            val_cfg=None,
            val_evaluator=None,
            test_dataloader=full_scale.loader(recipe, test, train=False),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=[
                dict(type="Accuracy", topk=(1,)),
                dict(type="SingleLabelMetric", items=("recall", "support"), average=None),
            ],
            optim_wrapper=mm_config.sgd(recipe, recipe["head_lr_mult"]),
            param_scheduler=[
                dict(
                    type="MultiStepLR",
                    by_epoch=True,
                    milestones=list(range(recipe["step_epochs"], epochs, recipe["step_epochs"])),
                    gamma=0.1,
                )
            ],
        )
        cfg["test_dataloader"]["dataset"]["metainfo"] = dict(classes=tuple(classes))
        return Config(mm_config.without_sync_bn(cfg))

    def check_data(self, data_root: Path) -> list[SplitCount]:
        name = self.recipe["set"]
        train = ("train", "val") if name == "dtd" else ("train",)
        return full_scale.split_counts(name, data_root, train, ("test",))

    def _pipeline(self, px: int, *, train: bool) -> list[dict[str, Any]]:
        recipe = self.recipe
        # The images of CIFAR-100 are arrays, not files.
        load = [] if recipe["set"] == "cifar100" else [dict(type="LoadImageFromFile")]
        if train:
            steps = [
                dict(
                    type="RandomResizedCrop",
                    scale=px,
                    crop_ratio_range=tuple(recipe["crop_scale"]),
                    **RESIZE_OPTIONS,
                ),
                dict(type="RandomFlip", prob=0.5, direction="horizontal"),
            ]
        elif recipe["resize"] is None:
            steps = [dict(type="Resize", scale=(px, px), **RESIZE_OPTIONS)]
        else:
            edge = round(px * recipe["resize"])
            steps = [
                dict(type="ResizeEdge", scale=edge, edge="short", **RESIZE_OPTIONS),
                dict(type="CenterCrop", crop_size=px),
            ]
        return [*load, *steps, dict(type="PackInputs")]
