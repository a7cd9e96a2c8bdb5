"""A distillation objective: declares what it needs, returns its terms per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.registry import build, locate, type_path

if TYPE_CHECKING:
    from kdep_bench.objectives.players import Player, Players
    from kdep_bench.teachers.base import TeacherOutput

# NEEDS: inputs that an objective may read from a batch. ARGUMENTS: constructor arguments that the
# pre-training stage can supply.
# "views": the fixed views of an image are consecutive in the batch.
# "classes": the labels are those of the teacher's own classifier.
# "classifier": the teacher's classifier, as a function of its pooled feature.
# "tail": the teacher's layers after a map are trained (Teacher.tail).
# "layer": the output of the live teacher's layer `teacher_layer`, after which it stops; it sees the
# visible patches alone (Teacher.up_to).
# "probabilities": the largest `top_classes` class probabilities, the rest spread evenly.
NEEDS = frozenset(
    {
        *("target", "labels", "pooled", "logits", "maps", "tokens", "views", "classes"),
        *("classifier", "tail", "probabilities", "layer"),
    }
)
ARGUMENTS = frozenset(
    {
        "width",  # Ds of the student
        "classes",  # number of classes of the labels file
        "epochs",  # epochs of the run, for schedules with a span
        "views",  # fixed views per image
        "pool_images",  # images of the pool, of which the run may use a fraction
        "target_mean_square",  # mean square of the target over the alignment samples
        "teacher_width",  # Dt
        "teacher_mean_variance",  # mean over the teacher's pooled channels of their variance
        "teacher_config",  # config of the teacher, for `build_teacher`
        "layer_width",  # channels of the layer of need "layer"
        "teacher_classes",  # number of classes of the teacher's logits
        "student_maps",  # {name: {"channels": C, "stride": s}}, as in Context.maps
        "teacher_maps",  # the same of Context.teacher.maps
        "layer_distances",  # {map: {map: 1 - CKA}} of the teacher's maps among the `levels`
        "map_moments",  # folder of the moments of these maps: features/map_moments.py
    }
)
# Those of ARGUMENTS that describe one teacher. A class that reads every teacher gets them for each,
# as the argument `teachers`: {role: {argument: value}}, in the order of the roles.
TEACHER_ARGUMENTS = frozenset(
    {
        *("target_mean_square", "teacher_width", "teacher_mean_variance", "teacher_classes"),
        *("teacher_config", "teacher_maps", "layer_distances", "map_moments", "layer_width"),
    }
)


@dataclass(frozen=True)
class StudentOutput:
    """One pass of the student: `before`, `after`, `maps`, `maps_before` as in Context."""

    before: Tensor
    after: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    maps_before: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """The inputs of an objective for one batch. All tensors are float32 unless noted otherwise.

    Attributes:
        before: [B, Ds] pooled student feature before the last activation (the KDEP tap).
        after: [B, Ds] pooled student feature after it (what a classifier would read).
        target: [B, Ds] aligned and transformed teacher feature, without gradient; with need
            "target".
        labels: [B] int64 class numbers; with need "labels", None in a label-free run.
        teacher: the teacher's outputs, without gradient: `pooled` [B, Dt] at the tap, `logits`
            [B, C] with need "logits", `maps` {name: [B, C, H, W]} with "maps", `tokens` [B, T, C]
            with "tokens", `probabilities` [B, C] with "probabilities", `layer` [B, p + n, C] with
            "layer". None in a run without a teacher; of several teachers, the first.
        teachers: the same of every teacher, by its role in the method; a method with one teacher
            has the role "teacher".
        targets: [B, Ds] by role, as `target` of each teacher whose aligned feature is read.
        maps: the student's pyramid by level, {"s8": [B, C, H/8, W/8], ...}, named by stride in
            pixels; filled for a class that needs "maps" or requires "student_maps".
        maps_before: levels before their last activation, those that `Objective.levels_before`
            names.
        images: [B, 3, px, px] the student's normalised input, for an objective with networks of its
            own (see `Objective.attach`).
        rows: [B] int64 row number (image-major) of each view: image = row // views.
        step: optimiser step, from 0. The micro-batches of gradient accumulation share one.
        steps: optimiser steps of the whole run.
        extra: what the method's Augment added, by the names that its class documents.
        student: runs the student again, on normalised images [B, 3, H, W]; a class that does counts
            it in `forwards`.
    """

    before: Tensor
    after: Tensor
    target: Tensor | None = None
    labels: Tensor | None = None
    teacher: TeacherOutput | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    maps_before: Mapping[str, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    rows: Tensor | None = None
    step: int = 0
    steps: int = 1
    teachers: Mapping[str, TeacherOutput] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    student: Callable[[Tensor], StudentOutput] | None = None

    def of_teacher(self, role: str) -> Context:
        """The batch as a method with this teacher alone would see it."""
        return replace(
            self,
            teacher=self.teachers[role],
            target=self.targets.get(role),
            teachers={role: self.teachers[role]},
            targets={k: v for k, v in self.targets.items() if k == role},
        )

    @property
    def progress(self) -> float:
        """Fraction of the run's steps that are done, in [0, 1)."""
        return self.step / self.steps


