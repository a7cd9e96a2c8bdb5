"""ImageNet-1K as the pre-training pool, and the downstream data sets of KDEP's protocol.

Command   python tools/prepare_data.py SET --root $KDEP_DATA, once per set (--list names them)
Cost      disk space for the archives (about 200 GB, mostly ImageNet) and the same again unpacked
Outcome   stage `prepare` checks the image counts and some images of every set, and links the sets

Set `sets` to the sets that the suite's tasks read; only these and the pool are checked and linked.
"""

data = dict(
    type="kdep_bench.data.official.stage.prepare",
    name="imagenet",
    sets=["cifar100", "cub200", "dtd", "caltech256", "cityscapes", "voc", "ade20k", "coco"],
    pool="imagenet",
    pool_classes=1000,
)
