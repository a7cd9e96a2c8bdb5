"""Domain adaptation on official data: detection in the fog of Foggy Cityscapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from kdep_bench.data.official import foggy_cityscapes as foggy
from kdep_bench.files import read_json
from kdep_bench.transfer import full_scale
from kdep_bench.transfer.counts import SplitCount, trained_images
from kdep_bench.transfer.domain_detection import in_another_order, without_boxes
from kdep_bench.transfer.full_detection import MIN_SIZE, OfficialDetection

CLASSES = tuple(foggy.CLASSES.values())


class FoggyCityscapes(OfficialDetection):
    """Trains on clear scenes with boxes, and scores the foggy or the clear scenes of `val`.

    `scored_on` in the recipe is 'target' (foggy) or 'source' (clear). Two tasks that differ only in
    it train the same detector. A transfer method can read the foggy training scenes without their
    boxes, from the config key `unlabelled_dataloader`. Without such a method, they are not read.

    The foggy scenes are the clear ones with simulated fog, but they are read in another order, so
    a batch does not pair a scene with its own foggy version.
    """

    recipe_keys: ClassVar[frozenset[str]] = OfficialDetection.recipe_keys | {"scored_on"}
    has_target_images: ClassVar[bool] = True
    aspect: ClassVar[float] = 2.0  # 2048 x 1024 pixels
    # The task whose FLOPs are counted in place of this one, because the network is the same.
    counted_as: ClassVar[str] = "kdep_bench.transfer.full_detection.OfficialDetection"

    def build_cfg(
        self,
        data_root: Path,
        student: Mapping[str, Any],
        checkpoint: Path,
        seed: int,
        work_dir: Path,
    ) -> Any:
        cfg = super().build_cfg(data_root, student, checkpoint, seed, work_dir)
        root = Path(data_root) / self.recipe["set"]
        target = without_boxes(self._domain(root, "foggy", train=True))
        loader = full_scale.loader(self.recipe, target, train=True, infinite=True)
        cfg.unlabelled_dataloader = in_another_order(loader, seed)
        return cfg

    def check_data(self, data_root: Path) -> list[SplitCount]:
        root = Path(data_root) / self.recipe["set"]
        counts = full_scale.verified_counts(self.recipe["set"], data_root)
        file = foggy.annotation_file(root, "clear", "train")
        trained, note = trained_images(read_json(file), CLASSES, MIN_SIZE)
        tested = counts[f"val_{self._scored}_images"]
        place = foggy.annotation_file(root, self._scored, "val")
        return [
            SplitCount("train", "train", trained, file, note),
            SplitCount("test", "val", tested, place),
        ]

    @property
    def _scored(self) -> str:
        """The domain of the scored images, a key of `foggy.DOMAINS`."""
        return "foggy" if self.recipe["scored_on"] == "target" else "clear"

    def _class_names(self) -> tuple[str, ...]:
        return CLASSES

    def _datasets(self, root: Path, *, train: bool) -> dict[str, Any]:
        domain = "clear" if train else self._scored
        return self._domain(root, domain, train=train)

    def _domain(self, root: Path, domain: str, *, train: bool) -> dict[str, Any]:
        """The config of mmdet's data set for a domain of the training or test split."""
        split = "train" if train else "val"
        folder, _ = foggy.DOMAINS[domain]
        return dict(
            type="KdepCocoDataset",
            data_root=str(root),
            ann_file=str(foggy.annotation_file(Path(), domain, split)),
            data_prefix=dict(img=f"{folder}/{split}/"),
            metainfo=dict(classes=CLASSES),
            filter_cfg=dict(filter_empty_gt=True, min_size=MIN_SIZE) if train else None,
            test_mode=not train,
            pipeline=self._pipeline(train=train),
        )

    def _evaluator(self, root: Path) -> dict[str, Any]:
        file = foggy.annotation_file(root, self._scored, "val")
        return dict(type="KdepCocoMetric", ann_file=str(file), metric="bbox", classwise=True)
