"""Schema of suite configs (pydantic), and the checked, immutable Suite that is built from them.

Terms: a data fraction (`shares`) is the fraction of the pre-training images (the pool) that a
method may use. Views are fixed random crops of an image. `Json` is a dict of plain values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

# Inputs that a method can read. All but "labels" and "views" need a teacher.
#   views: all fixed views of an image are in one batch.
#   classes: the image labels are classes of the teacher's classifier.
#   classifier: the teacher's classifier as a function of its pooled feature.
#   tail: the teacher's layers after one of its feature maps.
#   layer: the output of one layer; the teacher runs live and stops after it.
#   attention: hidden states, queries, keys and values of blocks of a live vision transformer.
#   teacher_images: the crops at the teacher's resolution, decoded again from the pool.
NEEDS = (
    *("labels", "pooled", "logits", "maps", "tokens", "probabilities"),
    *("views", "classes", "classifier", "tail", "layer", "attention", "teacher_images"),
)
# Keys that any data config may have.
DATA_KEYS = ("about", "card", "labels", "name", "pool_classes", "scores_note", "source", "type")
NAME_LIMIT = 48  # characters; a stage's name joins several names, and `make_stage_id` truncates it

Json = dict[str, Any]


class _Part(BaseModel):
    """Base of config parts: immutable, without unknown keys, type conversions, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Budget(_Part):
    """Pre-training budget of every method.

    Attributes:
        epochs: number of epochs; see `epochs_over`.
        epochs_over: 'share': an epoch has as many samples as the data fraction has images; 'pool':
            as many as the pool has, so that the training has the same length for every fraction.
        batch: samples per optimiser step.
        optimizer: an mmengine optimizer config.
        views: fixed views per image.
        schedule: shape of the learning-rate schedule.
        warmup: fraction of the steps with a rising learning rate.
        precision: 'float32', 'bfloat16' or, on a GPU, 'float16' (the backbone under autocast).
        teacher: 'live': the teacher runs in the training step; otherwise its cache is read.
        accumulate: number of micro-batches into which `batch` is split.
        ema: decay of an exponential moving average of the weights, which is exported instead of
            the weights; None: no average.
        compile: back end of torch.compile for the student, such as 'inductor'; None: not compiled.

    `epochs_over`, `teacher`, `accumulate`, `ema` and `compile` are part of a stage's id only if
    they differ from their defaults.
    """

    epochs: float = Field(gt=0)
    epochs_over: Literal["share", "pool"] = "share"
    batch: int = Field(ge=1)
    optimizer: Json
    views: int = Field(ge=1, default=1)
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: float = Field(
        ge=0, lt=1, default=0.0, description="a fraction of the training, from 0 to less than 1"
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    teacher: Literal["cached", "live"] = "cached"
    accumulate: int = Field(ge=1, default=1)
    ema: float | None = Field(gt=0, lt=1, default=None)
    compile: str | None = Field(min_length=1, default=None)

    def spec(self) -> Json:
        """The budget in the spec of a pre-training, without options that have default values.

        Stages that were planned before an option existed therefore keep their ids.
        """
        fields = self.model_dump(exclude={"views"})
        options = dict(teacher="cached", accumulate=1, ema=None, compile=None, epochs_over="share")
        return {k: v for k, v in fields.items() if k not in options or v != options[k]}


# NumPy and scikit-learn accept seeds up to 2**32 - 1. The seed of an untrained student is
# plan.SEED_STEP (1000) * pre-training seed + transfer seed, which must not exceed this limit.
_Seed = Annotated[int, Field(ge=0, le=4_000_000)]


class Seeds(_Part):
    """Random seeds.

    Attributes:
        pretrain: seeds of the pre-training.
        transfer: seeds of the transfer training.
        pairs: 'product': every pre-training seed with every transfer seed; 'diagonal': the i-th
            pre-training seed with the i-th transfer seed.
        share: seed that selects the images of a data fraction below 1.
        views: seed of the crops.
    """

    pretrain: list[_Seed] = Field(min_length=1)
    transfer: list[_Seed] = Field(min_length=1)
    pairs: Literal["product", "diagonal"] = "product"
    share: _Seed = 0
    views: _Seed = 0


class ViewRecipe(_Part):
    """Crops of the fixed views.

    Attributes:
        scale: range of the crop's fraction of the image area.
        ratio: range of its aspect ratio, width / height.
    """

    scale: list[float] = Field(
        min_length=2,
        max_length=2,
        default=[0.35, 1.0],
        description="two numbers low, high with 0 < low <= high <= 1",
    )
    ratio: list[float] = Field(
        min_length=2,
        max_length=2,
        default=[0.75, 4 / 3],
        description="two numbers low, high with 0 < low <= high <= 100",
    )

    @field_validator("scale", "ratio")
    @classmethod
    def _range(cls, value: list[float], info: ValidationInfo) -> list[float]:
        (low, high), limit = value, 1 if info.field_name == "scale" else 100
        if not 0 < low <= high <= limit:
            raise ValueError("the limits of the crops have the wrong order or range")
        return value


_Count = Annotated[int, Field(ge=1)]


def _per_kind(example: str) -> Any:
    """A field with a dict of numbers by stage kind; the default is an empty dict."""
    return Field(
        default={}, description=f"a dict of numbers by stage kind, such as dict({example})"
    )


class Runtime(_Part):
    """Resources of stages; not part of any stage's id. Dicts have stage kinds as keys.

    The key "synthesis" is for the stage that makes the images of a method (see suite/kinds.py).

    Attributes:
        cpus: cores per process; 0: all.
        timeout: seconds after which a stage is stopped.
        gpus: GPUs per node.
        processes: processes per node (default: one per GPU); several processes train with DDP.
        nodes: machines that a stage runs on in a cluster.
        memory: MiB per node; only for clusters.
        time: seconds that one cluster job may last (default: `timeout`); a stage that can resume
            continues in another job until `timeout`.
        cost: estimated seconds, used until a similar stage has been measured.
        timed: whether to report times. Set it to False if other work runs on the machine: records
            then contain no wall times, and claims about time are undecided.
        trackers: experiment trackers: 'tensorboard', 'mlflow', 'wandb' or dicts; see
            kdep_bench/trackers.py.
    """

    cpus: dict[str, Annotated[int, Field(ge=0)]] = _per_kind("pretrain=4")
    timeout: dict[str, Annotated[float, Field(gt=0)]] = _per_kind("pretrain=3600")
    gpus: dict[str, _Count] = _per_kind("pretrain=1")
    processes: dict[str, _Count] = _per_kind("pretrain=2")
    nodes: dict[str, _Count] = _per_kind("pretrain=2")
    memory: dict[str, _Count] = _per_kind("pretrain=8000")
    time: dict[str, Annotated[float, Field(ge=60)]] = _per_kind("pretrain=3600")
    cost: dict[str, Annotated[float, Field(gt=0)]] = _per_kind("pretrain=600")
    timed: bool = True
    trackers: list[Any] = []


class _Student(_Part):
    """A config in configs/students.

    Attributes:
        backbone: config of the network.
        width: channels of the pooled feature.
        input_px: side of the input images in pixels.
        tap: path of the last activation, whose pooled input is the feature; "last_pre_activation"
            finds it for some classes, and "output" is the pooled last map.
        pyramid: out_indices, channels and strides of the feature maps, for dense tasks.
        dilated: arguments of the backbone that dilate its last map to stride 8, for tasks with
            `dilate=True`; None if it cannot be dilated.
        card: description; `factors` are its levels in an ablation, see suite/factors.py;
            `labels_used` states whether its initial weights were trained with labels, and must be
            set if `backbone` gives it trained ones.
    """

    name: str
    backbone: Json
    width: int = Field(ge=1)
    input_px: int = Field(ge=8)
    tap: Any
    pyramid: Json = {}
    dilated: Json | None = None
    about: str = ""
    card: Json = {}


class _Method(_Part):
    """A config in configs/methods: how a student is pre-trained.

    Attributes:
        labels_used: whether it reads image labels.
        label_policy: see the function `label_policy`; None: computed.
        reconstruction: whether it is a re-implementation, as GLOSSARY.md defines it at "method".
        objective: config of the loss; None for a method without pre-training.
        align: config of the alignment of the teacher's feature.
        transform: config of the transform of the aligned feature.
        weights: config of given weights, which are not trained further.
        steps: False: no training step is taken.
        needs: inputs that it reads, of NEEDS; None: see `method_needs`.
        students: names of the students that it is run for; None: all.
        teacher: an intermediate teacher (see Assistant) instead of the suite's teacher.
        teacher_source: "live": the teacher runs in the training step, as with budget.teacher, but
            only for this method.
        stored_maps: how a cache stores the teacher's maps; "int8" halves their bytes, see
            kdep_bench/features/int8_maps.py.
        augment: config of an augmentation of every batch (a class of kdep_bench/augments).
        synthesis: config of a class that makes pre-training images from the images of the data
            fraction (kdep_bench/features/few_shot.py); the method is trained on both.
        teachers: several teachers by role; see suite/teachers.py.
        optimizer: entries that replace entries of the budget's optimizer.
        card: description; `factors` are its levels in an ablation, see suite/factors.py.
        pretrained_by, transfer: see TransferPart.
    """

    name: str
    family: str = ""
    labels_used: bool = False
    label_policy: str | None = None
    reconstruction: bool = False
    source: str = ""
    about: str = ""
    objective: Json | None = None
    align: Json | None = None
    transform: Json | None = None
    weights: Any = None
    steps: bool = True
    needs: list[str] | None = None
    students: list[str] | None = None
    teacher: Json | None = Field(
        default=None,
        description="dict(student=..., method=...), an intermediate teacher that the suite trains; "
        "the large teacher is `teacher` of the suite",
    )
    teacher_source: Literal["cached", "live"] = "cached"
    stored_maps: Literal["float16", "int8"] = "float16"
    augment: Json | None = None
    synthesis: Json | None = None
    teachers: dict[str, Any] | None = Field(min_length=1, default=None)
    optimizer: Json | None = None
    card: Json = {}
    pretrained_by: Any = None
    transfer: Json | None = None


class TunedTeacher(_Part):
    """`teacher` of a transfer method: another student that is trained on the same task first.

    teacher="self" is the same student and pre-training as the one that is transferred.

    `student` is pre-trained by `method` with the suite's teacher, budget and data fraction and the
    suite's first seeds, and is then trained on the task, with the transfer method `transfer` if
    there is one (its type and arguments). The trained model is the teacher in all runs of that
    task.
    """

    student: Any
    method: Any
    transfer: Json | None = None


class TransferPart(BaseModel):
    """`transfer` of a method: the class of a transfer method and its arguments.

    A method config with `transfer` describes a transfer method. Its pre-training is the method
    config that `pretrained_by` names ("scratch": no pre-training).

    Attributes:
        type: class of the transfer method.
        teacher: see TunedTeacher.
        tasks: names of the suite's tasks that it is run on; None: all.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    type: str
    teacher: Json | Literal["self"] | None = None
    tasks: list[str] | None = Field(min_length=1, default=None)


class Assistant(_Part):
    """`teacher` of a method: an intermediate teacher (teacher assistant) instead of the suite's.

    `student` is pre-trained with `method` and the suite's teacher, budget, data fraction and seed;
    the exported backbone is the teacher. `student` is a student config, or "same" for the student
    that the method is run on (self-distillation). `epochs` shortens that pre-training (an
    early-stopped teacher), `batch` replaces the budget's batch. `method` may itself have an
    intermediate teacher.
    """

    student: Any
    method: Any
    epochs: float | None = Field(gt=0, default=None)
    batch: int | None = Field(gt=0, default=None)


class _Task(_Part):
    """A config in configs/tasks.

    Attributes:
        type: class of the task.
        family: 'classification', 'detection' or 'segmentation'.
        version: raised when the score of the same network changes.
        split: split that is scored.
        metric: name of the main score.
        direction: whether a larger ('max') or a smaller ('min') score is better.
        chance: score of a guess that does not look at the image, between 0 and 1.
        recipe: arguments of the class.
        tests_on: data sets that it is evaluated on, see suite/train_test_overlap.py.
    """

    type: str
    name: str
    family: str
    version: int = 1
    split: str = "test"
    metric: str
    direction: Literal["max", "min"] = "max"
    chance: float | None = Field(ge=0, le=1, default=None)
    recipe: Json = {}
    tests_on: list[str] | None = None
    about: str = ""


class _Probe(BaseModel):
    """A config in configs/probes; other keys than these are arguments of its class.

    `folder`: folder of the data with one sub-folder per class, if the probe reads labelled images.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    name: str
    type: str
    folder: str | None = Field(min_length=1, default=None)
    about: str = ""


class _Named(BaseModel):
    """A config of data or a claim; other packages check the other keys."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    name: str


class _Teacher(_Named):
    """A config of a teacher; `card` is its description (docs/own_data.md)."""

    card: Json = {}


class SuiteFile(_Part):
    """The dict `suite` of a suite file; see Suite for the keys. Configs may be given by name."""

    name: str
    about: str = ""
    data: Any
    teacher: Any = None
    students: list[Any] = Field(min_length=1)
    methods: list[Any] = Field(min_length=1)
    tasks: list[Any] = []
    probes: list[Any] = []
    claims: list[Any] = []
    shares: list[float] = Field(min_length=1, default=[1.0])
    share_by: Literal["image", "class"] = "image"
    views: ViewRecipe = ViewRecipe()
    budget: Budget
    seeds: Seeds
    runtime: Runtime = Runtime()
    keep_models: bool = False
    variants: list[Json] = []


class Variant(_Part):
    """Values that a variant replaces in its suite; `budget` can have some of the entries."""

    teacher: Any = None
    methods: list[Any] | None = Field(min_length=1, default=None)
    shares: list[float] | None = Field(min_length=1, default=None)
    budget: Json = {}


class Suite(_Part):
    """A suite whose configs are all resolved to plain JSON values.

    Attributes:
        about: description, for reports.
        data, students, methods, tasks, claims, probes: configs.
        teachers: student name -> teacher config; None without a teacher.
        shares: data fractions, above 0 and at most 1.
        share_by: how the images of a fraction below 1 are drawn. 'image': without labels; 'class':
            the same fraction of every class, which reads the labels.
        keep_models: whether every transfer stores its trained model, for `publish --onnx`.
        views, budget, seeds, runtime: see their classes.
        variants: copies of the suite with other teachers, methods, fractions or budgets. If there
            are any, only they are run; stages that are equal in several variants run once.
    """

    name: str
    about: str
    data: Json
    teachers: dict[str, Json | None]
    students: list[Json]
    methods: list[Json]
    tasks: list[Json]
    claims: list[Json]
    probes: list[Json] = []
    shares: list[float]
    share_by: Literal["image", "class"]
    keep_models: bool = False
    views: ViewRecipe
    budget: Budget
    seeds: Seeds
    runtime: Runtime
    variants: list[Suite] = []


# The fix of an error about a student without feature maps.
ADD_PYRAMID = (
    "add pyramid=dict(out_indices=, channels=, strides=) to the student's config "
    "(kdep-bench student measures them)"
)

MODELS: dict[str, type[BaseModel]] = {
    "data": _Named,
    "teacher": _Teacher,
    "student": _Student,
    "method": _Method,
    "task": _Task,
    "probe": _Probe,
    "claim": _Named,
}


def method_needs(method: Json) -> set[str]:
    """Inputs that a method reads, a subset of NEEDS.

    If the config does not list them: labels if it uses labels, else the pooled teacher feature.
    """
    if method.get("needs") is not None:
        return set(method["needs"])
    if method.get("objective") is None:
        return set()
    return {"labels"} if method.get("labels_used") else {"pooled"}


def label_policy(method: Json) -> str:
    """'label-free' or 'labels'; 'none' if it reads no teacher and no labels and has no weights."""
    if method.get("label_policy") is not None:
        return method["label_policy"]
    if method.get("weights") is None and not method_needs(method):
        return "none"
    return "labels" if method.get("labels_used") else "label-free"


def weights_argument(student: Json) -> str | None:
    """The argument of a student's backbone that gives it trained initial weights.

    None if the initial weights are random.
    """
    backbone = student["backbone"]
    for name in ("copied", "pretrained", "checkpoint_path"):
        if backbone.get(name):
            return name
    inits = backbone.get("init_cfg")
    for init in inits if isinstance(inits, list) else [inits]:
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            return "init_cfg"
    return None


def labels_of_run(method: Json, student: Json) -> Json:
    """`label_policy` and `labels_used` of a method with a student, as in records.

    A student whose initial weights were trained with labels makes every method one with labels.
    """
    if (student.get("card") or {}).get("labels_used"):
        return {"label_policy": "labels", "labels_used": True}
    return {"label_policy": label_policy(method), "labels_used": bool(method.get("labels_used"))}


def uses_teacher(method: Json) -> bool:
    """Whether a method reads any output of a teacher."""
    return bool(method_needs(method) - {"labels", "views"})
