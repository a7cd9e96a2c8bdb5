"""Schema of suite configs (pydantic), and the checked, frozen suite made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Inputs that a method can read; all but labels and views come from a teacher. "views": all fixed
# views of an image in one batch; "classes": the labels are those of the teacher's classifier;
# "classifier": that classifier as a function of the teacher's pooled feature; "tail": the teacher's
# layers after a map; "layer": the output of one layer, after which a live teacher stops.
NEEDS = (
    *("labels", "pooled", "logits", "maps", "tokens", "probabilities"),
    *("views", "classes", "classifier", "tail", "layer"),
)
NAME_LIMIT = 48  # four names and a hash make one directory name of at most 120 characters

Json = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Budget(_Part):
    """Pre-training budget of every method.

    Attributes:
        epochs: over the images of the data fraction.
        epochs_over: 'pool' counts an epoch in images of the whole pool, so that every data fraction
            trains on as many samples.
        batch: samples per optimiser step.
        optimizer: an mmengine optimizer config.
        views: fixed views per image.
        schedule: shape of the learning-rate schedule.
        warmup: fraction of the steps.
        precision: 'float32', 'bfloat16' or, on a GPU, 'float16' (the backbone under autocast).
        teacher: 'live' runs the teacher in the training step instead of reading its cache.
        accumulate: micro-batches that make one step of `batch`.
        ema: decay of a weight average, which is then exported instead of the weights.
        compile: back end of torch.compile ('inductor') for the student.

    `epochs_over`, `teacher`, `accumulate`, `ema` and `compile` are part of a stage's id only where
    they differ from their defaults.
    """

    epochs: float = Field(gt=0)
    epochs_over: Literal["share", "pool"] = "share"
    batch: int = Field(ge=1)
    optimizer: Json
    views: int = Field(ge=1, default=1)
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: float = Field(ge=0, lt=1, default=0.0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    teacher: Literal["cached", "live"] = "cached"
    accumulate: int = Field(ge=1, default=1)
    ema: float | None = Field(gt=0, lt=1, default=None)
    compile: str | None = Field(min_length=1, default=None)

    def spec(self) -> Json:
        """The spec of the pre-training stage; options at their defaults are left out."""
        fields = self.model_dump(exclude={"views"})
        options = dict(teacher="cached", accumulate=1, ema=None, compile=None, epochs_over="share")
        return {k: v for k, v in fields.items() if k not in options or v != options[k]}


# Range that every random generator accepts: numpy's and scikit-learn's end at 2**32 - 1, and the
# seed of an untrained student is computed from both seeds (see plan.SEED_STEP).
_Seed = Annotated[int, Field(ge=0, le=4_000_000)]


class Seeds(_Part):
    """`pairs`: 'product' runs every (pretrain, transfer) pair, 'diagonal' the i-th with the i-th.

    `share` seeds the subset of a data fraction below 1.0; `views` seeds the crops.
    """

    pretrain: list[_Seed] = Field(min_length=1)
    transfer: list[_Seed] = Field(min_length=1)
    pairs: Literal["product", "diagonal"] = "product"
    share: _Seed = 0
    views: _Seed = 0


class ViewRecipe(_Part):
    """Crops of the fixed views: ranges of area fraction and of aspect ratio (width / height)."""

    scale: list[float] = Field(min_length=2, max_length=2, default=[0.35, 1.0])
    ratio: list[float] = Field(min_length=2, max_length=2, default=[0.75, 4 / 3])

    @model_validator(mode="after")
    def _ranges(self) -> ViewRecipe:
        for name, (low, high), limit in (
            ("scale", self.scale, 1.0),
            ("ratio", self.ratio, 100.0),
        ):
            if not 0 < low <= high <= limit:
                raise ValueError(f"{name} from {low:g} to {high:g}: 0 < low <= high <= {limit:g}")
        return self


_Count = Annotated[int, Field(ge=1)]


class Runtime(_Part):
    """Resources by stage kind; not part of any stage's id.

    Attributes:
        cpus: cores per process; 0 = all.
        timeout: seconds after which a stage is stopped.
        gpus: per node.
        processes: per node (default: one per GPU); more than one process in all is DDP.
        nodes: machines that a stage spans on a cluster.
        memory: MiB per node; on clusters only.
        time: seconds that one cluster job may last (default: `timeout`); a stage that can resume
            continues in another job until `timeout`.
        cost: estimated seconds, until a similar stage was measured.
        timed: False where other work shares the machine, so that wall times would mislead: records
            contain none, and a claim about time is undecided.
        trackers: 'tensorboard', 'mlflow' or dicts; see kdep_bench/trackers.py.
    """

    cpus: dict[str, Annotated[int, Field(ge=0)]] = {}
    timeout: dict[str, Annotated[float, Field(gt=0)]] = {}
    gpus: dict[str, _Count] = {}
    processes: dict[str, _Count] = {}
    nodes: dict[str, _Count] = {}
    memory: dict[str, _Count] = {}
    time: dict[str, Annotated[float, Field(ge=60)]] = {}
    cost: dict[str, Annotated[float, Field(gt=0)]] = {}
    timed: bool = True
    trackers: list[Any] = []


class _Student(_Part):
    name: str
    backbone: Json
    width: int = Field(ge=1)
    input_px: int = Field(ge=8)
    tap: Any
    pyramid: Json = {}
    dilated: Json | None = None
    about: str = ""


class _Method(_Part):
    """`optimizer` overrides entries of the budget's (for example the learning rate).

    `teacher` replaces the suite's teacher by an intermediate one (Assistant); `teachers` names
    several by role: see suite/teachers.py. `teacher_source` "live" runs the teacher in the step for
    this method alone, as budget.teacher does for all. `stored_maps` "int8" halves the bytes of the
    teacher's maps in its cache (kdep_bench/features/int8_maps.py). `augment` changes every batch
    inside the step (a class of kdep_bench/augments).
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
    teacher: Json | None = None
    teacher_source: Literal["cached", "live"] = "cached"
    stored_maps: Literal["float16", "int8"] = "float16"
    augment: Json | None = None
    teachers: dict[str, Any] | None = Field(min_length=1, default=None)
    optimizer: Json | None = None
    card: Json = {}
    pretrained_by: Any = None
    transfer: Json | None = None


