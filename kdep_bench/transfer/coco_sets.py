"""COCO data sets for mmdet whose classes are identified by name, not by place in the json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import DATASETS, METRICS

from kdep_bench.errors import KdepError


def ids_of(coco: COCO, names: Sequence[str]) -> list[int]:
    """Category ids in the order of `names`; mmdet gives them in the order of the file.

    With the order of the file, one label would mean two classes where the files of two splits list
    their categories in different orders, and CocoMetric would report the AP of one class under the
    name of another.

    Raises:
        KdepError: a name that the file does not have, or has twice.
    """
    categories = coco.load_cats(coco.get_cat_ids())
    ids: list[int] = []
    for name in names:
        found = [c["id"] for c in categories if c["name"] == name]
        if len(found) != 1:
            raise KdepError(
                f"an annotation file has {len(found)} categories named {name!r}",
                expected="exactly one",
                fix="correct `categories` in the json of every split",
            )
        ids += found
    return ids


@DATASETS.register_module(name="KdepCocoDataset")
class NamedCocoDataset(CocoDataset):
    """CocoDataset whose label k is the k-th name of `metainfo["classes"]`."""

    class COCOAPI(COCO):
        def get_cat_ids(
            self, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()
        ) -> list[int]:
            if not cat_names:
                return super().get_cat_ids([], sup_names, cat_ids)
            return ids_of(self, cat_names)


@METRICS.register_module(name="KdepCocoMetric")
class NamedCocoMetric(CocoMetric):
    """CocoMetric for labels that count `dataset_meta["classes"]`, in increasing order of their ids.

    pycocotools sorts categories by id, and CocoMetric reads each class's AP by its place among
    them, so any other order would give an AP to the wrong name: it is refused.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        assert self.dataset_meta is not None
        assert self._coco_api is not None
        names = list(self.dataset_meta["classes"])
        self.cat_ids = ids_of(self._coco_api, names)
        if self.cat_ids != sorted(self.cat_ids):
            raise KdepError(
                f"in the annotations of the evaluated split, the classes {', '.join(names[:8])} "
                f"have the ids {self.cat_ids[:8]}",
                expected="ids in the order of the training split's classes",
                fix="give every category the same id in every split",
            )
        return super().compute_metrics(results)
