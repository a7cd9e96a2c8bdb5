"""Five times less time: how long KDEP needs to reach the score of supervised pre-training.

The time is read from KDEP's curve of score against seconds, which include teacher cache and
alignment.
"""

claim = dict(
    name="time_5x",
    title="KDEP needs 5 x less time",
    statement="On its score-against-seconds curve kdep reaches supervised in a fifth of the time, "
    "teacher cache included.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180, abstract",
    kind="efficiency",
    a=dict(method="kdep"),
    b=dict(method="supervised", share=1.0),  # share: data fraction
    axis="seconds",
    at_least=5.0,
)
