"""Like pocket_probe, but scored on the validation split with a fixed C: to tune hyperparameters."""

task = dict(
    type="kdep_bench.transfer.classification.LinearProbe",
    name="pocket_probe_val",
    family="classification",
    version=1,
    split="val",
    metric="top1",
    direction="max",
    chance=0.125,
    recipe=dict(
        folder="classify",
        protocol="split",
        batch=128,
        c_grid=(1e-2,),
        max_iter=500,
        train_share=0.75,  # fraction of the training images that each transfer seed draws
        folds=1,
        inner_folds=1,
    ),
)
