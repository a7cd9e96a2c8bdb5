"""Fine-tuning of all weights on the pocket composites, 8 classes; the last epoch is scored."""

task = dict(
    type="kdep_bench.transfer.classification.FineTune",
    name="pocket_finetune",
    family="classification",
    version=1,
    split="test",
    metric="top1",
    direction="max",
    chance=0.125,
    recipe=dict(
        folder="classify",
        epochs=6,
        batch=32,
        test_batch=128,
        lr=0.01,
        head_lr_mult=10,
        momentum=0.9,
        weight_decay=5e-4,
        clip_norm=None,
        crop_scale=(0.4, 1.0),
        frozen_stages=-1,
        norm_eval=False,
    ),
)
