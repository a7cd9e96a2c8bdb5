"""Write a suite config for a folder of your images; finds class folders, COCO boxes and masks.

kdep-bench init photos/                                  # writes configs/suites/photos.py
kdep-bench init photos/ --teacher resnet50 --student resnet18 --name birds
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.cli.parser import Parser
from kdep_bench.data.listing import count_images, shown
from kdep_bench.errors import KdepError
from kdep_bench.faults import Faults
from kdep_bench.files import safe_name, write_atomic
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    from kdep_bench.data.own.discover import Discovery

SAMPLES = 51_200  # images seen in pre-training, as in `methods_pocket`: 800 steps of BATCH images
BATCH = 64  # images per step
_FINE_TUNE_BATCH = 32  # images per step of the task `pocket_finetune`
MAX_EPOCHS = 200
VIEWS = 2  # views per image
WIDTH = 90  # largest length of a line of the written file, not counting the key before a value


class _Variable(str):
    """The name of a variable in the written file; it is written without quotes."""


# Colours of the masks in images of predictions, as RGB.
_COLOURS = ((230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path, help="the folder that holds your data")
    p.add_argument("--name", help="name of the suite (default: the folder's name)")
    p.add_argument(
        "--teacher",
        default="efficientnet_lite0",
        help="name of the teacher's config (default: efficientnet_lite0)",
    )
    p.add_argument(
        "--student",
        default="resnet18_w32",
        help="name of the student's config (default: resnet18_w32, 64 px)",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=OUTPUT / "configs" / "suites",
        help="folder to write to (default: configs/suites)",
    )
    p.add_argument(
        "--classes-of-boxes",
        action="store_true",
        help="use class folders for classification even if their images have boxes",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        path = write_suite(
            args.folder, args.name, args.teacher, args.student, args.out, args.classes_of_boxes
        )
    except KdepError as e:
        print(f"kdep-bench init: {e}", file=sys.stderr)
        return 2
    print(f"written: {path}\nnext: kdep-bench run {path} --dry-run, then without --dry-run")
    return 0


def write_suite(
    folder: Path,
    name: str | None,
    teacher: str,
    student: str,
    out: Path,
    classes_of_boxes: bool = False,
) -> Path:
    """Writes the config of the suite and prints the data that were found.

    Args:
        folder: the user's data.
        name: name of the suite; None: the folder's name.
        teacher, student: names of their configs.
        out: folder to write to.
        classes_of_boxes: whether to use class folders for classification even if their images have
            boxes.

    Returns:
        path of the config.

    Raises:
        KdepError: the folder does not exist or has no images, the name cannot be a file name, a
            teacher or student is unknown, the file to write exists, or `out` cannot be a folder.
    """
    from kdep_bench.data.own.discover import discover
    from kdep_bench.suite.config import resolve

    root = folder.expanduser().absolute()
    suite_name = name or re.sub(r"[^A-Za-z0-9_]+", "_", root.name).strip("_") or "mine"
    safe_name(suite_name, "suite name")
    path = out / f"{suite_name}.py"
    _check_folder(out)
    if path.exists():
        raise KdepError(
            f"{path} already exists", fix="choose another name with --name, or edit that file"
        )
    _check_utf8(root)
    faults, width = Faults(), 0
    with faults.collect():
        width = int(resolve("student", student)["width"])
    with faults.collect():
        resolve("teacher", teacher)
    faults.raise_any("the command")
    discovery = discover(root, classes_of_boxes)
    for place in _paths(discovery):
        _check_utf8(place)
    suite = suite_config(discovery, suite_name, teacher, student, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, _text(discovery, suite, path))
    for line in _summary(discovery):
        print(line)
    return path


def _check_utf8(path: Path) -> None:
    """Raises KdepError for a path that is not UTF-8: no config can contain it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise KdepError(
            f"the path {os.fsencode(path)!r} is not UTF-8, so no config can contain it",
            fix="rename the folder, or give a link to it with a UTF-8 name",
        ) from None


