"""HSSAKD: at every level, a teacher's distribution over class and rotation; with labels.

Source       Yang et al., TNNLS 2022 (IJCAI 2021); winycg/HSAKD, the offline form with a frozen
             teacher. The teacher's classifiers are trained in the same run instead of before it;
             the objective lists this and the other departures.
Differs      from `logit_kd` in the four rotations of every image, the classifiers at every level
             and the labels; from `fitnets` in what levels are compared by, distributions and not
             features.
Labels       of the data, for the teacher's classifiers and the student's cross-entropy; without
             the latter objective=dict(cross_entropy=0.0). The teacher's own classes are not read.
Teacher      live, because the rotations of an image are in no cache; any one with feature maps.
Cost         four images per image for student and teacher: four times the student's forward and
             backward pass and four teacher passes, which the columns of forward passes count as
             seven more per image.
"""

from kdep_bench.augments.rotations import Rotations
from kdep_bench.objectives.hssakd import Hssakd

method = dict(
    name="hssakd",
    family="logit",
    labels_used=True,
    needs=["labels", "maps", "pooled"],
    source="Yang et al., TNNLS 2022; winycg/HSAKD train_student_cifar.py, train_teacher_cifar.py",
    objective=dict(type=Hssakd, levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"), tau=3.0),
    align=None,
    transform=None,
    augment=dict(type=Rotations),
    teacher_source="live",
)