class Component(nn.Module, ABC):
    """Base class of Objective and weighting.Weighting: declares the inputs that they read.

    Class attributes:
        needs: subset of NEEDS, the inputs read from a batch. The method's config declares the same
            in its `needs` ("target" there is "pooled" and an alignment), so that an impossible
            combination is refused when the plan is built.
        requires: subset of ARGUMENTS, keyword arguments of the constructor that follow from the
            data, the student or the teacher; the pre-training stage gives exactly these.
        every_teacher: whether all teachers of a method are read (`Context.teachers`); otherwise
            only the first is, or the one that a part of a weighted sum names. Such a class is for
            methods with two teachers or more; what it requires of TEACHER_ARGUMENTS
            is given as `teachers`.
        couples_samples: whether the result for one sample depends on the other samples of the batch
            (Gram matrices, contrast). Such an objective is refused where a batch is split, by
            gradient accumulation or over several processes, because it would see another batch.
        forwards: forward passes per sample of its own networks, and additional ones of the student;
            for the cost columns.

    Parameters are trained and dropped at export; buffers are kept in resume files.
    """

    needs: ClassVar[frozenset[str]]
    requires: ClassVar[frozenset[str]] = frozenset()
    every_teacher: ClassVar[bool] = False
    couples_samples: ClassVar[bool] = False
    forwards: ClassVar[int] = 0

    def after_step(self) -> None:
        """Called after every optimiser step, without gradient: the place of moving averages."""

    @classmethod
    def levels_before(cls, config: Mapping[str, Any]) -> frozenset[str]:
        """Student levels that `config`, a config of this class, reads from `maps_before`."""
        return frozenset()

    @classmethod
    def parts(cls, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Configs of the components that `config`, a config of this class, is made of."""
        return []


class Objective(Component):
    """One objective, one file.

    Class attributes:
        has_players: whether parts of it are trained by optimisers of their own (`players`). Such an
            objective is refused under gradient accumulation: its players would take one step per
            micro-batch.
        reads_extra: what is read of `Context.extra`; the method's Augment adds it.
        transformer: whether the student must be a vision transformer of timm.
    """

    has_players: ClassVar[bool] = False
    reads_extra: ClassVar[frozenset[str]] = frozenset()
    transformer: ClassVar[bool] = False

    @abstractmethod
    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Un-reduced terms, each of shape (B,); the loss is the mean over B of their sum."""

    def attach(self, student: nn.Module, new_network: Callable[[], nn.Module]) -> None:
        """Called once, before training: the place of a second network (a peer, an average).

        Args:
            student: the backbone that is trained. Keep it in a list, or it is registered twice.
            new_network: makes one more network of the student's kind, freshly initialised; called
                with `Context.images` it returns (before, after), pooled like the student's.
        """

    def before_student(self, extra: Mapping[str, Tensor]) -> None:
        """Called before the student's pass of every batch that an Augment changed.

        Args:
            extra: what it added, as in `Context.extra`: for instance the patches to hide.
        """

    def players(self) -> dict[str, Player]:
        """Submodules with an optimiser of their own, by name: a bridge, an opponent, meta weights.

        They are saved and resumed with the run and dropped at export. No gradient of `terms`
        reaches them. Called once, after `attach`.
        """
        return {}

    def play(self, ctx: Context, players: Players) -> None:
        """The players' steps, in every training step before `terms`: with `players.minimise`.

        The student is as `terms` will see it; its features in `ctx` carry gradient, which
        `minimise` does not follow.
        """


@dataclass(frozen=True)
class Demands:
    """The class attributes of a config's objective and all its parts, united."""

    needs: frozenset[str]
    requires: frozenset[str]
    couples_samples: bool
    forwards: int = 0
    levels_before: frozenset[str] = frozenset()
    has_players: bool = False

    @property
    def pyramid(self) -> bool:
        """Whether the student's maps are read."""
        return "maps" in self.needs or "student_maps" in self.requires


def demands(config: Mapping[str, Any], base: type[Component] = Objective) -> Demands:
    """The demands of an objective config, its parts included; nothing is built.

    Raises KdepError for a type that is no `base`, or declares a word not in NEEDS or ARGUMENTS.
    """
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise KdepError(
            f"{type_path(config['type'])} is not an {base.__name__}"
            if base is Objective
            else f"{type_path(config['type'])} is neither an Objective nor a Weighting",
            expected="a class of kdep_bench.objectives",
            fix="correct `type` in the method's objective",
        )
    for what, got, known in (("need", kind.needs, NEEDS), ("question", kind.requires, ARGUMENTS)):
        for word in sorted(got - known):
            raise unknown_name(f"{what} of {type_path(kind)}", word, known)
    inner = [demands(part, Component) for part in kind.parts(config)]
    return Demands(
        kind.needs.union(*(d.needs for d in inner)),
        kind.requires.union(*(d.requires for d in inner)),
        kind.couples_samples or any(d.couples_samples for d in inner),
        kind.forwards + sum(d.forwards for d in inner),
        kind.levels_before(config).union(*(d.levels_before for d in inner)),
        getattr(kind, "has_players", False) or any(d.has_players for d in inner),
    )


def build_objective(config: Mapping[str, Any], facts: Mapping[str, Any]) -> Objective:
    """Builds the objective of a config, with those of `facts` that it requires as arguments.

    A value set in the config wins over the same fact. `facts["teachers"]`, where a method has
    several teachers, is handed to what reads them all or passes them on to its parts.
    """
    demands(config)
    made = build_component(config, facts)
    assert isinstance(made, Objective)
    return made


def build_component(config: Mapping[str, Any], facts: Mapping[str, Any]) -> Component:
    """The objective or weighting of a config; see `build_objective`."""
    requirements = demands(config, Component)
    facts = {k: v for k, v in facts.items() if k not in config}
    values_by_role = config.get("teachers", facts.get("teachers")) or {}
    of_each = set[str]().union(*values_by_role.values())
    lacking = sorted(requirements.requires - set(facts) - set(config) - of_each)
    if lacking:
        raise KdepError(
            f"missing constructor argument {', '.join(lacking)} of {type_path(config['type'])}",
            fix="set it in the method's config, or provide it from the pre-training stage",
        )
    # A sum gives its parts the facts of one teacher too: not to those that take them of each.
    singular = requirements.requires - (
        TEACHER_ARGUMENTS if locate(config["type"]).every_teacher else frozenset()
    )
    arguments = {k: facts[k] for k in sorted(singular & set(facts))}
    if "teachers" in facts and takes_teachers(config):
        arguments["teachers"] = facts["teachers"]
    return build(config, **arguments)


def takes_teachers(config: Mapping[str, Any]) -> bool:
    """Whether the class of a config has the argument `teachers`: facts of each of several."""
    kind = locate(config["type"])
    return bool((kind.every_teacher and kind.requires & TEACHER_ARGUMENTS) or kind.parts(config))


def values_of_part(facts: Mapping[str, Any], role: str | None = None) -> dict[str, Any]:
    """The facts of a part of a sum: with those of the teacher it reads, `role` or the first."""
    by_role: Mapping[str, Any] = facts.get("teachers") or {}
    if not by_role:
        return dict(facts)
    part_role = next(iter(by_role)) if role is None else role
    visible = by_role if role is None else {role: by_role[role]}
    return {**facts, **by_role[part_role], "teachers": visible}
