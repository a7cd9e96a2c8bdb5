"""The config of a claim: its keys, their validation, and the selection of the rows it compares.

It imports neither numpy nor torch, because the planner checks the claims of a suite before it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from kdep_bench.errors import KdepError, expected_text, fault_text, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.results.budget_axis import Axis
from kdep_bench.results.teacher_measures import PROBED

# Largest relative difference of trained and configured epochs: only complete batches are used.
EPOCHS_TOLERANCE = 0.05

# Values of `by` that the records of transfer runs contain; those of PROBED need probe records.
VALUES_FROM_RECORDS = ("explained_variance_ratio", "top1")


# Text that contains a number, and True, are refused.
_Number = Annotated[float, Field(strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Side(_Strict):
    """One side of a comparison, which selects a row; see `pick`.

    `share`: data fraction. A field that is None matches any value.
    """

    method: str | Annotated[tuple[str, ...], Field(min_length=1)]
    share: _Number | None = Field(default=None, gt=0, le=1)
    epochs: _Number | None = Field(default=None, ge=0)
    teacher: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of methods in order of preference."""
        return (self.method,) if isinstance(self.method, str) else self.method


class Claim(_Strict):
    """One claim config.

    Attributes:
        title, statement: the name and the text of the claim in tables; `source`: where it is from.
        a, b: the rows that are compared.
        families: task families that the claim is about; None: all.
        per_family: whether each task family also has a verdict.
        kind, margin, max_cost_ratio, axis, at_least, at_most, by: see `judge.py`.
    """

    name: str
    title: str
    kind: Literal["difference", "efficiency", "rank_correlation"] = "difference"
    statement: str = ""
    source: str = ""
    a: Side
    b: Side | None = None
    families: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    per_family: StrictBool = True
    margin: _Number = 0.0
    max_cost_ratio: _Number | None = Field(default=None, gt=0)
    axis: Axis = "images"
    at_least: _Number | None = None
    at_most: _Number | None = None
    by: str | dict[str, _Number] = "explained_variance_ratio"

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
        KdepError: keys are unknown or missing, or values are wrong; lists all of them.
    """
    name = str(fields.get("name", "without a name"))[:80]
    where, faults = f"the claim {name!r}", Faults()
    parts = [
        (where, fields, Claim.model_fields, None),
        *(
            (f"`{side}` of {where}", fields.get(side), Side.model_fields, Claim.model_fields)
            for side in ("a", "b")
        ),
    ]
    for place, part, known_keys, outer_keys in parts:
        for key in part if isinstance(part, dict) else ():
            if key not in known_keys:
                is_outer = outer_keys is not None and key in outer_keys
                otherwise = f"`{key}` is a key of the claim: write it there" if is_outer else None
                faults.add(
                    unknown_name("key", str(key), known_keys, place=place, otherwise=otherwise)
                )
    try:
        claim = Claim.model_validate(fields)
    except ValidationError as e:
        for fault in e.errors(include_url=False):
            if fault["type"] != "extra_forbidden":
                faults.add(_fault(where, fault))
        error = faults.error(where)
        assert error is not None
        raise error from None
    return claim


def _fault(where: str, fault: Any) -> KdepError:
    """The error for a fault that pydantic found in the claim `where`."""
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        meaning = ", the text that the tables show" if place == "title" else ""
        return KdepError(f"{where} lacks the key {place!r}", fix=f"add {place}=...{meaning}")
    if not place:
        return KdepError(f"{where} is invalid ({fault_text(fault)})", fix="correct its keys")
    expected = expected_text(fault).partition(", unable")[0]
    fix = f"correct `{place}` of the claim"
    if fault["type"] == "model_type":  # "a dictionary or instance of Side"
        expected = f"dict({', '.join(f'{key}=...' for key in Side.model_fields)})"
        if isinstance(fault["input"], str):
            fix = f"write {place}=dict(method={fault['input']!r:.80})"
    return KdepError(f"{where} has {place} = {fault['input']!r:.80}", expected=expected, fix=fix)


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
