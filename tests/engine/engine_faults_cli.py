"""Faults of archives, streams, disks and the environment, met by the real commands.

Each function takes the folder of all rows, works in one of its own below it, and returns what went
wrong, one string each: a wrong exit code, a traceback, a missing sentence, or a partial result that
was kept.
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
UNDISTURBED = "undisturbed"  # the folder of an undisturbed preparation, kept for all rows
SECONDS = 60.0  # until --dry-run must have answered, on a machine with other work
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


def answers(
    command: str, code: int, sentence: str = "", env: Mapping[str, str] | None = None
) -> list[str]:
    """What is wrong with the answer of a command that must end with `code` and say `sentence`."""
    got, text = shell(command, **(env or {}))
    wrong = []
    if got != code:
        wrong.append(f"exit code {got} instead of {code}: {text[-500:]}")
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


def made(home: Path, suite: Path = SMOKE) -> str | None:
    """The fingerprint of the data prepared below `home`; None unless every file is whole."""
    plan = build_plan(load_suite(suite))
    stage = next(s for i, s in plan.stages.items() if i.startswith("prepare-"))
    record, _ = finished(stage, home / "work", verify=True)
    return record["outputs"]["fingerprint"] if record else None


def undone(home: Path) -> list[str]:
    """Stages that are recorded as finished although the command was refused."""
    return [f"{p} was written" for p in (home / "work").glob(f"*/{STAGE}")]


def as_undisturbed(rows: Path, home: Path, suite: Path = SMOKE) -> list[str]:
    """Compares the data below `home` with those of an undisturbed run, made once for all rows."""
    plain = rows / UNDISTURBED
    wrong = [] if made(plain) else answers(prepare(plain), 0)
    expected, got = made(plain), made(home, suite)
    if expected is None or got != expected:
        wrong.append(f"the data of {home} have the fingerprint {got} instead of {expected}")
    return wrong


# --- archives ------------------------------------------------------------------------------------


DAMAGE = ("a flipped header byte", "a cut on a member border", "a wrong gzip CRC")


def damaged(tar: bytes, what: str) -> bytes:
    """The .tar.gz with this damage; '' for the whole one.

    gzip without compression: a copy with one changed byte in it has the size of the good one.
    """
    with tarfile.open(fileobj=io.BytesIO(tar)) as t:
        half = [m.offset for m in t.getmembers()][len(t.getmembers()) // 2]
    raw = bytearray(tar)
    if what == "a flipped header byte":
        raw[half + 3] ^= 1  # in a name
    if what == "a cut on a member border":
        del raw[half:]
    packed = bytearray(gzip.compress(bytes(raw), 0, mtime=0))
    if what == "a wrong gzip CRC":
        packed[-8] ^= 1
    return bytes(packed)


def archive(rows: Path, what: str) -> list[str]:
    """Nothing of a damaged archive is unpacked; then all of the good one is."""
    home = rows / what.replace(" ", "_")
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
    wrong = answers(command, 1, f"the archive {path} is damaged")
    wrong += [f"{p} was unpacked" for p in files(root / "dtd")]
    path.write_bytes(damaged(tar.getvalue(), ""))
    # All of it is there; the set is then refused, as it is smaller than the release.
    wrong += answers(command, 1, "expected 5640, as in the official release")
    source, unpacked = files(home / "source"), files(root / "dtd")
    if unpacked != source:
        wrong.append(f"of the good archive, {len(unpacked)} of {len(source)} files were unpacked")
    return wrong


def files(folder: Path) -> dict[str, bytes]:
    """Path below `folder` -> content of every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- environment, streams and disks --------------------------------------------------------------


def long_tmpdir(rows: Path) -> list[str]:
    """Sockets have short paths: refused with the name of the variable, and done once it is set."""
    home = rows / "tmpdir"
    deep = home / ("x" * 120)
    deep.mkdir(parents=True)
    wrong = answers(prepare(home), 2, "set TMPDIR to a folder", dict(TMPDIR=str(deep)))
    wrong += undone(home)
    wrong += answers(prepare(home), 0)
    return wrong + as_undisturbed(rows, home)


def closed_streams(rows: Path) -> list[str]:
    """Without standard output nothing begins; without the other two all is as ever."""
    home = rows / "closed"
    wrong = answers(f"({prepare(home)}) 2>&1 >&-", 1, "standard output is closed")
    wrong += answers(f"({prepare(home)}) <&- >&- 2>&-", 1)
    wrong += undone(home)
    wrong += answers(f"({prepare(home)}) <&- 2>&-", 0)
    return wrong + as_undisturbed(rows, home)


def full_output(rows: Path) -> list[str]:
    """Output that is lost is a sentence and a code that is not 0; what was done is whole."""
    home, said = rows / "full", "No space left"
    dry = f"$PYTHON tools/run_suite.py '{SMOKE}' --dry-run --work-dir '{home}/work'"
    wrong = answers(f"{dry} 2>&1 >/dev/full", 1, said)
    wrong += answers(f"{prepare(home)} 2>&1 >/dev/full", 1, said)
    wrong += answers(prepare(home), 0)
    return wrong + as_undisturbed(rows, home)


@contextlib.contextmanager
def few_inodes(disk: Path, inodes: int) -> Iterator[Path]:
    """A mounted file system with room for data and for this many files; needs root."""
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size=200m,nr_inodes={inodes}", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def no_inodes(rows: Path, inodes: int) -> list[str]:
    """The file system of the work dir has room but no file numbers left; then it has."""
    with few_inodes(rows / "inodes", inodes) as disk:
        wrong = answers(prepare(disk), 1, "No space left on device")
        wrong += undone(disk)
        more = ["mount", "-o", "remount,nr_inodes=100000", str(disk)]
        subprocess.run(more, check=True, capture_output=True)
        wrong += answers(prepare(disk), 0)
        return wrong + as_undisturbed(rows, disk)


def ascii_locale(rows: Path) -> list[str]:
    """LANG=C: a suite and folders whose names and texts are not ASCII are read and written."""
    home = rows / "données ±"
    home.mkdir(parents=True)
    suite = home / "suite.py"
    suite.write_text(SMOKE.read_text() + "\nsuite.update(about='fumée — ±')\n", "utf-8")
    wrong = answers(f"{prepare(home, suite)} --dry-run", 0, "1 to run", ASCII)
    wrong += answers(prepare(home, suite), 0, "", ASCII)
    return wrong + as_undisturbed(rows, home, suite)


def many_seeds(rows: Path, seeds: int = 2000) -> list[str]:
    """More seeds than can be planned are refused at once, with the way out."""
    home = rows / "seeds"
    suite = home / "seeds.py"
    home.mkdir(parents=True)
    text = "suite.update(seeds=dict.fromkeys(('pretrain', 'transfer'), list(range({}))))\n"
    suite.write_text(SMOKE.read_text() + text.format(seeds))
    begun = time.monotonic()
    command = f"$PYTHON tools/run_suite.py '{suite}' --dry-run --work-dir '{home}/work'"
    wrong = answers(command, 2, "use fewer seeds")
    took = time.monotonic() - begun
    return wrong + ([f"{command} took {took:.0f} s"] if took > SECONDS else [])
