"""Probes of the backbones that `methods_pocket` pre-trains; nothing is trained again for it.

Command   python tools/run_suite.py configs/suites/pocket_probes.py
Cost      the stages of `methods_pocket`, which are reused where they are done; per backbone, on one
          core of a shared machine, about 20 s for the features, 20 s for six probes and one to two
          minutes for the corrupted images
Outcome   results/pocket_probes: the linear probe of `methods_pocket`, and a section of probes: kNN,
          few shots, retrieval, calibration, corrupted images, effective rank, similarity to the
          teacher

Of the seven corruptions, four (noise, blur, contrast, compression): they take most of the time.

One task, the finished linear probe, so that scores and probes are in one table. Probes are in no
mean, ranking, difference or claim.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import suite

suite.update(
    name="pocket_probes",
    about="probes of the backbones of methods_pocket",
    tasks=["pocket_probe"],
    probes=[
        *("knn", "few_shot", "retrieval", "calibration", "effective_rank", "cka"),
        dict(
            base="robustness",
            corruptions=["gaussian_noise", "gaussian_blur", "contrast", "jpeg_compression"],
        ),
    ],
    claims=[],
)
