"""Search spaces: named dimensions over a parametrised family of students. Imports no torch.

A proposal is one value per dimension. The key of a dimension names what its value sets:
"student.<argument>" is an argument of the family, "method.<key>.<key>" an entry of the method's
config. The size of a student is computed without building its network.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kdep_bench.bounds import AtLeastOne, Count
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json
from kdep_bench.registry import build
from kdep_bench.signatures import check_arguments

Json = dict[str, Any]
TIMM = "kdep_bench.students.timm_backbone.TimmBackbone"
STUDENT, METHOD = "student", "method"


@dataclass(frozen=True)
class Size:
    """The size of a network.

    Attributes:
        params: number of trainable parameters.
        flops: FLOPs of a forward pass of one image: two per multiply-add of convolutions and matrix
            products, as in `kdep_bench.flops`.
    """

    params: int
    flops: int

    def __str__(self) -> str:
        return f"{self.params:,} parameters and {self.flops:,} FLOPs"


@dataclass(frozen=True)
class Limits:
    """The largest size of a student; None means no limit."""

    params: int | None = None
    flops: int | None = None

    def allow(self, size: Size) -> bool:
        """Whether a student of this size may be trained."""
        within_params = self.params is None or size.params <= self.params
        return within_params and (self.flops is None or size.flops <= self.flops)

    def __str__(self) -> str:
        limits = {"parameters": self.params, "FLOPs": self.flops}
        return " and ".join(f"{v:,} {k}" for k, v in limits.items() if v is not None) or "none"


class Family(ABC):
    """A parametrised backbone; its constructor takes the values of the "student." dimensions."""

    @abstractmethod
    def student(self) -> Json:
        """The student config, as in configs/students/; different students need different names."""

    @abstractmethod
    def size(self) -> Size:
        """Size of the backbone at the student's `input_px`, computed without building the network.

        A search compares this size with the one that the export stage counts.
        """


class ResNetFamily(Family):
    """timm's ResNets of basic blocks, with variable depth, width and stem.

    Args:
        input_px: side of the images in pre-training, in pixels.
        depth1, depth2, depth3, depth4: number of blocks in the stages at strides 4, 8, 16 and 32.
        width: channels of the first stage, a multiple of 8.
        growth: ratio of the channels of successive stages, which are rounded to multiples of 8.
        stem: "7x7" for one convolution to 64 channels, as in ResNet; "3x3" for three convolutions
            to `width` channels, as in ResNet-C. Both are followed by pooling, to stride 4.
    """

    def __init__(
        self,
        input_px: Count,
        depth1: Count = 2,
        depth2: Count = 2,
        depth3: Count = 2,
        depth4: Count = 2,
        width: Count = 64,
        growth: AtLeastOne = 2.0,
        stem: Literal["7x7", "3x3"] = "7x7",
    ) -> None:
        if width % 8:
            raise KdepError(
                f"the width of a student of ResNetFamily is {width}",
                expected="a multiple of 8",
                fix="correct `width` in the search's config",
            )
        self.px, self.depths, self.width = input_px, (depth1, depth2, depth3, depth4), width
        self.growth, self.stem = float(growth), stem
        self.channels = [max(8, 8 * round(width * self.growth**i / 8)) for i in range(4)]

    def student(self) -> Json:
        depths = "_".join(map(str, self.depths))
        growth = f"{self.growth:g}".replace(".", "p")
        return {
            "name": f"resnet_{depths}_w{self.width}_g{growth}_{self.stem}",
            "backbone": {
                "type": TIMM,
                "model": "resnet18",
                "layers": list(self.depths),
                "channels": self.channels,
                "stem_width": self.width // 2,
                "stem_type": "deep" if self.stem == "3x3" else "",
            },
            "width": self.channels[-1],
            "input_px": self.px,
            "tap": f"net.layer4.{self.depths[3] - 1}.act2",
            "pyramid": {
                "out_indices": [0, 1, 2, 3],
                "channels": self.channels,
                "strides": [4, 8, 16, 32],
            },
            "dilated": {"output_stride": 8},
        }

    def size(self) -> Size:
        params = flops = 0

        def conv(channels_in: int, channels_out: int, kernel: int, side: int) -> None:
            """Adds a convolution without bias, with output side `side`, and its BatchNorm."""
            nonlocal params, flops
            weights = channels_in * channels_out * kernel * kernel
            params += weights + 2 * channels_out
            flops += 2 * weights * side * side

        side, half = math.ceil(self.px / 2), self.width // 2
        if self.stem == "7x7":
            channels = 64
            conv(3, channels, 7, side)
        else:
            channels = 2 * half
            for a, b in ((3, half), (half, half), (half, channels)):
                conv(a, b, 3, side)
        side = math.ceil(side / 2)
        for stage, (depth, width) in enumerate(zip(self.depths, self.channels, strict=True)):
            for block in range(depth):
                strided = stage > 0 and block == 0
                side = math.ceil(side / 2) if strided else side
                conv(channels, width, 3, side)
                conv(width, width, 3, side)
                if strided or channels != width:
                    conv(channels, width, 1, side)
                channels = width
        return Size(params, flops)


@dataclass(frozen=True)
class Dimension:
    """One dimension of a space.

    Attributes:
        key: what its values set; see the module's docstring.
        values: at least one, without duplicates.

    Raises:
        KdepError: a key of another form, no values, or a duplicate value.
    """

    key: str
    values: Sequence[Any]

    def __post_init__(self) -> None:
        head, _, rest = self.key.partition(".")
        if head not in (STUDENT, METHOD) or not all(rest.split(".")):
            raise KdepError(
                f"the space has a dimension with the key {self.key!r}",
                expected=f"'{STUDENT}.<argument of the family>' or '{METHOD}.<key of the method>'",
                fix="correct the key in the search's config",
            )
        if not self.values:
            raise KdepError(
                f"the dimension {self.key!r} of the space has no values",
                fix="list its values in the search's config, or remove the dimension",
            )
        texts = [canonical_json(v) for v in self.values]
        duplicates = [t for i, t in enumerate(texts) if t in texts[:i]]
        if duplicates:
            raise KdepError(
                f"the dimension {self.key!r} of the space lists the value {duplicates[0]} twice",
                fix="remove one of them from the search's config",
            )

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers in ascending order, so that neighbours are similar."""
        are_numbers = all(type(v) in (int, float) for v in self.values)
        return are_numbers and list(self.values) == sorted(self.values)


