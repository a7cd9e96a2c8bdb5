"""No pre-training: the randomly initialised student, another one for every seed."""

method = dict(
    name="scratch",
    family="none",
    labels_used=False,
    source="baseline: random initialisation",
    objective=None,
    align=None,
    transform=None,
)
