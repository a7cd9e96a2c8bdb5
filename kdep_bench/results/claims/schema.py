"""The config of a claim: its keys, their validation, and the selection of the rows it compares.

It imports neither numpy nor torch, because the planner checks the claims of a suite before it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdep_bench.errors import KdepError, expected_text, fault_text, unknown_name
from kdep_bench.results.budget_axis import Axis
from kdep_bench.results.teacher_measures import PROBED

# Largest relative difference of trained and configured epochs: only complete batches are used.
EPOCHS_TOLERANCE = 0.05

# Values of `by` that the records of transfer runs contain; those of PROBED need probe records.
VALUES_FROM_RECORDS = ("explained_variance_ratio", "top1")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Side(_Strict):
    """One side of a comparison, which selects a row; see `pick`.

    `share`: data fraction. A field that is None matches any value.
    """

    method: str | Annotated[tuple[str, ...], Field(min_length=1)]
    share: float | None = Field(default=None, gt=0, le=1)
    epochs: float | None = Field(default=None, ge=0)
    teacher: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of methods in order of preference."""
        return (self.method,) if isinstance(self.method, str) else self.method


class Claim(_Strict):
    """One claim config; the kinds and their keys are explained in `judge.py`."""

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
    by: str | dict[str, float] = "explained_variance_ratio"

    @field_validator("by", mode="before")
    @classmethod
    def _renamed(cls, value: Any) -> Any:
        value = "explained_variance_ratio" if value == "energy_kept" else value  # its former name
        if isinstance(value, str) and value not in (known := [*VALUES_FROM_RECORDS, *PROBED]):
            raise ValueError(f"Input should be one of {', '.join(known)}, or a dict")
        return value

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
    """The claim of a config, after validation.

    Raises:
        KdepError: a key is unknown or missing, or a value is wrong.
    """
    name = str(fields.get("name", "without a name"))[:80]
    parts = [
        (f"the claim {name}", fields, Claim.model_fields),
        (f"a of the claim {name}", fields.get("a"), Side.model_fields),
        (f"b of the claim {name}", fields.get("b"), Side.model_fields),
    ]
    for where, part, known_keys in parts:
        for key in part if isinstance(part, dict) else ():
            if key not in known_keys:
                raise unknown_name("key", str(key), known_keys, place=where)
    try:
        return Claim.model_validate(fields)
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place, text = ".".join(str(p) for p in first["loc"]), fault_text(first)
        has_wrong_value = bool(place) and first["type"] != "missing"
        problem = f"is invalid ({text})"
        if first["type"] == "missing":
            problem = f"lacks the key {place!r}"
        raise KdepError(
            f"the claim {name!r} has {place} = {first['input']!r:.80}"
            if has_wrong_value
            else f"the claim {name!r} {problem}",
            expected=expected_text(first).partition(", unable")[0] if has_wrong_value else None,
            fix="correct the config of the claim, or its keys in the suite; "
            "kdep_bench/results/claims/judge.py explains them",
        ) from None


class _Row(Protocol):
    """The attributes of a planned or recorded row that `pick` reads."""

    @property
    def method(self) -> str: ...
    @property
    def teacher(self) -> str: ...
    @property
    def fraction(self) -> float: ...
    @property
    def epochs(self) -> float | None: ...


_AnyRow = TypeVar("_AnyRow", bound=_Row)


def pick(
    rows: Sequence[_AnyRow], side: Side, lacks_pretraining: Callable[[_AnyRow], bool]
) -> _AnyRow | None:
    """The row of one student that a side selects; None if no row matches.

    It is a row of the first method in `side.methods` that has a matching row. If the side does not
    state a data fraction, the row has the largest one; if it does not state epochs, the most; if it
    states no teacher and several are left, the last one by name.

    Args:
        rows: the rows of one student.
        side: the side of the claim.
        lacks_pretraining: whether the suite does not pre-train a row, so a data fraction does not
            apply to it.
    """
    for method in side.methods:
        candidates = [row for row in rows if row.method == method]
        if side.share is not None:
            with_fraction = [row for row in candidates if math.isclose(row.fraction, side.share)]
            candidates = with_fraction or [row for row in candidates if lacks_pretraining(row)]
        elif candidates:
            largest = max(row.fraction for row in candidates)
            candidates = [row for row in candidates if row.fraction == largest]
        candidates = with_epochs(candidates, side.epochs)
        if side.teacher is not None:
            candidates = [row for row in candidates if row.teacher == side.teacher]
        if candidates:
            return max(candidates, key=lambda row: (row.epochs or 0.0, row.teacher))
    return None


def with_epochs(rows: Sequence[_AnyRow], epochs: float | None) -> list[_AnyRow]:
    """The rows with the number of epochs nearest to `epochs`; all rows if `epochs` is None.

    It is empty if the nearest number differs by more than EPOCHS_TOLERANCE. Only complete batches
    are used, so a budget of 7.53 epochs may train for 7.52.
    """
    if epochs is None:
        return list(rows)
    difference_by_id = {id(row): abs(row.epochs - epochs) for row in rows if row.epochs is not None}
    smallest = min(difference_by_id.values(), default=math.inf)
    if smallest > EPOCHS_TOLERANCE * epochs:
        return []
    return [row for row in rows if difference_by_id.get(id(row)) == smallest]
