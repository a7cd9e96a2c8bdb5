"""A data set of class folders for mmpretrain that lists files as the rest of kdep_bench does."""

from __future__ import annotations

from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS

from kdep_bench.data.listing import class_names, list_images
from kdep_bench.errors import KdepError, first_of


@DATASETS.register_module(name="KdepFolders")
class ClassFolders(CustomDataset):
    """Images of class folders, sorted by class and then by path, as in CustomDataset.

    Differences from CustomDataset: the accepted file suffixes are those of
    `kdep_bench.data.listing`, hidden folders are skipped, and the class number of a folder is
    determined by its name, not by its position.
    """

    def _find_samples(self) -> list[tuple[str, int]]:
        folders = class_names(self.img_prefix)
        names = list(self.CLASSES or folders)
        if sorted(names) != folders:
            different = sorted(set(names) ^ set(folders))
            raise KdepError(
                f"the class folders of {self.img_prefix} differ from the {len(names)} classes of "
                f"the task: {first_of(different, 3)}",
                expected="one folder per class",
                fix="give every split the same class folders",
            )
        self.folder_to_idx = {name: names.index(name) for name in folders}
        by_class = list_images(self.img_prefix).by_class()
        return [(file, self.folder_to_idx[n]) for n in folders for file in by_class.get(n, ())]
