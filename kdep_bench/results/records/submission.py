"""Records that other people submit to a table: copied after validation, and marked.

They are in <table>/submissions/<name>/records, next to a list of their checksums; a file that was
changed, added or removed afterwards is shown as damaged. Their methods are called
"<method> (submitted by <name>)" in every table.
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


def join(findings: Findings, table: Path, name: str, source: Path) -> Path:
    """Copies validated records into `table`; returns the new folder.

    Args:
        findings: of `validate` with this table.
        table: a published results folder.
        name: who submits, as a file name.
        source: the folder that was validated, for its per-sample outputs.

    Raises:
        KdepError: the records have faults, or the table has a submission of this name.
    """
    if findings.faults:
        raise KdepError(
            f"the submission has {len(findings.faults)} faults",
            expected="records without a fault",
            fix="correct them and validate again",
        )
    folder = table / store.SUBMISSIONS / safe_name(name, "name of the submission")
    if folder.exists() or folder.is_symlink():
        raise KdepError(
            f"{folder} exists already",
            fix="give another --name, or move that folder elsewhere",
        )
    store.own_folder(table, store.SUBMISSIONS)
    store.own_folder(table, f"{store.SUBMISSIONS}/{name}")
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
        shutil.rmtree(folder, ignore_errors=True)  # half a submission would be shown as damaged
        raise
    return folder


def _version() -> str:
    try:
        return version("kdep_bench")
    except PackageNotFoundError:
        return ""
