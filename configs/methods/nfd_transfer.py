"""Normalised feature distillation where it was proposed: at segmentation, from a tuned segmenter.

Source       arXiv 2207.05256 as quoted in one sentence; the weight is this project's choice.
Differs      from `nfd` in acting at transfer, on the task's own images, with a teacher that was
             trained on the task. `pretrained_by` names the pre-training.
Cost         the teacher is trained on the task once for all runs, and reads every training batch.
"""

from kdep_bench.objectives.nfd import NFD
from kdep_bench.transfer.methods.added_objective import AddedObjective

method = dict(
    name="nfd_transfer",
    family="transfer",
    reconstruction=True,
    source="arXiv 2207.05256, as quoted by Liu et al. 2022",
    pretrained_by="scratch",
    transfer=dict(
        type=AddedObjective,
        objective=dict(type=NFD, levels=dict(s16="s16", s32="s32"), weight=0.5),
        teacher=dict(student="efficientnet_lite0_trunk", method="imagenet"),
    ),
)
