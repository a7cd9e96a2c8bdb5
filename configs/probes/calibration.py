"""Calibration of the linear probe: ECE, classwise ECE, Brier score, log loss."""

from kdep_bench.probes.calibration import Calibration

probe = dict(
    name="calibration",
    type=Calibration,
    about="calibration of a linear probe on the test split",
    folder="classify",
    c_grid=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    max_iter=500,
    bins=15,
)
