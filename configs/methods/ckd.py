"""CKD: the student's feature identifies the teacher's feature of its image among many others.

Source       DisCo, arXiv 2112.05638 (sentence embeddings), here for pooled features of images;
             caskcsg/sentemb. From there: the loss (InfoNCE), a linear projector, the learned
             temperature and the queue. The queue is shorter: 4,096 teacher features.
Stages       DisCo distils on unlabelled data first, and then fine-tunes with a contrastive loss on
             labels. This is the first stage; the second is `ckd_transfer`.
Differs      from `conv1x1` in the loss, which only compares directions and depends on the other
             images; from `pkt` and `similarity` in comparing the student's images with the
             teacher's, not each network's images with each other.
Labels       none. Other views of an image, and the same image of an earlier epoch, are not used as
             negatives. If two files of the pool contain the same image, each is a negative of the
             other.
Cost         B (B + queue) products of features per batch. The queue is stored in checkpoints and is
             part of the extra parameters in tables. The batch cannot be split over processes.
"""

from kdep_bench.objectives.ckd import ContrastiveDistillation

method = dict(
    name="ckd",
    family="relation",
    labels_used=False,
    needs=["pooled"],
    source="Gao, Wu et al., arXiv 2112.05638; caskcsg/sentemb DistilCSE/ckd_contrastive.py",
    objective=dict(type=ContrastiveDistillation, queue=4096, tau=0.3679, learn_tau=True),
    align=None,
    transform=None,
)
