"""Configs of searches for a student: the space, the budgets and the score.

A proposal is one value for every dimension of the space: a student and settings of its method. A
trial trains and scores a proposal. For every proposal, a suite of one student, one method and one
task is built. Its stages have the same ids as in `run_suite.py`, so finished stages are reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdep_bench.errors import KdepError
from kdep_bench.paths import CONFIGS
from kdep_bench.search import sampler
from kdep_bench.search.contraction import Contraction, check_space
from kdep_bench.students.space import Dimension, Limits, Space
from kdep_bench.suite.config import build_suite, check, find_config, read_dict
from kdep_bench.suite.kinds import KINDS
from kdep_bench.suite.methods import DESCRIPTION_KEYS, without
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Json, Runtime, Suite, ViewRecipe

# Stage kinds of the suite of a proposal.
_STAGES = ("prepare", "views", "cache", "align", "pretrain", "export", "transfer")
_Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    """Base class of the models: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Dimension(_Part):
    """An entry of `space`; see kdep_bench.students.space.Dimension."""

    key: str
    values: list[Any]


class _Limits(_Part):
    """`limits`: largest parameter count and FLOPs of a student; None means no limit."""

    params: _Count | None = None
    flops: _Count | None = None


class Halving(_Part):
    """Successive halving: a trial is trained and scored at up to `rungs` rungs.

    Rung i (from 0) is a new pre-training from random weights for epochs * factor**i epochs, with a
    complete learning-rate schedule. Of the trials that were scored at a rung, the best 1 / factor
    continue to the next rung.
    """

    epochs: float = Field(gt=0)
    factor: int = Field(ge=2, default=3)
    rungs: _Count = 1


class SearchFile(_Part):
    """The content of `search` in a file of configs/searches/.

    Attributes:
        family: the class that builds the students, a subclass of kdep_bench.students.space.Family,
            as dict(type=..., ...) with the arguments that are equal for all students.
        space: the dimensions; see kdep_bench/students/space.py.
        limits: largest parameter count and FLOPs of a student; larger students are not trained.
        data, teacher, views, runtime: as in a suite.
        method: the method; dimensions whose key begins with "method." override its entries.
        task: the task whose result is the score; it must have split='val'.
        fraction: data fraction of the pre-trainings.
        budget: as in a suite, without epochs.
        halving: the epochs; see `Halving`.
        trials: number of trained trials after which the search ends.
        sampler: "tpe", "random", or "contraction", see contraction.py.
        steps: number of steps of a contraction; each trains at most trials / steps candidates.
        seed: seed of the proposals.
        pretrain_seed: seed of every pre-training.
        source: the publication that the search is from; "" if none.
        reimplementation: whether it is a re-implementation, as GLOSSARY.md defines it at "method".
    """

    name: str
    about: str = ""
    source: str = ""
    reimplementation: bool = False
    family: Json
    space: list[_Dimension]
    limits: _Limits = _Limits()
    data: Any
    teacher: Any = None
    method: Any
    task: Any
    fraction: float = 1.0
    views: ViewRecipe = ViewRecipe()
    budget: Json
    halving: Halving
    trials: _Count
    sampler: Literal["tpe", "random", "contraction"] = "tpe"
    steps: _Count = 1
    seed: int = Field(ge=0, default=0)
    pretrain_seed: int = Field(ge=0, default=0)
    runtime: Runtime = Runtime()


@dataclass(frozen=True)
class Search:
    """A search whose config was checked by `load_search`."""

    file: SearchFile
    configs: Path = CONFIGS

    @property
    def name(self) -> str:
        return self.file.name

    @cached_property
    def space(self) -> Space:
        """The space that is searched."""
        dimensions = [Dimension(d.key, tuple(d.values)) for d in self.file.space]
        return Space(dimensions, self.file.family)

    @property
    def limits(self) -> Limits:
        """The largest size of a student."""
        return Limits(self.file.limits.params, self.file.limits.flops)

    @property
    def is_contraction(self) -> bool:
        """Whether a large student is contracted step by step."""
        return self.file.sampler == "contraction"

    def sampler(self, direction: Literal["max", "min"]) -> sampler.Sampler | Contraction:
        """The object that makes the proposals.

        `direction`: whether the largest score is best ("max") or the smallest ("min").
        """
        file = self.file
        if self.is_contraction:
            per_step = file.trials // file.steps
            return Contraction(self.space, self.limits, file.seed, file.steps, per_step, direction)
        factor = file.halving.factor
        return sampler.Sampler(self.space, file.sampler, file.seed, factor, direction, self.limits)

    def steps(self) -> list[str]:
        """One line of text per step of a contraction; [] for another search."""
        sampler = self.sampler("max") if self.is_contraction else None
        return sampler.description() if isinstance(sampler, Contraction) else []

    @cached_property
    def first_proposal(self) -> Json:
        """The first proposal whose student is within the limits; KdepError if there is none."""
        return self.space.first_within(self.limits)

    @property
    def epochs(self) -> list[float]:
        """Epochs at each rung."""
        halving = self.file.halving
        return [halving.epochs * halving.factor**i for i in range(halving.rungs)]

    def method(self, proposal: Mapping[str, Any]) -> Any:
        """The method of a proposal, as an entry of a suite's `methods`."""
        settings, method = self.space.settings(proposal), self.file.method
        if not settings:
            return method
        base: Json = method if isinstance(method, dict) else {"base": method}
        return _merged(base, settings)

    def suite(self, proposal: Mapping[str, Any], epochs: float) -> Suite:
        """The suite that trains and scores a proposal; KdepError if the proposal is not valid."""
        file = self.file
        raw = {
            "name": file.name,
            "about": f"a proposal of the search {file.name}",
            "data": file.data,
            "teacher": file.teacher,
            "students": [self.space.member(proposal).student()],
            "methods": [self.method(proposal)],
            "tasks": [file.task],
            "shares": [file.fraction],
            "views": file.views.model_dump(),
            "budget": {**file.budget, "epochs": epochs},
            "seeds": {"pretrain": [file.pretrain_seed], "transfer": [0]},
            "runtime": file.runtime.model_dump(),
        }
        return build_suite(raw, self.configs)

    def settings(self, suite: Suite) -> Json:
        """All settings that proposals and scores depend on, for the header of a log.

        `suite`: the suite of `first_proposal`, with the hashes of its data.
        """
        file = self.file
        (task,), (method,) = suite.tasks, suite.methods
        return {
            "family": file.family,
            "space": {d.key: list(d.values) for d in self.space.dimensions},
            "limits": file.limits.model_dump(),
            "halving": file.halving.model_dump(),
            "sampler": file.sampler,
            "seed": file.seed,
            **(
                {"steps": file.steps, "trials": file.trials}
                if self.is_contraction
                else {"optuna": sampler.version()}
            ),
            "data": without(suite.data, DESCRIPTION_KEYS),
            "teacher": _teacher_settings(next(iter(suite.teachers.values()))),
            "method": without(method, DESCRIPTION_KEYS),
            "task": without(task, DESCRIPTION_KEYS),
            "fraction": file.fraction,
            "views": suite.views.model_dump(),
            "budget": {k: v for k, v in suite.budget.model_dump().items() if k != "epochs"},
            "pretrain_seed": file.pretrain_seed,
            "versions": {kind: KINDS[kind].version for kind in _STAGES},
            "metric": task["metric"],
            "direction": task.get("direction", "max"),
            "split": _split(task),
        }


