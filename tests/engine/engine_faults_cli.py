"""Faults of archives, streams, disks and the environment, met by the real commands.

Each fault's function takes the folder of all faults and works in a subfolder of it. It returns one
string per error: a wrong exit code, a traceback, a missing sentence, or a partial result that was
kept.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from kdep_bench.data.official.base import get_set
from kdep_bench.engine.state import STAGE, finished
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.plan import build_plan

REPO = Path(__file__).resolve().parents[2]
SMOKE = REPO / "configs" / "suites" / "smoke.py"
UNDISTURBED = "undisturbed"  # subfolder of an undisturbed preparation, used by all faults
SECONDS = 60.0  # limit for --dry-run, on a busy machine
ASCII = dict(LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


# --- commands and what they must do --------------------------------------------------------------


def shell(command: str, **env: str) -> tuple[int, str]:
    """Exit code and all output of a bash command line; `$PYTHON` is this interpreter."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=3600,
        check=False,
    )
    return done.returncode, done.stdout


def command_errors(
    command: str, code: int, sentence: str = "", env: Mapping[str, str] | None = None
) -> list[str]:
    """Errors of a command that must exit with `code` and print `sentence`; empty if none."""
    exit_code, text = shell(command, **(env or {}))
    wrong = []
    if exit_code != code:
        wrong.append(f"exit code {exit_code} instead of {code}: {text[-500:]}")
    if "Traceback" in text:
        wrong.append(f"a traceback: {text[-1000:]}")
    if sentence not in text:
        wrong.append(f"no {sentence!r} in: {text[-500:]}")
    return [f"{command}: {w}" for w in wrong]


def prepare(home: Path, suite: Path | str = SMOKE) -> str:
    """The command that runs the first stage of the smoke suite, below `home`."""
    return (
        f"$PYTHON tools/run_suite.py '{suite}' --plain --jobs 1 --only prepare "
        f"--work-dir '{home}/work' --results-dir '{home}/results'"
    )


def fingerprint(home: Path, suite: Path = SMOKE) -> str | None:
    """The fingerprint of the data prepared below `home`; None unless every file is intact."""
    plan = build_plan(load_suite(suite))
    stage = next(s for i, s in plan.stages.items() if i.startswith("prepare-"))
    record, _ = finished(stage, home / "work", verify=True)
    return record["outputs"]["fingerprint"] if record else None


def unexpected_stages(home: Path) -> list[str]:
    """One error per stage recorded as finished, after a command that had to be refused."""
    return [f"{p} was written" for p in (home / "work").glob(f"*/{STAGE}")]


def compare_with_undisturbed(folder: Path, home: Path, suite: Path = SMOKE) -> list[str]:
    """Compares the data below `home` with those of an undisturbed run, made once for all faults."""
    undisturbed = folder / UNDISTURBED
    wrong = [] if fingerprint(undisturbed) else command_errors(prepare(undisturbed), 0)
    expected, actual = fingerprint(undisturbed), fingerprint(home, suite)
    if expected is None or actual != expected:
        wrong.append(f"the data of {home} have the fingerprint {actual} instead of {expected}")
    return wrong


# --- archives ------------------------------------------------------------------------------------


DAMAGE = ("a flipped header byte", "a cut on a member border", "a wrong gzip CRC")


