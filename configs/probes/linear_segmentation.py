"""mIoU of one 1x1 convolution on the frozen feature maps of the scenes with masks."""

from kdep_bench.probes.linear_segmentation import LinearSegmentation

probe = dict(
    name="linear_segmentation",
    about="mIoU of one linear layer on frozen maps of strides 8, 16, 32; decay is chosen on val",
    type=LinearSegmentation,
    folder="cityscapes",
    size=(120, 160),
)
