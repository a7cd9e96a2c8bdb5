"""What a new user does with the wheel alone, timed against limits; `make first-use`.

In an empty folder, with an empty home and a new virtual environment: pip installs the wheel,
`smoke` runs, `init` writes a suite for a folder of images, the suite runs, and `publish` writes an
ONNX file that onnxruntime runs. Exit code 1 if a step fails or takes longer than its limit.

python tests/e2e/first_use.py WHEEL [--python python3.12] [--folder DIR] [--pocket]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXTRAS = "pocket,onnx"
# Runs one image through each published ONNX file and prints the shape of its feature.
RUN_ONNX = """
import sys
import numpy
import onnxruntime
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path)
    (pixels,) = session.get_inputs()
    side = 64
    feature = session.run(["feature"], {pixels.name: numpy.zeros((1, 3, side, side), "float32")})[0]
    assert numpy.isfinite(feature).all()
    print(path, feature.shape)
"""


class FirstUse:
    """Runs commands in a new virtual environment and an empty folder.

    Args:
        folder: an empty folder.
        python: the interpreter of the virtual environment.
    """

    def __init__(self, folder: Path, python: str) -> None:
        folder = folder.resolve()
        self.home, self.environment = folder / "home", folder / "venv"
        self.home.mkdir(parents=True)
        self.python = python

    def run(self, *command: str | Path, cwd: Path | None = None) -> None:
        """Runs a command; its output goes to the terminal.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        print("$", *command, flush=True)
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
        variables["HOME"] = str(self.home)
        variables["PATH"] = f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        subprocess.run([str(c) for c in command], check=True, cwd=cwd or self.home, env=variables)

    def install(self, wheel: Path) -> None:
        """Makes a virtual environment with the wheel and the packages that pip resolves for it."""
        self.run(self.python, "-m", "venv", self.environment, cwd=Path.cwd())
        pip = (self.environment / "bin/python", "-m", "pip", "install", "--quiet")
        self.run(*pip, f"{wheel}[{EXTRAS}]")

    def smoke(self) -> None:
        """Runs the suite `smoke`."""
        self.run("kdep-bench", "run", "smoke")

    def own_data(self) -> None:
        """Writes and runs a suite for photos/, a link to the class folders of `smoke`."""
        photos = next(self.home.glob("work_dirs/prepare-smoke-*/data/classify"))
        (self.home / "photos").symlink_to(photos)
        self.run("kdep-bench", "init", "photos")
        self.run("kdep-bench", "run", "configs/suites/photos.py")

    def onnx(self) -> None:
        """Publishes the students of that suite as ONNX files and runs each of them."""
        self.run("kdep-bench", "publish", "photos", "--out", "published", "--onnx")
        files = sorted(self.home.glob("published/**/backbone.onnx"))
        if not files:
            sys.exit("publish wrote no backbone.onnx")
        self.run(self.environment / "bin/python", "-c", RUN_ONNX, *files)

    def pocket(self) -> None:
        """Runs the suite `pocket`."""
        self.run("kdep-bench", "run", "pocket")


def steps(first_use: FirstUse, pocket: bool) -> Iterator[tuple[str, Callable[[], None], float]]:
    """(name, function, limit in minutes) of each step after the installation."""
    yield "smoke", first_use.smoke, 2.0
    yield "own leaderboard", first_use.own_data, 10.0
    yield "an ONNX file that runs", first_use.onnx, 3.0
    if pocket:
        yield "pocket", first_use.pocket, 60.0


def empty_folder(text: str) -> Path:
    """The folder that `--folder` names.

    Raises:
        argparse.ArgumentTypeError: it is a file, or has files.
    """
    folder = Path(text)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise argparse.ArgumentTypeError(
            f"{text} is not an empty folder. Fix: name a folder that does not exist or is empty"
        )
    return folder


def main() -> int:
    """Runs all steps and prints their times; returns 1 if a step took longer than its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="a wheel that `pip wheel --no-deps .` built")
    parser.add_argument("--python", default="python3.11", help="the interpreter, 3.11 or 3.12")
    parser.add_argument("--folder", type=empty_folder, help="an empty folder that is kept")
    parser.add_argument("--pocket", action="store_true", help="also run `pocket`, 45 minutes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        first_use = FirstUse(args.folder or Path(temporary), args.python)
        start = time.perf_counter()
        first_use.install(args.wheel.resolve())
        lines = [f"install: {(time.perf_counter() - start) / 60:.1f} min"]
        slow = False
        for name, step, limit in steps(first_use, args.pocket):
            start = time.perf_counter()
            step()
            minutes = (time.perf_counter() - start) / 60
            slow |= minutes > limit
            lines.append(f"{name}: {minutes:.1f} min, limit {limit:g} min")
    print(*lines, sep="\n")
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
