"""A COCO data set and a metric for mmdet that identify classes by name, not by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import DATASETS, METRICS

from kdep_bench.errors import KdepError, first_of


def category_ids(coco: COCO, names: Sequence[str]) -> list[int]:
    """Category ids in the order of `names`.

    mmdet returns the ids in the order of the file. If the files of two splits list their categories
    in different orders, the same label would then mean different classes, and CocoMetric would
    report the AP of one class under the name of another.

    Raises:
        KdepError: a name is missing in the file, or occurs twice.
    """
    categories = coco.load_cats(coco.get_cat_ids())
    ids: list[int] = []
    for name in names:
        matches = [c["id"] for c in categories if c["name"] == name]
        if len(matches) != 1:
            raise KdepError(
                f"an annotation file has {len(matches)} categories named {name!r}",
                expected="exactly one",
                fix="correct `categories` in the json of every split",
            )
        ids += matches
    return ids


@DATASETS.register_module(name="KdepCocoDataset")
class NamedCocoDataset(CocoDataset):
    """A CocoDataset in which label k means the k-th name in `metainfo["classes"]`."""

    class COCOAPI(COCO):
        def get_cat_ids(
            self, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()
        ) -> list[int]:
            if not cat_names:
                return super().get_cat_ids([], sup_names, cat_ids)
            return category_ids(self, cat_names)


@METRICS.register_module(name="KdepCocoMetric")
class NamedCocoMetric(CocoMetric):
    """CocoMetric for labels that are indices into `dataset_meta["classes"]`.

    The category ids must increase in the order of these classes. pycocotools sorts categories by
    id, and CocoMetric reads the AP of each class by its position, so with any other order it would
    report an AP under the name of another class. Such data is rejected.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        assert self.dataset_meta is not None
        assert self._coco_api is not None
        names = list(self.dataset_meta["classes"])
        self.cat_ids = category_ids(self._coco_api, names)
        if self.cat_ids != sorted(self.cat_ids):
            raise KdepError(
                f"in the annotations of the evaluated split, the classes {first_of(names, 8)} "
                f"have the ids {first_of(self.cat_ids, 8)}",
                expected="ids in the order of the training split's classes",
                fix="give every category the same id in every split",
            )
        return super().compute_metrics(results)
