"""Detection in another domain: boxes for source images only, scored on target or source images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from kdep_bench.data.domains import seed_from_name, to_domain
from kdep_bench.transfer import mm_config
from kdep_bench.transfer.detection import Detection

SEED_OFFSET = 1  # the target images are read in another order than the source images


class DomainDetection(Detection):
    """Trains a detector on the source images of `train`, and scores one domain of the split.

    The source domain is the images as they are. The target domain is the same images in fog, at
    night or as drawings (`domain` in the recipe, see `kdep_bench.data.domains`). `scored_on`
    ('target' or 'source') is the domain of the scored images. Two tasks that differ only in
    `scored_on` train the same detector.

    A transfer method can read the target images of `train` without their boxes, from the config
    key `unlabelled_dataloader`. Without such a method, they are not read.
    """

    recipe_keys: ClassVar[frozenset[str]] = Detection.recipe_keys | {"domain", "scored_on"}
    has_target_images: ClassVar[bool] = True
    # The task whose FLOPs are counted in place of this one, because the network is the same.
    counted_as: ClassVar[str] = "kdep_bench.transfer.detection.Detection"

    def build_cfg(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        work_dir: Path,
    ) -> Any:
        cfg = super().build_cfg(data_root, student, checkpoint, seed, work_dir)
        cfg.custom_imports.imports.append("kdep_bench.transfer.domain_images")
        change = dict(type="KdepChangeDomain", domain=self.recipe["domain"])
        if self._is_target:
            cfg.test_dataloader.dataset.pipeline.insert(1, change)
        root = Path(data_root) / self.recipe["folder"]
        target = without_boxes(self._dataset(root, "train", self._classes(root), train=True))
        target["pipeline"].insert(1, change)
        loader = mm_config.loader(target, self.recipe["batch"], train=True, infinite=True)
        cfg.unlabelled_dataloader = in_another_order(loader, seed)
        return cfg

    @property
    def _is_target(self) -> bool:
        return self.recipe["scored_on"] == "target"

    def shown_image(self, path: Path) -> Image.Image:
        image = super().shown_image(path)
        if not self._is_target:
            return image
        pixels = to_domain(np.asarray(image), self.recipe["domain"], seed_from_name(path.name))
        return Image.fromarray(pixels)


def without_boxes(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a training data set of mmdet, without its boxes.

    They are also not used to choose the images: those without an object are read as well.

    Args:
        dataset: the config; the second transform of its pipeline loads the boxes.
    """
    load, _annotations, *rest = dataset["pipeline"]
    chosen = {**dataset["filter_cfg"], "filter_empty_gt": False}
    return {**dataset, "pipeline": [load, *rest], "filter_cfg": chosen}


def in_another_order(loader: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The config of a loader of target images, in another order than the source images.

    Args:
        loader: the config of the loader.
        seed: the seed of the training, which gives the order of the source images.
    """
    sampler = {**loader["sampler"], "seed": int(seed) + SEED_OFFSET}
    return {**loader, "sampler": sampler}
