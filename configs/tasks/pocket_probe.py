"""Linear probe on the pocket composites, 8 classes.

Objects and backgrounds of the test split are in no other split.
"""

task = dict(
    type="kdep_bench.transfer.classification.LinearProbe",
    name="pocket_probe",
    family="classification",
    version=1,
    split="test",
    metric="top1",
    direction="max",
    chance=0.125,
    recipe=dict(
        folder="classify",
        protocol="split",
        batch=128,
        c_grid=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        max_iter=500,
        train_share=0.75,  # fraction of the training images that each transfer seed draws
        folds=1,
        inner_folds=1,
    ),
)
