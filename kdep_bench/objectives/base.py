"""Base class of the objectives, which declare their inputs and return loss terms per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.registry import build, locate, type_path

if TYPE_CHECKING:
    from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
    from kdep_bench.objectives.held_out import HeldOutOutputs, TeacherWeights
    from kdep_bench.teachers.base import TeacherOutput

# Inputs that an objective may read from a batch; Context describes the tensors.
NEEDS = frozenset(
    {
        "target",
        "labels",
        "pooled",
        "logits",
        "maps",
        "tokens",
        "views",  # no tensor: the fixed views of an image must be consecutive in the batch
        "classes",  # no tensor: the labels must be the classes of the teacher's classifier
        "classifier",  # the teacher's classifier, as a function of its pooled feature
        "tail",  # the teacher's layers after one of its maps, to be trained again (Teacher.tail)
        # Class probabilities: the `top_classes` largest are exact, and the remaining probability is
        # spread evenly over the other classes.
        "probabilities",
        # The output of the layer `teacher_layer` of a live teacher. The teacher processes only the
        # visible patches, and its later layers are not run (Teacher.up_to).
        "layer",
        "teacher_images",  # the same crops at the teacher's resolution, also if its cache is read
        # Hidden states, queries, keys and values of blocks of a live vision transformer; the
        # objective's config names the blocks (objectives/levels.py, teacher_blocks).
        "attention",
    }
)
# Constructor arguments that the pre-training stage can supply.
ARGUMENTS = frozenset(
    {
        "width",  # Ds: number of channels of the student's pooled feature
        "input_px",  # side of the student's images in pixels
        "classes",  # number of classes of the labels file
        "epochs",  # epochs of the run, for schedules with a span
        "views",  # fixed views per image
        "pool_images",  # number of all pre-training images; the run may use a fraction of them
        "target_mean_square",  # mean square of the target over the alignment samples
        "teacher_width",  # Dt: number of channels of the teacher's pooled feature
        "teacher_px",  # side of the teacher's images in pixels
        "teacher_mean_variance",  # mean over channels of the variance of the teacher's feature
        "teacher_config",  # config of the teacher, for `build_teacher`
        "layer_width",  # channels of the layer's output, for "layer" in NEEDS
        "teacher_classes",  # number of classes of the teacher's logits
        # {"width": D, "heads": h, "patches": n} of a transformer, for "attention" in NEEDS
        "teacher_attention",
        "student_maps",  # {name: {"channels": C, "stride": s}}, as in Context.maps
        "teacher_maps",  # the same for Context.teacher.maps
        "layer_distances",  # {map: {map: 1 - CKA}} between the teacher's maps in `levels`
        "map_moments",  # folder with means and covariances of these maps: features/map_moments.py
        "teacher_weights",  # {role: weight}, chosen by the class's `weigh_teachers`
    }
)
# The members of ARGUMENTS that describe one teacher. A class that reads every teacher gets them in
# the argument `teachers` instead: {role: {argument: value}}, in the order of the roles.
TEACHER_ARGUMENTS = frozenset(
    {
        "target_mean_square",
        "teacher_width",
        "teacher_px",
        "teacher_mean_variance",
        "teacher_classes",
        "teacher_config",
        "teacher_maps",
        "layer_distances",
        "map_moments",
        "layer_width",
        "teacher_attention",
    }
)


@dataclass(frozen=True)
class StudentOutput:
    """The student's outputs for a batch; the attributes are those of Context."""

    pre_activation: Tensor
    post_activation: Tensor
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    pre_activation_maps: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """The inputs of an objective for one batch. All tensors are float32 unless noted otherwise.

    B is the size of the batch; Ds and Dt are the numbers of channels of the student's and the
    teacher's pooled feature; C is a number of channels or, of logits and probabilities, of classes;
    T is the number of tokens.

    Attributes:
        pre_activation: [B, Ds] pooled student feature before the last activation (the KDEP tap).
        post_activation: [B, Ds] pooled student feature after the last activation (the input of a
            classifier).
        target: [B, Ds] aligned and transformed teacher feature, without gradient. None unless the
            class has "target" in `needs`.
        labels: [B] int64 class numbers. None in a label-free run, and unless the class has "labels"
            in `needs`.
        teacher: the teacher's outputs, without gradient: `pooled` [B, Dt] at the tap and, if the
            word of the same name is in `needs`, `logits` [B, C], `maps` {name: [B, C, H, W]},
            `tokens` [B, T, C], `probabilities` [B, C], `layer` [B, p + n, C] (p class tokens, n
            visible patches) and `attention` (an Attention of networks/attention.py); with
            "teacher_images", `images`, its input. With several teachers: the outputs of the first.
            None in a run without a teacher.
        teachers: {role: outputs of that teacher}. A role is the name of a teacher in its method;
            the role of a single teacher is "teacher".
        targets: {role: [B, Ds]}, the `target` of every teacher whose aligned feature is read.
        maps: the student's feature pyramid, {"s8": [B, C, H/8, W/8], ...}: levels are named by
            their stride in pixels. Empty unless the class has "maps" in `needs` or "student_maps"
            in `stage_arguments`.
        pre_activation_maps: the levels named by `Objective.pre_activation_levels`, before their
            last activation.
        images: [B, 3, px, px] the student's normalised input, for an objective that has its own
            networks (see `Objective.attach`).
        rows: [B] int64 row number (image-major) of each view: image = row // views.
        step: number of the optimiser step, from 0; equal for all micro-batches of a step.
        steps: number of optimiser steps of the whole run.
        extra: {name: tensor} that the method's Augment added; its class documents the names.
        student: runs the student once more, on normalised images [B, 3, H, W]. A class that calls
            it includes these forward passes in `forwards`.
    """

    pre_activation: Tensor
    post_activation: Tensor
    target: Tensor | None = None
    labels: Tensor | None = None
    teacher: TeacherOutput | None = None
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    pre_activation_maps: Mapping[str, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    rows: Tensor | None = None
    step: int = 0
    steps: int = 1
    teachers: Mapping[str, TeacherOutput] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    student: Callable[[Tensor], StudentOutput] | None = None

    def of_teacher(self, role: str) -> Context:
        """The same batch, with the outputs of this teacher only."""
        return replace(
            self,
            teacher=self.teachers[role],
            target=self.targets.get(role),
            teachers={role: self.teachers[role]},
            targets={k: v for k, v in self.targets.items() if k == role},
        )

    @property
    def progress(self) -> float:
        """Fraction of the run's optimiser steps that are finished, in [0, 1)."""
        return self.step / self.steps


class Component(nn.Module, ABC):
    """Base class of Objective and weighting.Weighting; each subclass declares its inputs.

    `needs` are inputs of every batch, `stage_arguments` are arguments of the constructor.

    Parameters are trained and dropped at export; buffers are stored in checkpoints.

    Class attributes:
        needs: subset of NEEDS, the inputs read from a batch. The method's config has a list `needs`
            as well (with "pooled" and an alignment in place of "target"), which is compared with
            this set when the plan is built.
        stage_arguments: subset of ARGUMENTS, keyword arguments of the constructor whose values
            depend on the data, the student or the teacher. The pre-training stage supplies exactly
            these.
        every_teacher: whether all teachers of a method are read (`Context.teachers`), for methods
            with two or more teachers. Such a class gets one argument `teachers` instead of the
            words of `stage_arguments` that are in TEACHER_ARGUMENTS. False: only one teacher is
            read: the first, or the teacher named in the class's part of a weighted sum.
        couples_samples: whether the loss of one sample depends on the other samples of the batch
            (Gram matrices, contrast). Such an objective raises an error if a batch is split, by
            gradient accumulation or over several processes, because the loss would differ.
        forwards: number of forward passes per sample of its own networks, plus additional passes
            of the student; used for the cost columns of the tables. A class whose config sets this
            number overrides `count_forwards`.
    """

    needs: ClassVar[frozenset[str]]
    stage_arguments: ClassVar[frozenset[str]] = frozenset()
    every_teacher: ClassVar[bool] = False
    couples_samples: ClassVar[bool] = False
    forwards: ClassVar[int] = 0

    def after_step(self) -> None:
        """Called after every optimiser step, without gradient; for example for moving averages."""

    @classmethod
    def pre_activation_levels(cls, config: Mapping[str, Any]) -> frozenset[str]:
        """Names of the student levels that an objective with this `config` reads before activation.

        They are in `Context.pre_activation_maps`.
        """
        return frozenset()

    @classmethod
    def count_forwards(cls, config: Mapping[str, Any]) -> float:
        """`forwards` of an objective with this `config`, without its parts."""
        return cls.forwards

    @classmethod
    def parts(cls, config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Configs of the components inside `config`, a config of this class."""
        return []


class Objective(Component):
    """Base class of the pre-training losses; every subclass has its own file.

    Class attributes:
        has_auxiliary_modules: whether parts of it have separate optimisers (see
            `auxiliary_modules`). Such an objective raises an error with gradient accumulation,
            because these parts would take one step per micro-batch.
        reads_from_augment: names that it reads from `Context.extra`, where the method's Augment
            adds them.
        transformer: whether the student must be a vision transformer of timm, whose tokens of the
            last pass are read. It cannot be combined with a class that runs the student again.
        skips_held_out: whether only BatchNorm statistics depend on the images that its argument
            `held_out` holds out (`held_out.is_held_out`). Required of an intermediate teacher that
            is weighted on these images.
        compares_candidates: whether it chooses one of its teachers by a short distillation from
            each. The networks trained in these distillations are also among its teachers (see
            `roles.candidates`).
        trained_peers: number of other networks that are trained with the student, for forecasts;
            they have the student's architecture or the config in the argument `peer`. An argument
            `peers` of the class replaces it.
        student_passes, teacher_passes: for forecasts, the number of additional passes per sample
            in which the student is trained, and of passes of the teacher in the training step, also
            if its cache is read.
        copy_passes: for forecasts, the number of forward passes per sample of a copy of the student
            that is not trained (a moving average).
    """

    has_auxiliary_modules: ClassVar[bool] = False
    reads_from_augment: ClassVar[frozenset[str]] = frozenset()
    transformer: ClassVar[bool] = False
    skips_held_out: ClassVar[bool] = False
    compares_candidates: ClassVar[bool] = False
    trained_peers: ClassVar[int] = 0
    student_passes: ClassVar[int] = 0
    teacher_passes: ClassVar[int] = 0
    copy_passes: ClassVar[int] = 0

    @abstractmethod
    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """{name: loss per sample (B,)}; the training loss is the mean over B of their sum."""

    def attach(self, student: nn.Module, new_network: Callable[..., nn.Module]) -> None:
        """Called once, before training, for example to create a peer or an averaged network.

        Args:
            student: the backbone that is trained. Store it in a list; as an attribute it would be
                registered as a submodule a second time.
            new_network: creates a network of the student's architecture, or of the student config
                that is passed to it, with new random weights. Called with `Context.images`, the
                network returns (pre-activation, post-activation), pooled like the student's. With
                maps=True, a network of the student's architecture returns a StudentOutput that
                includes the maps.
        """

    @classmethod
    def weigh_teachers(cls, config: Mapping[str, Any], held_out: HeldOutOutputs) -> TeacherWeights:
        """Weights of the teachers, for a class with "teacher_weights" in `stage_arguments`.

        Called once, before training. The class has an argument `held_out`, a fraction of images.

        Args:
            config: config of the objective.
            held_out: outputs of the teachers for the held-out images.
        """
        raise KdepError(
            f"{type_path(cls)} does not choose weights of its teachers",
            fix="define `weigh_teachers` in it, or remove 'teacher_weights' from its "
            "`stage_arguments`",
        )

    def before_student(self, extra: Mapping[str, Tensor]) -> None:
        """Called before the student's forward pass on every batch that an Augment changed.

        Args:
            extra: the tensors that the Augment added, as in `Context.extra`; for example the hidden
                patches.
        """

    def auxiliary_modules(self) -> dict[str, AuxiliaryModule]:
        """Submodules with a separate optimiser, by name (an adversary, meta-learned weights).

        They are stored in checkpoints and dropped at export. No gradient of `terms` reaches them.
        Called once, after `attach`.
        """
        return {}

    def update_auxiliary(self, ctx: Context, auxiliary: AuxiliaryModules) -> None:
        """Updates the auxiliary modules, with `auxiliary.minimise`; called before each `terms`.

        The student's weights are the same as in `terms`. Its features in `ctx` are part of the
        autograd graph, but `minimise` computes gradients for the module's parameters only.
        """


@dataclass(frozen=True)
class Demands:
    """The union of the class attributes of an objective and all its parts; see Component."""

    needs: frozenset[str]
    stage_arguments: frozenset[str]
    couples_samples: bool
    forwards: float = 0
    pre_activation_levels: frozenset[str] = frozenset()
    has_auxiliary_modules: bool = False

    @property
    def pyramid(self) -> bool:
        """Whether the objective reads the student's feature pyramid."""
        return "maps" in self.needs or "student_maps" in self.stage_arguments


def demands(config: Mapping[str, Any], base: type[Component] = Objective) -> Demands:
    """The Demands of an objective's config and its parts; only classes are read, nothing is built.

    Raises:
        KdepError: the type is not a subclass of `base`, or a class declares a word that is not in
            NEEDS or ARGUMENTS.
    """
    kind = locate(config["type"])
    if not (isinstance(kind, type) and issubclass(kind, base)):
        is_not = "not an Objective" if base is Objective else "neither an Objective nor a Weighting"
        raise KdepError(
            f"{type_path(config['type'])} is {is_not}",
            expected="a class of kdep_bench.objectives",
            fix="correct `type` in the method's objective",
        )
    for attribute, declared, known in (
        ("needs", kind.needs, NEEDS),
        ("stage_arguments", kind.stage_arguments, ARGUMENTS),
    ):
        for word in sorted(declared - known):
            raise unknown_name("word", word, known, place=f"`{attribute}` of {type_path(kind)}")
    parts = [demands(part, Component) for part in kind.parts(config)]
    return Demands(
        kind.needs.union(*(part.needs for part in parts)),
        kind.stage_arguments.union(*(part.stage_arguments for part in parts)),
        kind.couples_samples or any(part.couples_samples for part in parts),
        kind.count_forwards(config) + sum(part.forwards for part in parts),
        kind.pre_activation_levels(config).union(*(part.pre_activation_levels for part in parts)),
        getattr(kind, "has_auxiliary_modules", False)
        or any(part.has_auxiliary_modules for part in parts),
    )


def build_objective(config: Mapping[str, Any], build_args: Mapping[str, Any]) -> Objective:
    """Builds the objective of a config.

    Args:
        config: {type, ...}; its values take precedence over `build_args`.
        build_args: {argument: value}, words of ARGUMENTS; the class gets those in its
            `stage_arguments`. With several teachers, also "teachers": {role: {argument: value}},
            for classes that read every teacher or that have parts.

    Raises:
        KdepError: a required argument is missing; also the errors of `demands`.
    """
    demands(config)
    objective = build_component(config, build_args)
    assert isinstance(objective, Objective)
    return objective


def build_component(config: Mapping[str, Any], build_args: Mapping[str, Any]) -> Component:
    """Builds the objective or weighting of a config; arguments as in `build_objective`."""
    required = demands(config, Component).stage_arguments
    build_args = {k: v for k, v in build_args.items() if k not in config}
    args_by_role = config.get("teachers", build_args.get("teachers")) or {}
    teacher_args = set[str]().union(*args_by_role.values())
    missing = sorted(required - set(build_args) - set(config) - teacher_args)
    if missing:
        raise KdepError(
            f"missing constructor argument {', '.join(missing)} of {type_path(config['type'])}",
            fix="set it in the method's config, or provide it from the pre-training stage",
        )
    # The parts of a weighted sum also get the arguments of one teacher. A class that reads every
    # teacher does not accept them: it gets them by role.
    if locate(config["type"]).every_teacher:
        required -= TEACHER_ARGUMENTS
    arguments = {k: build_args[k] for k in sorted(required & set(build_args))}
    if "teachers" in build_args and takes_teachers(config):
        arguments["teachers"] = build_args["teachers"]
    return build(config, **arguments)


def takes_teachers(config: Mapping[str, Any]) -> bool:
    """Whether the class of a config has the argument `teachers` (arguments by teacher role)."""
    kind = locate(config["type"])
    return bool(
        (kind.every_teacher and kind.stage_arguments & TEACHER_ARGUMENTS) or kind.parts(config)
    )


def build_args_of_part(build_args: Mapping[str, Any], role: str | None = None) -> dict[str, Any]:
    """The `build_args` for one part of a weighted sum.

    They include the arguments of the teacher that the part reads: the teacher with the role `role`,
    or the first teacher if `role` is None.
    """
    by_role: Mapping[str, Any] = build_args.get("teachers") or {}
    if not by_role:
        return dict(build_args)
    part_role = next(iter(by_role)) if role is None else role
    visible = by_role if role is None else {role: by_role[role]}
    return {**build_args, **by_role[part_role], "teachers": visible}
