"""Ten times less data: how many images KDEP needs to reach supervised training with all images.

The number is read from KDEP's curve of score against images.
"""

claim = dict(
    name="data_10x",
    title="KDEP needs 10 x fewer images",
    statement="On its score-against-images curve kdep reaches supervised with a tenth of the "
    "images.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180, abstract",
    kind="efficiency",
    a=dict(method="kdep"),
    b=dict(method="supervised", share=1.0),  # share: data fraction
    axis="images",
    at_least=10.0,
)
