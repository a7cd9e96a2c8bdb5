"""Checks the numbers in a transfer recipe: types, ranges, and whether they fit the data.

The planner calls these checks before anything runs, and the task calls them again. This module does
not import torch.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.signatures import check_value

# Type of each key, in the notation of `signatures.check_value`.
_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("iters", "epochs", "batch", "test_batch", "step_epochs"), "Count"),
    **dict.fromkeys(("max_iter", "folds", "inner_folds"), "Count"),
    **dict.fromkeys(("lr", "head_lr_mult", "poly_power"), "Positive"),
    "momentum": "BelowOne",
    "weight_decay": "NotNegative",
    **dict.fromkeys(("clip_norm", "resize"), "Positive | None"),
    **dict.fromkeys(("norm_eval", "dilate"), "bool"),
    **dict.fromkeys(("test_scale", "long_edge"), "Count"),
    "train_share": "Fraction",
    "warmup": "Count",
    "frozen_stages": "int",
    "protocol": "Literal['split', 'folds']",
    "head": "Literal['c4', 'fpn']",
    "domain": "Domain",
    "scored_on": "Literal['target', 'source']",
}
# For keys with several numbers: (type of each number, count of numbers; None: one or more).
_SEVERAL: Mapping[str, tuple[str, int | None]] = {
    "scale": ("Count", 2),
    "crop": ("Count", 2),
    "scales": ("Count", None),
    "resize_ratio": ("Positive", 2),
    "crop_scale": ("Fraction", 2),
    "c_grid": ("Positive", None),
    "steps": ("Fraction", None),
}


def check_recipe(task: str, recipe: Mapping[str, Any]) -> None:
    """Checks the numbers of a recipe.

    Args:
        task: name of the task, for errors.
        recipe: the recipe.

    Raises:
        KdepError: a number has a wrong type, is out of range or contradicts another number.
    """
    where = f"the recipe of task {task!r}"
    faults = Faults()
    for key, annotation in _TYPES.items():
        if key in recipe:
            with faults.collect():
                check_value(annotation, recipe[key], where, key)
    for key, (annotation, count) in _SEVERAL.items():
        if key in recipe:
            with faults.collect():
                _check_several(recipe[key], annotation, count, where, key)
    if "classes" in recipe and "palette" in recipe:
        with faults.collect():
            _check_palette(recipe["classes"], recipe["palette"], where)
    faults.raise_any(where)  # the comparisons below need numbers
    for check in (_check_lengths, _check_order, _check_folds):
        with faults.collect():
            check(recipe, where)
    faults.raise_any(where)


def check_keys(task: str, recipe: Mapping[str, Any], keys: Collection[str]) -> None:
    """Raises KdepError if a recipe has a key that is not in `keys`, or lacks one of them."""
    where, faults = f"the recipe of task {task!r}", Faults()
    unknown, missing = sorted(set(recipe) - set(keys)), sorted(set(keys) - set(recipe))
    for key in unknown:
        faults.add(unknown_name("key", key, keys, place=where))
    # A key that is only misspelt is not reported as missing, too.
    if missing := [k for k in missing if not difflib.get_close_matches(k, unknown)]:
        faults.add(
            KdepError(
                f"{where} lacks {'the key' if len(missing) == 1 else 'the keys'} "
                f"{', '.join(missing)}",
                fix="add it" if len(missing) == 1 else "add them",
            )
        )
    faults.raise_any(where)


def _check_lengths(recipe: Mapping[str, Any], where: str) -> None:
    """Checks the numbers that must fit the length of the training."""
    if recipe.get("train_share") == 0:
        raise KdepError(f"{where} has train_share = 0", fix="set it above 0")
    iters, warmup = recipe.get("iters"), recipe.get("warmup")
    if iters is not None and warmup is not None and not warmup < iters:
        raise KdepError(
            f"{where} has warmup={warmup} and iters={iters}",
            expected="1 <= warmup < iters",
            fix="lower warmup or raise iters",
        )
    epochs, step = recipe.get("epochs"), recipe.get("step_epochs")
    if epochs is not None and step is not None and step > epochs:
        raise KdepError(
            f"{where} has step_epochs={step} and epochs={epochs}",
            expected="step_epochs <= epochs",
            fix="lower step_epochs or raise epochs",
        )


def _check_order(recipe: Mapping[str, Any], where: str) -> None:
    """Checks that limits and steps are in ascending order."""
    for key in ("crop_scale", "resize_ratio", "steps"):
        values = list(recipe.get(key) or ())
        if values != sorted(values) or (key == "crop_scale" and values and values[0] == 0):
            raise KdepError(
                f"{where} has {key} = {values}",
                expected="increasing numbers above 0",
                fix=f"correct `{key}`",
            )


def _check_folds(recipe: Mapping[str, Any], where: str) -> None:
    """Checks that a cross-validation has two or more folds."""
    if recipe.get("protocol") != "folds":
        return
    for key in ("folds", "inner_folds"):
        if recipe.get(key, 2) < 2:
            raise KdepError(
                f"{where} has {key} = {recipe[key]}", expected="2 or more", fix=f"correct `{key}`"
            )


def _check_several(value: Any, annotation: str, count: int | None, where: str, key: str) -> None:
    many = "one or more numbers" if count is None else f"{count} numbers"
    if not isinstance(value, list | tuple) or not value or (count and len(value) != count):
        raise KdepError(
            f"{where} has {key} = {value!r:.60}",
            expected=f"a list of {many}",
            fix=f"correct `{key}`",
        )
    for number in value:
        check_value(annotation, number, where, key)


def _check_palette(classes: Any, palette: Any, where: str) -> None:
    if not isinstance(classes, list | tuple) or not isinstance(palette, list | tuple):
        raise KdepError(f"`classes` and `palette` of {where} are not both lists", fix="write lists")
    faults = Faults()
    if len(classes) != len(palette):
        more = "add colours to" if len(classes) > len(palette) else "remove colours from"
        faults.add(
            KdepError(
                f"{where} has {len(classes)} classes and {len(palette)} colours in its palette",
                expected="one colour per class",
                fix=f"{more} `palette`, or correct `classes`",
            )
        )
    for colour in palette:
        if not _is_colour(colour):
            faults.add(
                KdepError(
                    f"{where} has the colour {colour!r:.60} in its palette",
                    expected="three integers from 0 to 255: red, green and blue",
                    fix="correct `palette`",
                ),
                "colour",
            )
    if repeated := sorted({str(c) for c in classes if list(classes).count(c) > 1}):
        faults.add(
            KdepError(
                f"{where} lists the class {', '.join(repeated)} more than once",
                fix="correct `classes`",
            )
        )
    faults.raise_any(where)


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in value)
    )


def check_probe(recipe: Mapping[str, Any], per_class: Sequence[int], where: str) -> None:
    """Checks that the classes have enough images for the folds or the split of a linear probe.

    Args:
        recipe: recipe of a LinearProbe.
        per_class: number of training images of each class.
        where: the folder, for errors.

    Raises:
        KdepError: a class has too few images.
    """
    smallest, total, classes = min(per_class), sum(per_class), len(per_class)
    if recipe["protocol"] == "folds":
        folds, inner = recipe["folds"], recipe["inner_folds"]
        fix = "add images to that class, or remove the class"
        if smallest < folds:
            if smallest >= 2:
                fix = f"set folds={smallest} in the task's recipe"
            raise KdepError(
                f"the smallest class of {where} has {smallest} images",
                expected=f"at least {folds}, one per fold",
                fix=fix,
            )
        in_training = smallest - math.ceil(smallest / folds)
        if in_training < inner:
            if in_training >= 2:
                fix = f"set inner_folds={in_training} in the task's recipe"
            raise KdepError(
                f"the smallest class of {where} has {in_training} images left for the inner folds",
                expected=f"at least {inner}, one per inner fold",
                fix=fix,
            )
        return
    fraction = recipe["train_share"]
    if fraction >= 1:
        return
    # scikit-learn selects floor(fraction * n) images, and needs one of every class in both parts.
    selected = math.floor(fraction * total)
    if smallest < 2 or selected < classes or total - selected < classes:
        raise KdepError(
            f"train_share = {fraction:g} selects {selected} of {total} images of {where}, which "
            f"has {classes} classes, the smallest with {smallest} images",
            expected="at least two images per class, and at least one of each class in both parts",
            fix="set train_share=1.0 in the task's recipe, which uses all images, or add images",
        )
