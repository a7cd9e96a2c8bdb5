"""Submissions: records of other people that are copied into a results folder after validation.

They are in <results folder>/submissions/<name>/records, with a list of checksums. A file that is
changed, added or removed later is shown as damaged. In every table their method is called
"<method> (submitted by <name>)".
"""

from __future__ import annotations

import hashlib
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdep_bench.errors import KdepError
from kdep_bench.files import safe_name, write_atomic, write_json
from kdep_bench.results.records import store
from kdep_bench.results.records.record import dump
from kdep_bench.results.records.validate import Findings
from kdep_bench.safe_files import copy_file


def join(findings: Findings, published: Path, name: str, source: Path) -> Path:
    """Copies validated records into a published results folder; returns the new folder.

    Args:
        findings: the result of `validate` against this results folder.
        published: the published results folder.
        name: name of the submitter, which becomes the name of a folder.
        source: the folder that was validated; its per-sample outputs are copied too.

    Raises:
        KdepError: the records have faults, or the results folder has a submission with this name.
    """
    if findings.faults:
        raise KdepError(
            f"the submitted records have {len(findings.faults)} faults",
            fix="correct the faults that validate lists, and validate again",
        )
    folder = published / store.SUBMISSIONS / safe_name(name, "name of the submission")
    if folder.exists() or folder.is_symlink():
        raise KdepError(
            f"the folder {folder} exists already",
            fix="give another --name, or move that folder elsewhere",
        )
    store.own_folder(published, store.SUBMISSIONS)
    store.own_folder(published, f"{store.SUBMISSIONS}/{name}")
    checksums = {}
    try:
        store.own_folder(folder, store.RECORDS)
        for _, record in findings.records:
            text, file = dump(record), f"{safe_name(record.id, 'record id')}.json"
            write_atomic(folder / store.RECORDS / file, text)
            if record.samples and record.samples.file:
                store.own_folder(folder, str(Path(record.samples.file).parent))
                copy_file(source / record.samples.file, folder / record.samples.file)
            checksums[file] = hashlib.sha256(text.encode()).hexdigest()
        write_json(
            folder / store.MANIFEST,
            {
                "name": name,
                "kdep_bench": _version(),
                "notes": findings.notes,
                "records": checksums,
            },
        )
    except BaseException:
        shutil.rmtree(
            folder, ignore_errors=True
        )  # an incomplete folder would be reported as damaged
        raise
    return folder


def _version() -> str:
    try:
        return version("kdep_bench")
    except PackageNotFoundError:
        return ""
