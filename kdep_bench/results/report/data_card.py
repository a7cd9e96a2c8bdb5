"""The data card: counts of images, boxes and classes, made by the stage `prepare`.

It is written as `data_card.json` and, with the same content as tables, as `data_card.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, write_atomic, write_json

NAME = "data_card.json"
NOTE = "data: "  # prefix of a record's notes on the data of its task
MAX_CLASS_ROWS = 100  # most rows of a table of classes; the number of other classes is stated
PARTS = {"pool": "Pool", "classify": "Class folders", "detect": "Boxes", "segment": "Masks"}
# Count of a split -> heading of its column.
_HEADINGS = {
    "images": "images",
    "width": "width, px",
    "height": "height, px",
    "equal_files": "duplicate files",
    "images_without_boxes": "images without boxes",
    "crowds": "crowd boxes (COCO iscrowd)",
    "repeated_annotations": "duplicate boxes",
    "thinner_than_1_px": "boxes thinner than 1 px",
    "ignored_pixels": "ignored pixels",
    "masks_without_image": "masks without an image",
    "normalised": "images converted to 8-bit RGB",
    "passed_over": "ignored files and folders",
}
_BY_CLASS = ("by_class", "boxes", "pixels")  # keys of counts by class; a split has one of them

Card = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]  # title, head, rows


def write(results: Path, name: str, prepared: Mapping[str, Any]) -> bool:
    """Writes the outputs of stage `prepare` as card and tables; returns whether they changed.

    Args:
        results: the results folder.
        name: name of the data.
        prepared: outputs of the stage.
    """
    card: Card = {
        "name": name,
        **{k: str(prepared.get(k) or "") for k in ("fingerprint", "source")},
        "counts": _numbers(_mapping(prepared.get("counts")).get("images")),
        "licences": _mapping(prepared.get("licences")),
        "notes": _mapping(prepared.get("task_notes")),
        "parts": _mapping(prepared.get("card")),
    }
    if not (card["counts"] or card["parts"]):
        return False  # this stage `prepare` counts nothing
    try:
        old = read(results)
    except KdepError:
        old = None  # a damaged card is replaced
    if old == card and (results / "data_card.md").is_file():
        return False
    write_json(results / NAME, card)
    write_atomic(results / "data_card.md", markdown(card))
    return True


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _numbers(value: Any) -> dict[str, int]:
    return {str(k): v for k, v in _mapping(value).items() if isinstance(v, int)}


def read(results: Path) -> Card | None:
    """The card of a results folder; None if the folder has no card.

    Raises:
        KdepError: the file is not a data card.
    """
    path = Path(results) / NAME
    if not path.is_file():
        return None
    try:
        card = read_json(path)
        tables(card)
        is_valid = isinstance(card["name"], str) and isinstance(card["fingerprint"], str)
    except (KdepError, KeyError, TypeError, AttributeError, IndexError, ValueError):
        is_valid = False
    if not is_valid:
        raise KdepError(
            f"the file {path} is not a valid data card",
            fix="move it to another folder; running the suite with --report then writes it again",
        )
    return card


# The values of `source` of the pocket data, in words.
_SOURCES = {
    "debian+pip": "photographs in Debian and PyPI packages",
    "pip-only": "photographs in PyPI packages",
}


def source_text(source: str) -> str:
    """Where the data are from, in words; `source` itself if `_SOURCES` has no text for it."""
    return _SOURCES.get(source, source)


def heading(card: Card) -> str:
    """Name, source and fingerprint in one line."""
    source = f" (source: {source_text(card['source'])})" if card.get("source") else ""
    return f"{card['name']}{source}; fingerprint {card['fingerprint'][:16]}"


def tables(card: Card) -> list[Table]:
    """The tables of the card: for each part of the data, a table of splits and one of classes."""
    card_tables: list[Table] = []
    parts = card["parts"]
    if not parts:
        rows = [[str(k), _value(v)] for k, v in sorted(card["counts"].items())]
        card_tables.append(("Images", ["part", "images"], rows))
    for key, title in PARTS.items():
        if key in parts:
            counts_by_split = parts[key].get("splits", {"": parts[key]})
            splits = {s: counts_by_split[s] for s in sorted(counts_by_split, key=_split_order)}
            card_tables.append(_splits(title, splits))
            card_tables += _classes(f"{title}: classes", splits, parts[key].get("classes", ()))
    for key in ("pool", "classify"):
        duplicates = parts.get(key, {}).get("in_two_classes", {"count": 0, "files": []})
        if duplicates["count"]:
            title = f"{PARTS[key]}: {duplicates['count']} images in two classes"
            rows = [[files[0], ", ".join(files[1:])] for files in duplicates["files"]]
            card_tables.append((title, ["file", "identical to"], rows))
    if shared := parts.get("shared_images"):
        head = ["images of", "also in", "identical files", "near duplicates", "example"]
        head += ["allowed by the data config"]
        rows = [
            [
                str(row["second"]),
                str(row["first"]),
                _value(row["equal"]),
                _value(row["near"]),
                " = ".join(row["examples"][0][:2]),
                "yes" if row["allowed"] else "no",
            ]
            for row in shared
        ]
        card_tables.append(("Images in two sets", head, rows))
    if card.get("licences"):
        rows = [[str(k), str(v)] for k, v in sorted(card["licences"].items())]
        card_tables.append(("Licences", ["source", "licence"], rows))
    notes = [[str(k), str(n)] for k, several in sorted(card["notes"].items()) for n in several]
    if notes:
        card_tables.append(("Notes", ["part", "note"], notes))
    return card_tables


def _splits(title: str, splits: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row per split; a column that is empty or 0 in every row is left out."""
    keys = [k for k in _HEADINGS if any(row.get(k) for row in splits.values())]
    rows = [[split, *(_value(row.get(k, 0)) for k in keys)] for split, row in splits.items()]
    return title, ["split", *(_HEADINGS[k] for k in keys)], rows


