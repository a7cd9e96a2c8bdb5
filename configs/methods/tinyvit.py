"""TinyViT's stored targets: cross-entropy with the teacher's ten largest class probabilities.

Source       Wu et al., ECCV 2022; microsoft/Cream TinyViT. k = 10 is its ImageNet-1k value (100 for
             22k); no labels and no mixup, as there. Its fast distillation alone: contraction of the
             student is not part of it.
Differs      from `logit_kd` in what is stored (4 k = 40 bytes per view, no pooled feature), in the
             temperature, 1, and in the loss, which omits the teacher's entropy. The views are fixed
             crops of the suite; TinyViT draws a crop per epoch and stores its seed.
Cost         one more pass of the teacher over the views, for a cache of its own.
"""

from kdep_bench.objectives.soft_target import SoftTarget

method = dict(
    name="tinyvit",
    family="logit",
    labels_used=False,
    needs=["probabilities"],
    source="Wu et al., ECCV 2022; microsoft/Cream TinyViT save_logits.py, main.py",
    objective=dict(type=SoftTarget, top_classes=10),
    align=None,
    transform=None,
)
