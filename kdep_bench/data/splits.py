"""Divides items into splits such that all items of a group are in the same split.

A group is, for example, several images of one object, or several photographs of one place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import numpy as np

#: Fraction of the items of each label per split. 'pool' is for pre-training, the others for tasks.
SPLIT_FRACTIONS = {"pool": 0.45, "train": 0.25, "val": 0.10, "test": 0.20}


class Grouped(Protocol):
    """An item with a unique name, a class label and the name of its group."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def group(self) -> str: ...


Item = TypeVar("Item", bound=Grouped)


def split_by_group(items: Iterable[Item], seed: int) -> dict[str, list[Item]]:
    """Items by split, stratified by label.

    The groups of a label are shuffled with `seed` and sorted by size, largest first. Each group is
    assigned to the split that is furthest below its fraction of that label's items. The label of a
    group is that of its first item.
    """
    groups: dict[str, list[Item]] = {}
    for item in sorted(items, key=lambda i: i.name):
        groups.setdefault(item.group, []).append(item)
    by_label: dict[str, list[list[Item]]] = {}
    for members in groups.values():
        by_label.setdefault(members[0].label, []).append(members)
    out: dict[str, list[Item]] = {split: [] for split in SPLIT_FRACTIONS}
    for number, label in enumerate(sorted(by_label)):
        order = np.random.default_rng([seed, number]).permutation(len(by_label[label]))
        shuffled = sorted((by_label[label][i] for i in order), key=len, reverse=True)
        total, taken = sum(map(len, shuffled)), dict.fromkeys(SPLIT_FRACTIONS, 0)
        for members in shuffled:
            split = max(SPLIT_FRACTIONS, key=lambda s: SPLIT_FRACTIONS[s] * total - taken[s])
            taken[split] += len(members)
            out[split].extend(members)
    return out
