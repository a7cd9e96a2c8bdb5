"""The work dir's list of the results folders that use its stages.

`<work>/.cited_by/` has one small file per results folder. Pruning (`kdep-bench clean`) reads
these files and keeps the stages that the results cite, also if the results folder is not named on
the command line.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, text_hash, write_json
from kdep_bench.safe_files import is_real_folder, real_folder, remove

FOLDER = ".cited_by"
_MAX_BYTES = 1 << 16  # largest file in FOLDER that is read


@dataclass(frozen=True)
class CitingFolder:
    """A results folder that is listed in a work dir.

    Attributes:
        results: path of the results folder.
        note: file in the work dir that lists it.
    """

    results: Path
    note: Path

    @property
    def exists(self) -> bool:
        return self.results.is_dir()

    @property
    def is_removed(self) -> bool:
        """Whether the folder is missing but its parent exists.

        If the parent is missing as well, the folder may be on a disk that is not mounted.
        """
        return not self.exists and self.results.parent.is_dir()


def register(work: Path, results: Path) -> None:
    """Adds the folder `results` to the list in `work`; does nothing if it is listed.

    Raises:
        KdepError: the file cannot be written, so pruning would not see these records.
        OSError: the disk is full.
    """
    work, results = work.absolute(), results.absolute()
    # Inside the work dir the path is relative, so that it stays right if the work dir is moved.
    path = os.path.relpath(results, work) if results.is_relative_to(work) else str(results)
    note = work / FOLDER / f"{text_hash(path)}.json"
    try:
        if not os.path.lexists(note):
            real_folder(note.parent)
            write_json(note, {"results": path})
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise KdepError(
            f"the work dir {work} cannot store that {results} uses its stages ({e.strerror})",
            fix=f"make {note.parent} writable; until then pass --results-dir {results} to "
            "`kdep-bench clean`",
        ) from None


def citing_folders(work: Path) -> list[CitingFolder]:
    """The results folders listed in `work`, sorted by path.

    Raises:
        KdepError: a file of the list cannot be read. Some cited stages are then unknown, so nothing
            may be pruned.
    """
    folder = work / FOLDER
    out = []
    for note in sorted(folder.glob("*.json")) if is_real_folder(folder) else ():
        content = read_strict(note, _MAX_BYTES, follow=False)
        path = content.get("results") if isinstance(content, dict) else None
        if not isinstance(path, str) or not path:
            raise KdepError(
                f"{note} does not contain the path of a results folder",
                expected='{"results": "<path>"}',
                fix="move this file elsewhere, and pass the results folder as --results-dir",
            )
        out.append(CitingFolder(Path(os.path.normpath(work / path)), note))
    return sorted(out, key=lambda entry: str(entry.results))


def unregister(work: Path, results: Path) -> None:
    """Removes the folder `results` from the list in `work`.

    Raises:
        KdepError: the folder is not listed.
    """
    listed = citing_folders(work)
    matches = [entry for entry in listed if entry.results == results.absolute()]
    if not matches:
        paths = [str(entry.results) for entry in listed]
        raise KdepError(
            f"the results folder {results.absolute()} is not registered in {work}",
            expected=f"one of: {', '.join(paths)}" if paths else None,
            fix="correct --forget" if paths else "leave out --forget: no folder is registered",
        )
    for entry in matches:
        remove(entry.note)
