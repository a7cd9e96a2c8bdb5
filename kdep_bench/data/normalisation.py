"""The one normalisation of every student, in pre-training and in every transfer.

ImageNet channel statistics, RGB, on the 0-255 scale (mmpretrain 1.2.0's ImageNet data
preprocessor; torchvision's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 times 255).
"""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
