"""Template for your own images, boxes, masks and class folders: copy it and change the paths.

Paths are absolute, or relative to $KDEP_DATA. Remove the parts that you do not have, and their
tasks in `configs/suites/mine.py`. Alternatively, a suite can contain this dict as its `data`, or
change single keys with data=dict(base="mine", ...).
"""

data = dict(
    type="kdep_bench.data.own.prepare",
    name="mine",
    labels=False,  # True allows supervised methods; it needs pool_labels=True
    pool="mine/images",  # images for pre-training, with or without sub-folders
    pool_labels=False,  # True if the sub-folders of the pool are classes
    # For classification: folders with one sub-folder per class, the same in every split.
    # classify=dict(train="mine/classes/train", val="mine/classes/val", test="mine/classes/test"),
    coco=dict(
        train=dict(json="mine/train.json", images="mine/train"),
        test=dict(json="mine/test.json", images="mine/test"),
    ),
    masks=dict(
        train=dict(images="mine/seg/train", masks="mine/seg/train_masks"),
        test=dict(images="mine/seg/test", masks="mine/seg/test_masks"),
    ),
    classes=["road", "field", "water"],  # mask value 0, 1, 2; 255 is ignored
    # allow_absent=["water"],  # classes of boxes or masks that the training split may lack
    # Pairs of sets that may share images. For other pairs, a file that is in both splits is an
    # error, and equal images are mentioned in a note beside the scores.
    # allow_duplicates=[["pool", "coco/test"]],
)
