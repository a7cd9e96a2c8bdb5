"""Check this machine and a suite's requirements: versions, operators, GPUs, data sets, teachers.

python tools/doctor.py                             # only the machine
python tools/doctor.py --suite paper_r18           # also the suite's requirements
python tools/doctor.py --data coco voc --decode all

Unlike a stage, which stops at the first fault, all checks run and all faults are listed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdep_bench.errors import KdepError

if TYPE_CHECKING:
    from kdep_bench.suite.graph import Plan

Level = Literal["ok", "note", "fault"]
MAX_LISTED = 20  # most faults of one kind that are listed
MIN_FREE_BYTES = 20e9  # bytes free below which the work dir gets a note


@dataclass(frozen=True)
class Finding:
    """One line of the report: subject, result, and its level."""

    level: Level
    subject: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.level:5}  {self.subject}: {self.sentence}"


def attempt(subject: str, look: Callable[[], str]) -> Finding:
    """Runs a check: its return value is the text of an 'ok', a KdepError is a 'fault'."""
    try:
        return Finding("ok", subject, look())
    except KdepError as e:
        return Finding("fault", subject, str(e))


def machine(work: Path) -> Iterator[Finding]:
    """Checks Python, package versions, operators, GPUs, cores and disk space."""
    version = sys.version_info
    if (3, 11) <= version[:2] < (3, 13):
        yield Finding("ok", "python", f"{version.major}.{version.minor}.{version.micro}")
    else:
        yield Finding(
            "fault", "python", f"version {version.major}.{version.minor}; expected 3.11 or 3.12."
        )
    yield attempt("versions", _versions)
    yield attempt("operators", _operators)
    yield _gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "cores", str(cores))
    place = _existing_folder(work)
    free = shutil.disk_usage(place).free
    level: Level = "ok" if free > MIN_FREE_BYTES else "note"
    yield Finding(level, "disk", f"{free / 1e9:.0f} GB free at {place}")


def _existing_folder(work: Path) -> Path:
    """The work dir, or the nearest folder above it that exists."""
    return work if work.is_dir() else next(p for p in work.absolute().parents if p.is_dir())


def _versions() -> str:
    from kdep_bench.openmmlab import environment

    for scope in ("mmpretrain", "mmdet", "mmseg"):
        environment.check_versions(scope)
    return ", ".join(f"{k} {v}" for k, v in environment.versions().items())


def _operators() -> str:
    """Runs NMS on three boxes of which the first two overlap, on the CPU and the GPU."""
    import torch

    from kdep_bench import ops

    kind = ops.backend()
    ops.install()
    from mmcv.ops import nms

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29.0]], device=device)
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1].tolist()
        if kept != [0, 2]:
            raise KdepError(
                f"mmcv's NMS ({kind}) keeps the boxes {kept} on {device}",
                expected="[0, 2]",
                fix="reinstall torchvision, or the mmcv built for this torch",
            )
    return f"{kind}, NMS test passed on {' and '.join(devices)}"


def _gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("note", "GPUs", "none: enough for pocket and smoke, not for full scale")
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    text = ", ".join(f"{c.name} with {c.total_memory / 2**30:.0f} GiB" for c in cards)
    return Finding("ok", "GPUs", text)


def suite(ref: str, decode: int | None = 8, work: Path = Path("work_dirs")) -> Iterator[Finding]:
    """Checks a suite's configs, data sets and teachers.

    Args:
        ref: path or name of the suite, as in `load_suite`.
        decode: images of each split to decode; None for all.
        work: the work dir, whose disk needs space for the fixed views.
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
        yield from official(names, loaded.data.get("root"), decode)
        if was_read(loaded, work):  # else no view of these data is rendered yet
            plan = build_plan(with_content(loaded, work)[0])
        yield attempt("space for views", lambda: _space_for_views(plan, _existing_folder(work)))
    elif str(loaded.data.get("type", "")).startswith("kdep_bench.data.own."):
        yield attempt(f"data {loaded.data['name']}", lambda: _check_own_data(loaded.data))
    teachers = {
        t["name"]: t
        for v in loaded.variants or [loaded]
        for t in (*v.teachers.values(), *(t for m in v.methods for t in role_teachers(m)))
        if t
    }
    for name, teacher in sorted(teachers.items()):
        yield attempt(f"teacher {name}", lambda t=teacher: _teacher(t))


