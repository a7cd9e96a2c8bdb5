"""Normalised feature distillation while a segmenter is trained, from a teacher tuned on the task.

Source       arXiv 2207.05256, as defined in one sentence by Liu et al. 2022; the weight was chosen
             in this project.
Differs      from `nfd` in being a transfer method: it uses the task's images and a teacher that was
             trained on the task. `pretrained_by` names the method of pre-training.
Cost         the teacher is trained on the task once for all runs; it reads every training batch.
"""

from kdep_bench.objectives.nfd import NFD
from kdep_bench.transfer.methods.added_objective import AddedObjective

method = dict(
    name="nfd_transfer",
    family="transfer",
    reconstruction=True,  # shown as "(re-implementation)"
    source="arXiv 2207.05256, as quoted by Liu et al. 2022",
    pretrained_by="scratch",
    transfer=dict(
        type=AddedObjective,
        objective=dict(type=NFD, levels=dict(s16="s16", s32="s32"), weight=0.5),
        teacher=dict(student="efficientnet_lite0_trunk", method="imagenet"),
    ),
)
