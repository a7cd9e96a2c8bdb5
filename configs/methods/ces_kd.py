"""CES-KD: easy images have an assistant as teacher, hard images the large teacher; easy ones first.

Source       re-implemented from the abstract of arXiv 2209.07606 (2022). Chosen in this project:
             difficulty is the entropy of the large teacher's probabilities; each teacher has
             half of the images; the harder half is used after a quarter of the run.
Differs      from `takd` in the second teacher, and from `multi_teacher_kd` in using only one of the
             two teachers for each image.
Labels       none. CurriculumExpertsWithLabels of the same module adds the paper's cross-entropy and
             computes the difficulty from the label. It needs labels of the teachers' classes.
Teachers     list them by capacity, the smallest first. They must have the same classes.
Cost         includes the pre-training of the assistant, and one cache per teacher. Each cache has
             all images, because methods share caches.
"""

from kdep_bench.objectives.ces_kd import CurriculumExperts

method = dict(
    name="ces_kd",
    family="multi-teacher",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["logits"],
    source="re-implementation from the abstract of arXiv 2209.07606 (CES-KD)",
    objective=dict(type=CurriculumExperts, tau=4.0),
    align=None,
    transform=None,
    # "suite": the teacher that the suite names.
    teachers=dict(assistant=dict(student="resnet18_w48", method="logit_kd"), large="suite"),
)