def damaged(tar: bytes, what: str) -> bytes:
    """`tar` as .tar.gz with the damage `what`, one of DAMAGE; '': without damage.

    gzip does not compress here, so that one changed byte does not change the size.
    """
    with tarfile.open(fileobj=io.BytesIO(tar)) as t:
        middle = [m.offset for m in t.getmembers()][len(t.getmembers()) // 2]
    raw = bytearray(tar)
    if what == "a flipped header byte":
        raw[middle + 3] ^= 1  # byte 3 of a member's name
    if what == "a cut on a member border":
        del raw[middle:]
    compressed = bytearray(gzip.compress(bytes(raw), 0, mtime=0))
    if what == "a wrong gzip CRC":
        compressed[-8] ^= 1  # gzip ends with CRC (4 bytes) and size (4 bytes)
    return bytes(compressed)


def archive(folder: Path, what: str) -> list[str]:
    """A damaged archive is refused and not unpacked; an intact one is unpacked completely."""
    home = folder / what.replace(" ", "_")
    dtd = get_set("dtd")
    dtd.tiny(home / "source", np.random.default_rng(0))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as t:
        t.add(home / "source" / "dtd", "dtd")
    root = home / "root"
    root.mkdir()
    path = root / dtd.archives[0].name
    command = f"$PYTHON tools/prepare_data.py dtd --root '{root}' --no-checksums"
    path.write_bytes(damaged(tar.getvalue(), what))
    wrong = command_errors(command, 2, f"the archive {path} is damaged")
    wrong += [f"{p} was unpacked" for p in files(root / "dtd")]
    path.write_bytes(damaged(tar.getvalue(), ""))
    # All is unpacked; the data set is then refused, as it is smaller than the release.
    wrong += command_errors(command, 2, "expected 5640, as in the official release")
    source, unpacked = files(home / "source"), files(root / "dtd")
    if unpacked != source:
        wrong.append(f"of the good archive, {len(unpacked)} of {len(source)} files were unpacked")
    return wrong


def files(folder: Path) -> dict[str, bytes]:
    """Path below `folder` -> content of every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- environment, streams and disks --------------------------------------------------------------


def long_tmpdir(folder: Path) -> list[str]:
    """A TMPDIR too long for sockets is refused by name; with a short one the command succeeds."""
    home = folder / "tmpdir"
    deep = home / ("x" * 120)
    deep.mkdir(parents=True)
    wrong = command_errors(prepare(home), 2, "set TMPDIR to a folder", dict(TMPDIR=str(deep)))
    wrong += unexpected_stages(home)
    wrong += command_errors(prepare(home), 0)
    return wrong + compare_with_undisturbed(folder, home)


def closed_streams(folder: Path) -> list[str]:
    """Without standard output the command refuses; without stdin and stderr it succeeds."""
    home = folder / "closed"
    wrong = command_errors(f"({prepare(home)}) 2>&1 >&-", 1, "standard output is closed")
    wrong += command_errors(f"({prepare(home)}) <&- >&- 2>&-", 1)
    wrong += unexpected_stages(home)
    wrong += command_errors(f"({prepare(home)}) <&- 2>&-", 0)
    return wrong + compare_with_undisturbed(folder, home)


def full_output(folder: Path) -> list[str]:
    """Lost output gives an error and exit code 1; finished stages are intact."""
    home, message = folder / "full", "No space left"
    dry = f"$PYTHON tools/run_suite.py '{SMOKE}' --dry-run --work-dir '{home}/work'"
    wrong = command_errors(f"{dry} 2>&1 >/dev/full", 1, message)
    wrong += command_errors(f"{prepare(home)} 2>&1 >/dev/full", 1, message)
    wrong += command_errors(prepare(home), 0)
    return wrong + compare_with_undisturbed(folder, home)


@contextlib.contextmanager
def few_inodes(disk: Path, inodes: int) -> Iterator[Path]:
    """Mounts a file system with free space for data but only for this many files; needs root."""
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size=200m,nr_inodes={inodes}", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def no_inodes(folder: Path, inodes: int) -> list[str]:
    """The work dir's file system has free space but no free inodes; it gets more before a rerun."""
    with few_inodes(folder / "inodes", inodes) as disk:
        wrong = command_errors(prepare(disk), 1, "No space left on device")
        wrong += unexpected_stages(disk)
        remount = ["mount", "-o", "remount,nr_inodes=100000", str(disk)]
        subprocess.run(remount, check=True, capture_output=True)
        wrong += command_errors(prepare(disk), 0)
        return wrong + compare_with_undisturbed(folder, disk)


def ascii_locale(folder: Path) -> list[str]:
    """With LANG=C, suites and folders with names and texts outside ASCII are read and written."""
    home = folder / "données ±"
    home.mkdir(parents=True)
    suite = home / "suite.py"
    suite.write_text(SMOKE.read_text() + "\nsuite.update(about='fumée — ±')\n", "utf-8")
    wrong = command_errors(f"{prepare(home, suite)} --dry-run", 0, "1 to run", ASCII)
    wrong += command_errors(prepare(home, suite), 0, "", ASCII)
    return wrong + compare_with_undisturbed(folder, home, suite)


def many_seeds(folder: Path, seeds: int = 2000) -> list[str]:
    """More seeds than can be planned are refused within SECONDS, with a fix."""
    home = folder / "seeds"
    suite = home / "seeds.py"
    home.mkdir(parents=True)
    text = "suite.update(seeds=dict.fromkeys(('pretrain', 'transfer'), list(range({}))))\n"
    suite.write_text(SMOKE.read_text() + text.format(seeds))
    start = time.monotonic()
    command = f"$PYTHON tools/run_suite.py '{suite}' --dry-run --work-dir '{home}/work'"
    wrong = command_errors(command, 2, "use fewer seeds")
    seconds = time.monotonic() - start
    return wrong + ([f"{command} took {seconds:.0f} s"] if seconds > SECONDS else [])
