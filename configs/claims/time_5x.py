"""Five times less time: how long KDEP needs for the score of supervised.

The time is read from the curve of score against seconds; KDEP's includes teacher cache and
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
    b=dict(method="supervised", share=1.0),
    axis="seconds",
    at_least=5.0,
)
