"""Dynamic prior knowledge: part of each student map is replaced by the teacher's, then decoded.

Source       Qiu et al., ICLR 2023 (arXiv 2206.06067), as a survey describes it; encoder and decoder
             are this project's choice, and there is no cross-entropy.
Differs      from `fitnets` in the decoder and in the positions that are filled with the teacher's
             map; their fraction falls as the student's features become similar to the teacher's.
"""

from kdep_bench.objectives.dynamic_prior import DynamicPrior

method = dict(
    name="dpk",
    family="feature",
    labels_used=False,
    reconstruction=True,
    needs=["maps"],
    source="Qiu et al., ICLR 2023, arXiv 2206.06067, as a survey describes it",
    objective=dict(type=DynamicPrior, levels=dict(s16="s16", s32="s32"), weight=10.0, hidden=128),
    align=None,
    transform=None,
)