def _space_for_views(plan: Plan, place: Path) -> str:
    """Checks the disk space for the views of official pools, whose numbers of images are known.

    Views that are rendered already need no more space.
    """
    from kdep_bench.data.official.base import get_set
    from kdep_bench.data.views import PIXELS, check_disk_space, pixel_bytes

    required = rendered = 0
    for stage in plan.stages.values():
        if stage.kind == "views":
            pool = plan.stages[stage.needs["prepare"]].spec["pool"]
            images = get_set(pool).counts["train_images"]
            required += pixel_bytes(images, stage.spec["views"], stage.spec["px"])
            done = place / stage.id / PIXELS
            rendered += done.stat().st_size if done.is_file() else 0
    check_disk_space(required - rendered, place, "the suite's views that are not rendered yet")
    return f"{required / 1e9:.0f} GB of fixed views, {rendered / 1e9:.0f} GB of them rendered"


def _check_own_data(data: dict) -> str:
    from kdep_bench.data.own import KEYS
    from kdep_bench.data.own.stage import count_images, read_parts

    spec = {k: v for k, v in data.items() if k in KEYS}
    counts = count_images(read_parts(spec, lambda *_: None))  # decodes all, writes nothing
    return ", ".join(f"{v} {k}" for k, v in counts.items())


def _teacher(config: dict) -> str:
    from kdep_bench.teachers.base import build_teacher

    teacher = build_teacher(config)
    return f"loads, {teacher.width} wide, checksum {teacher.checksum()}"


def official(
    names: Iterable[str], given: str | Path | None = None, decode: int | None = 8
) -> Iterator[Finding]:
    """Checks each official set below the root: its contents, then its files."""
    from kdep_bench.data.official import base

    try:
        root = base.data_root(given)
    except KdepError as e:
        yield Finding("fault", "data", str(e))
        return
    for name in names:
        official_set = base.get_set(name)

        def look(official_set: base.OfficialSet = official_set) -> str:
            counts = base.verify(official_set, root, decode)
            return ", ".join(f"{v} {k}" for k, v in counts.items())

        yield attempt(f"data set {name}", look)
        if (root / name).is_dir():
            yield from leftovers(root / name)
            yield from odd_images(root / name, decode)


def leftovers(folder: Path) -> Iterator[Finding]:
    """Finds files that an interrupted unpacking leaves."""
    leftover = next(folder.rglob(".unpack.*"), None)
    if leftover is not None:
        yield Finding(
            "fault",
            f"data set {folder.name}",
            f"an archive was unpacked in part: {leftover} was left. Fix: run "
            f"tools/prepare_data.py {folder.name} again; it resumes there.",
        )


def odd_images(folder: Path, decode: int | None) -> Iterator[Finding]:
    """Finds images that decoders read differently, in the first `decode` of each folder.

    Broken ones are faults. CMYK, 16-bit and rotated ones are notes: official sets contain some, and
    OpenCV, which every stage uses, converts them to 8-bit RGB.
    """
    from kdep_bench.data.checks import check_image, check_upright
    from kdep_bench.data.listing import is_image_name, reason_to_pass_over

    listed = 0
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not reason_to_pass_over(f, is_dir=True))
        images = sorted(f for f in files if is_image_name(f) and not reason_to_pass_over(f, False))
        for name in images[:decode]:
            for check in (check_image, check_upright):
                try:
                    check(Path(base) / name)
                except KdepError as e:
                    soft = any(w in str(e) for w in ("CMYK", "16-bit", "EXIF", "alpha"))
                    yield Finding("note" if soft else "fault", f"data set {folder.name}", str(e))
                    listed += 1
                    break
            if listed >= MAX_LISTED:
                yield Finding(
                    "note", f"data set {folder.name}", f"first {MAX_LISTED} shown, rest not checked"
                )
                return


def report(findings: Iterable[Finding], say: Callable[[str], object] = print) -> int:
    """Prints every finding; returns the number of faults."""
    faults = 0
    for finding in findings:
        say(str(finding))
        faults += finding.level == "fault"
    say("no faults" if not faults else f"{faults} fault(s)")
    return faults


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 1 where there is a fault, 2 for a wrong argument."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--suite", action="append", default=[], help="also check this suite (name or config)"
    )
    p.add_argument("--data", nargs="+", default=[], metavar="SET", help="official sets to check")
    p.add_argument("--root", type=Path, help="folder of the official sets (default: $KDEP_DATA)")
    p.add_argument(
        "--decode",
        default="8",
        help="images to decode per folder of the official sets, or 'all' (default: 8); your own "
        "data is always decoded completely",
    )
    p.add_argument("--work-dir", type=Path, default=Path("work_dirs"), help="default: work_dirs")
    args = p.parse_args(argv)
    if args.decode != "all" and not args.decode.isdigit():
        p.error("--decode must be a number or 'all'")
    decode = None if args.decode == "all" else int(args.decode)

    parts = [
        machine(args.work_dir),
        *(suite(s, decode, args.work_dir) for s in args.suite),
    ]
    if args.data:
        parts.append(official(args.data, args.root, decode))
    try:
        return int(report(chain.from_iterable(parts)) > 0)
    except KdepError as e:
        print(f"doctor: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
