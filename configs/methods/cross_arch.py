"""Cross-architecture distillation: a CNN learns attention and tokens of a vision transformer.

Source       Liu et al., ACCV 2022, arXiv 2207.05273, re-implemented from notes that quote its
             equations; no code of the authors is public. Weights of the terms, dropout, the
             discriminator's size and optimiser, and the strength of the views are this project's.
             A weight above 1 can diverge with SGD at the learning rates of the suites.
Differs      from `fitnets` in what is compared: queries, keys and values that the student's map is
             projected to, and tokens after one linear layer per region of the image. Entries of
             the student's projections are replaced by the teacher's at random. A discriminator
             tries to distinguish tokens of student and teacher. For the plain form without it:
             objective=dict(type=CrossArchitecture, _delete_=True) and augment=None.
Labels       none.
Teacher      a vision transformer of timm, torchvision or mmpretrain with global attention (no
             Swin), whose config states its number of blocks: dinov2_vitb14, or your own with
             card=dict(blocks=12). It runs live, as the views are in no cache.
Student      any with feature maps. The last level must be read.
Cost         one teacher pass per image; 3x3 convolutions from the student's channels to three
             times the teacher's width, on the teacher's grid, in the extra parameters. The
             discriminator takes its own step.
"""

from kdep_bench.augments.multi_view import MultiView
from kdep_bench.objectives.cross_architecture import CrossArchitectureViews

method = dict(
    name="cross_arch",
    family="feature",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["attention"],
    source="re-implementation of Liu et al., ACCV 2022, arXiv 2207.05273, from quoted equations",
    objective=dict(
        type=CrossArchitectureViews, teacher_block=11, student_level="s32", adversarial=0.05
    ),
    align=None,
    transform=None,
    augment=dict(type=MultiView),
    teacher_source="live",
)
