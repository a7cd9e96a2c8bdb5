"""Early-stopped KD: logit KD plus cross-entropy for the first half, then cross-entropy only.

Source       Cho and Hariharan, ICCV 2019. There distillation ends after a third to a half of the
             training.
Differs      from `logit_kd` in the cross-entropy with labels and in the early stop. A gain over
             `logit_kd` can be due to either. Both terms have weight 1; usual weights are 0.1 and
             0.9. A label-free form is not possible, because no loss would remain after the stop.
"""

from kdep_bench.objectives.cross_entropy import CrossEntropy
from kdep_bench.objectives.logit_kd import LogitKD
from kdep_bench.objectives.weighted_sum import WeightedSum
from kdep_bench.schedules.until import Until

method = dict(
    name="eskd",
    family="logit",
    labels_used=True,
    needs=["labels", "logits"],
    source="Cho and Hariharan, ICCV 2019, section 4.2",
    objective=dict(
        type=WeightedSum,
        parts=dict(
            labels=dict(objective=dict(type=CrossEntropy)),
            teacher=dict(objective=dict(type=LogitKD, tau=4.0), weight=dict(type=Until, stop=0.5)),
        ),
    ),
    align=None,
    transform=None,
)
