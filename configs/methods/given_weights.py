"""A backbone that was pre-trained elsewhere, from a file of its weights.

A reference: nothing is known of its data, budget or teacher but what you state. In a suite:

    dict(base="given_weights", name="mine", labels_used=False, weights=dict(weights="mine.pth"))

The file is a state dict of the student's backbone; every tensor is compared after loading. It is
identified by its content: another file under the same name is another method run.
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
