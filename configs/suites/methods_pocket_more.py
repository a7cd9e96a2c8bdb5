"""33 methods that `methods_pocket` does not have, under the same protocol, with three seeds.

Command   python tools/run_suite.py configs/suites/methods_pocket_more.py  (can be resumed)
Cost      not run yet. Per method and seed: 800 steps at batch 64 (90 to 105 s on one core for one
          pass of the student per image; bd_kd, mfef, tst and dpk take longer, hssakd and
          hssakd_online four times as long), then 43 s of tasks; ces_kd, weighted_assistants,
          teacher_quality, amal, self_distillation and pixel_distillation_tas also train their
          teachers
Outcome   not run yet. Its purpose: scores for `results/methods.md`, comparable with those of
          `methods_pocket`

Equal for all methods: the 3,200 images, their two fixed views, 16 epochs, batch 64, weight decay
and schedule. scratch, supervised, kdep and fitnets are included as references. Learning rates are
chosen in `methods_pocket_more_grid`; teachers that a method trains have 0.2.

multi_teacher_kd, aekd and ebkd have two teachers, Lite0 and Lite2.

Not included: ca_mkd, which needs two pre-trained teachers for the classes of the labels; and
methods that need a vision transformer as teacher (cross_arch, dmae) or student (tinybert, mae).
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import rates as reference_rates
    from .methods_pocket import suite

references = ["scratch", "supervised", "kdep", "fitnets"]
arms = [
    # Targets: the pooled feature.
    "mlp",
    "ckd",
    "kdep_unit",
    "kdep_mixup",
    # Targets: feature maps.
    "afd",
    "rtk",
    "dpk",
    "proc_kd",
    "sokd",
    "spatial_attention",
    "position_relations",
    "kdep_maps",
    "kdep_maps_4",
    "fitnets_4",
    # Targets: class probabilities.
    "logit_kd_permuted",
    "tst",
    "ces_kd",
    "weighted_assistants",
    "tinyvit",
    "fs_bbt",
    # Several given teachers.
    "multi_teacher_kd",
    "aekd",
    "ebkd",
    # Other images: masked, or of the teacher's resolution.
    "dmae_maps",
    "pixel_distillation",
    "pixel_distillation_tas",
    # Labels, with or without a teacher.
    "bd_kd",
    "mfef",
    "self_distillation",
    "teacher_quality",
    "amal",
    "hssakd",
    "hssakd_online",
]
# Learning rates that `methods_pocket_more_grid` chooses; without one, the budget's 0.2.
rates = {}
all_rates = {name: reference_rates[name] for name in references if name in reference_rates} | rates
methods = [
    dict(base=name, optimizer=dict(lr=all_rates[name])) if name in all_rates else dict(base=name)
    for name in [*references, *arms]
]

suite.update(
    name="methods_pocket_more",
    about="more methods under the protocol of methods_pocket, classification",
    methods=methods,
    claims=[],
    # Other programs ran on the machine, so wall times are not valid measurements.
    runtime=dict(timed=False),
)
