"""Measures of the teacher's features, which the report compares with the scores of its students.

Unlabelled: participation ratio, effective rank, explained variance at the student's width, mean
cosine, uniformity, on 2,048 images of the pool. Labelled: within-class variance, and accuracy of a
linear probe. After pre-training: CKA with the student. The report ranks teachers by the
participation ratio, as `kdep-bench pick` does before a run, and shows how much score that choice
costs.
"""

from kdep_bench.probes.teacher_features import TeacherFeatures

probe = dict(
    name="teacher",
    about="features of the method's teacher: spread, accuracy, similarity to the student (CKA)",
    source="the question is that of He et al., CVPR 2022; the measures are ours and those of "
    "Garrido et al., ICML 2023, and of Wang and Isola, ICML 2020",
    type=TeacherFeatures,
    folder="classify",
    rows=2048,
    teacher="method",
    c_grid=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    max_iter=500,
)
