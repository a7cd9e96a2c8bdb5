"""HSSAKD's online form: two students exchange distributions over class and rotation; with labels.

Source       Yang et al., TNNLS 2022; winycg/HSAKD train_online_kd_cifar.py. There both students are
             saved, and the better one on the test set is reported; here the first is exported.
Differs      from `hssakd` in the peer, a second student, in place of the teacher: both train their
             own classifiers with labels. From `dml` in the rotations and in the classifiers at
             every level.
Labels       of the data, for both students.
Teacher      none.
Cost         two students process four rotations of every image. The column of forward passes counts
             seven extra passes per image: three of the student, four of the peer.
"""

from kdep_bench.augments.rotations import Rotations
from kdep_bench.objectives.hssakd_online import HssakdOnline

method = dict(
    name="hssakd_online",
    family="online",
    labels_used=True,
    needs=["labels"],
    source="Yang et al., TNNLS 2022; winycg/HSAKD train_online_kd_cifar.py",
    objective=dict(type=HssakdOnline, tau=3.0),
    align=None,
    transform=None,
    augment=dict(type=Rotations),
)