def _paths(discovery: Discovery) -> list[Path]:
    """The files and folders that the config will contain."""
    pairs = [*discovery.coco.values(), *discovery.masks.values()]
    return [
        Path(discovery.pool or discovery.root),
        *discovery.classify.values(),
        *(path for pair in pairs for path in pair),
    ]


def _check_folder(out: Path) -> None:
    """Raises KdepError if `out`, or a folder above it, is a file."""
    for path in (out, *out.parents):
        if path.exists() and not path.is_dir():
            # `--out suites/birds.py` was meant as `--out suites --name birds`.
            name = f" --name {out.stem}" if path == out and out.suffix == ".py" else ""
            raise KdepError(
                f"--out {out} cannot be a folder, because {path} is a file",
                expected="a folder; the file gets the suite's name",
                fix=f"give another folder, for example --out {path.parent}{name}",
            )


def suite_config(
    discovery: Discovery, name: str, teacher: str, student: str, width: int
) -> dict[str, Any]:
    """The config of the suite; its budget is about SAMPLES images seen, in 1 to MAX_EPOCHS epochs.

    Args:
        discovery: the data that were found.
        name: name of the suite and its data.
        teacher, student: names of their configs.
        width: channels of the student's feature.
    """
    data: dict[str, Any] = dict(
        type="kdep_bench.data.own.prepare",
        name=name,
        labels=discovery.pool_labels,
        pool=str(discovery.pool),
        pool_labels=discovery.pool_labels,
    )
    if discovery.classify:
        data["classify"] = {split: str(p) for split, p in sorted(discovery.classify.items())}
    if discovery.coco:
        data["coco"] = {
            split: dict(json=str(file), images=str(images))
            for split, (file, images) in sorted(discovery.coco.items())
        }
    if discovery.masks:
        data["masks"] = {
            split: dict(images=str(images), masks=str(masks))
            for split, (images, masks) in sorted(discovery.masks.items())
        }
        data["classes"] = _Variable("classes")
    # The alignment needs more samples (views of images) than the student's feature has channels.
    views = max(VIEWS, math.ceil((width + 1) / max(1, discovery.pool_images)))
    epochs = max(1, min(MAX_EPOCHS, round(SAMPLES / max(1, discovery.pool_images))))
    return dict(
        name=name,
        data=data,
        teacher=teacher,
        students=[student],
        methods=["kdep", *(["supervised"] if discovery.pool_labels else []), "scratch"],
        tasks=_tasks(discovery, name),
        budget=dict(
            epochs=epochs,
            views=views,
            batch=min(BATCH, max(2, discovery.pool_images)),
            optimizer=dict(type="SGD", lr=0.2, momentum=0.9, weight_decay=5e-4),
            schedule="cosine",
            warmup=0.03,
        ),
        seeds=dict(pretrain=[0, 1, 2], transfer=[0, 1, 2], pairs="diagonal"),
        claims=["kdep_beats_scratch"],
    )


def _tasks(discovery: Discovery, name: str) -> list[dict[str, Any]]:
    """The tasks that the data allow.

    `chance=None`: the chance score is computed from the data.
    """
    tasks: list[dict[str, Any]] = []
    if discovery.classify:
        if "val" in discovery.classify:  # needed to choose the linear probe's regularisation
            recipe = dict(train_share=1.0)
            tasks.append(
                dict(base="pocket_probe", name=f"{name}_probe", chance=None, recipe=recipe)
            )
        fine_tune: dict[str, Any] = dict(
            base="pocket_finetune", name=f"{name}_finetune", chance=None
        )
        images = count_images(discovery.classify["train"], _FINE_TUNE_BATCH)
        if images < _FINE_TUNE_BATCH:
            fine_tune["recipe"] = dict(batch=images)  # a training step needs a whole batch
        tasks.append(fine_tune)
    if discovery.coco:
        tasks.append(dict(base="pocket_det", name=f"{name}_det"))
    if discovery.masks:
        palette = [_COLOURS[i % len(_COLOURS)] for i in range(discovery.n_mask_classes)]
        recipe = dict(classes=_Variable("classes"), palette=palette)
        tasks.append(dict(base="pocket_seg", name=f"{name}_seg", chance=None, recipe=recipe))
    return tasks


