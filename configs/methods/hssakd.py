"""HSSAKD: every level learns the teacher's distribution over class and rotation; with labels.

Source       Yang et al., TNNLS 2022 (IJCAI 2021); winycg/HSAKD, the offline form with a frozen
             teacher. The teacher's classifiers are trained in the same run instead of before it;
             `kdep_bench/objectives/hssakd.py` lists this and the other differences.
Differs      from `logit_kd` in the four rotations of every image, the classifiers at every level
             and the labels; from `fitnets` in comparing class distributions of levels instead of
             their features.
Labels       of the data, for the teacher's classifiers and the student's cross-entropy.
             objective=dict(cross_entropy=0.0) removes the student's cross-entropy. The teacher's
             own classifier is not used.
Teacher      any teacher with feature maps. It is live, because rotated images are in no cache.
Cost         student and teacher process four rotations of every image. The columns of forward
             passes count seven extra passes per image: three of the student, four of the teacher.
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
