"""KDEP on maps in the paper's protocol: ResNet-18, teacher ResNet-50, otherwise as `paper_r18`.

Command   python tools/run_suite.py paper_maps_r18 --dry-run     # or --rehearse, as for paper_r18
          KDEP_DATA=/data python tools/run_suite.py paper_maps_r18
Cost      not measured; --dry-run estimates it. Everything but the two methods with maps is reused
          from paper_r18. For these two the teacher runs on every training image, because the maps
          of ImageNet-1K would take terabytes
Outcome   kdep, kdep_maps_4, fitnets_4, logit_kd, supervised and scratch at 10 % of ImageNet-1K for
          90 epochs and at 100 % for 9, three seeds each

The maps are the outputs of ResNet-50's four stages, after the ReLU of their last block. The
learning rate is the paper's 0.3 for all methods. It was not searched for kdep_maps_4 or fitnets_4;
in the suite `kdep_anatomy_grid`, at another size and with another teacher, the best rates of these
methods differ from each other.
"""

from mmengine.config import read_base

with read_base():
    from .._base_.difference_claims import above
    from .paper_r18 import suite

maps = dict(_delete_=True, s4="layer1", s8="layer2", s16="layer3", s32="layer4")
differences = [("kdep_maps_4", "kdep"), ("kdep_maps_4", "supervised"), ("fitnets_4", "kdep_maps_4")]

suite.update(
    name="paper_maps_r18",
    about="ResNet-18 at 224 px, ImageNet-1K: KDEP on maps in the protocol of KDEP (CVPR 2022)",
    methods=["kdep", "kdep_maps_4", "fitnets_4", "logit_kd", "supervised", "scratch"],
    variants=[
        dict(
            teacher=teacher,
            methods=methods,
            shares=[share],
            budget=dict(epochs=epochs),
        )
        for share, epochs in ((1.0, 9), (0.1, 90))
        for teacher, methods in (
            # scratch does not depend on the data fraction, so it is listed for fraction 1 only.
            ("resnet50", ["kdep", "logit_kd", "supervised", *["scratch"] * (share == 1)]),
            (
                dict(base="resnet50", maps=maps),
                [
                    dict(base=method, teacher_source="live")
                    for method in ("kdep_maps_4", "fitnets_4")
                ],
            ),
        )
    ],
    claims=[
        above(
            *pair,
            title=f"{' beats '.join(pair)}, {100 * share:g} % of the images",
            suffix=f"_{share:g}",
            at=f"{100 * share:g} % of the images",
            share=share,
        )
        for pair in differences
        for share in (1.0, 0.1)
    ],
)
