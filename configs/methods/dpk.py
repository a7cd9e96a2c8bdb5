"""Dynamic prior knowledge: part of each student map is replaced by the teacher's, then decoded.

Source       Qiu et al., ICLR 2023 (arXiv 2206.06067), as described in a survey, without its
             cross-entropy. Encoder and decoder were chosen in this project.
Differs      from `fitnets` in the decoder, and in a fraction of positions that are replaced by the
             teacher's map. The fraction decreases as the two maps become similar.
"""

from kdep_bench.objectives.dynamic_prior import DynamicPrior

method = dict(
    name="dpk",
    family="feature",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["maps"],
    source="Qiu et al., ICLR 2023, arXiv 2206.06067, as a survey describes it",
    objective=dict(type=DynamicPrior, levels=dict(s16="s16", s32="s32"), weight=10.0, hidden=128),
    align=None,
    transform=None,
)
