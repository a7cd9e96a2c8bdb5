"""Data efficiency: 1, 5, 10 and 100 % of the pool at the same number of images seen.

Command   python tools/run_suite.py configs/suites/pocket_shares.py
Cost      not measured (`--dry-run` estimates it): six pre-trainings of the length of `pocket`'s, in
          addition to the two that are reused
Outcome   54 runs: 2 trained methods x 4 data fractions, and scratch, x 2 tasks x 3 transfer seeds

An epoch has as many samples as the whole pool. So training with every data fraction has 512,000
samples and the same schedule, and only the number of different images varies. The images
are chosen at random without labels, and smaller fractions are subsets of larger ones; each stage
saves its list as images.txt. `share_by="class"` would choose them per class and read labels, as in
KDEP's public list of 128 images per class.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

suite.update(
    name="pocket_shares",
    about="1, 5, 10 and 100 % of the images, the same number of images seen",
    shares=[0.01, 0.05, 0.1, 1.0],  # data fractions
    tasks=["pocket_probe", "pocket_finetune"],
    claims=["kdep_10pct_vs_supervised"],
)
suite["budget"].update(epochs_over="pool")
