"""Base class of the probes, with their inputs and outputs.

A probe measures one property of an exported backbone, most often from its features on the splits
of a folder of class folders; these are extracted once for all probes (see `extract`). Probes are
shown in a section of their own: no mean, rank, best set, difference or claim includes them. Models
(a number of neighbours, a regularisation) are chosen on the validation split only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from kdep_bench.errors import KdepError

# What a probe may read: features and labels of its `splits`; features of pool images (no labels);
# the teacher's cached features of the same pool images; the backbone itself.
READS = ("classes", "pool", "teacher", "backbone")
CLASSES, POOL, TEACHER, BACKBONE = READS

Better = Literal["larger", "smaller", ""]


@dataclass(frozen=True)
class Features:
    """Features of N images, pooled over the last map.

    Attributes:
        after: [N, D] float32 after the last activation, which tasks read.
        before: [N, D] float32 before it, which KDEP trains.
        labels: [N] class numbers; all -1 where the images have none.
        classes: names by class number.
    """

    after: np.ndarray
    before: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.after)


@dataclass(frozen=True)
class Value:
    """One measured number.

    Attributes:
        value: finite; a fraction where `percent`.
        better: whether a 'larger' or a 'smaller' one is better; '' where neither is.
        percent: shown x100.
        chance: what guessing reaches, where that is known.
    """

    value: float
    better: Better = ""
    percent: bool = False
    chance: float | None = None


@dataclass(frozen=True)
class Inputs:
    """The inputs of a probe; only those in its `reads` and `splits` are given.

    Attributes:
        splits: features by split of the class folders.
        pool: features of pool images.
        teacher: [N, Dt] the teacher's features of the same pool images.
        images: `images(split)` yields the images of a split, in the order of its features, as
            [B, px, px, 3] uint8 RGB.
        extract: (before, after), each [B, D] float32, of such images.
        progress: progress(done, total, note).
    """

    splits: Mapping[str, Features] = field(default_factory=dict)
    pool: Features | None = None
    teacher: np.ndarray | None = None
    images: Callable[[str], Iterator[np.ndarray]] | None = None
    extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    progress: Callable[..., None] = lambda *_: None


@dataclass(frozen=True)
class Measured:
    """The result of a probe: numbers by name, and notes for the record."""

    values: Mapping[str, Value]
    notes: tuple[str, ...] = ()


class Probe(ABC):
    """One probe, one file, one config in configs/probes/.

    Class attributes, literals because the plan reads them from the source:
        reads: subset of READS.
        splits: splits of the class folders that it reads; more than () needs "classes" in `reads`.
        shots_argument: the argument that holds numbers of training images per class, or "".
        more_images_than_width: whether the test split needs more images than the feature has
            dimensions.
    """

    reads: ClassVar[frozenset[str]]
    splits: ClassVar[tuple[str, ...]] = ()
    shots_argument: ClassVar[str] = ""
    more_images_than_width: ClassVar[bool] = False

    @abstractmethod
    def measure(self, data: Inputs) -> Measured:
        """Measures one backbone.

        Raises:
            KdepError: features that are not finite, or images that do not suffice.
        """


def outputs(measured: Measured, label: str) -> dict[str, Any]:
    """Values and notes as strict JSON; KdepError for a value that is not a finite number."""
    bad = {k: v.value for k, v in measured.values.items() if not math.isfinite(v.value)}
    if bad or not measured.values:
        shown = ", ".join(f"{k} = {v}" for k, v in bad.items()) or "no value"
        raise KdepError(
            f"the result of {label} is {shown}",
            expected="finite numbers",
            fix="check the loss curve of the pre-training and the features of the backbone",
        )
    return {
        "values": [  # a list: the keys of a JSON object are stored sorted
            {
                "name": name,
                "value": float(v.value),
                "better": v.better,
                "percent": v.percent,
                "chance": None if v.chance is None else float(v.chance),
            }
            for name, v in measured.values.items()
        ],
        "notes": list(measured.notes),
    }


def top1(truth: np.ndarray, predicted: np.ndarray) -> Value:
    """Accuracy; chance is the fraction of the most frequent class."""
    frequent = np.bincount(truth).max() / len(truth)
    return Value(float((truth == predicted).mean()), "larger", True, float(frequent))


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float64; a row of zeros stays one."""
    x = np.asarray(x_ND, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1.0, length)
