"""Student backbones: any timm network, EfficientNet-Lite, and configs made from a name."""
