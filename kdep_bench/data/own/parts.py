"""The parts of a user's data set, as read from its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kdep_bench.data.allowed import POOL
from kdep_bench.data.images import ImageInfo
from kdep_bench.data.listing import Listing
from kdep_bench.data.own.class_folders import Folders
from kdep_bench.data.own.coco_json import Boxes
from kdep_bench.data.own.masks import Masks
from kdep_bench.data.own.spec import DataConfig


@dataclass
class DataParts:
    """The content of a user's data set, by part.

    Attributes:
        config: the data config.
        pool: the images for pre-training.
        labelled: the class folders of the pool; None for a pool without labels.
        classify: class folders by split.
        detect: boxes by split.
        segment: pairs of image and mask by split.
        info: ImageInfo of every image, by the user's file.
    """

    config: DataConfig
    pool: Listing
    labelled: Folders | None = None
    classify: dict[str, Folders] = field(default_factory=dict)
    detect: dict[str, Boxes] = field(default_factory=dict)
    segment: dict[str, Masks] = field(default_factory=dict)
    info: dict[Path, ImageInfo] = field(default_factory=dict)

    def pool_files(self) -> list[Path]:
        """Paths of the pool images."""
        return [self.pool.root / n for n in self.pool.images]

    def task_files(self) -> dict[str, dict[str, list[Path]]]:
        """Images by part and split."""
        return {
            "classify": {s: f.files for s, f in self.classify.items()},
            "detect": {s: [b.folder / n for n in b.sizes] for s, b in self.detect.items()},
            "segment": {s: [image for image, _ in m.pairs] for s, m in self.segment.items()},
        }

    def sets(self) -> dict[str, list[Path]]:
        """Images by set, named as in the data config: "pool", "coco/train", ..."""
        keys = {"classify": "classify", "detect": "coco", "segment": "masks"}
        sets = {POOL: self.pool_files()}
        for part, splits in self.task_files().items():
            sets |= {f"{keys[part]}/{split}": files for split, files in splits.items()}
        return sets

    def files(self) -> list[Path]:
        """All images of all parts, without repetitions."""
        files = dict.fromkeys(self.pool_files())
        for splits in self.task_files().values():
            for images in splits.values():
                files |= dict.fromkeys(images)
        return list(files)
