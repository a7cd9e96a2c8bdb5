"""Contrastive fine-tuning on labels: DisCo's second stage, for classes of images.

Source       DisCo, arXiv 2112.05638, fine-tunes a distilled sentence encoder with a contrastive
             loss; the loss for classes is that of Khosla et al., NeurIPS 2020, added to the
             cross-entropy as in Gunel et al., ICLR 2021.
             `kdep_bench/transfer/methods/supervised_contrastive.py` has the formula.
Needs        a classification task that is fine-tuned. The teacher is not used on the task.
Differs      from `ckd`, which is transferred as every other method, in the loss of the task only:
             the deployed network is the same.
Settings     weight=0.0 is the task's own training.
Outcome      not measured yet.
Cost         the products of all pairs of features of a batch. The batch cannot be divided over
             processes.
"""

from kdep_bench.transfer.methods.supervised_contrastive import SupervisedContrastive

method = dict(
    name="ckd_transfer",
    family="transfer",
    reconstruction=True,  # shown as "(re-implementation)"
    source="arXiv 2112.05638; Khosla et al., NeurIPS 2020; Gunel et al., ICLR 2021",
    pretrained_by="ckd",
    transfer=dict(type=SupervisedContrastive, weight=0.9, tau=0.3),
)
