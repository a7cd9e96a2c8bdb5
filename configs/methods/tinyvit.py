"""TinyViT's distillation: cross-entropy with the teacher's ten largest class probabilities.

Source       Wu et al., ECCV 2022; microsoft/Cream TinyViT. As there: k = 10 for ImageNet-1k, no
             labels, no mixup. Only the distillation of TinyViT is used, not its method to shrink
             the student.
Differs      from `logit_kd` in the cache (4 k = 40 bytes per view, no pooled feature), in the
             temperature (1), and in the loss: cross-entropy, which has the same gradient as the KL
             divergence. The views are the suite's fixed crops; TinyViT uses a new crop per epoch
             and stores the seed of each.
Cost         one forward pass of the teacher per view, for a separate cache.
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
