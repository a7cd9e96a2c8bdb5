"""No pre-training: the student with random initialisation, different for every seed."""

method = dict(
    name="scratch",
    family="none",
    labels_used=False,
    source="baseline: random initialisation",
    objective=None,
    align=None,
    transform=None,
)
