"""Reads and checks a COCO json (https://cocodataset.org/#format-data).

The result refers to images and classes by name instead of by id.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from kdep_bench.data.own.names import check_similar_names, listed
from kdep_bench.data.user_json import read_user_json
from kdep_bench.errors import KdepError, first_of
from kdep_bench.faults import Faults

LISTS = ("images", "annotations", "categories")
MAX_SIDE = 1 << 24  # pixels; a longer side must be a mistake
# Tolerance in pixels: COCO rounds to 0.01 px, and some of its boxes end at width + 0.49.
TOLERANCE_PX = 0.5


class Box(NamedTuple):
    """One annotation.

    Attributes:
        image: file name of the image.
        category: class name.
        bbox: x, y, width, height in pixels.
        area: area of the object in square pixels.
        crowd: whether the box is ignored in training and in the score (`iscrowd` or `ignore` 1).
    """

    image: str
    category: str
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool


@dataclass
class Boxes:
    """The annotations of one split.

    Attributes:
        path: the user's json.
        folder: the user's folder of images.
        sizes: (width, height) as the json states them, by file name relative to `folder`.
        categories: class names.
        boxes: in the order of the file.
        repeated: number of annotations that are equal to an earlier one.
    """

    path: Path
    folder: Path
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    categories: list[str] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    repeated: int = 0


def read_boxes(path: Path, folder: Path, faults: Faults) -> Boxes | None:
    """Reads a COCO json; None if it is not one, or its `images` or `categories` are empty.

    Args:
        path: the json.
        folder: the folder of its images; whether they exist is not checked here.
        faults: faults are added to it.
    """
    with faults.collect():
        table = read_user_json(path)
        if not isinstance(table, dict) or any(not isinstance(table.get(k), list) for k in LISTS):
            content = f"a {type(table).__name__}"
            if isinstance(table, dict):
                content = f"an object with the keys {listed(sorted(table))}" if table else "{}"
            raise KdepError(
                f"the file {path} contains {content}",
                expected="a COCO json: an object with the lists images, annotations and categories",
                fix="export the boxes as COCO json; a file of captions has no boxes",
            )
        out = Boxes(path, folder)
        if empty := " and of ".join(k for k in ("images", "categories") if not table[k]):
            raise KdepError(
                f"the list of {empty} in {path} is empty",
                fix=f"export the file again with its {empty.replace('of ', '')}",
            )
        categories = _categories(path, table["categories"], out, faults)
        images = _images(path, table["images"], out, faults)
        _annotations(table["annotations"], categories, images, out, faults)
        return out
    return None


def _entries(
    path: Path, kind: str, items: list[Any], faults: Faults
) -> list[tuple[Hashable, dict[str, Any]]]:
    """(id, entry) for each entry that is an object with a unique id."""
    out: list[tuple[Hashable, dict[str, Any]]] = []
    seen: set[Hashable] = set()
    for position, item in enumerate(items):
        with faults.collect(f"{path} {kind} entry"):
            if not isinstance(item, dict):
                raise KdepError(
                    f"entry {position} of {kind} in {path} is {_shown(item)}",
                    expected="an object with an id",
                    fix="correct or remove the entry",
                )
            entry_id = item.get("id")
            if not _is_id(entry_id):
                raise KdepError(
                    f"entry {position} of {kind} in {path} has {_given('id', entry_id)}",
                    expected="an integer or a string",
                    fix="give each entry its own id",
                )
            if entry_id in seen:
                raise KdepError(
                    f"the id {entry_id!r:.40} occurs twice in {kind} of {path}",
                    fix="renumber the entries (merged files often have duplicate ids)",
                )
            seen.add(entry_id)
            out.append((entry_id, item))
    return out


def _categories(path: Path, items: list[Any], out: Boxes, faults: Faults) -> dict[Hashable, str]:
    """Class names by category id; sets `out.categories`."""
    names: dict[Hashable, str] = {}
    for category_id, item in _entries(path, "categories", items, faults):
        name = item.get("name")
        if not _is_text(name) or len(name) > 200:
            faults.add(
                KdepError(
                    f"the category with id {category_id!r:.40} in {path} has "
                    f"{_given('name', name)}",
                    expected="a string of 1 to 200 characters",
                    fix="give the category its name; classes are matched by name",
                ),
                f"{path} category name",
            )
            name = f"\0{category_id}"  # a placeholder, so that its annotations are not reported too
        names[category_id] = name
    out.categories = [n for n in names.values() if not n.startswith("\0")]
    if repeated := sorted({n for n in out.categories if out.categories.count(n) > 1}):
        ids = [repr(i) for i, n in names.items() if n == repeated[0]]
        faults.add(
            KdepError(
                f"the file {path} has the category name {listed(repeated)} more than once "
                f"(ids {first_of(ids, 5)})",
                expected="unique names, because classes are matched by name",
                fix="rename one category, or merge them: use one id in all annotations and remove "
                "the other entry",
            )
        )
    with faults.collect():
        check_similar_names(
            out.categories, f"the file {path}", "rename one, or merge the two in the json"
        )
    return names


def _images(path: Path, items: list[Any], out: Boxes, faults: Faults) -> dict[Hashable, str]:
    """File names by image id, "" for an entry with a fault; sets `out.sizes`."""
    names: dict[Hashable, str] = {}
    for image_id, item in _entries(path, "images", items, faults):
        subject = f"the image with id {image_id!r:.40} in {path}"
        # A placeholder, so that the annotations of a faulty entry are not reported as well.
        names[image_id] = ""
        name, sides = None, [_side(item.get(k)) for k in ("width", "height")]
        with faults.collect(f"{path} image file_name"):
            name = _file_name(item.get("file_name"), subject)
            if name in out.sizes:
                name, repeated = None, name
                raise KdepError(
                    f"{subject} has the file_name {repeated!r} of another image",
                    fix="merge the two entries, and give their annotations one image_id",
                )
        if sides[0] is None or sides[1] is None:
            got = " and ".join(_given(k, item.get(k)) for k in ("width", "height"))
            faults.add(
                KdepError(
                    f"{subject} has {got}",
                    expected="integers above 0 (pixels)",
                    fix="write the size of the image file there",
                ),
                f"{path} image size",
            )
        elif name is not None:
            out.sizes[name] = (sides[0], sides[1])
            names[image_id] = name
    return names


def _file_name(value: Any, subject: str) -> str:
    if not _is_text(value):
        raise KdepError(
            f"{subject} has {_given('file_name', value)}",
            expected="a string: the path of the image below the image folder",
            fix="add the file_name to the entry",
        )
    parts = value.split("/")
    if value.startswith("/") or re.match(r"[A-Za-z]:[\\/]", value) or ".." in parts:
        raise KdepError(
            f"{subject} has the file_name {value!r:.120}",
            expected="a path below the image folder, without '..'",
            fix="make it relative to the folder in `images` of the data config",
        )
    return posixpath.normpath(value)


def _annotations(
    items: list[Any],
    categories: Mapping[Hashable, str],
    images: Mapping[Hashable, str],
    out: Boxes,
    faults: Faults,
) -> None:
    """Sets `out.boxes` and `out.repeated`."""
    path = out.path
    in_unit_square = 0  # number of boxes that look like fractions of the image
    for annotation_id, item in _entries(path, "annotations", items, faults):
        subject = f"annotation {annotation_id!r:.40} in {path}"
        # Wrong keys are often wrong in all annotations, so each key has its own kind of fault.
        name = category = None
        add = f"add it, or rename one of its keys: {first_of(item, 8)}"
        with faults.collect(f"{path} image_id"):
            name = _image_of(item.get("image_id"), images, subject, add)
        with faults.collect(f"{path} category_id"):
            category = _category_of(item.get("category_id"), categories, subject, add)
        with faults.collect(f"{path} bbox"):
            if not name:  # its image is unknown, or has a fault that is already reported
                _four_numbers(item.get("bbox"), subject, add)
                continue
            box = _box(item.get("bbox"), subject, out.sizes[name], add)
            crowd = _flag(item.get("iscrowd"), subject, "iscrowd")
            crowd |= _flag(item.get("ignore"), subject, "ignore")
            area = _area(item.get("area"), box, out.sizes[name], subject)
            if category is not None:
                in_unit_square += max(box[0] + box[2], box[1] + box[3]) <= 1
                out.boxes.append(Box(name, category, box, area, crowd))
    if in_unit_square and in_unit_square == len(out.boxes):
        faults.add(
            KdepError(
                f"every box in {path} is within 1 x 1 pixel, the first is {out.boxes[0].bbox}",
                expected="[x, y, width, height] in pixels",
                fix="multiply x and width by the image's width, and y and height by its height; "
                "these boxes look like fractions of the image",
            )
        )
    out.repeated = len(out.boxes) - len(set(out.boxes))


def _image_of(image: Any, images: Mapping[Hashable, str], subject: str, add: str) -> str:
    """The file name of an annotation's image, "" if the image's entry has a fault.

    `add`: the fix if the annotation has none.
    """
    if _is_id(image) and image in images:
        return images[image]
    raise KdepError(
        f"{subject} has no image_id"
        if image is None
        else f"{subject} points to image id {_shown(image)}, which is not in images",
        expected=f"one of {len(images)} image ids",
        fix=_type_fix(image, images)
        or (add if image is None else "remove the annotation or add the image entry"),
    )


def _category_of(category: Any, categories: Mapping[Hashable, str], subject: str, add: str) -> str:
    """The class name of an annotation; `add`: the fix if it has none."""
    if _is_id(category) and category in categories:
        return categories[category]
    raise KdepError(
        f"{subject} has {_given('category_id', category)}",
        expected=f"one of the ids {first_of((f'{c!r:.40}' for c in categories), 8)}",
        fix=_type_fix(category, categories)
        or (add if category is None else "correct the id or add the category"),
    )


def _four_numbers(value: Any, subject: str, add: str) -> list[float]:
    """The numbers of a bbox; `add`: the fix if there is none."""
    numbers = [_number(v) for v in value] if isinstance(value, list) else []
    if len(numbers) != 4 or any(n is None for n in numbers):
        raise KdepError(
            f"{subject} has {_given('bbox', value)}",
            expected="[x, y, width, height], four numbers in pixels",
            fix=add if value is None else "correct the box, or remove the annotation",
        )
    return [float(n) for n in numbers if n is not None]


def _box(
    value: Any, subject: str, size: tuple[int, int], add: str
) -> tuple[float, float, float, float]:
    """The box `value` as (x, y, width, height) in pixels; KdepError unless it is in its image.

    `size`: (width, height) of the image. `subject`: the annotation, for errors. `add`: the fix if
    there is no box.
    """
    x, y, w, h = _four_numbers(value, subject, add)
    if w <= 0 or h <= 0:
        raise KdepError(
            f"{subject} has a bbox without area: {value}",
            expected="width and height above 0",
            fix="correct the box, or remove the annotation",
        )
    width, height = size
    if (
        x < -TOLERANCE_PX
        or y < -TOLERANCE_PX
        or x + w > width + TOLERANCE_PX
        or y + h > height + TOLERANCE_PX
    ):
        raise KdepError(
            f"{subject} has the bbox {value}, outside its image of {width}x{height}",
            expected="x >= 0, y >= 0, x + width <= image width, y + height <= image height",
            fix="clip the box; if many are outside, they may be [x1, y1, x2, y2]",
        )
    return x, y, w, h


def _area(
    value: Any, box: tuple[float, float, float, float], size: tuple[int, int], subject: str
) -> float:
    """The stated area in square pixels; without one, the area of the box."""
    if value is None:
        return box[2] * box[3]
    area = _number(value)
    if area is None or not 0 < area <= (size[0] + 1) * (size[1] + 1):
        raise KdepError(
            f"{subject} has the area {_shown(value)}",
            expected=f"square pixels above 0, at most those of its image of {size[0]}x{size[1]}",
            fix="correct it, or remove the key `area`: then width x height of the box is used",
        )
    return float(area)


def _flag(value: Any, subject: str, key: str) -> bool:
    if value is None or value in (0, 1):
        return bool(value)
    raise KdepError(f"{subject} has {key} {_shown(value)}", expected="0 or 1", fix="correct it")


def _type_fix(value: Any, ids: Mapping[Hashable, str]) -> str:
    """The fix for an id that `ids` has with another type (3, "3" or 3.0); "" if it has none."""
    spellings = {str(value)}
    if isinstance(value, float) and value.is_integer():
        spellings.add(f"{value:.0f}")
    for listed_id in list(ids)[:1000]:  # not all: this runs for every faulty annotation
        if str(listed_id) in spellings:
            return f"write the id as {listed_id!r} in all annotations"
    return ""


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a non-empty string that can be printed and used as a file name."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can contain
        return False
    return True


def _number(value: Any) -> int | float | None:
    """The value if it is a finite number up to MAX_SIDE**2 (an area), otherwise None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= MAX_SIDE**2 and math.isfinite(value) else None


def _side(value: Any) -> int | None:
    """The value as an integer in 1..MAX_SIDE; None if it is not one."""
    number = _number(value)
    if number is None or number != int(number) or not 0 < number <= MAX_SIDE:
        return None
    return int(number)


def _shown(value: Any) -> str:
    """A value of the json as short text for errors."""
    # Python raises ValueError when it converts an integer of more than 4300 digits to text.
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    return "null" if value is None else f"{value!r:.80}"


def _given(key: str, value: Any) -> str:
    """The value of a key as text for errors: "the name 3", or "no name" if it is None."""
    return f"no {key}" if value is None else f"the {key} {_shown(value)}"
