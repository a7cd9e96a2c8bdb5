"""The task's training with k-bit weights and activations, without a teacher.

Source       weights as in DoReFa-Net (Zhou et al., arXiv 1606.06160) and GHOST (TGRS 2023);
             activations by torch's observer and fake quantisation.
Differs      from `ghost` in having the same bits in all layers and no teacher: the part of GHOST
             without which its other parts cannot be judged. `transfer=dict(bits=4)` changes k.
Question     How much of the gain of pre-training is left with k bits: list the method in a suite
             with pretrained_by="scratch" and with "kdep", for several k.
Outcome      expected: with 8 bits no significant difference from plain transfer, with 2 bits a
             clearly lower score.
"""

from kdep_bench.transfer.methods.quantised import Quantised

method = dict(
    name="quantised",
    family="transfer",
    source="Zhou et al., arXiv 1606.06160 (weights); torch.ao.quantization (activations)",
    pretrained_by="scratch",
    transfer=dict(type=Quantised, bits=8, parts=("backbone", "neck")),
)