@dataclass(frozen=True)
class Space:
    """A search space: all combinations of the values of its dimensions.

    Attributes:
        dimensions: at least one. No two of them, nor `family`, may set the same value.
        family: dict(type=<a Family>, ...) with the arguments that are equal for all students.

    Raises:
        KdepError: no dimension, a value that is set twice, or a family without a type.
    """

    dimensions: Sequence[Dimension]
    family: Json

    def __post_init__(self) -> None:
        if "type" not in self.family:
            raise KdepError(
                "`family` of the search has no type",
                expected="dict(type=<a subclass of kdep_bench.students.space.Family>, ...)",
                fix="add `type` to `family` in the search's config",
            )
        if not self.dimensions:
            raise KdepError(
                "the space of the search has no dimension", fix="add one to `space` in its config"
            )
        keys = [d.key for d in self.dimensions]
        fixed = [f"{STUDENT}.{k}" for k in self.family]
        for i, key in enumerate(keys):
            for earlier_key in (*keys[:i], *fixed):
                if f"{key}.".startswith(f"{earlier_key}.") or f"{earlier_key}.".startswith(
                    f"{key}."
                ):
                    raise _overlap(key, earlier_key, earlier_key in fixed)

    def __len__(self) -> int:
        return math.prod(len(d.values) for d in self.dimensions)

    def member(self, proposal: Mapping[str, Any]) -> Family:
        """The family's instance for a proposal: one student (see `Family.student`, `Family.size`).

        Raises:
            KdepError: values that are not valid, or a `type` that is not a Family.
        """
        keys = ((d.key.partition("."), proposal[d.key]) for d in self.dimensions)
        values = {rest: value for (head, _, rest), value in keys if head == STUDENT}
        config = {**self.family, **values}
        check_arguments(config, "the family of the search")
        member = build(config)
        if not isinstance(member, Family):
            raise KdepError(
                f"the type {self.family['type']!r} of the search's family is not a family of "
                "students",
                expected="a subclass of kdep_bench.students.space.Family",
                fix="correct `family` in the search's config",
            )
        return member

    def settings(self, proposal: Mapping[str, Any]) -> Json:
        """The overrides of the method's config in a proposal, as nested dicts."""
        out: Json = {}
        for dimension in self.dimensions:
            head, *path, last = dimension.key.split(".")
            if head == METHOD:
                nested = out
                for key in path:
                    nested = nested.setdefault(key, {})
                nested[last] = proposal[dimension.key]
        return out

    def students(self) -> Iterator[Json]:
        """One proposal for every student, with the first value of each "method." dimension."""
        choices = [
            d.values if d.key.startswith(f"{STUDENT}.") else d.values[:1] for d in self.dimensions
        ]
        for values in itertools.product(*choices):
            yield {d.key: v for d, v in zip(self.dimensions, values, strict=True)}

    def first_within(self, limits: Limits) -> Json:
        """The first proposal whose student is within the limits.

        Raises:
            KdepError: there is none; the error states the smallest student's size.
        """
        sizes: list[Size] = []
        for proposal in self.students():
            size = self.member(proposal).size()
            if limits.allow(size):
                return proposal
            sizes.append(size)
        smallest = min(sizes, key=lambda s: (s.params, s.flops))
        raise KdepError(
            f"no student of the space is within the limits of {limits}: the smallest of "
            f"{len(sizes)} has {smallest}",
            fix="raise `limits` in the search's config, or add smaller students to its space",
        )


def _overlap(key: str, earlier_key: str, in_family: bool) -> KdepError:
    """The error for two settings of one value: a dimension, and an earlier one or `family`."""
    if in_family:
        problem = f"`family` of the search sets the argument of the dimension {key!r}"
    elif key == earlier_key:
        problem = f"the space of the search has two dimensions {key!r}"
    else:
        problem = f"the dimensions {earlier_key!r} and {key!r} of the search overlap"
    return KdepError(
        problem,
        expected="each value to be set once",
        fix="remove one of the two from the search's config",
    )
