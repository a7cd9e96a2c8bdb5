"""Representative teacher keys: attention between maps that ignores dissimilar teacher maps.

Source       arXiv 2206.12788, re-implemented from its abstract only; the attention is that of
             `afd`. The weight was chosen in this project.
Differs      from `afd` in three points: for each student map, the softmax is over the teacher's
             maps; only the larger half of its weights is used; squared differences are summed over
             positions, not averaged.
"""

from kdep_bench.objectives.attention_features import StrongestTeacherMaps

method = dict(
    name="rtk",
    family="feature",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["maps"],
    source="arXiv 2206.12788 (abstract); attention of clovaai/attention-feature-distillation",
    objective=dict(
        type=StrongestTeacherMaps,
        levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"),
        weight=10.0,
        dim=128,
        keep=0.5,
    ),
    align=None,
    transform=None,
)
