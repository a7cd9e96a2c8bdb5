"""Downloads Debian packages by name and unpacks them into a cache folder; needs no root rights.

apt verifies each package with the signed lists of its release. The SHA-256 of the downloaded file
is stored next to it, so that a later change of the file is detected.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash, write_atomic

#: SHA-256 of the packages that the published results used (Debian 12).
KNOWN = {
    "gcompris-qt-data_3.1-2_all.deb": (
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f"
    ),
    "lomiri-wallpapers-16.04_20.04.0-2_all.deb": (
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"
    ),
    "tuxpaint-stamps-default_2022.06.04-1_all.deb": (
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
    ),
}


class Unavailable(Exception):
    """A package cannot be downloaded (no apt, no network); the caller may use another source."""


@dataclass(frozen=True)
class Package:
    """One unpacked package.

    Attributes:
        name, version: of the Debian package.
        file: name of the .deb file.
        sha256: SHA-256 of that file.
        root: the folder with its unpacked files.
    """

    name: str
    version: str
    file: str
    sha256: str
    root: Path


def cache_dir() -> Path:
    """The cache folder: $KDEP_CACHE, by default ~/.cache/kdep_bench."""
    return Path(os.environ.get("KDEP_CACHE") or "~/.cache/kdep_bench").expanduser()


def how_to_unpack_again() -> str:
    """The fix of an error about a damaged file of an unpacked package."""
    folder = cache_dir() / "debian" / "unpacked"
    return f"move the folder {folder} elsewhere and run again; the packages are unpacked again"


def fetch(name: str) -> Package:
    """Downloads a package if it is not in the cache, verifies and unpacks it.

    Raises:
        Unavailable: no apt-get or dpkg-deb, or the download failed; the message is the reason.
        KdepError: the package in the cache is damaged, or cannot be unpacked.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable("apt-get or dpkg-deb is not installed")
    cache = cache_dir() / "debian"
    cache.mkdir(parents=True, exist_ok=True)
    deb = _cached(cache, name) or _download(cache, name)
    digest = _checked(deb)
    root = cache / "unpacked" / f"{deb.stem}-{digest[:12]}"
    if not root.is_dir():
        _unpack(deb, root)
    return Package(name, deb.name.split("_")[1], deb.name, digest, root)


def _cached(cache: Path, name: str) -> Path | None:
    return max(cache.glob(f"{name}_*.deb"), default=None)


def _checked(deb: Path) -> str:
    """The SHA-256 of `deb`, after comparison with KNOWN or with the one stored next to `deb`.

    If there is neither, it is stored, and later calls compare with it.

    Raises:
        KdepError: the SHA-256 is different.
    """
    digest, note = file_hash(deb), deb.with_suffix(".sha256")
    expected = KNOWN.get(deb.name) or (note.read_text().split()[0] if note.exists() else digest)
    if digest != expected:
        raise KdepError(
            f"the package {deb} has SHA-256 {digest[:12]}...",
            expected=f"{expected[:12]}...",
            fix=f"move {deb} to another folder and run again; the package is downloaded again",
        )
    if not note.exists():
        write_atomic(note, f"{digest}  {deb.name}\n")
    return digest


def _download(cache: Path, name: str) -> Path:
    with tempfile.TemporaryDirectory(dir=cache) as tmp:
        options = _own_lists(cache)
        error = _run(["apt-get", "download", name], Path(tmp))
        if error:  # the system's package lists may be missing or old: download our own
            error = _run(["apt-get", *options, "update"], Path(tmp)) or _run(
                ["apt-get", *options, "download", name], Path(tmp)
            )
        downloaded = max(Path(tmp).glob(f"{name}_*.deb"), default=None)
        if downloaded is None:
            reason = error or "no file was written"
            raise Unavailable(f"apt-get could not download {name} ({reason})")
        target = cache / downloaded.name.replace("%3a", ":")
        os.replace(downloaded, target)
        return target


def _own_lists(cache: Path) -> list[str]:
    """Options with which apt-get keeps its package lists in the cache folder."""
    lists = cache / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (lists / part).mkdir(parents=True, exist_ok=True)
    return [
        *("-o", f"Dir::State::lists={lists / 'lists'}"),
        *("-o", f"Dir::Cache={lists / 'cache'}"),
        *("-o", "Debug::NoLocking=1"),
    ]


def _run(command: list[str], cwd: Path) -> str:
    """Runs a command of apt-get; returns its error message, or "" if it succeeded."""
    environment = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive")
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{type(e).__name__}: {e}"
    if done.returncode == 0:
        return ""
    lines = [x for x in (done.stderr + done.stdout).splitlines() if x.strip()]
    return next((x for x in lines if x.startswith("E:")), lines[-1] if lines else "no message")


def _unpack(deb: Path, root: Path) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(dir=root.parent))
    done = subprocess.run(["dpkg-deb", "-x", str(deb), str(tmp)], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(tmp, ignore_errors=True)
        raise KdepError(
            f"the package {deb} could not be unpacked ({done.stderr.strip()[:200]})",
            fix=f"free some disk space and run again; if the error remains, move {deb} to another "
            "folder and run again; the package is downloaded again",
        )
    try:
        os.rename(tmp, root)
    except OSError:  # another process unpacked it meanwhile
        shutil.rmtree(tmp, ignore_errors=True)
