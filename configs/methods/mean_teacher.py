"""Mean teacher: labels, and consistency with a moving average of the student on another view.

Source       Tarvainen and Valpola 2017; CuriousAI/mean-teacher. Weight and ramp were chosen in this
             project.
Differs      from `supervised` in the consistency term; both views of an image are in one batch.
Cost         one extra forward pass per sample, of the moving average.
"""

from kdep_bench.objectives.mean_teacher import MeanTeacher
from kdep_bench.schedules.ramp import Ramp

method = dict(
    name="mean_teacher",
    family="online",
    labels_used=True,
    needs=["labels", "views"],
    source="Tarvainen and Valpola 2017; CuriousAI/mean-teacher pytorch/mean_teacher/losses.py",
    objective=dict(
        type=MeanTeacher, decay=0.99, weight=dict(type=Ramp, start=0.0, end=10.0, over=0.25)
    ),
    align=None,
    transform=None,
)
