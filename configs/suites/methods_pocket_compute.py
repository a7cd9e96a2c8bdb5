"""The methods with a costlier step or teacher, at kdep's compute and at its number of epochs.

Command   python tools/run_suite.py configs/suites/methods_pocket_compute.py
Cost      20 minutes on two cores in addition to a finished `methods_pocket`: five methods and three
          seeds, each at the compute of one kdep run (800 steps of the student)
Outcome   results/methods_pocket_compute. Each of the five methods runs twice: at equal epochs,
          and with the number of epochs divided by its relative cost

Compute is counted in forward passes of the student; a backward pass counts as two. A trained peer
doubles the cost of a step (dml: 8 epochs); a forward pass of the averaged network adds a third
(mean_teacher: 12 epochs). A teacher assistant, with 1.5 times the width, costs 2.25 times as much
as the student: takd and kdep_assistant have 16 / (1 + 2.25) = 4.92 epochs for each of the two
trainings. eskd_teacher trains its teacher for half as many epochs as the student: 3.765 and
16 / (1 + 1.125) = 7.53. Measured step times are in the cost table. Learning rates are those of
`methods_pocket`, chosen at 16 epochs. view_gram is not included, because it costs as much as kdep.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import methods, suite

suite.update(
    name="methods_pocket_compute",
    about="methods with a peer, an average or an assistant, at equal epochs and at equal compute",
    claims=[],
    methods=[
        methods[name]
        for name in (
            "scratch",
            "supervised",
            "kdep",
            "logit_kd",
            "dml",
            "mean_teacher",
            "takd",
            "kdep_assistant",
            "eskd_teacher",
        )
    ],
    variants=[
        dict(),
        dict(methods=[methods["dml"]], budget=dict(epochs=8.0)),
        dict(methods=[methods["mean_teacher"]], budget=dict(epochs=12.0)),
        dict(methods=[methods["takd"], methods["kdep_assistant"]], budget=dict(epochs=4.92)),
        dict(
            methods=[dict(methods["eskd_teacher"], teacher=dict(epochs=3.765))],
            budget=dict(epochs=7.53),
        ),
    ],
)
