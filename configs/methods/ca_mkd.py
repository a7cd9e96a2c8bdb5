"""CA-MKD: two teachers, weighted per image by how well each predicts the label; with labels.

Source       Zhang et al., ICASSP 2022; Rorozhl/CA-MKD. The weights of the logit terms depend on the
             cross-entropy of each teacher, those of the feature terms on the cross-entropy of each
             teacher's classifier on the projected student feature. As in the repository, both are
             divided by the number of teachers, which the paper does not do. The feature terms have
             weight 50 and start in the second epoch (of 16 here, of 240 in the repository).
Differs      from the repository in pooled features instead of the last maps.
Needs        labels of the teachers' classes, and teachers whose logits are a function of the pooled
             feature. Without labels: `ebkd`.
"""

from kdep_bench.objectives.ca_mkd import ConfidenceAwareFeatures, ConfidenceWeights
from kdep_bench.objectives.multi_teacher import MultiTeacherKDWithLabels
from kdep_bench.objectives.weighted_sum import WeightedSum
from kdep_bench.schedules.step import Step

method = dict(
    name="ca_mkd",
    family="multi-teacher",
    labels_used=True,
    needs=["classes", "classifier", "labels", "logits", "pooled"],
    source="Zhang et al., ICASSP 2022; Rorozhl/CA-MKD distiller_zoo/CAMKD.py, helper/loops.py",
    objective=dict(
        type=WeightedSum,
        parts=dict(
            logits=dict(
                objective=dict(
                    type=MultiTeacherKDWithLabels,
                    tau=4.0,
                    weighting=dict(type=ConfidenceWeights),
                )
            ),
            features=dict(
                objective=dict(type=ConfidenceAwareFeatures),
                weight=dict(type=Step, values=[0.0] + [50.0] * 15),
            ),
        ),
    ),
    align=None,
    transform=None,
    # "suite": the teacher that the suite names.
    teachers=dict(first="suite", second="efficientnet_lite2"),
)
