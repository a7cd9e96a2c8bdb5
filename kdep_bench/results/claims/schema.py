"""The config of a claim: its keys, their validation, and the row that a side of it selects.

Imports neither numpy nor torch: the planner checks every claim of a suite before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.results.axes import Axis

EPOCHS_TOLERANCE = 0.05  # relative: complete batches rarely make exactly the number of a config


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Side(_Strict):
    """Selects a row: the first of `method` that exists; the longest training of several."""

    method: str | Annotated[tuple[str, ...], Field(min_length=1)]
    share: float | None = Field(default=None, gt=0, le=1)
    epochs: float | None = Field(default=None, ge=0)
    teacher: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The names tried, in order."""
        return (self.method,) if isinstance(self.method, str) else self.method


class Claim(_Strict):
    """One claim config; see the module for the three kinds."""

    name: str
    title: str
    kind: Literal["difference", "efficiency", "rank_correlation"] = "difference"
    statement: str = ""
    source: str = ""
    a: Side
    b: Side | None = None
    families: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    per_family: bool = True
    margin: float = 0.0
    max_cost_ratio: float | None = Field(default=None, gt=0)
    axis: Axis = "images"
    at_least: float | None = None
    at_most: float | None = None
    by: Literal["explained_variance_ratio", "top1"] | dict[str, float] = "explained_variance_ratio"

    @field_validator("by", mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        return "explained_variance_ratio" if value == "energy_kept" else value  # its name before

    @model_validator(mode="after")
    def _complete(self) -> Claim:
        if self.kind != "rank_correlation" and self.b is None:
            raise ValueError(f"kind {self.kind!r} needs b")
        if self.kind == "efficiency" and (self.at_least is None or self.at_least <= 0):
            raise ValueError("kind 'efficiency' needs at_least above 0")
        if self.kind == "rank_correlation" and (self.at_least is None) == (self.at_most is None):
            raise ValueError("kind 'rank_correlation' needs one of at_least and at_most")
        return self


def make_claim(fields: dict[str, Any]) -> Claim:
    """A validated claim.

    Raises:
        KdepError: an unknown key (with the nearest known ones), a wrong value, or a key that the
            claim's kind needs.
    """
    name = str(fields.get("name", "without a name"))[:80]
    for part, known in {
        "": Claim.model_fields,
        "a": Side.model_fields,
        "b": Side.model_fields,
    }.items():
        given = fields.get(part) if part else fields
        for key in given if isinstance(given, dict) else ():
            if key not in known:
                where = f"{part} of the claim {name}" if part else f"the claim {name}"
                raise unknown_name(f"key in {where}", str(key), known)
    try:
        return Claim.model_validate(fields)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(str(p) for p in first["loc"])
        problem = (
            f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")
        )
        raise KdepError(
            f"the claim {name} is invalid ({problem})",
            expected="the keys described in kdep_bench/results/claims/schema.py",
            fix="correct the claim's config, or the keys that the suite overrides",
        ) from None


class _Row(Protocol):
    """The attributes of a row, planned or recorded, that a side of a claim reads."""

    @property
    def method(self) -> str: ...
    @property
    def teacher(self) -> str: ...
    @property
    def fraction(self) -> float: ...
    @property
    def epochs(self) -> float | None: ...


_AnyRow = TypeVar("_AnyRow", bound=_Row)


def pick(rows: Sequence[_AnyRow], side: Side, fixed: Callable[[_AnyRow], bool]) -> _AnyRow | None:
    """The row that a side selects among those of one student; None where none matches.

    The first of its methods that exists, with the largest data fraction unless the side has one,
    and the longest training of several. `fixed`: whether a row is not pre-trained here, so that a
    data fraction does not apply to it.
    """
    for method in side.methods:
        candidates = [a for a in rows if a.method == method]
        if side.share is not None:
            untrained = [a for a in candidates if fixed(a)]
            candidates = [
                a for a in candidates if math.isclose(a.fraction, side.share)
            ] or untrained
        elif candidates:
            largest = max(a.fraction for a in candidates)
            candidates = [a for a in candidates if a.fraction == largest]
        candidates = with_epochs(candidates, side.epochs)
        if side.teacher is not None:
            candidates = [a for a in candidates if a.teacher == side.teacher]
        if candidates:
            return max(candidates, key=lambda a: (a.epochs or 0.0, a.teacher))
    return None


def with_epochs(rows: Sequence[_AnyRow], epochs: float | None) -> list[_AnyRow]:
    """The rows trained for the number of epochs nearest to `epochs`; all where that is None.

    Empty if the nearest is more than EPOCHS_TOLERANCE away. Only complete batches are used, so a
    budget of 7.53 epochs may train for 7.52.
    """
    if epochs is None:
        return list(rows)
    difference_by_id = {id(a): abs(a.epochs - epochs) for a in rows if a.epochs is not None}
    least = min(difference_by_id.values(), default=math.inf)
    if least > EPOCHS_TOLERANCE * epochs:
        return []
    return [a for a in rows if difference_by_id.get(id(a)) == least]
