"""TST: distillation also on augmented images that are hard for the student, not for the teacher.

Source       Shao et al., IJCAI 2023; shaoshitong/TST. Four of twelve operations per step, two
             phases in which their strengths and rates are learned, tau 4. Departures are listed in
             TeachWhatYouShould and LearnedAugment.
Differs      from `logit_kd` in the second half of the loss, on the augmented images.
Labels       none; the class that the teacher predicts takes the place of the paper's label.
Teacher      any with a classifier that can be differentiated. The original images are read from
             its cache; on the augmented ones it runs in every step.
Cost         per step one more pass of student and teacher, and in the two phases (together a tenth
             of the run) yet another pass of each, with gradients to the image. Every crop is
             decoded again, at the teacher's resolution.
"""

from kdep_bench.objectives.tst import TeachWhatYouShould

method = dict(
    name="tst",
    family="logit",
    labels_used=False,
    needs=["logits", "teacher_images"],
    source="Shao et al., IJCAI 2023; shaoshitong/TST Env/Environment_SDA.py, datas/Augmention.py",
    objective=dict(type=TeachWhatYouShould, tau=4.0, phases=[0.125, 0.375], length=0.05),
    align=None,
    transform=None,
)
