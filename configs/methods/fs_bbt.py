"""FS-BBT: few images, to which mixed and generated ones are added; only class probabilities.

Source       Nguyen et al., ECCV 2022; nphdang/FS-BBT. alpha 1, threshold 0.05, a conditional VAE
             with two latent numbers trained for 600 epochs, and a loss on the teacher's
             probabilities alone (balance 0). Departures are listed in FewShotImages and
             ConditionalVAE.
Differs      from `tinyvit`, which has the same loss, in the images: those of the data fraction, and
             3,200 mixtures and generated images in addition (in the paper 40,000 for CIFAR-10).
             They have 128 pixels, and the suite's crops are drawn from them.
Labels       none. The classes of the generated images are predicted by the teacher.
Teacher      may be a black box, such as `efficientnet_lite0_black_box`: only its ten largest class
             probabilities are read. It labels the few images once for the VAE, and every view of
             every image in its cache.
Cost         an epoch has the few and the additional images. The time of the VAE is part of the
             pre-training time.
"""

from kdep_bench.features.few_shot import FewShotImages
from kdep_bench.objectives.soft_target import SoftTarget

method = dict(
    name="fs_bbt",
    family="logit",
    labels_used=False,
    needs=["probabilities"],
    source="Nguyen et al., ECCV 2022; nphdang/FS-BBT cifar10/fsbbt_alexnet.py, cvae.py",
    objective=dict(type=SoftTarget, top_classes=10),
    align=None,
    transform=None,
    synthesis=dict(type=FewShotImages, images=3200, px=128),
)
