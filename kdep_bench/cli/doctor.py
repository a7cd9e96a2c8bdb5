"""Check that this machine can run the project or a suite: packages, GPUs, data sets, teachers.

kdep-bench doctor                                      # check only the machine
kdep-bench doctor --suite paper_r18                    # also what this suite needs
kdep-bench doctor --data coco voc --decode all         # also these data sets, every image

A fault does not stop the other checks: all faults are listed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError

if TYPE_CHECKING:
    from kdep_bench.suite.graph import Plan

Level = Literal["ok", "note", "fault"]
MAX_LISTED = 20  # largest number of faults and notes on images that are listed per data set
MIN_FREE_BYTES = 20e9  # with less free disk space, the report has a note


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: 'ok', 'note' or 'fault'.
        subject: what was checked, such as 'GPUs'.
        sentence: the result.
    """

    level: Level
    subject: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.level:5}  {self.subject}: {self.sentence}"


def run_check(subject: str, check: Callable[[], str]) -> Finding:
    """Runs a check; its result is 'ok' with the returned text, or 'fault' for a KdepError."""
    try:
        return Finding("ok", subject, check())
    except KdepError as e:
        return Finding("fault", subject, str(e))


def machine(work: Path) -> Iterator[Finding]:
    """Checks Python, package versions, operators, GPUs, cores and disk space.

    `work`: the work dir, whose disk is checked.
    """
    version = sys.version_info
    if (3, 11) <= version[:2] < (3, 13):
        yield Finding("ok", "python", f"{version.major}.{version.minor}.{version.micro}")
    else:
        yield Finding(
            "fault",
            "python",
            f"version {version.major}.{version.minor}; expected 3.11 or 3.12. Fix: install one of "
            "them and make the virtual environment again.",
        )
    yield run_check("versions", _check_versions)
    yield run_check("operators", _check_operators)
    yield _gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "cores", str(cores))
    folder = _existing_folder(work)
    free_bytes = shutil.disk_usage(folder).free
    level: Level = "ok" if free_bytes > MIN_FREE_BYTES else "note"
    yield Finding(level, "disk", f"{free_bytes / 1e9:.0f} GB free at {folder}")


def _existing_folder(work: Path) -> Path:
    """The work dir if it exists, else its nearest parent folder that exists."""
    return work if work.is_dir() else next(p for p in work.absolute().parents if p.is_dir())


def _check_versions() -> str:
    """Checks the versions of the toolkits; returns them as text."""
    from kdep_bench.openmmlab import environment

    for scope in ("mmpretrain", "mmdet", "mmseg"):
        environment.check_versions(scope)
    return ", ".join(f"{k} {v}" for k, v in environment.versions().items())


def _check_operators() -> str:
    """Runs non-maximum suppression on three boxes, on the CPU and, if there is one, the GPU.

    The first two boxes overlap, so that the first and the third must be kept.
    """
    import torch

    from kdep_bench import ops

    kind = ops.backend()
    ops.install()
    from mmcv.ops import nms

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29.0]], device=device)
        kept_boxes = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1].tolist()
        if kept_boxes != [0, 2]:
            raise KdepError(
                f"mmcv's NMS ({kind}) keeps the boxes {kept_boxes} on {device}",
                expected="[0, 2]",
                fix="reinstall torchvision, or the mmcv built for this torch",
            )
    return f"{kind}, NMS test passed on {' and '.join(devices)}"


def _gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("note", "GPUs", "none; the suites pocket and smoke run without a GPU")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    text = ", ".join(f"{c.name} with {c.total_memory / 2**30:.0f} GiB" for c in cards)
    return Finding("ok", "GPUs", text)


