"""A tiny version of the pocket data, made by the same code from the same photographs.

Command   python tools/prepare_data.py configs/data/smoke.py --out work_dirs/smoke_data
Cost      the downloads of configs/data/pocket.py; about 10 s on 2 cores, mostly for decoding
Outcome   400 pool images, 200 for classification, 44 scenes; scores are meaningless
"""

data = dict(
    name="smoke",
    scores_note="tiny data, to test that everything runs: the scores mean nothing",
    pool_classes=9,
    seed=0,
    source="auto",
    px=128,
    pool_composites=300,
    pool_crops=100,
    classify=dict(train=80, val=40, test=80),
    scenes=dict(train=24, val=8, test=12),
    scene_size=[160, 120],
)
