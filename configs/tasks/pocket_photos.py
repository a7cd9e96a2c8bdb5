"""Linear probe on 178 real photographs in 6 classes: stratified 5-fold cross-validation.

The transfer seed determines the folds. `chance` is the fraction of the most frequent class (57 of
178 show animals); records store the value computed from the data.
"""

task = dict(
    type="kdep_bench.transfer.classification.LinearProbe",
    name="pocket_photos",
    family="classification",
    version=1,
    split="folds",
    metric="top1",
    direction="max",
    chance=0.320,
    recipe=dict(
        folder="photos",
        protocol="folds",
        batch=64,
        c_grid=(1e-4, 1e-3, 1e-2, 1e-1),
        max_iter=500,
        train_share=1.0,
        folds=5,
        inner_folds=3,
    ),
)
