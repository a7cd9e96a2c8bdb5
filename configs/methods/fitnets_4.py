"""FitNets-style hints at four levels (strides 4 to 32), label-free.

Source       as `fitnets`; the two lower levels are this project's addition.
Differs      from `fitnets` in the levels: s4 and s8 as well, with the same sum of loss weights;
             from `kdep_maps_4` in the learned projectors. It has the highest scores of the suite
             `kdep_levels`, with the learning rate 0.8.
Cost         projectors of about 0.1 M parameters, dropped at export; four maps per view in the
             teacher's cache, 94 kB with EfficientNet-Lite0 at 128 pixels.
"""

from kdep_bench.objectives.hints import Hints

method = dict(
    name="fitnets_4",
    family="feature",
    labels_used=False,
    needs=["maps"],
    source="Romero et al., ICLR 2015, at four levels (ours)",
    objective=dict(type=Hints, levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"), weight=5.0),
    align=None,
    transform=None,
)
