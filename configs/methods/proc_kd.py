"""ProC-KD, label-free: the student regresses the teacher's local features, rebuilt from prototypes.

Source       Li et al., arXiv 2212.13180 (FITEE 2025): abstract and published code, which has the
             prototypes and no loss of theirs. Loss, assignment by cosine and weights were chosen in
             this project; `kdep_bench/objectives/proc_kd.py` lists the differences.
Differs      from `fitnets` in the target: a mixture of 72 learned prototypes at every position
             instead of the teacher's map itself.
"""

from kdep_bench.objectives.proc_kd import PrototypeDistillation

method = dict(
    name="proc_kd",
    family="feature",
    labels_used=False,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["maps"],
    source="Li et al., arXiv 2212.13180; Daniel00008/ProC-KD",
    objective=dict(
        type=PrototypeDistillation,
        levels=dict(s16="s16", s32="s32"),
        prototypes=72,
        tau=0.1,
        weight=10.0,
        prototype_weight=10.0,
    ),
    align=None,
    transform=None,
)
