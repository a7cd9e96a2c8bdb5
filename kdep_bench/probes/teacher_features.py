"""Measures of a teacher's features: spread, accuracy, and similarity to the student's features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdep_bench.bounds import Count, Positive
from kdep_bench.errors import KdepError
from kdep_bench.probes import linear
from kdep_bench.probes.base import Features, Inputs, Measured, Probe, Value, top1, unit
from kdep_bench.probes.cka import linear_cka
from kdep_bench.probes.effective_rank import effective_rank, participation_ratio, singular_values
from kdep_bench.results.teacher_measures import (
    ACCURACY,
    EFFECTIVE_RANK,
    EXPLAINED_VARIANCE,
    PICKER,
)

MIN_IMAGES = 4  # smallest number of images: the unbiased CKA needs four


def mean_cosine(x_ND: np.ndarray) -> float:
    """Mean cosine between the features of two different images; rows of zeros count as 0."""
    n, u = len(x_ND), unit(x_ND)
    # The sum over all ordered pairs, without each image with itself.
    return float(((u.sum(0) ** 2).sum() - (u**2).sum()) / (n * (n - 1)))


def uniformity(x_ND: np.ndarray) -> float:
    """log of the mean over pairs of images of exp(-2 d^2), d the distance of unit features.

    0 if all features have one direction; more negative if they are spread over the sphere. Source:
    Wang and Isola, ICML 2020, equation 3 with t = 2.
    """
    u = unit(x_ND)
    lengths = (u**2).sum(1)
    squared = np.maximum(lengths[:, None] + lengths[None, :] - 2 * u @ u.T, 0.0)
    upper = np.triu_indices(len(u), 1)
    return float(np.log(np.exp(-2 * squared[upper]).mean()))


def within_class_variance(x_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """The fraction of the total variance that is within classes.

    It is 0 if all images of a class have the same feature.
    """
    x = np.asarray(x_ND, np.float64)
    total = ((x - x.mean(0)) ** 2).sum()
    within = sum(((x[labels_N == c] - x[labels_N == c].mean(0)) ** 2).sum() for c in set(labels_N))
    return float(within / total)


def spread(x_ND: np.ndarray, width: int | None) -> dict[str, float]:
    """The measures of unlabelled images: keys of `results.teacher_measures.MEASURES`.

    Args:
        x_ND: the teacher's features of N images.
        width: channels of the student, for the explained variance. This measure is left out if
            `width` is None, or if there are not more images than channels (it would be 1).

    Raises:
        KdepError: no feature (a black box), fewer than four images, features that are not finite,
            or equal for all images.
    """
    if not x_ND.shape[1]:
        raise KdepError(
            "the teacher has no feature, only class probabilities",
            fix="leave this teacher out, or measure the network inside it",
        )
    if len(x_ND) < MIN_IMAGES:
        raise KdepError(
            f"a teacher cannot be measured on {len(x_ND)} images",
            expected=f"{MIN_IMAGES} or more; about 2,000 for a ranking of teachers",
            fix="use more images",
        )
    if not np.isfinite(x_ND).all():
        raise KdepError(
            "the teacher's features contain NaN or infinity",
            fix="check its weights and its normalisation",
        )
    s = singular_values(x_ND)
    # Below this limit only rounding errors differ between the images.
    if s[0] <= 1e-6 * max(1.0, float(np.abs(x_ND).max())):
        raise KdepError(
            "the teacher's features are equal for all images",
            fix="check its weights and its normalisation",
        )
    values = {PICKER: participation_ratio(s), EFFECTIVE_RANK: effective_rank(s)}
    if width is not None and len(x_ND) > width:
        values[EXPLAINED_VARIANCE] = float((s[:width] ** 2).sum() / (s**2).sum())
    return {**values, "mean cosine": mean_cosine(x_ND), "uniformity": uniformity(x_ND)}


class TeacherFeatures(Probe):
    """Measures of the teacher of a method, which reports compare with the student's scores.

    The spread of the features is measured on pre-training images, without labels. The accuracy is
    that of logistic regression on the teacher's features, trained on `train`, with C chosen on
    `val`, scored on `test`. Methods without a teacher, or with several, are left out.

    Args:
        rows: number of pre-training images, one view of each.
        teacher: must be 'method': the method's own teacher, which may be an assistant.
        c_grid: values of C to choose from.
        max_iter: iterations of the logistic regression.
    """

    reads = frozenset({"pool", "teacher", "teacher_classes"})
    splits = ("train", "val", "test")
    only_with_teacher = True

    def __init__(
        self,
        rows: Count,
        c_grid: Sequence[Positive] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        max_iter: Count = 500,
        teacher: str = "method",
    ) -> None:
        if teacher != "method":
            raise KdepError(
                f"the probe of teachers has teacher={teacher!r}",
                expected="'method'",
                fix="correct the probe's config",
            )
        self.rows, self.c_grid, self.max_iter = int(rows), tuple(c_grid), int(max_iter)

    def measure(self, data: Inputs) -> Measured:
        assert data.pool is not None
        assert data.teacher is not None
        student_width = data.pool.pre_activation.shape[1]
        values = {k: Value(v) for k, v in spread(data.teacher, student_width).items()}
        train, val, test = (data.teacher_splits[s] for s in self.splits)
        check_classes(train)
        classifier = linear.fit(train, val, self.c_grid, self.max_iter)
        predicted = classifier.model.predict(test.post_activation.astype("float64"))
        values["within-class variance"] = Value(
            within_class_variance(train.post_activation, train.labels)
        )
        values[ACCURACY] = top1(test.labels, predicted)
        cka = linear_cka(data.pool.pre_activation, data.teacher)
        values["CKA with the student"] = Value(cka)
        return Measured(values, (f"{len(data.pool)} images", classifier.note))


def check_classes(train: Features) -> None:
    """Raises KdepError if the training images have a single class."""
    if len(set(train.labels.tolist())) < 2:
        raise KdepError(
            "the images on which the teacher's accuracy is measured have one class",
            expected="two or more classes",
            fix="correct `folder` in the probe's config",
        )
