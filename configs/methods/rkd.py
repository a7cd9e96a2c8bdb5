"""Relational KD: the teacher's distances and angles between the images of a batch, label-free.

Source       Park et al., CVPR 2019; weights of RepDistiller (25 and 50).
Differs      from `kdep` in the objective, which compares pairs and triples of images; there is no
             alignment.
Cost         distances O(B^2 D), angles O(B^2 (B + D)) memory and O(B^3 D) time, per batch.
"""

from kdep_bench.objectives.rkd import RKD

method = dict(
    name="rkd",
    family="relation",
    labels_used=False,
    needs=["pooled"],
    source="Park et al., CVPR 2019; lenscloth/RKD metric/loss.py; weights of RepDistiller",
    objective=dict(type=RKD, distance=25.0, angle=50.0),
    align=None,
    transform=None,
)
