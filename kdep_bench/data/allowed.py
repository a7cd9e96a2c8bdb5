"""Pairs of image sets that are checked for shared images, and `allow_duplicates` of a data config.

The name of a set is "pool" (all pre-training images), or "<part>/<split>" of a data set that the
data config names, such as "coco/train".
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

from kdep_bench.errors import KdepError, unknown_name

POOL = "pool"


def compared_pairs(sets: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of sets that are compared: the pool with each split, and the splits of each part."""
    order = sorted(sets, key=_sort_key)
    return [
        (a, b)
        for a, b in combinations(order, 2)
        if POOL in (a, b) or a.split("/")[0] == b.split("/")[0]
    ]


def _sort_key(name: str) -> tuple[bool, str, int, str]:
    """Sorts the pool first, then by part, then train, val, test and other splits."""
    part, _, split = name.partition("/")
    usual = ("train", "val", "test")
    position = usual.index(split) if split in usual else len(usual)
    return name != POOL, part, position, split


def read_allowed(allow: Any, sets: Iterable[str]) -> set[frozenset[str]]:
    """`allow_duplicates=[["pool", "coco/test"], ...]` of a data config as a set of pairs.

    Raises:
        KdepError: not a list of pairs, a set that the config does not have, or a pair that is not
            compared.
    """
    names, out = list(sets), set()
    example = next((f"[{a!r}, {b!r}]" for a, b in compared_pairs(names)), "['pool', 'coco/test']")
    if not isinstance(allow, list | tuple):
        allow = [allow]
    for pair in allow:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise KdepError(
                f"`allow_duplicates` of the data config contains {pair!r:.60}",
                expected="pairs of sets that may share images",
                fix=f"write allow_duplicates=[{example}]",
            )
        for name in pair:
            if name not in names:
                raise unknown_name(
                    "set", str(name), names, place="`allow_duplicates` of the data config"
                )
        if frozenset(pair) not in {frozenset(p) for p in compared_pairs(names)}:
            raise KdepError(
                f"`allow_duplicates` of the data config contains the pair {list(pair)}, which is "
                "never compared",
                expected="the pool and a split, or two splits of one part",
                fix=f"remove it, or write a pair such as {example}",
            )
        out.add(frozenset(pair))
    return out
