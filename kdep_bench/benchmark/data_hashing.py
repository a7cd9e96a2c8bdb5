"""Time to hash the files of a data set: a first run, and a second run without changes.

`make scale-data` writes results/scale_data.md. Small files in class folders are hashed as for a
suite on a user's data. The hashing is measured alone, and as part of `run_suite.py --dry-run`. The
second run checks size, times and inode of every file and reads none.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdep_bench.benchmark.engine_cost import processor
from kdep_bench.console import run_main
from kdep_bench.data.content import RACY_NS, Index, images_of
from kdep_bench.files import write_atomic
from kdep_bench.paths import OUTPUT

CLASSES = 100  # number of class folders
BYTES = 2048  # size of each file


def write_files(pool: Path, files: int) -> None:
    """Writes `files` files of random bytes into CLASSES folders; they need not be real images."""
    for class_number in range(CLASSES):
        folder = pool / f"class{class_number:03}"
        folder.mkdir(parents=True)
        for i in range(class_number, files, CLASSES):
            (folder / f"{i}.png").write_bytes(os.urandom(BYTES))


def write_suite(root: Path) -> Path:
    """Writes a suite with unlabelled images `root`/pool and little other data; returns its path."""
    data = {"type": "kdep_bench.data.own.prepare", "name": "many", "labels": False}
    data |= {"pool": f"{root}/pool", "classify": {}}
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(16):
                (root / split / name / f"{i}.png").write_bytes(os.urandom(BYTES))
        data["classify"][split] = f"{root}/{split}"
    config = {
        "name": "many",
        "about": "many files",
        "data": data,
        "teacher": "efficientnet_lite0",
        "students": ["resnet18_w32"],
        "methods": ["kdep", "scratch"],
        "tasks": [{"base": "pocket_probe", "name": "many_probe", "recipe": {"train_share": 1.0}}],
        "budget": {"epochs": 1, "batch": 64, "optimizer": {"type": "SGD", "lr": 0.1}},
        "seeds": {"pretrain": [0], "transfer": [0]},
        "claims": [],
    }
    path = root / "suite.py"
    path.write_text(f"suite = {config!r}\n")
    return path


def measure(root: Path, files: int) -> dict[str, float]:
    """Seconds of each run over `files` files below `root`, and the bytes of the index.

    `root` must be an empty folder.
    """
    write_files(root / "pool", files)
    config = write_suite(root)
    time.sleep(1.5 * RACY_NS / 1e9)  # files that were changed just now would be hashed again
    index, measured = Index(root / "index"), {}

    def measure_hashing(name: str, expected_reads: int) -> None:
        start = time.perf_counter()
        catalogue = index.read(images_of(root / "pool"))
        measured[name] = time.perf_counter() - start
        assert len(catalogue.rows) == files
        assert catalogue.read == expected_reads, catalogue.read

    measure_hashing("hash_s", files)
    measure_hashing("look_s", 0)
    path = index.path(images_of(root / "pool"))
    measured["index_bytes"] = float(path.stat().st_size)
    for name in ("dry_first_s", "dry_again_s"):
        start = time.perf_counter()
        command = [sys.executable, "-m", "kdep_bench.cli.run_suite", str(config)]
        command += ["--work-dir", str(root / "w"), "--results-dir", str(root / "r"), "--dry-run"]
        subprocess.run(command, check=True, capture_output=True)
        measured[name] = time.perf_counter() - start
    return measured


def markdown(measured: dict[str, float], files: int, load: float) -> str:
    """The measurements as Markdown. `load`: load average of the machine at the start."""
    n_files = f"{files:,}"
    rows = [
        (f"first hashing of {n_files} files", f"{measured['hash_s']:.1f} s"),
        ("the same again, with no file changed", f"{measured['look_s']:.1f} s"),
        ("`run_suite.py --dry-run` on these data", f"{measured['dry_first_s']:.1f} s"),
        ("the same again", f"{measured['dry_again_s']:.1f} s"),
        ("file with the stored hashes", f"{measured['index_bytes'] / 1e6:.1f} MB"),
    ]
    table = "\n".join(f"| {item} | {value} |" for item, value in rows)
    machine = f"{os.cpu_count()} cores of {processor()}, load {load:.1f} at the start"
    return f"""# Cost of hashing the data

`python -m kdep_bench.benchmark.data_hashing` (`make scale-data`): {n_files} files of {BYTES}
bytes in {CLASSES} class folders, in the page cache (a first run from disk also waits for the disk),
on {machine}:

| measure | measured |
|---|---:|
{table}
"""


def main(argv: list[str] | None = None) -> int:
    """Measures, writes the report and prints it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="files to hash")
    parser.add_argument(
        "--out", type=Path, default=OUTPUT / "results" / "scale_data.md", help="output file"
    )
    args = parser.parse_args(argv)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kdep-bench-") as folder:
        measured = measure(Path(folder), args.files)
    text = markdown(measured, args.files, load)
    write_atomic(args.out, text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    run_main(main)
