"""TransKD-Base: distillation while a segmenter is trained, from a larger, trained segmenter.

Source       Liu et al., arXiv 2202.13393; RuipingL/TransKD, the form "Base": it compares maps, by
             cross selective fusion, and patch embeddings. The loss weights are the authors'.
Differs      from pre-training methods in being a transfer method, which uses the task's labels. By
             default the student is not pre-trained; `dict(base="transkd", pretrained_by="kdep")`
             combines KDEP and TransKD. Loss and recipe of the task are unchanged. In a
             convolutional network, the first block of a stage is used as its patch embedding.
Scale        the authors' weights are for the normalised maps of their transformers. The maps of
             EfficientNet-Lite0 are not normalised and larger: on the smoke data the two terms begin
             at 127 and 42, the task's loss at 3. For such a teacher, choose `weight` and `betas` on
             validation data first.
Cost         the teacher is trained on the task once for all runs; it reads every training batch.
"""

from kdep_bench.transfer.methods.transkd import TransKD

method = dict(
    name="transkd",
    family="transfer",
    reconstruction=True,  # shown as "(re-implementation)"
    source="arXiv 2202.13393; RuipingL/TransKD",
    pretrained_by="scratch",
    transfer=dict(
        type=TransKD,
        levels=dict(s4="s4", s8="s8", s16="s16", s32="s32"),
        weight=1.0,
        betas=dict(s4=0.1, s8=0.1, s16=0.5, s32=1.0),
        channels=64,
        teacher=dict(student="efficientnet_lite0_trunk", method="imagenet"),
    ),
)
