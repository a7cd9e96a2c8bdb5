"""Attention-based feature distillation: learned weights for all pairs of maps, label-free.

Source       Ji et al., AAAI 2021; clovaai/attention-feature-distillation, with its loss
             weight 200 and its 128 dimensions. There it is added to logit distillation and
             cross-entropy.
Differs      from `fitnets` in comparing the spatial pattern of maps instead of their channels, and
             every student map with every teacher map, weighted per sample by attention.
Cost         attention layers of about 0.4 M parameters, dropped at export; a cache of four maps.
"""

from kdep_bench.objectives.attention_features import AttentionFeatures

method = dict(
    name="afd",
    family="feature",
    labels_used=False,
    needs=["maps"],
    source="Ji et al., AAAI 2021, arXiv 2102.02973; clovaai/attention-feature-distillation",
    objective=dict(
        type=AttentionFeatures,
        levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"),
        weight=200.0,
        dim=128,
    ),
    align=None,
    transform=None,
)
