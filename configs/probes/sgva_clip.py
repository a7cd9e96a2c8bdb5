"""Accuracy with 1 to 16 labelled images per class, an adapter and class prototypes.

Source       Peng et al., TMM 2023; FannierPeng/SgVA-CLIP main.py, models/coop_4.py.
Differs      The authors adapt features of CLIP and compare them with embeddings of class names. A
             backbone has no text tower: the prototypes of the features without adapter replace the
             text prototypes, and there is no prompt to train. Images are not
             augmented, because features are extracted once; an image is left out of the prototype
             that classifies it in training.
Defaults     Of the authors: 100 steps (their epochs), momentum 0.9, weight decay 5e-4, hidden width
             half the feature, alpha 0.5, temperature 5, scale 100 (CLIP). Their learning rate
             depends on data and shots, 5e-4 to 3.5e-3; here it is chosen on val.
Outcome      The adapter should help with 4 and more images per class, and hardly with one: its
             values "no adapter" are the accuracy of the prototypes alone.
"""

from kdep_bench.probes.adapter import SgvaClip

probe = dict(
    name="sgva_clip",
    type=SgvaClip,
    about="top-1 accuracy of an adapter and class prototypes on a few images per class, mean of "
    "ten draws (SgVA-CLIP without text, a re-implementation)",
    source="Peng et al., TMM 2023; FannierPeng/SgVA-CLIP main.py, models/coop_4.py",
    reconstruction=True,  # shown as "(re-implementation)"
    folder="classify",
    shots=(1, 2, 4, 8, 16),
    draws=10,
    rates=(5e-4, 3.5e-3),
    steps=100,
    scale=100.0,
    temperature=5.0,
)
