"""Logistic regression on frozen features, its regularisation chosen on the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kdep_bench.probes.base import Features


class Linear(NamedTuple):
    """A fitted classifier (scikit-learn), its C, and its accuracy on the validation split."""

    model: Any
    c: float
    val: float

    @property
    def note(self) -> str:
        """The choice as a sentence for the record."""
        return f"C = {self.c:g} chosen on val ({self.val:.4f})"


def logistic(c: float, max_iter: int) -> Any:
    """Standardisation by the training features, then multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=max_iter))


def fit(train: Features, val: Features, c_grid: Sequence[float], max_iter: int) -> Linear:
    """The classifier of `train` with the C of `c_grid` that scores best on `val`.

    The same fit as that of the task `LinearProbe` with train_share=1. Of equally good ones the
    smallest C, the strongest regularisation, is kept.
    """
    best: Linear | None = None
    x, y = train.after.astype("float64"), train.labels
    for c in sorted(c_grid):
        model = logistic(c, max_iter).fit(x, y)
        score = float(model.score(val.after.astype("float64"), val.labels))
        if best is None or score > best.val:
            best = Linear(model, c, score)
    assert best is not None
    return best
