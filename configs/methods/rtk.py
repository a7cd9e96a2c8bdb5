"""Representative teacher keys: attention between maps that ignores dissimilar teacher maps.

Source       arXiv 2206.12788, re-implemented from its abstract only; the attention is that of
             `afd`. The weight was chosen in this project.
Differs      from `afd` in the softmax, which is over the teacher's maps for each student map, in
             using only the larger half of the weights, and in summing squared differences over
             positions instead of averaging them.
"""

from kdep_bench.objectives.attention_features import StrongestTeacherMaps

method = dict(
    name="rtk",
    family="feature",
    labels_used=False,
    reconstruction=True,
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
