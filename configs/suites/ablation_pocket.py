"""Ablation of distillation: knowledge, matching, initialisation and shape of students of one size.

Command   python tools/run_suite.py configs/suites/ablation_pocket.py   (can be stopped and resumed)
Cost      not run yet. 132 pre-trainings of 800 steps and 6 students without pre-training, three
          tasks each: about eight hours on two cores, if a step takes three times as long as that of
          ResNet-18 of half width; `--dry-run` forecasts it once one of them has finished
Outcome   tables that compare the levels of each factor over all combinations of the others, with
          intervals, and a table of the best level of each (best practice)

After a study of language models ("Knowledge Distillation of Transformer-based Language Models
Revisited", arXiv 2206.14366), whose factors are read from its abstract, in their form for images
(a re-implementation of the design, not of its numbers):

    knowledge       class probabilities; hidden maps through learned projectors; where maps are
                    large (attention); which positions are similar (relations of values); which
                    images are similar (relations of pairs)
    matching        of the three kinds on maps: the last level; all levels; two levels that
                    represent clusters of similar ones. The weights of the levels have the same sum
    initialisation  random, or weights copied from the teacher: of every stage the first block and
                    evenly spaced others, of every tensor the leading channels
    shape           shallow (9 blocks, all channels of the teacher) or deep (16 blocks, 0.68 of the
                    channels) at 1.46 and 1.42 M parameters

Teacher and students are EfficientNet-Lite0 networks; the students have no last 1x1 convolution.
Students with copied weights contain knowledge of ImageNet's labels before they are trained; their
rows say that labels were used. `scratch` has random weights only: copied weights without training
would be one network for all seeds.
Everything else is as in `methods_pocket`: 3,200 images, two fixed views, 16 epochs, three seeds.
All combinations have the learning rate 0.05, which is not tuned: a rate for each would cost four
times as much. Precision is float32, because bfloat16 does not speed up depthwise convolutions on
the CPU of the published runs.

The claims were written before any score.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

OBJECTIVES = "kdep_bench.objectives"
all_levels = dict(s4="s4", s8="s8", s16="s16", s32="s32")
# Knowledge -> (base method, class, class with clustered levels). The weights sum to 20.
on_maps = dict(
    hidden=("fitnets", "hints.Hints", "pursuhint.Pursuhint"),
    attention=(
        "spatial_attention",
        "map_patterns.SpatialAttention",
        "map_patterns.ClusteredAttention",
    ),
    relation=(
        "position_relations",
        "map_patterns.PositionRelations",
        "map_patterns.ClusteredRelations",
    ),
)
lr = dict(lr=0.05)


def on_levels(knowledge, matching):
    """The method of a kind of knowledge on maps with a kind of matching."""
    base, kind, clustered = on_maps[knowledge]
    objective = dict(
        last=dict(type=f"{OBJECTIVES}.{kind}", levels=dict(s32="s32"), weight=20.0),
        uniform=dict(type=f"{OBJECTIVES}.{kind}", levels=all_levels, weight=5.0),
        clustered=dict(type=f"{OBJECTIVES}.{clustered}", levels=all_levels, points=2, weight=10.0),
    )[matching]
    return dict(
        base=base,
        name=f"{knowledge}_{matching}",
        about=f"knowledge: {knowledge}, matching: {matching}",
        objective=dict(_delete_=True, **objective),
        optimizer=lr,
        card=dict(factors=dict(knowledge=knowledge, matching=matching)),
    )


def pooled(knowledge, base):
    """The method of a kind of knowledge that is read from the last layer: logits or pairs."""
    return dict(
        base=base,
        name=f"{knowledge}_last",
        about=f"knowledge: {knowledge}",
        optimizer=lr,
        card=dict(factors=dict(knowledge=knowledge, matching="last")),
    )


# Shape -> (multiplier of channels, multiplier of blocks, channels at strides 4 to 32).
shapes = dict(
    shallow=(1.0, 0.33, (24, 40, 112, 320)),
    deep=(0.68, 1.0, (16, 32, 80, 216)),
)


def student(shape, initialisation):
    """A student of a shape, with random or copied weights."""
    channel_multiplier, depth_multiplier, channels = shapes[shape]
    return dict(
        name=f"lite0_{shape}_{initialisation}",
        about=f"EfficientNet-Lite0, {shape}, {initialisation} weights",
        backbone=dict(
            type="kdep_bench.students.slim_lite.SlimLite",
            channel_multiplier=channel_multiplier,
            depth_multiplier=depth_multiplier,
            copied=initialisation == "copied",
            out_indices=(3,),
            head=False,
        ),
        width=channels[-1],
        input_px=64,
        tap="output",
        pyramid=dict(out_indices=(0, 1, 2, 3), channels=channels, strides=(4, 8, 16, 32)),
        dilated=dict(output_stride=8),
        card=dict(
            factors=dict(initialisation=initialisation, shape=shape),
            labels_used=initialisation == "copied",  # of ImageNet, by the teacher's training
        ),
    )


def better(name, title, a, b):
    """A claim that one method scores above another with every student that has both."""
    return dict(
        name=name,
        title=title,
        statement=f"{a} scores above {b}.",
        kind="difference",
        a=dict(method=a),
        b=dict(method=b),
    )


suite.update(
    name="ablation_pocket",
    about="knowledge, matching, initialisation and shape of distilled students, a tenth of the "
    "pocket images",
    students=[
        student(shape, initialisation)
        for initialisation in ("random", "copied")
        for shape in ("shallow", "deep")
    ],
    methods=[
        dict(base="scratch", students=[f"lite0_{shape}_random" for shape in shapes]),
        pooled("logits", "logit_kd"),
        *(
            on_levels(knowledge, matching)
            for matching in ("last", "uniform", "clustered")
            for knowledge in on_maps
        ),
        pooled("pairs", "similarity"),
    ],
    tasks=[
        "pocket_probe",
        dict(base="pocket_finetune", recipe=dict(head_lr_mult=1, clip_norm=5.0)),
        "pocket_photos",
    ],
    shares=[0.1],  # data fractions
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    claims=[
        better("hidden_above_logits", "Hidden maps beat logits", "hidden_last", "logits_last"),
        better("uniform_above_last", "All levels beat the last", "hidden_uniform", "hidden_last"),
        better(
            "clustered_above_last",
            "Levels chosen by clustering beat the last",
            "hidden_clustered",
            "hidden_last",
        ),
        better(
            "relation_above_attention",
            "Relations of positions beat attention",
            "relation_uniform",
            "attention_uniform",
        ),
        better("any_above_scratch", "Logits beat no pre-training", "logits_last", "scratch"),
    ],
    runtime=dict(timed=False),  # the tables have no times
)
suite["budget"].update(precision="float32")
