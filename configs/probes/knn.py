"""Weighted k-nearest-neighbour accuracy on images in one folder per class; k is chosen on val."""

from kdep_bench.probes.knn import Knn

probe = dict(
    name="knn",
    about="top-1 accuracy of a weighted k-nearest-neighbour classifier; k is chosen on val",
    type=Knn,
    folder="classify",
    k=(1, 5, 10, 20, 50),
    T=0.07,
)
