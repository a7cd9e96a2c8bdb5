"""Types of constructor arguments with their ranges. Imports no torch.

Classes that configs can name annotate their arguments with these types: `T: Positive = 0.1`. When a
suite is planned, the annotations are read from the source (see `signatures`), and values out of
range are reported before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core.core_schema import CoreSchema, no_info_wrap_validator_function


class SameType:
    """Pydantic annotation of a Literal of numbers, which then refuses True and 1.0 in place of 1.

    Pydantic compares with ==, also in strict mode.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        choices = get_args(source)

        def check(value: Any, validate: Any) -> Any:
            is_choice = any(type(value) is type(c) and value == c for c in choices)
            return validate(value if is_choice else object())  # no choice equals a new object

        return no_info_wrap_validator_function(check, handler(source))


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
AtLeastOne = Annotated[float, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
MultipleOf32 = Annotated[int, Field(ge=32, multiple_of=32)]
Bits = Annotated[int, Field(ge=2, le=8)]
Bits16 = Annotated[int, Field(ge=2, le=16)]
LiteVariant = Annotated[int, Field(ge=0, le=2)]  # of EfficientNet-Lite; refuses True and 1.0
Words = Annotated[str, Field(pattern=r"\S")]  # at least one character that is not a space
Counts = Annotated[Sequence[Count], Field(min_length=1)]
Positives = Annotated[Sequence[Positive], Field(min_length=1)]
Fractions = Annotated[Sequence[Fraction], Field(min_length=1)]
Domain = Literal["fog", "night", "sketch"]  # the names of `kdep_bench.data.domains.DOMAINS`
Domains = Annotated[Sequence[Domain], Field(min_length=1)]
KernelSize = Annotated[Literal[1, 3, 5, 7], SameType()]  # odd: the map keeps its size
KernelSizes = Annotated[Sequence[KernelSize], Field(min_length=1)]
