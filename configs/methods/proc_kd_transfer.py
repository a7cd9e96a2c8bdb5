"""ProC-KD at transfer: the task is also learned from features augmented with prototypes.

Source       Li et al., arXiv 2212.13180 (FITEE 2025): abstract and published code, which has
             classification only, and no loss of the augmented features. Losses, weights and the
             form for detection and segmentation were chosen in this project;
             `kdep_bench/transfer/methods/prototype_augmentation.py` lists the differences.
Needs        a pre-training with the objective of `proc_kd`, whose prototypes are read, and tasks
             that are fine-tuned. The teacher is not used on the task.
Differs      from `proc_kd`, which is transferred as every other method, in the training on the task
             only: the deployed network is the same.
Outcome      not measured yet.
Settings     tau must be that of the pre-training, so that the assignment is the same.
Cost         two small layers per level and a second pass of neck and heads, not of the
             backbone.
"""

from kdep_bench.transfer.methods.prototype_augmentation import PrototypeAugmentation

method = dict(
    name="proc_kd_transfer",
    family="transfer",
    reconstruction=True,  # shown as "(re-implementation)"
    source="Li et al., arXiv 2212.13180; Daniel00008/ProC-KD",
    pretrained_by="proc_kd",
    transfer=dict(type=PrototypeAugmentation, augmented=0.5, weight=1.0, tau=0.1),
)
