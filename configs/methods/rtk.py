"""Representative teacher keys: attention between maps that leaves out dissimilar teacher maps.

Source       arXiv 2206.12788, of which only the abstract was read; the attention is that of `afd`.
Differs      from `afd` in the direction of the attention (over the teacher's maps for each student
             map), in keeping only the stronger half of it, and in summing differences over
             positions instead of averaging them. The weight, 10, is this project's choice.
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
