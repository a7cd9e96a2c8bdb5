"""A backbone that was pre-trained elsewhere, from a file of its weights.

Use it as a reference. Its data, budget and teacher are not checked. In a suite:

    dict(base="given_weights", name="mine", labels_used=False, weights=dict(weights="mine.pth"))

The file contains a state dict of the student's backbone; every tensor is compared after loading.
The file is identified by the hash of its content: if it changes, the stages are run again.
"""

from kdep_bench.students.given_weights import given_weights

method = dict(
    name="given_weights",
    family="given",
    labels_used=False,
    source="the file named in `weights`",
    objective=None,
    weights=dict(type=given_weights, weights=None),
    align=None,
    transform=None,
)
