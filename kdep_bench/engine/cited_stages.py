"""Results folders whose records cite the stages of a work dir, listed in the work dir.

`<work>/.cited_by/` has one small file per results folder. Pruning (`tools/work_dir.py --gc`) reads
them, so that a results folder elsewhere keeps its stages without being named on the command line.
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
_BYTES = 1 << 16


@dataclass(frozen=True)
class CitingFolder:
    """A results folder that is listed in a work dir.

    Attributes:
        results: its path.
        note: the file in the work dir.
    """

    results: Path
    note: Path

    @property
    def exists(self) -> bool:
        return self.results.is_dir()

    @property
    def removed(self) -> bool:
        """Whether it was removed; False where it may be on a disk that is not mounted."""
        return not self.exists and self.results.parent.is_dir()


def register(work: Path, results: Path) -> None:
    """Notes in `work` that records in `results` cite its stages; does nothing if it is noted.

    Raises:
        KdepError: the note cannot be written, so that pruning would miss these records.
        OSError: the disk is full, which other permissions would not change.
    """
    work, results = work.absolute(), results.absolute()
    # Relative inside the work dir: still right after that is moved.
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
            "`tools/work_dir.py --gc`",
        ) from None


def citing_folders(work: Path) -> list[CitingFolder]:
    """The results folders noted in `work`, sorted by path.

    Raises:
        KdepError: a note cannot be read: cited stages are unknown, so nothing may be pruned.
    """
    folder = work / FOLDER
    out = []
    for note in sorted(folder.glob("*.json")) if is_real_folder(folder) else ():
        content = read_strict(note, _BYTES, follow=False)
        path = content.get("results") if isinstance(content, dict) else None
        if not isinstance(path, str) or not path:
            raise KdepError(
                f"{note} does not contain the path of a results folder",
                expected='{"results": "<path>"}',
                fix="move that file elsewhere, and pass the results folder as --results-dir",
            )
        out.append(CitingFolder(Path(os.path.normpath(work / path)), note))
    return sorted(out, key=lambda r: str(r.results))


def unregister(work: Path, results: Path) -> None:
    """Removes the note about `results`.

    Raises:
        KdepError: there is none.
    """
    notes = [r for r in citing_folders(work) if r.results == results.absolute()]
    if not notes:
        known = [str(r.results) for r in citing_folders(work)]
        raise KdepError(
            f"the results folder {results.absolute()} is not registered in {work}",
            expected=f"one of: {', '.join(known) or 'none'}",
            fix="correct --forget",
        )
    for entry in notes:
        remove(entry.note)