def suite(ref: str, n_decoded: int | None = 8, work: Path = Path("work_dirs")) -> Iterator[Finding]:
    """Checks a suite's configs, data sets and teachers.

    Args:
        ref: path or name of the suite, as in `load_suite`.
        n_decoded: number of images of each split to decode; None: all.
        work: the work dir; its disk must have space for the fixed views.
    """
    from kdep_bench.suite.config import load_suite
    from kdep_bench.suite.data_identity import was_read, with_content
    from kdep_bench.suite.image_counts import check_counts
    from kdep_bench.suite.methods import role_teachers
    from kdep_bench.suite.plan import build_plan

    try:
        loaded = load_suite(ref)
        plan = build_plan(loaded)
        check_counts(loaded)
    except KdepError as e:
        yield Finding("fault", f"suite {ref}", str(e))
        return
    counts = f"{len(plan.stages)} stages, {len(plan.runs)} transfer runs"
    yield Finding("ok", f"suite {loaded.name}", counts)
    if str(loaded.data.get("type", "")).startswith("kdep_bench.data.official."):
        names = sorted({*loaded.data["sets"], loaded.data["pool"]})
        yield from official(names, loaded.data.get("root"), n_decoded)
        # The folder of rendered views is found by the id of its stage, which contains the hashes
        # of the data. Without hashes no views were rendered.
        if was_read(loaded, work):
            plan = build_plan(with_content(loaded, work)[0])
        folder = _existing_folder(work)
        yield run_check("space for views", lambda: _check_space_for_views(plan, folder))
    elif str(loaded.data.get("type", "")).startswith("kdep_bench.data.own."):
        yield run_check(f"data {loaded.data['name']}", lambda: _check_own_data(loaded.data))
    teachers = {}  # name -> config, of all methods
    for variant in loaded.variants or [loaded]:
        by_role = [config for method in variant.methods for config in role_teachers(method)]
        for config in (*variant.teachers.values(), *by_role):
            if config:
                teachers[config["name"]] = config
    for name, config in sorted(teachers.items()):
        yield run_check(f"teacher {name}", lambda config=config: _check_teacher(config))


def _check_space_for_views(plan: Plan, folder: Path) -> str:
    """Checks that the disk of `folder` has space for the views of official data sets.

    Views that are already rendered in `folder` need no more space. Returns the sizes as text.
    """
    from kdep_bench.data.official.base import get_set
    from kdep_bench.data.views import PIXELS, check_disk_space, pixel_bytes

    required = rendered = 0
    for stage in plan.stages.values():
        if stage.kind == "views":
            pool = plan.stages[stage.needs["prepare"]].spec.get("pool")
            if pool is None:  # a method makes these images itself; their number is not known here
                continue
            images = get_set(pool).counts["train_images"]
            required += pixel_bytes(images, stage.spec["views"], stage.spec["px"])
            pixels = folder / stage.id / PIXELS
            rendered += pixels.stat().st_size if pixels.is_file() else 0
    check_disk_space(required - rendered, folder, "the suite's views that are not rendered yet")
    return f"{required / 1e9:.0f} GB of fixed views, {rendered / 1e9:.0f} GB of them rendered"


def _check_own_data(data: dict) -> str:
    """Checks a user's data and decodes all images; returns the numbers of images as text."""
    from kdep_bench.data.own import KEYS
    from kdep_bench.data.own.stage import count_images, read_parts

    spec = {k: v for k, v in data.items() if k in KEYS}
    counts = count_images(read_parts(spec, lambda *_: None))
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _check_teacher(config: dict) -> str:
    """Builds a teacher with its weights; returns its width and checksum as text."""
    from kdep_bench.teachers.base import build_teacher

    teacher = build_teacher(config)
    return f"loaded, {teacher.width} channels, checksum {teacher.checksum()}"


def official(
    names: Sequence[str], folder: str | Path | None = None, n_decoded: int | None = 8
) -> Iterator[Finding]:
    """Checks official data sets: completeness, then the image files.

    Args:
        names: names of the data sets.
        folder: folder of all data sets; None: $KDEP_DATA.
        n_decoded: number of images of each split to decode; None: all.
    """
    from kdep_bench.data.official import base

    try:
        root = base.data_root(folder, "--root", names[0])
    except KdepError as e:
        yield Finding("fault", "data", str(e))
        return
    for name in names:
        official_set = base.get_set(name)

        def verify(official_set: base.OfficialSet = official_set) -> str:
            counts = base.verify(official_set, root, n_decoded)
            return ", ".join(f"{count} {name}" for name, count in counts.items())

        yield run_check(f"data set {name}", verify)
        if (root / name).is_dir():
            yield from check_unpacking(root / name)
            yield from check_images(root / name, n_decoded)


