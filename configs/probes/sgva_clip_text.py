"""Accuracy of a vision-language teacher with 0 to 16 images per class, an adapter and class texts.

The values are of the method's teacher, which must be the vision tower of a vision-language model,
such as `clip_vitb16`. `text` is the path of a file with an embedding for every class folder, made
with the text encoder of that model; nothing is downloaded. For a CLIP of transformers:

    import numpy as np
    from transformers import AutoTokenizer, CLIPModel

    folder, names = "clip-vit-base-patch16", ["cat", "dog"]  # names of the class folders
    model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = [f"a photo of a {name}." for name in names]
    state = model.text_model(**tokenizer(prompts, padding=True, return_tensors="pt"))
    text = model.text_projection(state.pooler_output)
    np.savez(
        "class_texts.npz",
        classes=names,
        text=text.detach().numpy(),
        projection=model.visual_projection.weight.detach().numpy().T,
    )

and in the suite: probes=[dict(base="sgva_clip_text", text="class_texts.npz")].

`projection` maps the feature of the teacher (here 768 wide, before CLIP's projection) to the space
of the texts (512). Leave it out for a teacher whose feature is in that space.

Source       Peng et al., TMM 2023; FannierPeng/SgVA-CLIP main.py (loss newi2i+kd+i2t, test head
             Fuse_af), models/coop_4.py, models/classification_heads_4.py.
Differs      The prompt is not trained, because only its embeddings are given, so the third term of
             the loss is constant; the probe `sgva_clip_prompt` trains it. Images are not augmented,
             because features are extracted once; an image is left out of the image prototype that
             classifies it in training. The authors' adapter reads the embedding times the
             pseudo-inverse of the projection; here it reads the feature itself.
Defaults     Of the authors: 100 steps (their epochs), momentum 0.9, weight decay 5e-4, hidden width
             half the feature, alpha 0.5, temperature 5, scale 100 (CLIP). Their learning rate
             depends on data and shots, 5e-4 to 3.5e-3, and their weight of the adapted classifier
             is the best of ten random ones on val; here both are chosen from lists, on val.
Outcome      Above the probe `sgva_clip` of this teacher's features with few images per class, if
             the texts describe the classes.
"""

from kdep_bench.probes.adapter_text import SgvaClipText

probe = dict(
    name="sgva_clip_text",
    type=SgvaClipText,
    about="top-1 accuracy of the method's vision-language teacher with class texts, an adapter and "
    "a few images per class, mean of ten draws (SgVA-CLIP)",
    source="Peng et al., TMM 2023; FannierPeng/SgVA-CLIP main.py, models/coop_4.py, "
    "models/classification_heads_4.py",
    folder="classify",
    text=None,
    shots=(1, 2, 4, 8, 16),
    draws=10,
    rates=(5e-4, 3.5e-3),
    fusion=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    steps=100,
    scale=100.0,
    temperature=5.0,
)
