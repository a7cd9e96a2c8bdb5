"""Thirteen teachers of one student: which property of a teacher predicts how good its student is?

Command   python tools/run_suite.py configs/suites/teachers_pocket.py   (can be stopped and resumed)
Cost      1 h 40 min on two cores with other work, in addition to `methods_pocket`: for each of 7
          new teachers of the pool, a cache of 64,000 views; 36 pre-trainings of 800 steps (95 s on
          one core) and 12 of self-trained teachers (up to 190 s); then 43 s of tasks each. On the
          same machine, kdep with Lite0 and scratch are the stages of `methods_pocket`
Outcome   results/teachers_pocket: no measure of a teacher has a significant rank correlation with
          the score of its student. The teacher with the highest participation ratio, which
          `kdep-bench pick` recommends, costs 3.7 points against the best, one chosen at random 3.4.
          The best of the thirteen is Lite0 in the middle (37.5; Lite0 itself 33.9); the worst are
          the one with random weights (30.5) and the early-stopped one (30.2). `kdep-bench pick
          --suite teachers_pocket --images FOLDER` ranks the nine given teachers before the run

The protocol is that of `methods_pocket`: 3,200 images in two fixed views, 16 epochs, batch 64,
three seeds. The method is `kdep` with its learning rate of that suite, which was chosen with the
teacher Lite0 and is used for all teachers.

Given teachers: EfficientNet-Lite0 and -Lite2; Lite0 read before its head (`_s32`) and in the middle
(`_s16`, whose 112 components are padded with zeros to the student's 256); with images of 64 px;
with its weights rounded to 8, 4 and 3 bits; and with random weights, as a control. Self-trained
teachers, one per seed: a ResNet-18 of three quarters width with labels, for 16 epochs and for 4
(early-stopped); one of the student's own width with labels; and one of three quarters width trained
by kdep without labels. They see the same 3,200 images.
The measures that need no labels use the same 2,048 of these images for all teachers.

The claims were written before any score of these teachers.
"""

from mmengine.config import read_base

with read_base():
    from .pocket import suite

lite0 = "efficientnet_lite0"
# A changed network has another accuracy than its authors report.
no_top1 = dict(top1=None, top1_source="")
changed = dict(base=lite0, has_logits=False, card=dict(logits_from_pooled=False, **no_top1))
given = [
    lite0,
    "efficientnet_lite2",
    "efficientnet_lite0_s32",
    dict(changed, name=f"{lite0}_64px", input_px=64),
    dict(changed, name=f"{lite0}_8bit", bits=8),
    dict(changed, name=f"{lite0}_4bit", bits=4),
    dict(changed, name=f"{lite0}_3bit", bits=3),
    dict(
        changed,
        name=f"{lite0}_random",
        weights="random",
        card=dict(
            pretraining="none: random weights",
            trained_on=[],
            labels_used=False,
            logits_from_pooled=False,
            licence="none: random weights",
            source="random weights with a fixed seed",
            **no_top1,
        ),
    ),
]
kdep = dict(base="kdep", optimizer=dict(lr=0.05))
# (label policy of kdep with this teacher, the teacher)
self_trained = [
    ("labels", dict(student="resnet18_w48", method="supervised")),
    ("labels", dict(student="resnet18_w48", method="supervised", epochs=4.0)),
    ("labels", dict(student="resnet18_w32", method="supervised")),
    ("label-free", dict(student="resnet18_w48", method=dict(kdep, name="kdep_wider"))),
]


def better(name, title, teacher, other, margin=0.0):
    """A claim that kdep with one teacher scores above kdep with another, or not much below.

    `margin`: the smallest difference, as a fraction; -0.01: at most one point below.
    """
    relation = f"at most {-100 * margin:g} points below" if margin < 0 else "above"
    return dict(
        name=name,
        title=title,
        statement=f"kdep with the teacher {teacher} scores {relation} kdep with {other}.",
        kind="difference",
        margin=margin,
        a=dict(method="kdep", teacher=teacher),
        b=dict(method="kdep", teacher=other),
    )


def correlated(name, title, by, **bound):
    """A claim on the rank correlation, over teachers, of a measure and the score.

    `bound`: at_least or at_most, with its value.
    """
    ((side, value),) = bound.items()
    return dict(
        name=name,
        title=title,
        statement=f"Over teachers, {by} and the student's mean score have a rank correlation "
        f"(Spearman) of {side.replace('_', ' ')} {value:g}.",
        kind="rank_correlation",
        a=dict(method="kdep"),
        by=by,
        **bound,
    )


suite.update(
    name="teachers_pocket",
    about="thirteen teachers of one student with kdep, a tenth of the pocket images",
    methods=["scratch", kdep],
    variants=[
        *(dict(teacher=teacher) for teacher in given),
        dict(
            teacher="efficientnet_lite0_s16",
            methods=[dict(kdep, align=dict(policy="zero_pad"))],
        ),
        *(
            dict(methods=[dict(kdep, label_policy=policy, teacher=teacher)])
            for policy, teacher in self_trained
        ),
    ],
    tasks=["pocket_probe", "pocket_finetune", "pocket_photos"],
    probes=["teacher"],
    shares=[0.1],  # data fractions
    seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),  # seed i with seed i
    claims=[
        correlated(
            "spread_predicts",
            "Teachers whose features vary in more directions are better",
            "participation ratio",
            at_least=0.5,
        ),
        correlated(
            "accuracy_does_not_predict",
            "A teacher's accuracy on the classes of the tasks is at most a weak predictor",
            "linear probe accuracy",
            at_most=0.5,
        ),
        "compact_teacher_is_worse",
        better("trained_weights", "Trained weights beat random", lite0, f"{lite0}_random"),
        better("last_layer", "The last layer beats the middle", lite0, f"{lite0}_s16"),
        better("eight_bits", "8 bits cost at most a point", f"{lite0}_8bit", lite0, -0.01),
        better(
            "early_stopped",
            "An early-stopped teacher costs at most a point",
            "resnet18_w48.supervised.4ep",
            "resnet18_w48.supervised",
            -0.01,
        ),
        better(
            "given_teacher",
            "A given teacher beats one trained on the same images",
            lite0,
            "resnet18_w48.supervised",
        ),
    ],
    # Wall times would not be valid measurements if other work runs on the machine.
    runtime=dict(timed=False),
)
