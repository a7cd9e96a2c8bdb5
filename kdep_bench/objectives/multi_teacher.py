"""Logit distillation from several teachers, on one student head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.logit_kd import soft_kl
from kdep_bench.objectives.weighting import build_weighting
from kdep_bench.schedules.build import as_schedule


def check_two_or_more(teachers: Mapping[str, Any]) -> None:
    """Raises KdepError for fewer than two teachers."""
    if len(teachers) < 2:
        raise KdepError(
            f"an objective for several teachers has {len(teachers)} of them",
            expected="two or more",
            fix="set `teachers` in the method's config",
        )


def common_classes(teachers: Mapping[str, Mapping[str, Any]]) -> int:
    """The number of classes of the teachers' logits; raises KdepError if the teachers differ."""
    counts = {role: values["teacher_classes"] for role, values in teachers.items()}
    if len(set(counts.values())) != 1:
        raise KdepError(
            "the teachers have different numbers of classes "
            f"({', '.join(f'{role} {n}' for role, n in counts.items())})",
            expected="teachers with the same classes, because one student head is trained on all",
            fix="choose teachers with the same classes in `teachers` of the method",
        )
    return int(next(iter(counts.values())))


def check_labels(classes: int, teachers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises KdepError unless teachers and labels have the same number of classes."""
    if classes != (teacher_classes := common_classes(teachers)):
        raise KdepError(
            f"the labels have {classes} classes and the teachers {teacher_classes}",
            expected="labels of the teachers' classes",
            fix="use the label-free form of the method, or teachers trained on these classes",
        )


class MultiTeacherKD(Objective):
    """sum over teachers k of w_k tau^2 KL_tau(teacher k || student); w_k = 1 / K by default.

    The terms are named "kl_<role>"; a role is a teacher's key in the method's `teachers`. All
    teachers must have the same classes. The student's linear head is dropped at export. The default
    weighting is AVERAGE_LOSS of Rorozhl/CA-MKD `helper/loops.py` (the mean of the teachers'
    losses), and tau = 4 is the default of that code.

    Args:
        tau: temperature, a number or the config of a schedule.
        weighting: config of a Weighting that computes w_k from the terms {role: tau^2 KL}; None for
            w_k = 1 / K.
        width, teachers, epochs: set by the pre-training stage.
        build_args: arguments that the pre-training stage sets for the weighting.
    """

    needs = frozenset({"logits"})
    stage_arguments = frozenset({"width", "teacher_classes", "epochs"})
    every_teacher = True  # the argument `teachers` replaces teacher_classes

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        tau: Positive | Mapping[str, Any] = 4.0,
        weighting: Mapping[str, Any] | None = None,
        epochs: float | None = None,
        **build_args: Any,
    ) -> None:
        super().__init__()
        check_two_or_more(teachers)
        if isinstance(tau, int | float) and not tau > 0:
            raise KdepError(
                f"logit distillation has tau={tau}",
                expected="a positive temperature",
                fix="correct `tau` in the method's objective",
            )
        self.head = nn.Linear(width, common_classes(teachers))
        self.tau = as_schedule(tau, epochs, "tau")
        known_args = {"width": width, "teachers": teachers, "epochs": epochs, **build_args}
        self.weighting = build_weighting(weighting, known_args)

    @classmethod
    def parts(cls, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [config["weighting"]] if config.get("weighting") is not None else []

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        return self.distillation_terms(ctx, self.head(ctx.post_activation))

    def distillation_terms(self, ctx: Context, student_BC: Tensor) -> dict[str, Tensor]:
        """{"kl_<role>": weighted distillation term (B,)} of the student's logits."""
        tau, terms = self.tau(ctx.step, ctx.steps), dict[str, Tensor]()
        for role, teacher in ctx.teachers.items():
            assert teacher.logits is not None
            terms[role] = soft_kl(teacher.logits, student_BC, tau)
        return {
            f"kl_{role}": term for role, term in self.weighted_terms(ctx, student_BC, terms).items()
        }

    def weighted_terms(
        self, ctx: Context, student_BC: Tensor, terms: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The terms {role: (B,)} multiplied by the teachers' weights."""
        if self.weighting is not None:
            return self.weighting.weighted(ctx, terms)
        return {role: term / len(terms) for role, term in terms.items()}

    def after_step(self) -> None:
        if self.weighting is not None:
            self.weighting.after_step()


class MultiTeacherKDWithLabels(MultiTeacherKD):
    """CE(y, student) + the terms of MultiTeacherKD, on one head.

    The labels must be the classes of the teachers' classifiers.

    Args:
        classes: number of classes of the labels, set by the pre-training stage.
        width, teachers, tau, weighting, epochs, build_args: as in MultiTeacherKD.
    """

    # "classes" in `needs` makes the plan check that the labels are the teachers' classes; in
    # `stage_arguments` it is the constructor argument.
    needs = frozenset({"logits", "labels", "classes"})
    stage_arguments = MultiTeacherKD.stage_arguments | {"classes"}

    def __init__(
        self,
        width: int,
        teachers: Mapping[str, Mapping[str, Any]],
        classes: int,
        tau: Positive | Mapping[str, Any] = 4.0,
        weighting: Mapping[str, Any] | None = None,
        epochs: float | None = None,
        **build_args: Any,
    ) -> None:
        check_labels(classes, teachers)
        super().__init__(
            width,
            teachers,
            tau=tau,
            weighting=weighting,
            epochs=epochs,
            classes=classes,
            **build_args,
        )

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.labels is not None
        student = self.head(ctx.post_activation)
        cross_entropy = F.cross_entropy(student, ctx.labels, reduction="none")
        return {"cross_entropy": cross_entropy, **self.distillation_terms(ctx, student)}
