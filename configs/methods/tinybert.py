"""TinyBERT for vision transformers: attention scores and hidden states of every block.

Source       Jiao et al., EMNLP Findings 2020; huawei-noah/Pretrained-Language-Model. From there:
             the two losses, the loss on the embedding, the uniform map of blocks, one linear layer
             for all hidden states. Each difference is divided by the teacher's mean square;
             `relative=False` is the source's form. The optimiser is the suite's; TinyBERT uses
             Adam.
Stages       TinyBERT distils on unlabelled text first, then again on the task, with a teacher that
             is fine-tuned on it and with its logits. This is the first stage; the second
             is `tinybert_transfer`.
Differs      from `dmae` in the number of layers (all), in the attention and in the missing masks;
             from `fitnets` in the student, which must be a transformer.
Labels       none.
Teacher      a vision transformer of timm, torchvision or mmpretrain with as many patches as the
             student, 14 x 14 at 224 px, for example teacher=dict(base="dinov2_vitb14",
             input_px=196), whose number of blocks is a multiple of the student's; no Swin, whose
             windows have separate attention. It runs live: no cache holds its attention. Its heads
             differ from those of vit_t, so the scores are averaged over the heads.
Student      vit_t; of another depth with objective=dict(student_depth=...).
Cost         one teacher pass per image, and the scores of every head, block and pair of tokens.
"""

from kdep_bench.objectives.transformer_layers import TransformerLayers

method = dict(
    name="tinybert",
    family="feature",
    labels_used=False,
    needs=["attention"],
    source="Jiao et al., EMNLP Findings 2020; huawei-noah TinyBERT/general_distill.py",
    objective=dict(type=TransformerLayers, student_depth=12, teacher_depth=12, average_heads=True),
    align=None,
    transform=None,
    teacher_source="live",
    students=["vit_t"],
)
