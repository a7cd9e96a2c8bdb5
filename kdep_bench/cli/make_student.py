"""Write a student config from a model name; finds and tests its tap, width and pyramid levels.

kdep-bench student timm/resnet18d
kdep-bench student mmpretrain/resnet34_8xb32_in1k --px 128
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdep_bench.cli.parser import Parser
from kdep_bench.errors import KdepError
from kdep_bench.paths import OUTPUT


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", help="timm/<model>, or mmpretrain/<name in mmpretrain's model zoo>")
    p.add_argument("--px", type=int, default=224, help="input size in pixels (default: 224)")
    p.add_argument(
        "--out",
        type=Path,
        default=OUTPUT / "configs" / "students",
        help="folder to write to (default: configs/students)",
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 for a KdepError, whose text is printed)."""
    args = parser().parse_args(argv)
    try:
        from kdep_bench.students.discover import config_text, discover

        student = discover(args.name, args.px)
        path = args.out / f"{student['name']}.py"
        if path.exists():
            raise KdepError(f"{path} already exists", fix="choose another folder with --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config_text(student, args.name), encoding="utf-8")
    except KdepError as e:
        print(f"kdep-bench student: {e}", file=sys.stderr)
        return 2
    print(f"{path}: width {student['width']}, tap {student['tap']}")
    return 0


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
