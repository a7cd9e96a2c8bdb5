"""Names of the measures of a teacher, and the choice of a teacher by one of them.

The probe `teacher` (kdep_bench/probes/teacher_features.py) measures them, `kdep-bench pick` ranks
teachers by them before a run, and reports compare that ranking with the scores. This module imports
neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

# When a measure is known: from the teacher's features of unlabelled images, from labelled images,
# from the teacher's config, or only after a student has been pre-trained.
Known = Literal["unlabelled images", "labelled images", "config", "after pre-training"]


class Measure(NamedTuple):
    """One measure of a teacher.

    Attributes:
        sign: +1 if a larger value is expected to belong to a better teacher, -1 for a smaller one.
        known: when it is known, as what it is computed from.
        meaning: one clause that defines it.
    """

    sign: int
    known: Known
    meaning: str


# The measure by which `kdep-bench pick` ranks teachers. It was chosen before any score: KDEP states
# that teachers with less compact features are better, and this is the number of directions that
# have most of the variance. The effective rank is not used, because it counts small variances: on
# 512 pocket images it is 350 for EfficientNet-Lite0 with random weights and 384 with trained ones
# (participation ratio: 19 and 72).
PICKER = "participation ratio"
EFFECTIVE_RANK = "effective rank"
EXPLAINED_VARIANCE = "explained variance"
ACCURACY = "linear probe accuracy"
TOP1 = "reported top-1"
MEASURES: Mapping[str, Measure] = {
    PICKER: Measure(
        1,
        "unlabelled images",
        "(sum of variances)^2 / sum of squared variances of the principal components",
    ),
    EFFECTIVE_RANK: Measure(
        1,
        "unlabelled images",
        "exp(entropy of the singular values of the centred features); RankMe (Garrido et al., ICML "
        "2023)",
    ),
    EXPLAINED_VARIANCE: Measure(
        -1,
        "unlabelled images",
        "fraction of the variance in as many principal components as the student has channels",
    ),
    "mean cosine": Measure(-1, "unlabelled images", "mean cosine between the features of images"),
    "uniformity": Measure(
        -1,
        "unlabelled images",
        "log of the mean of exp(-2 d^2), d the distance of normalised features (Wang and Isola, "
        "ICML 2020)",
    ),
    "within-class variance": Measure(
        1, "labelled images", "fraction of the variance that is within classes"
    ),
    ACCURACY: Measure(
        1, "labelled images", "accuracy of logistic regression on the teacher's features"
    ),
    TOP1: Measure(1, "config", "ImageNet accuracy, reported by its authors"),
    "CKA with the student": Measure(
        1,
        "after pre-training",
        "linear CKA of the features of teacher and pre-trained student, before the activation",
    ),
}

# The measures that the probe `teacher` records, by which claims can rank teachers.
PROBED = tuple(name for name, measure in MEASURES.items() if measure.known != "config")


def choice(values: Mapping[str, float], measure: str = PICKER) -> str:
    """The teacher with the best value of a measure; the first by name if several are equal.

    Args:
        values: {teacher: value}, at least one.
        measure: a key of MEASURES.
    """
    sign = MEASURES[measure].sign
    return min(values, key=lambda teacher: (-sign * values[teacher], teacher))
