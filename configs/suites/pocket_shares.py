"""How far fewer images go: 1, 5, 10 and 100 % of the pool at one number of images seen.

Command   python tools/run_suite.py configs/suites/pocket_shares.py
Cost      not measured; six pre-trainings of the size of `pocket`'s beside the two it takes over
          (`--dry-run` estimates it)
Outcome   54 cells: 2 trained arms x 4 shares, and scratch, x 2 tasks x 3 transfer seeds.

An epoch counts the images of the whole pool, so that every share sees 512,000 pictures with the
same schedule and only their variety differs. The lists are random, label-free and nested; each
stage saves its own as images.txt. `share_by="class"` would draw them per class, as KDEP's public
list of 128 images a class is, by reading the labels.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_shares",
    about="1, 5, 10 and 100 % of the images, as many seen of each",
    shares=[0.01, 0.05, 0.1, 1.0],
    tasks=["pocket_probe", "pocket_finetune"],
    claims=["kdep_10pct_vs_supervised"],
)
suite["budget"].update(epochs_over="pool")
