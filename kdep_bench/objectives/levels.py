"""Student levels and teacher outputs named in an objective's config. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kdep_bench.errors import KdepError


def levels_of(config: Any) -> set[str]:
    """Names of the teacher's maps that an objective reads: the values of `levels`."""
    return {teacher_map for levels in _levels(config) for teacher_map in levels.values()}


def student_levels(config: Any) -> set[str]:
    """Names of the student's levels that an objective reads: `student_level`, keys of `levels`."""
    return {level for levels in _levels(config) for level in levels} | {
        str(level) for level in _values(config, "student_level")
    }


def level_pairs(config: Any) -> set[tuple[str, str]]:
    """The (student level, teacher map) pairs of an objective: the items of `levels`."""
    return {pair for levels in _levels(config) for pair in levels.items()}


def _levels(config: Any) -> Iterator[Mapping[str, str]]:
    """Yields every `levels` in a config and in its parts."""
    if isinstance(config, Mapping):
        if isinstance(config.get("levels"), Mapping):
            yield config["levels"]
        for value in config.values():
            yield from _levels(value)


def top_classes(config: Any) -> int:
    """The number of largest class probabilities that an objective reads: its `top_classes`.

    Raises:
        KdepError: the parts of the objective set no value, or different values.
    """
    named = sorted(set(_values(config, "top_classes")))
    if len(named) != 1:
        raise KdepError(
            f"an objective that reads class probabilities has top_classes = {named or None}",
            expected="one number for the whole objective",
            fix="set top_classes in the method's objective (the same in all its parts)",
        )
    return int(named[0])


def teacher_layer(config: Any) -> str:
    """The layer of a live teacher that an objective reads: its `teacher_layer`.

    Raises:
        KdepError: the parts of the objective set no value, or different values.
    """
    named = sorted(set(map(str, _values(config, "teacher_layer"))))
    if len(named) != 1:
        raise KdepError(
            f"an objective that reads one layer of its teacher has teacher_layer = {named or None}",
            expected="one name for the whole objective",
            fix="set teacher_layer in the method's objective (the same in all its parts)",
        )
    return named[0]


def block_pairs(student_depth: int, teacher_depth: int) -> list[tuple[int, int]]:
    """(student block, teacher block), from 0, for every block of the student.

    With r = teacher_depth / student_depth, the m-th block of the student (m from 1) is paired with
    the (r m)-th block of the teacher, so the last blocks form a pair.

    Raises:
        KdepError: r is not a whole number.
    """
    if student_depth < 1 or teacher_depth % student_depth:
        raise KdepError(
            f"a teacher of {teacher_depth} blocks cannot be divided over the {student_depth} "
            "blocks of the student",
            expected="a number of teacher blocks that is a multiple of the student's",
            fix="choose another teacher or student",
        )
    ratio = teacher_depth // student_depth
    return [(m, (m + 1) * ratio - 1) for m in range(student_depth)]


def depths_of(config: Any) -> list[tuple[int, int]]:
    """The (student_depth, teacher_depth) that an objective and its parts name."""
    depths = []
    if isinstance(config, Mapping):
        if "student_depth" in config and "teacher_depth" in config:
            depths.append((config["student_depth"], config["teacher_depth"]))
        for value in config.values():
            depths += depths_of(value)
    return depths


def teacher_blocks(config: Any) -> list[int]:
    """Blocks of a transformer teacher that an objective reads, as sorted indices.

    They are its `teacher_block`, or those that `block_pairs` gives for its `student_depth` and
    `teacher_depth`.

    Raises:
        KdepError: the objective and its parts name no block, or an error of `block_pairs`.
    """
    blocks = {int(block) for block in _values(config, "teacher_block")}
    for student_depth, teacher_depth in depths_of(config):
        blocks |= {t for _, t in block_pairs(student_depth, teacher_depth)}
    if not blocks:
        raise KdepError(
            "an objective that reads the attention of its teacher names no block",
            expected="teacher_block, or student_depth and teacher_depth",
            fix="set one of these in the method's objective",
        )
    return sorted(blocks)


def peers_of(config: Any) -> list[Any]:
    """Student configs of the networks that an objective trains with the student: its `peer`."""
    return [peer for peer in _values(config, "peer") if peer is not None]


def parts_with_key(config: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """Yields the config and those of its parts that set `key`."""
    if isinstance(config, Mapping):
        if key in config:
            yield config
        for value in config.values():
            yield from parts_with_key(value, key)


def _values(config: Any, key: str) -> Iterator[Any]:
    """Yields every value of `key` in a config and in its parts."""
    return (part[key] for part in parts_with_key(config, key))
