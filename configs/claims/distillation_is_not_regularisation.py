"""Logit distillation compared with the same after permuting the classes except the top class.

The permutation destroys the similarities of classes; only the effect of regularisation is left.
"""

claim = dict(
    name="distillation_is_not_regularisation",
    title="Logit distillation is more than regularisation",
    statement="logit KD scores above logit KD with the probabilities of all classes but the top "
    "class permuted, at the same data and budget.",
    source="Vats and Crandall, arXiv 2112.10047",
    kind="difference",
    a=dict(method="logit_kd", share=1.0),  # share: data fraction
    b=dict(method="logit_kd_permuted", share=1.0),
)
