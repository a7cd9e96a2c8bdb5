"""KDEP on the small pool compared with supervised ImageNet weights of the same student."""

claim = dict(
    name="kdep_reaches_imagenet",
    title="KDEP comes within 1 point of supervised ImageNet weights",
    statement="kdep is not more than 1 point below imagenet.",
    kind="difference",
    a=dict(method="kdep", share=1.0),  # share: data fraction
    b=dict(method="imagenet", share=1.0),
    margin=-0.01,
)
