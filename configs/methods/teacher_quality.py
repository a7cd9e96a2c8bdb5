"""Logit KD from the best of four teachers, which differ in batch size and epochs.

Source       re-implemented from the abstract of Vats and Crandall (arXiv 2112.10047): a teacher
             that is trained for long loses the similarities of classes; the teacher's batch size
             and epochs control the quality of distillation. Chosen in this project: the quality is
             the top-1 accuracy, on a held-out tenth of the images, of a student after two epochs
             of distillation from the teacher (its proxy).
Differs      from `eskd_teacher` in comparing teachers instead of fixing the epochs, and in the
             cross-entropy with labels. The learning rate is that of the budget for all batch sizes.
Outcome      the note of each record states the chosen teacher, and the quality and the similarity
             information of all teachers. The outputs of the pre-training stage contain the rank
             correlation of these two numbers.
Test         `logit_kd_permuted` separates distillation from regularisation.
Cost         includes the pre-training of four teachers and four proxies, and one cache for each.
"""

from kdep_bench.objectives.teacher_quality import BestTeacher

short_small_batch = dict(student="resnet18_w48", method="held_out_supervised", epochs=4.0)
short_large_batch = dict(**short_small_batch, batch=256)
long_small_batch = dict(student="resnet18_w48", method="held_out_supervised")
long_large_batch = dict(**long_small_batch, batch=256)

proxy = dict(base="held_out_kd", label_policy="labels")
student = dict(student="resnet18_w32", epochs=2.0)

method = dict(
    name="teacher_quality",
    family="multi-teacher",
    labels_used=True,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["logits", "labels", "classes"],
    source="re-implementation from the abstract of arXiv 2112.10047",
    objective=dict(type=BestTeacher, held_out=0.1, tau=4.0),
    align=None,
    transform=None,
    teachers=dict(
        short_small=short_small_batch,
        short_large=short_large_batch,
        long_small=long_small_batch,
        long_large=long_large_batch,
        short_small_proxy=dict(
            **student, method=dict(**proxy, name="kd_short_small", teacher=short_small_batch)
        ),
        short_large_proxy=dict(
            **student, method=dict(**proxy, name="kd_short_large", teacher=short_large_batch)
        ),
        long_small_proxy=dict(
            **student, method=dict(**proxy, name="kd_long_small", teacher=long_small_batch)
        ),
        long_large_proxy=dict(
            **student, method=dict(**proxy, name="kd_long_large", teacher=long_large_batch)
        ),
    ),
)
