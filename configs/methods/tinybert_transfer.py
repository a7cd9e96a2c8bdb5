"""TinyBERT on a classification task: a vision transformer learns from a larger one, tuned on it.

Source       Jiao et al., EMNLP Findings 2020; huawei-noah/Pretrained-Language-Model, the second
             stage (task distillation): first the losses of the layers, then that of the class
             probabilities, without labels. The differences are listed in
             `kdep_bench/transfer/methods/transformer_distillation.py`.
Needs        a classification task that is fine-tuned, and a student that is a vision transformer
             of timm, such as vit_t. The teacher must have as many patches as the student, and a
             multiple of its number of blocks.
Teacher      ViT-S, pre-trained by kdep from the suite's teacher and then trained on the task with
             labels. For another input size of the student, set it for the teacher too:
             transfer=dict(teacher=dict(student=dict(input_px=...))).
Differs      from `tinybert`, the first stage, in the training on the task only. By default the
             student is not pre-trained: `dict(base="tinybert_transfer", pretrained_by="tinybert")`
             is both stages.
Settings     labels=1.0 also learns from the labels of the task; intermediate=0.0 skips the losses
             of the layers; attention, hidden and embedding are their weights.
Outcome      not measured yet.
Cost         the teacher is trained on the task once for all runs; it reads every training batch.
"""

from kdep_bench.transfer.methods.transformer_distillation import TransformerDistillation

method = dict(
    name="tinybert_transfer",
    family="transfer",
    source="Jiao et al., EMNLP Findings 2020; huawei-noah TinyBERT/task_distill.py",
    pretrained_by="scratch",
    students=["vit_t"],
    transfer=dict(
        type=TransformerDistillation,
        intermediate=10 / 13,
        labels=0.0,
        tau=1.0,
        teacher=dict(
            student=dict(
                base="vit_t",
                name="vit_s",
                backbone=dict(model="vit_small_patch16_224"),
                width=384,
                input_px=224,
            ),
            method="kdep",
        ),
    ),
)
