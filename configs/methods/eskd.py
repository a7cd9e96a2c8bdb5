"""Early-stopped KD: logit KD beside cross-entropy for the first half, then cross-entropy alone.

Source       Cho and Hariharan, ICCV 2019. The paper stops at about a third to a half of its run.
Differs      from a labelled KD arm in the stop alone; the suites have no such arm, so a gain over
             `logit_kd` may be the labels'. Both terms weigh 1 here (0.1 and 0.9 in the papers'
             usual form). Without labels nothing would be left to learn from after the stop, which
             the plan refuses.
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
