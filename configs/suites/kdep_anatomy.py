"""Ablation of KDEP: its choices are changed one at a time, from KDEP to FitNets.

Command   python tools/run_suite.py configs/suites/kdep_anatomy.py   (can be stopped and resumed)
Cost      as `methods_pocket`, per method and seed: 800 steps at batch 64 (90 to 105 s on one core),
          then 43 s of training on the tasks
Outcome   results/kdep_anatomy: 180 scores. Two of the seven changes are significant, signed pairs
          (+2.8 points) and learned projectors (+6.0). fitnets, and maps_4 without projectors, are
          among the best on all tasks

The protocol of `methods_pocket`: 3,200 images in two fixed views, 16 epochs, batch 64, three
pre-training seeds. Each method has the learning rate with the best validation score in
`kdep_anatomy_grid`.

The sequence, one change per step:

    kdep              pooled feature after the teacher's head (its last 1x1 convolution), before the
                      student's last ReLU, PTS n = 3
    svd               n = 1
    svd_after         the student's feature is read after its ReLU
    pooled_pairs      each component as a pair of its positive and its negative part
    pooled_pairs_s32  the teacher is read before its head (its last map, averaged)
    maps_s32          every position of that map instead of its average
    kdep_maps         also the level at stride 16
    fitnets           learned projectors instead of the SVD

Other methods: learned projectors on one map (`hint_s32`) or on the pooled feature (`conv1x1`); KDEP
with one hint at the middle level (`kdep_hint`); and variants of `kdep_maps`: other ways to encode a
component's sign (`maps_plain`, `maps_rotation`), the student before its ReLU (`maps_before`), PTS
(`maps_n2`, `maps_n3`), four levels (`maps_4`), a pooled target in addition to the maps
(`maps_pooled`).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .pocket import suite

REGRESSION = "kdep_bench.objectives.feature_regression.FeatureRegression"
PAIRS = "kdep_bench.features.transform.SignedPairs"
SUM = "kdep_bench.objectives.weighted_sum.WeightedSum"
HINTS = "kdep_bench.objectives.hints.Hints"
MAPS = "kdep_bench.objectives.map_regression.MapRegression"
after_relu = dict(_delete_=True, type=REGRESSION, weight="auto", tap="after")
two_levels = dict(s16="s16", s32="s32")
last_level = dict(_delete_=True, s32="s32")
# Without signed pairs, the target of the student's 128 channels at stride 16 would have only the
# teacher's 112 channels. It is padded with zeros.
zero_padded = dict(type="svd", policy="zero_pad")

arms = dict(
    scratch=dict(base="scratch"),
    supervised=dict(base="supervised"),
    kdep=dict(base="kdep"),
    svd=dict(base="svd"),
    svd_after=dict(base="svd", objective=after_relu),
    pooled_pairs=dict(base="svd", objective=after_relu, transform=dict(_delete_=True, type=PAIRS)),
    pooled_pairs_s32=dict(base="kdep_maps", objective=dict(levels=last_level, pooled=True)),
    maps_s32=dict(base="kdep_maps", objective=dict(levels=last_level)),
    kdep_maps=dict(base="kdep_maps"),
    fitnets=dict(base="fitnets"),
    hint_s32=dict(base="fitnets", objective=dict(levels=last_level, weight=20.0)),
    conv1x1=dict(base="conv1x1"),
    kdep_hint=dict(
        base="kdep",
        needs=["pooled", "maps"],
        objective=dict(
            _delete_=True,
            type=SUM,
            parts=dict(
                kdep=dict(objective=dict(type=REGRESSION, weight="auto", scale=10.0)),
                hint=dict(objective=dict(type=HINTS, levels=dict(s16="s16"), weight=10.0)),
            ),
        ),
    ),
    maps_plain=dict(base="kdep_maps", objective=dict(sign="plain", align=zero_padded)),
    maps_rotation=dict(base="kdep_maps", objective=dict(sign="rotation", align=zero_padded)),
    maps_before=dict(
        base="kdep_maps", objective=dict(sign="plain", tap="before", align=zero_padded)
    ),
    maps_n2=dict(base="kdep_maps", objective=dict(n=2.0)),
    maps_n3=dict(base="kdep_maps", objective=dict(n=3.0)),
    maps_4=dict(
        base="kdep_maps",
        objective=dict(levels=dict(_delete_=True, s4="s4", s8="s8", s16="s16", s32="s32")),
    ),
    maps_pooled=dict(
        base="kdep_maps",
        objective=dict(
            _delete_=True,
            type=SUM,
            parts=dict(
                maps=dict(objective=dict(type=MAPS, levels=two_levels, weight=10.0)),
                pooled=dict(
                    objective=dict(type=MAPS, levels=dict(s32="s32"), pooled=True, weight=10.0)
                ),
            ),
        ),
    ),
)
# What differs from the row's base method, for the leaderboard.
descriptions = dict(
    svd_after="svd, but the student's feature is read after its last ReLU",
    pooled_pairs="svd_after with half of the components, two channels each: the positive and the "
    "negative part",
    pooled_pairs_s32="pooled_pairs, but the target is the average of the teacher's last map, which "
    "is the input of its head",
    maps_s32="signed pairs of the teacher's last map (stride 32), at every position",
    hint_s32="fitnets on one level: a learned projector on the last map alone",
    kdep_hint="kdep and a FitNets hint (learned projector) at stride 16, with equal weights",
    maps_plain="kdep_maps with components that keep their sign instead of signed pairs",
    maps_rotation="kdep_maps with components that keep their sign, in a random rotation",
    maps_before="maps_plain, but the student's maps are read before their ReLU",
    maps_n2="kdep_maps with power temperature scaling, n = 2",
    maps_n3="kdep_maps with power temperature scaling, n = 3",
    maps_4="kdep_maps at four levels (strides 4 to 32)",
    maps_pooled="kdep_maps with the average of the last map as an additional target",
)
for name, about in descriptions.items():
    arms[name].update(about=about)
# Learning rates chosen in `kdep_anatomy_grid`; the other methods have the budget's 0.2.
rates = dict(
    kdep=0.05,
    pooled_pairs_s32=0.05,
    kdep_maps=0.05,
    fitnets=0.8,
    hint_s32=0.05,
    kdep_hint=1.6,
    maps_rotation=0.05,
    maps_before=0.8,
    maps_pooled=0.8,
)
methods = {
    name: dict(arm, name=name, optimizer=dict(lr=rates[name]))
    if name in rates
    else dict(arm, name=name)
    for name, arm in arms.items()
}

# Claims: (method, lower-scoring method, title). The first seven are the steps of the sequence from
# kdep to fitnets, each compared with the step before. All were chosen before the test split was
# read.
differences = [
    ("svd", "kdep", "step 1 of 7 helps: PTS n = 1 instead of 3 (svd - kdep)"),
    ("svd_after", "svd", "step 2 of 7 helps: student read after its ReLU (svd_after - svd)"),
    (
        "pooled_pairs",
        "svd_after",
        "step 3 of 7 helps: target as signed pairs (pooled_pairs - svd_after)",
    ),
    (
        "pooled_pairs_s32",
        "pooled_pairs",
        "step 4 of 7 helps: teacher read before its head (pooled_pairs_s32 - pooled_pairs)",
    ),
    (
        "maps_s32",
        "pooled_pairs_s32",
        "step 5 of 7 helps: every position of the map (maps_s32 - pooled_pairs_s32)",
    ),
    (
        "kdep_maps",
        "maps_s32",
        "step 6 of 7 helps: also the level at stride 16 (kdep_maps - maps_s32)",
    ),
    ("fitnets", "kdep_maps", "step 7 of 7 helps: learned projectors (fitnets - kdep_maps)"),
    ("kdep_maps", "kdep", "kdep_maps beats kdep"),
    ("kdep_maps", "supervised", "kdep_maps beats supervised"),
    ("kdep_maps", "scratch", "kdep_maps beats no pre-training"),
    (
        "kdep_maps",
        "maps_plain",
        "signed pairs beat components with a sign (kdep_maps - maps_plain)",
    ),
    ("maps_n3", "kdep_maps", "PTS with n = 3 helps kdep_maps (maps_n3 - kdep_maps)"),
    (
        "maps_pooled",
        "kdep_maps",
        "an additional pooled target helps kdep_maps (maps_pooled - kdep_maps)",
    ),
    ("kdep_hint", "kdep", "kdep with one hint beats kdep (kdep_hint - kdep)"),
]

suite.update(
    name="kdep_anatomy",
    about="KDEP's choices changed one at a time, a tenth of the pocket images, classification",
    methods=list(methods.values()),
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos"],
    shares=[0.1],  # data fractions
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    claims=[above(*pair) for pair in differences],
    # Other programs ran on the machine, so wall times are not valid measurements.
    runtime=dict(timed=False),
)
