"""Accuracy of a CLIP teacher with 0 to 16 images per class, an adapter and a trained prompt.

The values are of the method's teacher, which must be the vision tower of a CLIP, such as
`clip_vitb16`. `text_model` is the folder of that CLIP in the format of transformers (config.json,
model.safetensors and the files of the tokenizer); nothing is downloaded. It needs the optional
extra `hf`. In the suite:

    probes=[dict(base="sgva_clip_prompt", text_model="clip-vit-base-patch16")]

The class names in the prompts are the names of the class folders, with spaces for underscores.

Source       Peng et al., TMM 2023; FannierPeng/SgVA-CLIP main.py (loss newi2i+kd+i2t, test head
             Fuse_af), models/coop_4.py, models/classification_heads_4.py.
Differs      Images are not augmented, because features are extracted once, and a step uses all
             images of the draw; an image is left out of the image prototype that classifies it in
             training. The adapter reads the feature itself, without the authors' ReLU after it, and
             its projection is divided by its norm. Numbers are float32, the authors' float16. The
             token embeddings of `words` are counted in tokens, the authors count words. The
             authors' prompt of averaged templates is left out.
Defaults     Of the authors: 16 context vectors for all classes, normal with deviation 0.02, before
             the name and "."; SGD with momentum 0.9 and weight decay 5e-4 for prompt and adapter,
             100 steps (their epochs), cosine schedules, with restarts after 5, 15, 35 and 75 steps
             for the prompt. Their learning rates depend on data and shots, mostly 5e-4 to 3.5e-3
             (adapter) and 5e-5 to 3.5e-3 (prompt); here they are chosen from lists, on val, as is
             the weight of the adapted classifier. 3 draws instead of the 10 of `sgva_clip_text`,
             because each step runs the text tower forward and backward, on the CPU, for each class
             and draw: with 8 classes and the text tower of CLIP ViT-B/16 0.7 s for each step and
             draw on one core, about 35 minutes in all for each teacher.
Outcome      Above `sgva_clip_text` with many images per class, if the prompt generalises.
"""

from kdep_bench.probes.adapter_prompt import SgvaClipPrompt

probe = dict(
    name="sgva_clip_prompt",
    type=SgvaClipPrompt,
    about="top-1 accuracy of the method's vision-language teacher with a trained prompt, an "
    "adapter and a few images per class, mean of three draws (SgVA-CLIP)",
    source="Peng et al., TMM 2023; FannierPeng/SgVA-CLIP main.py, models/coop_4.py, "
    "models/classification_heads_4.py",
    folder="classify",
    text_model=None,
    shots=(1, 2, 4, 8, 16),
    draws=3,
    context=16,
    words=None,
    rates=(5e-4, 3.5e-3),
    prompt_rates=(5e-5, 3.5e-3),
    fusion=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    steps=100,
    scale=100.0,
    temperature=5.0,
)