def _split(task: Json) -> str:
    """The split on which a task is scored; by default the test split."""
    return task.get("split", "test")


def _merged(base: Json, overrides: Json) -> Json:
    """`base` with the entries of `overrides`; nested dicts are merged."""
    out = dict(base)
    for key, value in overrides.items():
        base_value = out.get(key)
        if isinstance(base_value, dict) and isinstance(value, dict):
            out[key] = _merged(base_value, value)
        else:
            out[key] = value
    return out


def _teacher_settings(teacher: Json | None) -> Json | None:
    """The entries of a teacher's config that change results; None without a teacher."""
    return None if teacher is None else without(teacher, DESCRIPTION_KEYS)


def load_search(name: str, configs: Path = CONFIGS, **overrides: Any) -> Search:
    """Reads and checks a search.

    Args:
        name: name of its config in `configs/searches/`, or the path of a config file.
        configs: folder of configs.
        overrides: values that replace entries of the config, unless they are None.

    Raises:
        KdepError: the name is unknown, an entry is wrong, no student of the space is within the
            limits, or the score is not measured on the validation split.
    """
    path = find_config("search", name, configs)
    raw = read_dict("search", path)
    raw.setdefault("name", path.stem)
    raw |= {k: v for k, v in overrides.items() if v is not None}
    file = check(SearchFile, raw, f"search {raw['name']!r}")
    if "epochs" in file.budget:
        raise KdepError(
            f"the budget of the search {file.name!r} has epochs",
            fix="remove it: `halving` sets the epochs of every rung",
        )
    search = Search(file, configs)
    if search.is_contraction:
        rungs = file.halving.rungs
        check_space(search.space, search.limits, file.steps, file.trials, rungs)
    elif file.steps != 1:
        raise KdepError(
            f"the search {file.name!r} has steps={file.steps}, but its sampler is {file.sampler!r}",
            fix="remove `steps` from its config, or set sampler='contraction'",
        )
    _check_method_keys(search)
    (task,) = search.suite(search.first_proposal, search.epochs[0]).tasks
    if _split(task) != "val":
        raise KdepError(
            f"the search {file.name!r} scores proposals on the split {_split(task)!r} of task "
            f"{task['name']!r}; results of the best student on this split would be too optimistic, "
            "because the student was chosen by them",
            expected="a task with split='val'",
            fix="set task=dict(base=..., name=..., split='val') in the search's config",
        )
    return search


def _check_method_keys(search: Search) -> None:
    """Raises KdepError if a "method." dimension sets an entry that `method` also sets."""
    fixed = search.file.method if isinstance(search.file.method, dict) else {}
    for dimension in search.space.dimensions:
        head, *path = dimension.key.split(".")
        value: Any = fixed if head == "method" else {}
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            raise KdepError(
                f"the search {search.name!r} sets {dimension.key!r} twice, in `space` and in "
                "`method`",
                fix="remove it from `space` or from `method` in the search's config",
            )


def check_values(search: Search) -> None:
    """Plans one proposal for every value of every dimension; the rest is as in `first_proposal`.

    Raises:
        KdepError: a value is not valid for the method or the student.
    """
    for dimension in search.space.dimensions:
        for value in dimension.values:
            proposal = {**search.first_proposal, dimension.key: value}
            if search.limits.allow(search.space.member(proposal).size()):
                try:
                    build_plan(search.suite(proposal, search.epochs[0]))
                except KdepError as e:
                    raise KdepError(
                        f"the value {value!r} of the dimension {dimension.key!r} of the search "
                        f"{search.name!r} cannot be used: {e.problem}",
                        expected=e.expected,
                        fix=f"remove it from the search's config, or {e.fix or 'correct it'}",
                    ) from None
