"""GHOST: training on a task with a bit width per layer, distilled from the same network in 32 bits.

Source       Zhang et al., TGRS 2023; icey-zhang/GHOST quantization_conv_automix_autodis.py,
             utils/distill/Self_D.py, models/quant_modules_dorefa.py. Defaults are the authors'.
Differs      The teacher is the same student with the same pre-training, trained on the task first
             (teacher="self"). The student starts from the exported backbone, not from the teacher,
             so that it is trained as long as in every other row. Backbone and neck are quantised,
             heads are not. Activations have a measured range instead of 0..1.
Question     How much of the gain of pre-training is left with few bits: compare
             `dict(base="ghost", pretrained_by="kdep")` with `ghost` from scratch, and both with
             plain transfer.
Outcome      expected: 6 to 8 bits in most layers and a score close to plain transfer, at a quarter
             of the megabytes. According to the authors, the distillation (self-teaching) raises the
             score. A learned switch turns it on or off for each sample; the record has the fraction
             of samples with distillation.
Cost         the teacher is trained on the task once for all runs; it reads every training batch.
             Rounding makes a training step slower, by half on a CPU.
"""

from kdep_bench.transfer.methods.ghost import Ghost

method = dict(
    name="ghost",
    family="transfer",
    reconstruction=True,  # shown as "(re-implementation)"
    source="Zhang et al., TGRS 2023; icey-zhang/GHOST",
    pretrained_by="scratch",
    transfer=dict(
        type=Ghost,
        threshold=0.1,
        smallest=2,
        largest=8,
        weight=400.0,
        width=128,
        parts=("backbone", "neck"),
        teacher="self",
    ),
)
