"""Base class of the probes, with their inputs and outputs.

A probe measures one property of an exported backbone, in most cases from its features of labelled
images, which are extracted once for all probes (see `extract`). Reports show probes in a separate
section; no mean, rank, difference or claim includes them, except claims about teachers, which read
the probe `teacher`. Hyperparameters (a number of neighbours, a regularisation) are chosen on the
validation split only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from kdep_bench.errors import KdepError

if TYPE_CHECKING:
    from kdep_bench.probes.extract_maps import Maps

# Inputs of probes. "classes": features and labels of `Probe.splits`; "pool": features of
# pre-training images, without labels; "teacher": the teacher's cached features of the same images;
# "backbone": the backbone, to run it on other images; "masks": feature maps and masks of
# `Probe.splits`; "teacher_classes": the teacher's features and the labels of `Probe.splits`.
READS = ("classes", "pool", "teacher", "backbone", "masks", "teacher_classes")
CLASSES, POOL, TEACHER, BACKBONE, MASKS, TEACHER_CLASSES = READS

Better = Literal["larger", "smaller", ""]  # which values are better; "": neither


@dataclass(frozen=True)
class Features:
    """Features of N images, pooled over the last map.

    Attributes:
        post_activation: [N, D] float32, after the last activation; the input of a classifier.
        pre_activation: [N, D] float32, before the last activation; the feature that KDEP trains.
        labels: [N] class numbers; all -1 if the images have no labels.
        classes: class names, by class number.
    """

    post_activation: np.ndarray
    pre_activation: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.post_activation)


@dataclass(frozen=True)
class Value:
    """One measured number.

    Attributes:
        value: the number, which must be finite.
        better: whether larger or smaller values are better.
        percent: whether `value` is a fraction that reports show in percent.
        chance: expected value for predictions that do not depend on the image; None if unknown.
    """

    value: float
    better: Better = ""
    percent: bool = False
    chance: float | None = None


@dataclass(frozen=True)
class Inputs:
    """The inputs of a probe; those that are not in its `reads` are left at their defaults.

    Attributes:
        splits: {split: features of its images}.
        maps: {split: feature maps and masks of its images}.
        pool: features of pre-training images.
        teacher: [N, D] the teacher's features of the images of `pool`.
        teacher_splits: {split: the teacher's features of its images}; `pre_activation` and
            `post_activation` are equal.
        images: function that yields the images of a split, in the order of its features, as
            [B, px, px, 3] uint8 RGB.
        extract: function from such images to their features (pre_activation, post_activation), each
            [B, D] float32.
        network: the backbone, in evaluation mode on the CPU.
        input_px: height and width of its images.
        progress: called with (done, total, note).
    """

    splits: Mapping[str, Features] = field(default_factory=dict)
    maps: Mapping[str, Maps] = field(default_factory=dict)
    pool: Features | None = None
    teacher: np.ndarray | None = None
    teacher_splits: Mapping[str, Features] = field(default_factory=dict)
    images: Callable[[str], Iterator[np.ndarray]] | None = None
    extract: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    network: Any = None
    input_px: int = 0
    progress: Callable[..., None] = lambda *_: None


@dataclass(frozen=True)
class Measured:
    """The result of a probe: {name: value}, and notes for the record."""

    values: Mapping[str, Value]
    notes: tuple[str, ...] = ()


class Probe(ABC):
    """A probe. Each subclass has its own file, and a config in configs/probes/.

    Class attributes must be literals, because planning reads them from the source:
        reads: subset of READS.
        splits: splits that it reads, with "classes", "masks" or "teacher_classes" in `reads`.
        shots_argument: name of the argument with numbers of training images per class, or "".
        text_argument: name of the argument with a file of text embeddings (see `text`), or "".
        text_model_argument: name of the argument with the folder of a CLIP (see `clip_folder`), or
            "".
        more_images_than_width: whether the test split must have more images than the feature has
            dimensions.
        only_with_teacher: whether methods without a teacher, or with several, are left out.
    """

    reads: ClassVar[frozenset[str]]
    splits: ClassVar[tuple[str, ...]] = ()
    shots_argument: ClassVar[str] = ""
    text_argument: ClassVar[str] = ""
    text_model_argument: ClassVar[str] = ""
    more_images_than_width: ClassVar[bool] = False
    only_with_teacher: ClassVar[bool] = False

    @abstractmethod
    def measure(self, data: Inputs) -> Measured:
        """Measures one backbone.

        Raises:
            KdepError: features that are not finite, or too few images.
        """


def outputs(measured: Measured, label: str) -> dict[str, Any]:
    """{"values": [...], "notes": [...]} for the outputs of the stage, as JSON values.

    `label` names the probe in the error.

    Raises:
        KdepError: there is no value, or a value is not a finite number.
    """
    not_finite = {k: v.value for k, v in measured.values.items() if not math.isfinite(v.value)}
    if not_finite or not measured.values:
        shown = ", ".join(f"{k} = {v}" for k, v in not_finite.items()) or "no value"
        raise KdepError(
            f"the result of {label} is {shown}",
            expected="finite numbers",
            fix="check the loss curve of the pre-training and the features of the backbone",
        )
    return {
        "values": [  # a list, because the keys of JSON objects are sorted when they are stored
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
    """Accuracy of predicted class numbers; chance is the fraction of the most frequent class."""
    frequent = np.bincount(truth).max() / len(truth)
    return Value(float((truth == predicted).mean()), "larger", percent=True, chance=float(frequent))


def unit(x_ND: np.ndarray) -> np.ndarray:
    """The rows divided by their Euclidean norm, float64; rows of zeros are unchanged."""
    x = np.asarray(x_ND, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length == 0, 1.0, length)
