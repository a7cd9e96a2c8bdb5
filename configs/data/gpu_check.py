"""A version of the pocket data that is small enough to copy quickly: 2,000 images in the pool.

Command   python tools/prepare_data.py configs/data/gpu_check.py --out work_dirs/gpu_check_data
Cost      the downloads of configs/data/pocket.py; about 15 s on 2 cores; 20 MB on disk
"""

data = dict(
    name="gpu_check",
    pool_classes=9,
    seed=1,
    source="auto",
    px=128,
    pool_composites=1500,
    pool_crops=500,
    classify=dict(train=400, val=100, test=400),
    scenes=dict(train=60, val=8, test=40),
    scene_size=[160, 120],
)
