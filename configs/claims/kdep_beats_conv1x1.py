"""Alignment without trained parameters (SVD + PTS) compared with a learned 1x1 convolution."""

claim = dict(
    name="kdep_beats_conv1x1",
    title="KDEP beats a learned 1x1 convolution",
    statement="kdep scores above conv1x1 at the same data and budget.",
    source="He et al., CVPR 2022 (KDEP), arXiv 2203.05180",
    kind="difference",
    a=dict(method="kdep", share=1.0),
    # Alternative names of the method. `share` is the data fraction.
    b=dict(method=("conv1x1", "conv_1x1"), share=1.0),
)
