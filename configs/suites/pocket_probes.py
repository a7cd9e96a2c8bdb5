"""Probes of frozen backbones: ten methods of `methods_pocket`, three seeds.

Command   python tools/run_suite.py configs/suites/pocket_probes.py   (can be stopped and resumed)
Cost      on two cores of a shared machine 71 minutes, 36 of them for 27 pre-trainings; per backbone
          on one core 10 s for the maps of the scenes, 30 to 50 s for the corrupted images, 30 s for
          linear segmentation, 20 s for the other probes
Outcome   results/pocket_probes: the linear probe of `methods_pocket`, and a section of probes: kNN,
          few shots (logistic regression and SgVA-CLIP), retrieval, calibration, corrupted images,
          other domains, linear segmentation, effective rank, similarity to the teacher. FitNets and
          PURSUhInT are first in kNN, few shots, retrieval, linear segmentation, and in the means
          over corruptions and domains

The backbones are the same stages as in `methods_pocket`: after that suite nothing is trained. The
methods are KDEP, svd (KDEP without PTS), conv1x1 (a learned projector), the best methods of other
families, supervised and no pre-training.
Only four of the seven corruptions are used (noise, blur, contrast, compression), because they take
most of the time. The finished linear probe is included so that scores and probes are in one table.
No mean, ranking, difference or claim includes probes.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import methods, suite

probed = [
    *("scratch", "supervised", "kdep", "svd", "conv1x1"),
    *("fitnets", "pursuhint", "logit_kd", "similarity", "mean_teacher"),
]

suite.update(
    name="pocket_probes",
    about="probes of the backbones of ten methods, a tenth of the pocket images",
    methods=[methods[name] for name in probed],
    tasks=["pocket_probe"],
    probes=[
        "knn",
        "few_shot",
        "sgva_clip",
        "retrieval",
        "calibration",
        "effective_rank",
        "cka",
        "linear_segmentation",
        "other_domain",
        dict(
            base="robustness",
            corruptions=["gaussian_noise", "gaussian_blur", "contrast", "jpeg_compression"],
        ),
    ],
    claims=[],
    runtime=dict(timed=False),  # other work ran on the machine of the published run
)
