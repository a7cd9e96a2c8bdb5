"""Probes of the backbones that `methods_pocket` pre-trains; no backbone is trained again.

Command   python tools/run_suite.py configs/suites/pocket_probes.py
Cost      in addition to a finished `methods_pocket`, per backbone on one core of a shared machine:
          20 s for the features, 20 s for six probes, one to two minutes for the corrupted images
Outcome   results/pocket_probes: the linear probe of `methods_pocket`, and a section of probes: kNN,
          few shots, retrieval, calibration, corrupted images, effective rank, similarity to the
          teacher

Only four of the seven corruptions are used (noise, blur, contrast, compression), because they take
most of the time. The finished linear probe is included so that scores and probes are in one table.
No mean, ranking, difference or claim includes probes.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import suite

suite.update(
    name="pocket_probes",
    about="probes of the backbones of methods_pocket",
    tasks=["pocket_probe"],
    probes=[
        "knn",
        "few_shot",
        "retrieval",
        "calibration",
        "effective_rank",
        "cka",
        "linear_segmentation",
        dict(
            base="robustness",
            corruptions=["gaussian_noise", "gaussian_blur", "contrast", "jpeg_compression"],
        ),
    ],
    claims=[],
)
