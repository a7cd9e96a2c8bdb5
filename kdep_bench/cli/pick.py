"""Rank teachers by their features of a sample of images, before a long run.

kdep-bench pick efficientnet_lite0 efficientnet_lite2 --images photos
kdep-bench pick --suite teachers_pocket --images photos --json

No labels are read and no student is trained. The teacher with the highest participation ratio is
chosen: its features vary in the most directions. The probe `teacher` measures how good this choice
was after a suite has run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.faults import Faults
from kdep_bench.results.teacher_measures import EXPLAINED_VARIANCE, MEASURES, PICKER, choice

if TYPE_CHECKING:
    from kdep_bench.probes.teacher_sample import TeacherMeasures

UNLABELLED = [name for name, m in MEASURES.items() if m.known == "unlabelled images"]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("teachers", nargs="*", help="names of configs in configs/teachers/")
    p.add_argument("--suite", help="also the teachers of this suite")
    p.add_argument("--images", type=Path, required=True, help="a folder with images")
    p.add_argument(
        "--count", type=int, default=2048, help="images, drawn at random (default: 2048)"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    p.add_argument(
        "--width",
        type=int,
        help="channels of the student, for the explained variance (default: those of the suite)",
    )
    p.add_argument(
        "--by",
        choices=UNLABELLED,
        default=PICKER,
        help=f"measure that ranks the teachers (default: {PICKER})",
    )
    p.add_argument("--json", action="store_true", help="print JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    args = parser().parse_args(argv)
    try:
        _run(args)
    except KdepError as e:
        print(f"kdep-bench pick: {e}", file=sys.stderr)
        return 2
    return 0


def _run(args: argparse.Namespace) -> None:
    _check_numbers(args)
    configs, width, left_out = _teachers(args)
    if len(configs) < 2:
        number = "is one teacher" if configs else "are no teachers"
        raise KdepError(
            "; ".join([f"there {number} to choose from", *left_out]),
            expected="two or more",
            fix="name teachers (`kdep-bench teachers` lists them), or a suite with --suite",
        )
    from kdep_bench.probes.teacher_sample import measure_teacher, sample_files

    files = sample_files(args.images, args.count, args.seed)
    _check_measure(args.by, len(files), width)
    measured = []
    for config in configs:
        print(f"{config['name']}: {len(files)} images", file=sys.stderr, flush=True)
        measured.append(measure_teacher(config, files, width))
    lines, result = _result(args.by, configs, measured, len(files), left_out)
    print(json.dumps(result, indent=1) if args.json else "\n".join(lines))


def _check_numbers(args: argparse.Namespace) -> None:
    """Raises KdepError for numbers out of range."""
    for name, low in (("count", 4), ("seed", 0), ("width", 1)):
        value = getattr(args, name)
        if value is not None and value < low:
            raise KdepError(
                f"--{name} is {value}", expected=f"{low} or more", fix=f"correct --{name}"
            )


def _check_measure(measure: str, images: int, width: int | None) -> None:
    """Raises KdepError if the measure of the choice is not defined; see `teacher_features.spread`.

    Args:
        measure: its name.
        images: number of images.
        width: channels of the student; None if unknown.
    """
    if measure != EXPLAINED_VARIANCE or (width is not None and images > width):
        return
    channels = "an unknown number of" if width is None else f"{width}"
    raise KdepError(
        f"the {measure} of {images} images is not defined for a student with {channels} channels",
        expected="more images than channels of the student",
        fix="set --width, or choose another measure with --by"
        if width is None
        else "raise --count, name a folder with more images, or choose another measure with --by",
    )


def _teachers(args: argparse.Namespace) -> tuple[list[dict[str, Any]], int | None, list[str]]:
    """(configs of the teachers, width of the student, sentences on teachers that are left out).

    Raises:
        KdepError: two different teachers have one name, or a teacher of the command line is a black
            box.
    """
    from kdep_bench.suite.config import resolve

    configs, width, left_out, faults = [], args.width, [], Faults()
    for name in args.teachers:
        with faults.collect():
            configs.append(resolve("teacher", name))
    faults.raise_any("the command")
    if closed := _black_boxes(configs):
        raise KdepError(
            f"only class probabilities of {', '.join(closed)} can be read",
            expected="teachers whose features can be read",
            fix="leave out these names",
        )
    if args.suite:
        of_suite, suite_width, left_out = _suite_teachers(args.suite)
        configs, width = configs + of_suite, width or suite_width
    by_name: dict[str, dict[str, Any]] = {}
    for config in configs:
        if by_name.setdefault(config["name"], config) != config:
            raise KdepError(
                f"two different teachers are named {config['name']!r}",
                fix="rename one of them in the suite, or leave out its name on the command line",
            )
    return list(by_name.values()), width, left_out


def _suite_teachers(suite_name: str) -> tuple[list[dict[str, Any]], int | None, list[str]]:
    """`_teachers` of a suite: without those that it trains first and without black boxes.

    The width is None if its students have different widths.
    """
    from kdep_bench.suite.config import load_suite
    from kdep_bench.suite.methods import intermediate_teachers, methods_for, role_teachers

    suite = load_suite(suite_name)
    widths = {s["width"] for s in suite.students}
    configs: list[dict[str, Any]] = []
    trained: dict[str, None] = {}
    for variant in suite.variants or [suite]:
        methods = [m for student in variant.students for m in methods_for(variant, student)]
        for method in methods:
            trained |= dict.fromkeys(t["name"] for t in intermediate_teachers(method))
            configs += role_teachers(method)
        configs += [t for t in variant.teachers.values() if t is not None]
    closed = _black_boxes(configs)
    reasons = {
        "the suite trains them first": list(trained),
        "only class probabilities of these can be read": closed,
    }
    left_out = [f"not ranked, because {k}: {', '.join(v)}" for k, v in reasons.items() if v]
    open_teachers = [t for t in configs if t["name"] not in closed]
    return open_teachers, widths.pop() if len(widths) == 1 else None, left_out


def _black_boxes(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the teachers whose features cannot be read, sorted."""
    from kdep_bench.signatures import class_value

    return sorted({t["name"] for t in configs if class_value(str(t["type"]), "black_box")})


