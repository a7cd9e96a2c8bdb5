"""Writes the checksums of the pocket data, and verifies its files with them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kdep_bench.errors import KdepError, how_to_rebuild
from kdep_bench.files import file_hash, read_strict, write_atomic


def write_checksums(root: Path, files: list[tuple[str, str]]) -> str:
    """Writes checksums.txt in the format of sha256sum(1).

    Args:
        root: the folder of the data.
        files: (path relative to `root`, SHA-256).

    Returns:
        the SHA-256 of checksums.txt, which is the fingerprint of the data.
    """
    text = "".join(f"{digest}  {rel}\n" for rel, digest in sorted(files))
    write_atomic(root / "checksums.txt", text)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(data_dir: str | Path) -> str:
    """Compares every file of the pocket data, except manifest.json, with its checksum.

    Args:
        data_dir: the folder `data` in the directory of stage `prepare`.

    Returns:
        the fingerprint of the data.

    Raises:
        KdepError: the folder does not exist, or a file is missing, changed or unlisted (the first
            in path order is named).
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise KdepError(f"the folder {root} does not exist", fix="correct the path")
    if not (root / "manifest.json").is_file():
        raise KdepError(
            f"the folder {root} has no manifest.json, so it is no folder of pocket data",
            expected="the folder `data` that `kdep-bench data CONFIG --out FOLDER` wrote",
            fix="correct the path",
        )
    expected = read_strict(root / "manifest.json")["fingerprint"]
    listing = root / "checksums.txt"
    if not listing.is_file() or file_hash(listing) != expected:
        raise _damaged(root, listing, "missing or changed", f"SHA-256 {expected[:12]}...")
    listed = {"manifest.json", "checksums.txt"}
    for line in listing.read_text().splitlines():
        digest, rel = line.split("  ", 1)
        path = root / rel
        if not path.is_file():
            raise _damaged(root, path, "missing", "a file listed in checksums.txt")
        if (actual := file_hash(path)) != digest:
            raise _damaged(root, path, f"changed (SHA-256 {actual[:12]}...)", f"{digest[:12]}...")
        listed.add(rel)
    present = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    if extra := sorted(present - listed):
        listed_only = "only the files listed there"
        raise _damaged(root, root / extra[0], "not listed in checksums.txt", listed_only)
    return expected


def _damaged(root: Path, path: Path, fault: str, expected: str) -> KdepError:
    return KdepError(
        f"the data file {path} is {fault}",
        expected=expected,
        fix=how_to_rebuild(root.parent),
    )
