#!/usr/bin/env python
"""Makes the pocket data of a data config, or verifies a folder of it.

python tools/prepare_data.py configs/data/pocket.py --out work_dirs/pocket_data
python tools/prepare_data.py --verify work_dirs/pocket_data/data
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdep_bench.errors import KdepError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, help="file in configs/data")
    parser.add_argument("--out", type=Path, help="folder to make; the data go to OUT/data")
    parser.add_argument("--verify", type=Path, metavar="DATA", help="recompute all checksums")
    args = parser.parse_args(argv)
    if (args.config is None) == (args.verify is None) or (args.config and not args.out):
        parser.error("give a config and --out, or --verify alone")
    try:
        return _verify(args.verify) if args.verify else _prepare(args.config, args.out)
    except KdepError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1


def _verify(data: Path) -> int:
    from kdep_bench.data.pocket import verify

    print(f"{data}: every file as recorded, fingerprint {verify(data)}")
    return 0


def _prepare(config: Path, out: Path) -> int:
    from kdep_bench.data.pocket import prepare
    from kdep_bench.suite.config import read_config

    if not config.is_file():
        raise KdepError(f"the config {config} does not exist", "a file in configs/data")
    spec = read_config(config).get("data")
    if not isinstance(spec, dict):
        raise KdepError(f"the config {config} defines no `data`", "data = dict(...)")
    made = prepare(spec, {}, out, _show)
    print()
    for note in made["notes"]:
        print(f"note: {note}")
    print(f"{out / 'data'}: source {made['source']}, fingerprint {made['fingerprint']}")
    for name, count in made["counts"]["images"].items():
        print(f"  {name:24}{count:7}")
    return 0


def _show(done: int, total: int, note: str = "") -> None:
    end = "\r" if sys.stdout.isatty() else "\n"
    print(f"{done:6} of {total} images  {note:36}", end=end, flush=True)


if __name__ == "__main__":
    sys.exit(main())
