"""Accuracy of the linear probe on corrupted test images at five severities."""

from kdep_bench.probes.robustness import Robustness

probe = dict(
    name="robustness",
    type=Robustness,
    about="top-1 accuracy of a linear probe on corrupted test images, five severities of each kind",
    folder="classify",
    corruptions=(
        "gaussian_noise",
        "shot_noise",
        "gaussian_blur",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
    ),
    c_grid=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    max_iter=500,
)
