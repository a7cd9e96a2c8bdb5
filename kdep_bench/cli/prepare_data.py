"""Unpack, convert and verify an official data set, or generate the pocket data of a config.

kdep-bench data coco --root /data --archives ~/Downloads                  # unpack, convert, verify
kdep-bench data coco --root /data --check --decode all                    # verify only, all images
kdep-bench data --list                                                    # sets and their archives
kdep-bench data configs/data/pocket.py --out work_dirs/pocket_data
kdep-bench data --verify work_dirs/pocket_data/data

Official sets are not downloaded: most need an account or consent to their terms. An interrupted run
resumes where it stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import CONFIGS


def parser() -> argparse.ArgumentParser:
    """The command line; no heavy import."""
    p = Parser(
        if_unnamed="pass the folder of all sets as --root, or that of the archives as --archives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "what", nargs="?", metavar="SET|CONFIG", help="an official data set, or a data config (.py)"
    )
    p.add_argument(
        "--list", action="store_true", help="list the sets, their archives and checksums"
    )
    p.add_argument("--root", type=Path, help="folder of all sets (default: $KDEP_DATA)")
    p.add_argument(
        "--archives",
        type=Path,
        action="append",
        default=[],
        help="folder with the downloaded archives (default: the set's folder and the root)",
    )
    p.add_argument("--check", action="store_true", help="verify only")
    p.add_argument(
        "--decode", default="8", help="images to decode per split, or 'all' (default: 8)"
    )
    p.add_argument(
        "--no-checksums", action="store_true", help="do not check the MD5 sums of the archives"
    )
    p.add_argument(
        "--out", type=Path, help="with a CONFIG: output folder; the data are written to OUT/data"
    )
    p.add_argument(
        "--verify",
        type=Path,
        metavar="DATA",
        help="verify the checksums of a folder of pocket data",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    p = parser()
    try:
        _refuse_action(sys.argv[1:] if argv is None else argv)
    except KdepError as e:
        print(f"kdep-bench data: {e}", file=sys.stderr)
        return 2
    args = p.parse_args(argv)
    n_actions = args.list + (args.what is not None) + (args.verify is not None)
    if n_actions != 1:
        p.error(
            f"{'several actions were' if n_actions else 'no action was'} given. Fix: give one of: "
            "SET with --root, CONFIG with --out, --verify DATA, --list"
        )
    try:
        if args.list:
            return _list()
        if args.verify:
            return _verify(args.verify)
        if args.what.endswith(".py"):
            if not args.out:
                p.error("a config needs an output folder. Fix: add --out DIR")
            return _prepare(Path(args.what), args.out)
        _refuse_folder(args.what)
        return _official(args)
    except KdepError as e:
        print(f"kdep-bench data: {e}", file=sys.stderr)
        return 2


def _refuse_folder(name: str) -> None:
    """Raises KdepError if a path is in the place of the data set."""
    from kdep_bench.data.official.base import set_names

    if "/" in name or (Path(name).is_dir() and name not in set_names()):
        kind = "a folder" if Path(name).is_dir() else "a file"
        if not Path(name).exists():
            kind = "a path that does not exist"
        raise KdepError(
            f"{name!r} is {kind}, not an official data set",
            expected="the name of a set (kdep-bench data --list shows them) or a data config (.py)",
            fix="name the set and give the folder of all sets as --root; or verify the checksums "
            "of a folder of pocket data with --verify FOLDER",
        )


def _list() -> int:
    from kdep_bench.data.official.base import get_set, set_names

    for official_set in map(get_set, set_names()):
        print(
            f"{official_set.name}: {official_set.title}; {official_set.licence}; "
            f"{official_set.homepage}"
        )
        for archive in official_set.archives:
            checksum = f"md5 {archive.md5} ({archive.md5_source})" if archive.md5 else "md5 unknown"
            print(f"  {archive.name}{' (optional)' if archive.optional else ''}: {checksum}")
    return 0


def _official(args: argparse.Namespace) -> int:
    """Prepares and verifies an official data set; with --check only verifies it."""
    from kdep_bench.data.official import base

    if args.what not in base.set_names():
        _refuse_data_config(args.what)
    official_set = base.get_set(args.what)
    decode = None if args.decode == "all" else _count(args.decode)
    if args.check:
        root = base.data_root(args.root, "--root", args.what)
    else:
        # Without --archives, the archives are below the root, which must exist.
        root = args.root if args.root and args.archives else None
        root = root or base.data_root(args.root, "--root", args.what)
        progress, checksums = _ProgressLine(), not args.no_checksums
        digests = base.lay_out(official_set, root, args.archives, progress, checksums)
        for archive in official_set.archives:
            if archive.name in digests and archive.md5 is None:
                digest = digests[archive.name]
                print(f"{archive.name}: md5 {digest} (not checked: no official MD5 is known)")
    counts = base.verify(official_set, root, decode)
    for note in official_set.notes:
        print(f"note: {note}")
    print(f"{root / official_set.name}: {official_set.title} is complete")
    for name, count in counts.items():
        print(f"  {name:28}{count:9}")
    return 0


def _refuse_data_config(name: str) -> None:
    """Raises KdepError if `name` is not an official set but the name of a data config."""
    from kdep_bench.suite.config import read_config

    config = CONFIGS / "data" / f"{name}.py"
    if not config.is_file():
        return
    if "type" in read_config(config)["data"]:
        fix = "run a suite with this data: its stage prepare reads your folders"
    else:
        shown = shlex.quote(os.path.relpath(config))
        fix = f"to write its data: kdep-bench data {shown} --out DIR"
    raise KdepError(f"{name!r} is a data config, not an official data set", fix=fix)


def _refuse_action(arguments: Sequence[str]) -> None:
    """Raises KdepError if an action such as `verify` is in the place of the data set."""
    if arguments[:1] not in (["verify"], ["check"]):
        return
    from kdep_bench.data.official.base import set_names

    name = next((a for a in arguments[1:] if a in set_names()), "SET")
    raise KdepError(
        f"{arguments[0]!r} is not a data set",
        fix=f"to verify one: kdep-bench data {name} --check --root DIR",
    )


def _count(text: str) -> int:
    """The number of images in --decode; raises KdepError if it is not a number."""
    if not text.isdigit():
        raise KdepError(
            f"--decode is {text!r}", expected="a number, or 'all'", fix="correct --decode"
        )
    return int(text)


class _ProgressLine:
    """Prints progress: one updated line on a terminal, otherwise a line for every 10 %."""

    def __init__(self) -> None:
        self.last_printed = ("", -1)

    def __call__(self, done: int, total: int, note: str = "") -> None:
        tenths = 10 * done // max(total, 1)
        if (note, tenths) != self.last_printed:
            self.last_printed = (note, tenths)
            end = "\r" if sys.stdout.isatty() else "\n"
            print(f"{100 * done // max(total, 1):3} %  {note:60}", end=end, flush=True)


def _verify(data: Path) -> int:
    from kdep_bench.data.pocket.verify import verify

    print(f"{data}: all checksums match, fingerprint {verify(data)}")
    return 0


def _prepare(config: Path, out: Path) -> int:
    """Generates the pocket data of a config."""
    from kdep_bench.data.pocket import prepare
    from kdep_bench.suite.config import read_config
    from kdep_bench.suite.known_data import prepared_spec

    if not config.is_file():
        raise KdepError(f"the config {config} does not exist", fix="give a file in configs/data")
    spec = read_config(config).get("data")
    if not isinstance(spec, dict):
        raise KdepError(
            f"the config {config} defines no `data`", fix="write `data = dict(...)` in it"
        )
    if "type" in spec:
        raise KdepError(
            f"the config {config} has the data type {spec['type']!r}",
            expected="a config of pocket data, which has no type",
            fix="prepare official data sets by name (kdep-bench data --list shows the names); for "
            "your own data, run a suite: its stage prepare reads your folders",
        )
    outputs = prepare(prepared_spec(spec), {}, out, _print_progress)
    print()
    for note in outputs["notes"]:
        print(f"note: {note}")
    print(f"{out / 'data'}: source {outputs['source']}, fingerprint {outputs['fingerprint']}")
    for name, count in outputs["counts"]["images"].items():
        print(f"  {name:24}{count:7}")
    return 0


def _print_progress(done: int, total: int, note: str = "") -> None:
    end = "\r" if sys.stdout.isatty() else "\n"
    print(f"{done:6} of {total} images  {note:36}", end=end, flush=True)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
