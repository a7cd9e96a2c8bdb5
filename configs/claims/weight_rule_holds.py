"""The automatic loss weight compared with one of the two values in the public code.

A suite sets the teacher and the method with that value: dict(base="weight_rule_holds", name=...,
a=dict(teacher=...), b=dict(method=..., teacher=...)).
"""

claim = dict(
    name="weight_rule_holds",
    title="The automatic weight is at most 1 point worse than weight 20",
    statement="kdep (w = 20 / mean square of the target) is not more than 1 point below the same "
    "with a number from the public code.",
    source="ours; 3 and 20: CVMI-Lab/KDEP, scripts",
    kind="difference",
    a=dict(method="kdep", teacher=None),
    b=dict(method="kdep_w20", teacher=None),
    margin=-0.01,
)
