"""FitNets-style hints, label-free: learned projectors from the maps at four strides, 4 to 32.

Source       as `fitnets`; this project added the levels s4 and s8.
Differs      from `fitnets` in these two levels, with the same sum of loss weights, and from
             `kdep_maps_4` in the learned projectors. With the learning rate 0.8 it has the highest
             scores of the suites `kdep_levels` and `kdep_maps`.
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
