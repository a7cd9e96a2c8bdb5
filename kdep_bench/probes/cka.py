"""Similarity of the student's and the teacher's feature: linear centred kernel alignment (CKA)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kdep_bench.bounds import Count
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Inputs, Measured, Probe, Value


def hsic(a_NN: np.ndarray, b_NN: np.ndarray) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of two Gram matrices.

    Song et al., JMLR 2012, equation 5.
    """
    n = len(a_NN)
    a, b = a_NN - np.diag(np.diag(a_NN)), b_NN - np.diag(np.diag(b_NN))
    cross = (a * b).sum()
    means = a.sum() * b.sum() / ((n - 1) * (n - 2))
    rows = 2 * (a.sum(0) @ b.sum(0)) / (n - 2)
    return float((cross + means - rows) / (n * (n - 3)))


def linear_cka(x_ND: np.ndarray, y_NE: np.ndarray) -> float:
    """Linear CKA of two features of the same N images: 1 if one is a rotation of the other.

    Unrelated features give values near 0, which may be negative. Source: Kornblith et al., ICML
    2019, with the unbiased HSIC (Nguyen et al., ICLR 2021), because the biased estimate increases
    with the width of the features. NaN if the HSIC estimate of one feature with itself is not
    positive.

    Raises:
        KdepError: fewer than four images, or features that are equal for all images.
    """
    n = len(x_ND)
    x, y = (np.asarray(a, np.float64) - np.mean(a, 0, dtype=np.float64) for a in (x_ND, y_NE))
    if n < 4:
        raise KdepError(
            f"CKA cannot be measured on {n} images",
            expected="four or more images with different features",
            fix="raise `rows` in the probe's config",
        )
    if not x.any() or not y.any():
        raise KdepError(
            f"CKA cannot be measured on {n} images whose features are all equal",
            expected="four or more images with different features",
            fix="check the loss curve of the pre-training",
        )
    a, b = x @ x.T, y @ y.T
    scale = hsic(a, a) * hsic(b, b)
    return float(hsic(a, b) / np.sqrt(scale)) if scale > 0 else float("nan")


class Cka(Probe):
    """CKA between the backbone's feature and the teacher's cached feature, on pre-training images.

    `CKA before activation` uses the student's feature before its last activation, which KDEP
    trains; `CKA` uses the feature after it, which tasks read. The images are the same for every
    backbone; a method may have been trained on some of them.

    Args:
        rows: number of images, one view of each.
        teacher: 'suite' compares every method with the suite's teacher, 'method' with the method's
            teacher, which may be an assistant.
    """

    reads = frozenset({"pool", "teacher"})

    def __init__(self, rows: Count, teacher: Literal["suite", "method"] = "suite") -> None:
        self.rows, self.teacher = int(rows), teacher

    def measure(self, data: Inputs) -> Measured:
        assert data.pool is not None
        assert data.teacher is not None
        return Measured(
            {
                "CKA before activation": Value(linear_cka(data.pool.pre_activation, data.teacher)),
                "CKA": Value(linear_cka(data.pool.post_activation, data.teacher)),
            },
            (f"{len(data.pool)} images",),
        )
