"""Splits by source: a group (an object with its twins, a place) is in exactly one split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import numpy as np

#: Shares of the groups; 'pool' feeds pre-training, the others the downstream tasks.
SPLIT_FRACTIONS = {"pool": 0.45, "train": 0.25, "val": 0.10, "test": 0.20}


class Grouped(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def group(self) -> str: ...


Item = TypeVar("Item", bound=Grouped)


def split_by_group(items: Iterable[Item], seed: int) -> dict[str, list[Item]]:
    """Items by split, stratified by label.

    Each label's groups are shuffled by `seed`, large groups first, and each goes to the split
    furthest below its share of that label's items, so that every split has some of every label.
    A group belongs to the label of its first item.
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