def check_unpacking(folder: Path) -> Iterator[Finding]:
    """Reports an archive whose unpacking was interrupted, by the temporary file it leaves."""
    temporary_file = next(folder.rglob(".unpack.*"), None)
    if temporary_file is not None:
        yield Finding(
            "fault",
            f"data set {folder.name}",
            f"the unpacking of an archive was interrupted: the temporary file {temporary_file} "
            f"exists. Fix: run: kdep-bench data {folder.name} --root "
            f"{shlex.quote(str(folder.parent))} --archives DOWNLOADS; it resumes there.",
        )


def check_images(folder: Path, n_decoded: int | None) -> Iterator[Finding]:
    """Checks the first `n_decoded` images of each folder (None: all).

    Broken images are faults. CMYK, 16-bit, transparent and EXIF-rotated images are notes: decoders
    differ on them, but official data sets contain some. OpenCV, which all stages use, converts them
    to 8-bit RGB.
    """
    from kdep_bench.data.checks import check_image, check_upright
    from kdep_bench.data.listing import is_image_name, reason_to_skip

    n_listed = 0
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not reason_to_skip(f, is_dir=True))
        images = sorted(f for f in files if is_image_name(f) and not reason_to_skip(f, False))
        for name in images[:n_decoded]:
            for check in (check_image, check_upright):
                try:
                    check(Path(base) / name)
                except KdepError as e:
                    is_note = any(word in str(e) for word in ("CMYK", "16-bit", "EXIF", "alpha"))
                    level: Level = "note" if is_note else "fault"
                    yield Finding(level, f"data set {folder.name}", str(e))
                    n_listed += 1
                    break
            if n_listed >= MAX_LISTED:
                yield Finding(
                    "note",
                    f"data set {folder.name}",
                    f"only the first {MAX_LISTED} findings are listed; the other images were not "
                    "checked",
                )
                return


def report(findings: Iterable[Finding], write: Callable[[str], object] = print) -> int:
    """Writes every finding as a line; returns the number of faults."""
    n_faults = 0
    for finding in findings:
        write(str(finding))
        n_faults += finding.level == "fault"
    write("no faults" if not n_faults else f"{n_faults} fault(s)")
    return n_faults


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(
        if_unnamed="pass a suite as --suite NAME, or an official data set as --data NAME",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "--suite",
        action="append",
        default=[],
        help="also check this suite (its name or config file)",
    )
    p.add_argument(
        "--data", nargs="+", default=[], metavar="SET", help="official data sets to check"
    )
    p.add_argument("--root", type=Path, help="folder of the official sets (default: $KDEP_DATA)")
    p.add_argument(
        "--decode",
        default="8",
        help="images to decode per folder of the official sets, or 'all' (default: 8); your own "
        "data is always decoded completely",
    )
    p.add_argument("--work-dir", type=Path, default=Path("work_dirs"), help="default: work_dirs")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 with a fault, 2 for a wrong argument, else 0."""
    p = parser()
    args = p.parse_args(argv)
    if args.decode != "all" and not args.decode.isdigit():
        p.error(f"--decode is {args.decode!r}; expected a number, or 'all'. Fix: correct --decode")
    n_decoded = None if args.decode == "all" else int(args.decode)

    checks = [
        machine(args.work_dir),
        *(suite(s, n_decoded, args.work_dir) for s in args.suite),
    ]
    if args.data:
        checks.append(official(args.data, args.root, n_decoded))
    try:
        return int(report(chain.from_iterable(checks)) > 0)
    except KdepError as e:
        print(f"kdep-bench doctor: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
