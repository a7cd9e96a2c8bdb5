"""Accuracy in fog, at night and on drawings of classifiers fitted on the images as they are.

The domains are generated from the test images (kdep_bench/data/domains.py); the classes are the
same. Nothing is fitted to a target domain, and C and k are chosen on source images.
"""

from kdep_bench.probes.other_domain import OtherDomain

probe = dict(
    name="other_domain",
    type=OtherDomain,
    about="top-1 accuracy of a linear probe and kNN on test images in fog, at night, as drawings",
    folder="classify",
    domains=("fog", "night", "sketch"),
    c_grid=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    max_iter=500,
    k=(1, 5, 10, 20, 50),
    T=0.07,
)
