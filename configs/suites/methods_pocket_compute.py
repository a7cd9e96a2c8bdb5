"""The rivals whose step or teacher costs more, at kdep's compute as well as at its epochs.

Command   python tools/run_suite.py configs/suites/methods_pocket_compute.py
Cost      the rows at 16 epochs are stages of `methods_pocket`; the others are five arms and three
          seeds, each at the compute of one kdep arm (800 steps of the student): 20 minutes of two
          cores
Outcome   results/methods_pocket_compute. Each such rival twice: at equal epochs, and with its
          epochs divided by what one costs

Compute is declared in passes of the student, a backward pass counted as two forward passes: a peer
that is trained doubles a step (dml: 8 epochs), an average that is asked adds a third (mean_teacher:
12), an assistant of one and a half times the width costs 2.25 students (a chain: 16 / 3.25 = 4.92
epochs for either hop; with half of the epochs for the teacher 16 / 2.125 = 7.53). What a step took
is measured in the table of costs. Learning rates are those of `methods_pocket`, chosen at 16
epochs. view_gram is at equal compute as it is: its views are images of
the batch.
"""

from mmengine.config import read_base

with read_base():
    from .methods_pocket import methods, suite

suite.update(
    name="methods_pocket_compute",
    about="rivals with a peer, an average or an assistant, at equal epochs and at equal compute",
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
