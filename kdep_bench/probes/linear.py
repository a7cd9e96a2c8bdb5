"""Logistic regression on frozen features, with C chosen on the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kdep_bench.probes.base import Features


class Linear(NamedTuple):
    """A fitted linear classifier.

    Attributes:
        model: the fitted pipeline of scikit-learn.
        c: its C, the inverse strength of the regularisation.
        val: its accuracy on the validation split.
    """

    model: Any
    c: float
    val: float

    @property
    def note(self) -> str:
        """A note for the record: the chosen C."""
        return f"C = {self.c:g} chosen on val ({self.val:.4f})"


def logistic(c: float, max_iter: int) -> Any:
    """Standardisation of the features, then multinomial logistic regression; not yet fitted."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))


def fit(train: Features, val: Features, c_grid: Sequence[float], max_iter: int) -> Linear:
    """Fits a classifier to `train` for each C of `c_grid`, and returns the best one on `val`.

    If several are equally good, the one with the smallest C is returned. The result is that of the
    task `LinearProbe` with protocol='split' and train_share=1.
    """
    best: Linear | None = None
    x, y = train.post_activation.astype("float64"), train.labels
    for c in sorted(c_grid):
        model = logistic(c, max_iter).fit(x, y)
        score = float(model.score(val.post_activation.astype("float64"), val.labels))
        if best is None or score > best.val:
            best = Linear(model, c, score)
    assert best is not None
    return best