def _result(
    measure: str,
    configs: Sequence[dict[str, Any]],
    measured: Sequence[TeacherMeasures],
    images: int,
    left_out: Sequence[str],
) -> tuple[list[str], dict[str, Any]]:
    """(lines of the table, the same as JSON values), best teacher first."""
    sign = MEASURES[measure].sign
    top1 = {c["name"]: c.get("card", {}).get("top1") for c in configs}
    ranked = sorted(measured, key=lambda m: (-sign * m.values[measure], m.name))
    best = choice({m.name: m.values[measure] for m in measured}, measure)
    names = [name for name in UNLABELLED if any(name in m.values for m in measured)]
    head = ["teacher", "channels", *names, "reported top-1", "seconds"]
    table = [head]
    for m in ranked:
        numbers = [f"{m.values[n]:.3f}" if n in m.values else "-" for n in names]
        accuracy = top1[m.name]
        shown = "-" if accuracy is None else f"{accuracy:.3f}"
        table.append([m.name, str(m.width), *numbers, shown, f"{m.seconds:.1f}"])
    widths = [max(len(row[k]) for row in table) for k in range(len(head))]
    lines = []
    for name, *numbers in table:
        padded = [number.rjust(w) for number, w in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *padded]))
    extreme = "highest" if sign > 0 else "lowest"
    lines += ["", f"take {best}: the {extreme} {measure}, {images} images"]
    notes = _notes(images, measured, left_out)
    result = {
        "choice": best,
        "by": measure,
        "images": images,
        "teachers": [
            {**m._asdict(), "values": dict(m.values), "top1": top1[m.name]} for m in ranked
        ],
        "notes": notes,
    }
    return [*lines, *notes], result


def _notes(images: int, measured: Sequence[TeacherMeasures], left_out: Sequence[str]) -> list[str]:
    """Sentences about what limits the result."""
    notes = []
    if wide := [m.name for m in measured if m.width >= images]:
        notes.append(
            f"{images} images are not more than the channels of {', '.join(wide)}, so ranks and "
            "explained variance are less precise"
        )
    return [*notes, *left_out]
