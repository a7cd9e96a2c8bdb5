"""Self-distillation with labels: the student's own architecture, trained before, is its teacher.

Source       re-implementation from the abstract of arXiv 2206.08491 (Pham et al. 2022), which finds
             that the second network is better than the first and in a flatter minimum. Its loss and
             weights were not read; alpha and tau are those of RepDistiller.
Differs      from `supervised` in the second training, whose target is 0.9 of the first network's
             probabilities and 0.1 of the label. `self_distillation_2` is the next generation,
             `kdep_self_distillation` the label-free form.
Labels       of the data, for both networks.
Cost         two trainings: `supervised`, then this one. A suite that also lists `supervised` does
             not train it again. Another generation is
             dict(base="self_distillation", name="self_distillation_3",
             teacher=dict(method="self_distillation_2")). The probe `flatness` measures the minima.
"""

from kdep_bench.objectives.logit_kd import LogitKDWithLabels

method = dict(
    name="self_distillation",
    family="logit",
    labels_used=True,
    reconstruction=True,  # shown as "(re-implementation)"
    needs=["labels", "logits", "classes"],
    source="re-implementation from the abstract of arXiv 2206.08491 (Pham et al.)",
    objective=dict(type=LogitKDWithLabels, alpha=0.9, tau=4.0),
    align=None,
    transform=None,
    teacher=dict(student="same", method="supervised"),
)
