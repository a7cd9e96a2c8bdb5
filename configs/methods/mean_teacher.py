"""Mean teacher: the student's moving average is its teacher across two views of an image.

Source       Tarvainen and Valpola 2017; CuriousAI/mean-teacher. Weight and ramp are this project's
             choice.
Differs      from `supervised` in the consistency term, with both views of an image in one batch.
Cost         one more forward pass of the student.
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
