"""Accuracy with 1 to 16 labelled images per class, averaged over ten draws."""

from kdep_bench.probes.few_shot import FewShot

probe = dict(
    name="few_shot",
    type=FewShot,
    about="top-1 accuracy of logistic regression on a few images per class, mean of ten draws",
    folder="classify",
    shots=(1, 2, 4, 8, 16),
    draws=10,
    c_grid=(1.0, 10.0, 100.0),
    max_iter=200,
)
