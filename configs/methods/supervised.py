"""Supervised pre-training on the same images, views and budget, with the labels of the images."""

from kdep_bench.objectives.cross_entropy import CrossEntropy

method = dict(
    name="supervised",
    family="supervised",
    labels_used=True,
    source="baseline: cross-entropy on labels",
    objective=dict(type=CrossEntropy),
    align=None,
    transform=None,
)
