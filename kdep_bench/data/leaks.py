"""Finds images that two splits share: equal files, and near duplicates by a perceptual hash.

The hash is `imagehash.phash` with 256 bits. Each bit states whether one of the 16 x 16 lowest DCT
coefficients of the 64 x 64 grey image is above their median. Two images are near duplicates if at
most MAX_DIFFERENT_BITS bits differ. Measured on 2,500 images of the pocket pool, 178 photographs
and synthetic images:

| change of an image | bits that differ: median, 95th percentile |
|---|---|
| JPEG quality 75 / 30, half the size, twice the size | 2, 4 / 4, 10 / 0, 2 / 0, 2 |
| brightness x 1.2, contrast x 0.8, grey, noise of sd 8 | 4, 16 / 2, 4 / 0, 0 / 4, 8 |
| 2 % / 5 % of each side cropped | 26, 38 / 74, 98: not found |
| mirrored | 128, 132: not found |

| different images | pairs | smallest distance in bits | pairs within 20 bits |
|---|---:|---:|---:|
| different pocket images | 3,123,750 | 40 | 0 |
| different photographs | 15,753 | 86 | 0 |
| uniform noise | 499,500 | 90 | 0 |
| squares of one size and two colours on noise, at random places | 1,124,250 | 40 | 0 |
| one background, a small object at different places | 319,600 | 2 | 55 |

With the usual 64 bits, 518 pairs of the squares differ by 2 bits at most. Images without contrast
(standard deviation below `images.NO_CONTRAST_SD`) have no hash, because all of them would
be duplicates.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.allowed import POOL, compared_pairs
from kdep_bench.data.images import ImageInfo
from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError

MAX_DIFFERENT_BITS = 20  # maximum number of differing bits of near duplicates
BITS = 256
MAX_EXAMPLES = 5  # maximum number of pairs of files that an output names
_BLOCK = 32  # candidates per query that are compared at once
_QUERIES = 4096  # queries that are compared at once; limits the memory


@dataclass
class Leak:
    """Images that are in two sets, `first` and `second`.

    Attributes:
        first: name of a set: "pool", "coco/train", ...
        second: name of the other set, which is later in the order pool, train, val, test.
        images: number of images of `second`.
        equal: number of files of `second` that are byte for byte equal to one of `first`.
        near: number of other images of `second` that are near duplicates of one of `first`.
        examples: [file of `second`, file of `first`, "equal" or the number of bits that differ];
            each path is shortened to the file and its folder.
        allowed: whether the data config allows this pair in `allow_duplicates`.
    """

    first: str
    second: str
    images: int
    equal: int = 0
    near: int = 0
    examples: list[list[str]] = field(default_factory=list)
    allowed: bool = False

    @property
    def part(self) -> str:
        """The part of the data config whose scores are affected."""
        return self.second.partition("/")[0]

    @property
    def is_harmless(self) -> bool:
        """Whether the sets are the pool and a training split, so that no test score changes."""
        return self.first == POOL and self.second.endswith("/train")

    def sentence(self) -> str:
        """A note to show with a score."""
        split, first_split = self.second.partition("/")[2], self.first.rpartition("/")[2]
        both = self.equal + self.near
        kinds = [f"{n} {kind}{'s' * (n > 1)}" for n, kind in self._kinds() if n]
        pair = self.examples[0]
        return (
            f"{both} of {self.images} images of {split} {'are' if both > 1 else 'is'} also in "
            f"{first_split} ({', '.join(kinds)}), such as {pair[0]} and {pair[1]}"
        )

    def _kinds(self) -> tuple[tuple[int, str], tuple[int, str]]:
        return (self.equal, "equal file"), (self.near, "near duplicate")


def find(
    sets: Mapping[str, Sequence[Path]],
    info: Mapping[Path, ImageInfo],
    allowed: Collection[frozenset[str]] = (),
) -> list[Leak]:
    """Images shared between the pool and each split, and between the splits of each part.

    Args:
        sets: files by name of the set: "pool", or "<part>/<split>".
        info: ImageInfo of every file.
        allowed: pairs of sets that the data config allows to share images, see
            `allowed.read_allowed`.

    Returns:
        one Leak per pair of sets that share images.
    """
    hashes = {name: _Hashes(files, info) for name, files in sets.items()}
    leaks = []
    for first, second in compared_pairs(sets):
        leak = _compare(first, second, hashes[first], hashes[second])
        if leak.equal or leak.near:
            leak.allowed = frozenset((first, second)) in allowed
            leaks.append(leak)
    return leaks


def check_paths(
    sets: Mapping[str, Sequence[Path]], allowed: Collection[frozenset[str]] = ()
) -> list[KdepError]:
    """One error per pair of splits of one part with a common file, unless it is in `allowed`."""
    real = {n: {os.path.realpath(f): f for f in files} for n, files in sets.items() if n != POOL}
    faults = []
    for first, second in compared_pairs(real):
        same = sorted(real[first].keys() & real[second].keys())
        if same and frozenset((first, second)) not in allowed:
            faults.append(
                KdepError(
                    f"{first} and {second} of the data config share {len(same)} image files, such "
                    f"as {shown(real[second][same[0]])}",
                    expected="different images in each split, because a score on training images "
                    "is meaningless",
                    fix="list them in one of the two splits only, or allow it with "
                    f"allow_duplicates=[[{first!r}, {second!r}]] in the data config",
                )
            )
    return faults


def notes(leaks: Iterable[Leak]) -> dict[str, list[str]]:
    """Notes to show with the scores, by part of the data config.

    There is none for an allowed pair, or for the pool and a training split.
    """
    out: dict[str, list[str]] = {}
    for leak in leaks:
        if not leak.allowed and not leak.is_harmless:
            out.setdefault(leak.part, []).append(leak.sentence())
    return out


def table(leaks: Iterable[Leak]) -> list[dict[str, Any]]:
    """The leaks as plain values, for the outputs of `prepare` and the data card."""
    return [asdict(leak) for leak in leaks]


class _Hashes:
    """SHA-256 (`content`) and perceptual hashes (`words`, `bits`) of one set of images.

    `index`: [N] position in `files` of each image that has a perceptual hash.
    """

    def __init__(self, files: Sequence[Path], info: Mapping[Path, ImageInfo]) -> None:
        self.files = list(files)
        self.content = [info[f].sha256 for f in self.files]
        with_hash = [i for i, f in enumerate(self.files) if info[f].phash]
        self.index = np.array(with_hash, np.int64)
        raw = b"".join(bytes.fromhex(info[self.files[i]].phash) for i in with_hash)
        self.words = np.frombuffer(raw, np.uint64).reshape(len(with_hash), BITS // 64)
        self.bits = np.unpackbits(self.words.view(np.uint8), axis=1)


def _compare(first: str, second: str, a: _Hashes, b: _Hashes) -> Leak:
    """The images that the sets `first` and `second` share; `a` and `b` are their hashes."""
    first_with = {}  # SHA-256 -> index of the first image of `a` with it
    for i, sha256 in enumerate(a.content):
        first_with.setdefault(sha256, i)
    leak = Leak(first, second, len(b.files))
    equal = {i for i, sha256 in enumerate(b.content) if sha256 in first_with}
    leak.equal = len(equal)
    rows = [[b.files[i], a.files[first_with[b.content[i]]], "equal"] for i in sorted(equal)]
    # Positions in `b.index` of the images that have no equal file in `a`.
    rest = np.array([k for k, i in enumerate(b.index) if int(i) not in equal], np.int64)
    match, distance = find_within(a.words, a.bits, b.words[rest], b.bits[rest], MAX_DIFFERENT_BITS)
    near_rows = np.flatnonzero(match >= 0)
    leak.near = len(near_rows)
    rows += [
        [b.files[b.index[rest[k]]], a.files[a.index[match[k]]], str(distance[k])] for k in near_rows
    ]
    leak.examples = [
        [_short(file), _short(match_file), difference]
        for file, match_file, difference in rows[:MAX_EXAMPLES]
    ]
    return leak


def _short(file: Path) -> str:
    """The file and its folder, without the rest of the path, which should not be published."""
    return shown("/".join(file.parts[-2:]))


def find_within(
    words: np.ndarray, bits: np.ndarray, queries: np.ndarray, query_bits: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each query, finds a hash that differs from it by at most `radius` bits, not the nearest.

    The bits are divided into `radius + 1` bands. Two hashes that differ in at most `radius` bits
    are equal in at least one band, so only hashes with an equal band are compared. Each band takes
    every (radius + 1)-th bit.

    Args:
        words: [N, BITS / 64] uint64, the hashes.
        bits: [N, BITS] of 0 and 1, the same hashes.
        queries: [M, BITS / 64] uint64.
        query_bits: [M, BITS] of 0 and 1, the same queries.
        radius: maximum number of bits that may differ.

    Returns:
        [M] index of a hash within the radius, or -1; [M] number of bits that differ.
    """
    match, distance = np.full(len(queries), -1, np.int64), np.zeros(len(queries), np.int64)
    if not len(words) or not len(queries):
        return match, distance
    for band in range(radius + 1):
        unmatched = np.flatnonzero(match < 0)
        keys = _keys(bits[:, band :: radius + 1])
        order = np.argsort(keys, kind="stable")
        keys, query_keys = keys[order], _keys(query_bits[unmatched, band :: radius + 1])
        # The candidates of a query are order[start:stop].
        start = np.searchsorted(keys, query_keys, "left")
        stop = np.searchsorted(keys, query_keys, "right")
        while len(unmatched):
            has_candidates = start < stop
            unmatched, start, stop = (v[has_candidates] for v in (unmatched, start, stop))
            if not len(unmatched):
                break
            for first in range(0, len(unmatched), _QUERIES):
                chunk = slice(first, first + _QUERIES)
                position = start[chunk, None] + np.arange(_BLOCK)
                is_candidate = position < stop[chunk, None]
                candidates = order[np.minimum(position, len(order) - 1)]
                differ = words[candidates] ^ queries[unmatched[chunk], None]
                bit_count = np.bitwise_count(differ).sum(2)
                bit_count = np.where(is_candidate, bit_count, BITS + 1)
                best = bit_count.argmin(1)
                rows = np.arange(len(best))
                is_match = bit_count[rows, best] <= radius
                match[unmatched[chunk][is_match]] = candidates[rows, best][is_match]
                distance[unmatched[chunk][is_match]] = bit_count[rows, best][is_match]
            remains = match[unmatched] < 0
            unmatched, start, stop = (
                unmatched[remains],
                start[remains] + _BLOCK,
                stop[remains],
            )
    return match, distance


def _keys(bits: np.ndarray) -> np.ndarray:
    """The bits [N, up to 16] of each row as one integer, [N]."""
    return bits.astype(np.int64) @ (1 << np.arange(bits.shape[1], dtype=np.int64))
