"""CES-KD: an assistant teaches the easy images and the teacher the hard ones; easy images first.

Source       re-implemented from the abstract of arXiv 2209.07606 (2022). How difficulty is measured
             (the entropy of the teacher's probabilities), the strata of equal size and the pacing
             are this project's: the harder half is let in after a quarter of the run.
Differs      from `takd` in that the student also learns from the teacher itself, and from
             `multi_teacher_kd` in that it learns each image from one of the two.
Labels       none. CurriculumExpertsWithLabels of the same file has the paper's cross-entropy, and
             the difficulty from the label; it needs labels of the teachers' classes.
Teachers     list them by capacity, the smallest first; they must have the same classes.
Cost         includes a second pre-training, of the assistant, and one cache per teacher over all
             images. Choosing saves no teacher pass, because caches are shared by methods.
"""

from kdep_bench.objectives.ces_kd import CurriculumExperts

method = dict(
    name="ces_kd",
    family="multi-teacher",
    labels_used=False,
    reconstruction=True,
    needs=["logits"],
    source="re-implementation from the abstract of arXiv 2209.07606 (CES-KD)",
    objective=dict(type=CurriculumExperts, tau=4.0),
    align=None,
    transform=None,
    teachers=dict(assistant=dict(student="resnet18_w48", method="logit_kd"), large="suite"),
)