def _text(discovery: Discovery, suite: dict[str, Any], path: Path) -> str:
    """The text of the config file."""
    notes = [_wrapped(shown(f"Note: {note}.")) for note in discovery.notes]
    if discovery.masks:
        notes.append("Replace the names in `classes` by the names of your classes, by mask value.")
    if not suite["tasks"]:
        notes.append("No labelled data were found: this suite only pre-trains.")
    baselines = "supervised and no pre-training" if discovery.pool_labels else "no pre-training"
    comparison = f", compared with {baselines}" if suite["tasks"] else ""
    lines = [
        f'"""KDEP on the images of {_escaped(discovery.root.name)}{comparison}.',
        "",
        f"Command   kdep-bench run {_escaped(shlex.quote(str(path)))}",
        "Cost      estimated by --dry-run",
        "",
        "The budget and the task recipes are small; increase them for results that you rely on.",
        "Image sizes and steps of a task: recipe=dict(...), see configs/tasks/pocket_*.py.",
        *(["", *notes] if notes else []),
        '"""',
        "",
    ]
    if not suite["tasks"]:
        suite = {k: v for k, v in suite.items() if k != "claims"}
    if discovery.masks:
        names = [f"class_{i}" for i in range(discovery.n_mask_classes)]
        lines += [f"classes = {_code(names)}", ""]
    return "\n".join([*lines, f"suite = {_code(suite)}", ""])


def _wrapped(text: str) -> str:
    """A sentence for a docstring, in lines of WIDTH characters; paths are not split."""
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(_escaped(line) for line in lines)


def _escaped(text: str) -> str:
    """Text for a docstring: backslashes, quotes and line feeds as escape sequences."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _code(value: Any, indent: int = 0) -> str:
    """Python code of a value; a dict or list that does not fit into a line has a line per entry."""
    if isinstance(value, _Variable):
        return str(value)
    if isinstance(value, dict) and all(str(key).isidentifier() for key in value):
        entries = [f"{key}={_code(v, indent + 4)}" for key, v in value.items()]
        start, end = "dict(", ")"
    elif isinstance(value, list):
        entries = [_code(v, indent + 4) for v in value]
        start, end = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    line = start + ", ".join(entries) + end
    if indent + len(line) <= WIDTH and "\n" not in line:
        return line
    inner_indent = " " * (indent + 4)
    inner = "".join(f"{inner_indent}{entry},\n" for entry in entries)
    return start + "\n" + inner + " " * indent + end


def _summary(discovery: Discovery) -> list[str]:
    """Lines for the terminal about the data that were found."""
    lines = [f"pool            {discovery.pool} ({discovery.pool_images:,} images)"]
    for split, folder in sorted(discovery.classify.items()):
        lines.append(f"classification  {split:5s} {folder}")
    for split, (file, images) in sorted(discovery.coco.items()):
        lines.append(f"detection       {split:5s} {file}, images in {images}")
    for split, (images, masks) in sorted(discovery.masks.items()):
        lines.append(f"segmentation    {split:5s} {masks}, images in {images}")
    if discovery.classify and "val" not in discovery.classify:
        lines.append("note: no validation split of the classes, so no linear probe")
    if discovery.masks:
        lines.append(
            f"segmentation    {discovery.n_mask_classes} classes; give them names in the file"
        )
    return [*lines, *(shown(f"note: {note}") for note in discovery.notes)]


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