def _split_order(split: str) -> tuple[int, str]:
    """Sort key of a split: train, val, test, then others by name."""
    first = ("train", "val", "test")
    return (first.index(split) if split in first else len(first), split)


def _classes(
    title: str, splits: Mapping[str, Mapping[str, Any]], order: Sequence[str]
) -> list[Table]:
    """Counts by class, one column per split; first the classes of `order`, then all others."""
    key = next((k for k in _BY_CLASS if any(k in row for row in splits.values())), None)
    if key is None:
        return []
    counted = dict.fromkeys(c for row in splits.values() for c in row.get(key, {}))
    names = [*(c for c in order if c in counted), *(c for c in counted if c not in order)]
    unit = {"by_class": "images", "boxes": "boxes", "pixels": "pixels"}[key]
    head = ["class", *(f"{unit}, {s}" if s else unit for s in splits)]
    rows = [[n, *(_value(row.get(key, {}).get(n, 0)) for row in splits.values())] for n in names]
    if len(rows) > MAX_CLASS_ROWS:
        rows = [
            *rows[:MAX_CLASS_ROWS],
            [f"... and {len(names) - MAX_CLASS_ROWS} more", *("" for _ in splits)],
        ]
    return [(title, head, rows)]


def _value(value: Any) -> str:
    """The text of a count, of counts by name, or of [smallest, largest]."""
    if isinstance(value, Mapping):
        return ", ".join(f"{v:,} {k}" for k, v in value.items()) or "-"
    if isinstance(value, list):
        low, high = value
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{value:,}"


def markdown(card: Card) -> str:
    """The card as Markdown."""
    from kdep_bench.results import text

    lines = [f"# Data of {text.md(card['name'])}", "", text.md(heading(card), 400)]
    for title, head, rows in tables(card):
        lines += ["", f"## {text.md(title, 100)}", ""]
        lines += [f"| {' | '.join(text.md(h) for h in head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(text.md(v, 300) for v in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
