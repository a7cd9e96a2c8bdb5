"""TransKD base: a segmenter learns from a larger one, tuned on the same task, while it is trained.

Source       Liu et al., arXiv 2202.13393; RuipingL/TransKD, the form "Base": maps through cross
             selective fusion, and patch embeddings, with the authors' weights.
Differs      from a pre-training in acting at transfer, with the task's labels. Rows without
             pre-training compare with `kdep`; `dict(base="transkd", pretrained_by="kdep")` is KDEP
             and TransKD. The task keeps its own loss and recipe; in a convolutional network the
             patch embedding is the first block of a level's stage.
Scale        the authors' weights, for the normalised maps of their transformers. The linear maps of
             EfficientNet-Lite0 are larger: on the smoke data the two terms begin at 127 and 42,
             the task's own loss at 3. Choose `weight` and `betas` for such a teacher on
             validation data before a score is compared.
Cost         the teacher is trained on the task once for all runs, and reads every training batch.
"""

from kdep_bench.transfer.methods.transkd import TransKD

method = dict(
    name="transkd",
    family="transfer",
    reconstruction=True,
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
