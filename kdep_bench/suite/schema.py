"""What a person may write in a suite config, and its checked, frozen form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What a method may ask of its inputs; all but labels and views come from a teacher. "views": all
# fixed views of an image in one batch; "classes": the labels are those of the teacher's classifier.
NEEDS = ("labels", "pooled", "logits", "maps", "tokens", "views", "classes")
NAME_LIMIT = 48  # four names and a hash make one directory name of at most 120 characters

Json = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Budget(_Part):
    """Pre-training budget of every arm.

    epochs over the images of the share, batch size, `views` fixed views an image, an mmengine
    optimizer config, the shape of the learning-rate schedule and its warm-up (share of the steps);
    `precision` 'float32', 'bfloat16' or, on a GPU, 'float16' (the backbone under autocast).

    Options, in no stage's identity while they are left at their defaults: `epochs_over` 'pool'
    counts an epoch in images of the whole pool, so that every share sees as many; `teacher` 'live'
    runs it in the step instead of reading its cache; `accumulate` micro-batches make one step of
    `batch`; `ema` is the decay of a weight average, which is then what is exported; `compile` the
    back end of torch.compile ('inductor') for the student.
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
        """What the pre-training stage is told; an option that is not used is absent."""
        told = self.model_dump(exclude={"views"})
        options = dict(teacher="cached", accumulate=1, ema=None, compile=None, epochs_over="share")
        return {k: v for k, v in told.items() if k not in options or v != options[k]}


# What every generator takes: numpy's and scikit-learn's end at 2**32 - 1, and the seed of an arm
# that is not trained is made of both seeds (see plan.SEED_STEP).
_Seed = Annotated[int, Field(ge=0, le=4_000_000)]


class Seeds(_Part):
    """`pairs`: 'product' runs every (pretrain, transfer) pair, 'diagonal' the i-th with the i-th.

    `share` seeds the row subset of a share below 1.0; `views` seeds the crops.
    """

    pretrain: list[_Seed] = Field(min_length=1)
    transfer: list[_Seed] = Field(min_length=1)
    pairs: Literal["product", "diagonal"] = "product"
    share: _Seed = 0
    views: _Seed = 0


class ViewRecipe(_Part):
    """Crops of the fixed views: range of area share, range of aspect ratio (width / height)."""

    scale: list[float] = Field(min_length=2, max_length=2, default=[0.35, 1.0])
    ratio: list[float] = Field(min_length=2, max_length=2, default=[0.75, 4 / 3])

    @model_validator(mode="after")
    def _ranges(self) -> ViewRecipe:
        for name, (low, high), most in (
            ("scale", self.scale, 1.0),
            ("ratio", self.ratio, 100.0),
        ):
            if not 0 < low <= high <= most:
                raise ValueError(f"{name} from {low:g} to {high:g}: 0 < low <= high <= {most:g}")
        return self


_Count = Annotated[int, Field(ge=1)]


class Runtime(_Part):
    """What the stages of a kind may use, by stage kind; no part of any stage's identity.

    `cpus` cores a process, `timeout` seconds after which a stage is taken for hung. `gpus` a node,
    `processes` a node (default: one a GPU), `nodes`: more than one process in all is DDP. For
    clusters alone: `memory` MiB a node, and `time`, the seconds one job may last (default:
    `timeout`); a stage that can resume goes on in a next job until `timeout`.
    `cost`: seconds guessed for the order and the time left until a like stage was measured.
    `timed`: False where other work shares the machine, so that wall times would mislead: they stay
    out of the records, and a claim about time is undecided.
    `trackers`: 'tensorboard', 'mlflow' or dicts; see kdep_bench/trackers.py.
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
    """`optimizer` is laid on the budget's, for a method that departs from it (a learning rate)."""

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
    optimizer: Json | None = None
    card: Json = {}


class Assistant(_Part):
    """`teacher` of a method: not the suite's, but what another arm made.

    The student named is pre-trained by the method named, under the suite's teacher, budget, share
    and seed, and its export teaches. `epochs` cuts that pre-training's budget (an early-stopped
    teacher). The method may have such a teacher itself: a chain.
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
    tasks: list[Any] = Field(min_length=1)
    claims: list[Any] = []
    shares: list[float] = Field(min_length=1, default=[1.0])
    share_by: Literal["image", "class"] = "image"
    views: ViewRecipe = ViewRecipe()
    budget: Budget
    seeds: Seeds
    runtime: Runtime = Runtime()
    variants: list[Json] = []


class Variant(_Part):
    """What a variant of a suite may say otherwise; `budget` is laid on the suite's."""

    teacher: Any = None
    methods: list[Any] | None = Field(min_length=1, default=None)
    shares: list[float] | None = Field(min_length=1, default=None)
    budget: Json = {}


class Suite(_Part):
    """A resolved suite. Every nested config is a plain JSON value.

    `teachers` has one entry a student name; None where the suite has no teacher at all. A suite
    with `variants` (several teachers, budgets by share) is the sum of these, itself not included;
    stages and cells that are equal in several are run once.
    `share_by` 'class' takes a share below 1 from every class alike, which reads the labels for the
    choice of images; 'image' takes it label-free.
    """

    name: str
    about: str
    data: Json
    teachers: dict[str, Json | None]
    students: list[Json]
    methods: list[Json]
    tasks: list[Json]
    claims: list[Json]
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
    "claim": _Named,
}


def method_needs(method: Json) -> set[str]:
    """What a method asks for, among NEEDS; by default the pooled teacher feature, or labels."""
    if method.get("needs") is not None:
        return set(method["needs"])
    if method.get("objective") is None:
        return set()
    return {"labels"} if method.get("labels_used") else {"pooled"}


def label_policy(method: Json) -> str:
    """'label-free', 'labels', or 'none' for an arm that is neither taught nor given weights."""
    if method.get("label_policy") is not None:
        return method["label_policy"]
    if method.get("weights") is None and not method_needs(method):
        return "none"
    return "labels" if method.get("labels_used") else "label-free"


def uses_teacher(method: Json) -> bool:
    """Whether a method reads teacher features."""
    return bool(method_needs(method) - {"labels", "views"})
