"""Feature distillation compared with logit distillation; neither uses labels."""

claim = dict(
    name="kdep_beats_logit_kd",
    title="KDEP beats logit distillation",
    statement="kdep scores above logit KD at the same data and budget.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="difference",
    a=dict(method="kdep", share=1.0),
    # Alternative names of the method: kd is that of the public code. `share` is the data fraction.
    b=dict(method=("logit_kd", "kd"), share=1.0),
)
