"""Data efficiency: 1, 5, 10 and 100 % of the pool at the same number of images seen.

Command   python tools/run_suite.py configs/suites/pocket_shares.py
Cost      not measured; six pre-trainings of the size of `pocket`'s in addition to the two that are
          reused (`--dry-run` estimates it)
Outcome   54 runs: 2 trained methods x 4 data fractions, and scratch, x 2 tasks x 3 transfer seeds.

An epoch has as many images as the whole pool, so that every data fraction sees 512,000 images with
the same schedule and only their variety differs. The lists are random, label-free and nested; each
stage saves its list as images.txt. `share_by="class"` would draw them per class, as in KDEP's
public list of 128 images per class, which reads the labels.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_shares",
    about="1, 5, 10 and 100 % of the images, the same number of images seen",
    shares=[0.01, 0.05, 0.1, 1.0],
    tasks=["pocket_probe", "pocket_finetune"],
    claims=["kdep_10pct_vs_supervised"],
)
suite["budget"].update(epochs_over="pool")