class TunedTeacher(_Part):
    """`teacher` of a transfer method: another student, transferred to the same task before.

    The student named is pre-trained by the method named, under the suite's teacher, budget and
    data fraction, at the first of the suite's seeds, and trained on the task without a transfer
    method; its whole model is then the teacher of every run of the task.
    """

    student: Any
    method: Any


class TransferPart(BaseModel):
    """`transfer` of a method: the class of a transfer method and its arguments.

    A config with `transfer` names the transfer method; the pre-training is that of the method
    config `pretrained_by` (no pre-training: "scratch"). `tasks`: names of the suite's tasks that it
    is run on; all of them where it is left out.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    type: str
    teacher: Json | None = None
    tasks: list[str] | None = Field(min_length=1, default=None)


class Assistant(_Part):
    """`teacher` of a method: an intermediate teacher (teacher assistant) instead of the suite's.

    The given student is pre-trained with the given method, under the suite's teacher, budget, data
    fraction and seed, and its export is the teacher. `epochs` shortens that pre-training (an
    early-stopped teacher). The method may have an intermediate teacher itself.
    """

    student: Any
    method: Any
    epochs: float | None = Field(gt=0, default=None)


class _Task(_Part):
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
    """`folder` of class folders, where the probe reads some; further keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    name: str
    type: str
    folder: str | None = Field(min_length=1, default=None)
    about: str = ""


class _Named(BaseModel):
    """Data, teachers and claims: their packages check the rest."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    name: str


class SuiteFile(_Part):
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
    variants: list[Json] = []


class Variant(_Part):
    """Values that a variant replaces in its suite; `budget` replaces single entries."""

    teacher: Any = None
    methods: list[Any] | None = Field(min_length=1, default=None)
    shares: list[float] | None = Field(min_length=1, default=None)
    budget: Json = {}


class Suite(_Part):
    """A resolved suite. Every nested config is a plain JSON value.

    `teachers` has one entry per student name, None where the suite has no teacher. A suite with
    `variants` (several teachers, budgets per data fraction) consists of these, and does not run
    itself; stages and runs that are equal in several variants run once.
    `share_by` 'class' draws a data fraction below 1 from every class alike, which reads the labels
    to select images; 'image' draws it without labels.
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
    views: ViewRecipe
    budget: Budget
    seeds: Seeds
    runtime: Runtime
    variants: list[Suite] = []


MODELS: dict[str, type[BaseModel]] = {
    "data": _Named,
    "teacher": _Named,
    "student": _Student,
    "method": _Method,
    "task": _Task,
    "probe": _Probe,
    "claim": _Named,
}


def method_needs(method: Json) -> set[str]:
    """Inputs that a method reads, of NEEDS; by default the pooled teacher feature, or labels."""
    if method.get("needs") is not None:
        return set(method["needs"])
    if method.get("objective") is None:
        return set()
    return {"labels"} if method.get("labels_used") else {"pooled"}


def label_policy(method: Json) -> str:
    """'label-free', 'labels', or 'none' for a method without teacher, labels and given weights."""
    if method.get("label_policy") is not None:
        return method["label_policy"]
    if method.get("weights") is None and not method_needs(method):
        return "none"
    return "labels" if method.get("labels_used") else "label-free"


def uses_teacher(method: Json) -> bool:
    """Whether a method reads teacher features."""
    return bool(method_needs(method) - {"labels", "views"})
