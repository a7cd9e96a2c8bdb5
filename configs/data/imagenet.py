"""ImageNet-1K as the pool and the nine downstream sets of KDEP's protocol, below $KDEP_DATA.

Command   tools/prepare_data.py SET --root $KDEP_DATA, for each SET of tools/prepare_data.py --list
Cost      the archives (about 200 GB, most of it ImageNet) and about as much again unpacked
Outcome   the stage `prepare` checks counts and samples of every set, and links them

Set `sets` to the sets that the suite's tasks read: only these are checked and linked.
"""

data = dict(
    type="kdep_bench.data.official.stage.prepare",
    name="imagenet",
    sets=["cifar100", "cub200", "dtd", "caltech256", "cityscapes", "voc", "ade20k", "coco"],
    pool="imagenet",
    pool_classes=1000,
)
