"""The record of one probe of one backbone, in results/<suite>/probes/<id>.json.

Probe records are not in records/, the only folder from which means, ranks, differences and claims
are computed, except claims about teachers: these also read the records of the probe `teacher`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from kdep_bench.errors import KdepError, fault_text
from kdep_bench.files import parse_strict, read_bytes, safe_name, write_atomic
from kdep_bench.results.records.record import (
    TEXT_LIMIT,
    Amount,
    Count,
    Data,
    LongText,
    Method,
    Number,
    Part,
    Text,
    _iso_time,
)
from kdep_bench.results.records.store import own_folder

PROBES = "probes"  # folder of the probe records inside a results folder
MAX_RECORD_BYTES = 1 << 20  # largest size of a record file, in bytes
_FIX = "move the file to another folder; running the suite with --report then writes it again"


class ProbeValue(Part):
    """One number; see `kdep_bench.probes.base.Value`.

    `percent`: whether the value is a fraction that tables show x100.
    """

    name: Text
    value: Number
    better: Literal["larger", "smaller", ""] = ""
    percent: bool = False
    chance: Number | None = None


class ProbeRecord(Part):
    """One probe of one exported backbone.

    Attributes:
        status: "ok" has `values`; "failed" and "missing" have none.
        teacher: the teacher of the method; "" if it has none.
        epochs: planned epochs of the pre-training; None for an untrained backbone or published
            weights.
        seed: pre-training seed, or the seed of the random weights of an untrained backbone.
        probe: name of the probe.
        folder: the folder inside the data whose images the probe read; "" for none.
        about: what the probe measures.
        config_hash: hash of the probe's config.
        values: the measured numbers in the order of the tables.
        features_s: wall seconds of the feature extraction, which all probes of a backbone share.
        probe_s: wall seconds of the probe itself.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    id: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT)]
    suite: Text
    status: Literal["ok", "failed", "missing"]
    error: LongText | None = None
    method: Method
    student: Text
    teacher: Text = ""
    data: Data
    epochs: Amount | None = None
    seed: Count
    probe: Text
    folder: Text = ""
    about: Text = ""
    config_hash: Text = ""
    values: list[ProbeValue] = Field(default_factory=list)
    notes: list[LongText] = Field(default_factory=list)
    features_s: Amount | None = None
    probe_s: Amount | None = None
    device: Text | None = None
    stages: dict[Text, Text] = Field(default_factory=dict)
    git: Text = ""
    packages: dict[Text, Text] = Field(default_factory=dict)
    created: Annotated[str, Field(max_length=64), AfterValidator(_iso_time)]

    @model_validator(mode="after")
    def _status_fits(self) -> ProbeRecord:
        if (self.status == "ok") != bool(self.values):
            raise ValueError(f"status {self.status!r} with {len(self.values)} values")
        if len({v.name for v in self.values}) < len(self.values):
            raise ValueError("two values have one name")
        if self.status == "failed" and not self.error:
            raise ValueError("status 'failed' needs an error sentence")
        return self


def make(fields: dict[str, Any], where: str = "given") -> ProbeRecord:
    """A record from JSON values; raises KdepError if they are not valid."""
    try:
        return ProbeRecord.model_validate(fields)
    except ValidationError as e:
        fault = e.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(p)[:60] for p in fault["loc"]) or "the whole"
        raise KdepError(
            f"the probe record {where} is damaged ({place}: {fault_text(fault)[:200]})", fix=_FIX
        ) from None


def load(path: Path) -> ProbeRecord:
    """The record in the file; raises KdepError if it is missing, damaged or has a wrong name."""
    parsed = parse_strict(read_bytes(path, MAX_RECORD_BYTES, follow=False), str(path))
    if not isinstance(parsed, dict) or "schema" not in parsed:
        raise KdepError(f"the probe record {path} has no schema version", fix=_FIX)
    record = make(parsed, str(path))
    if f"{record.id}.json" != path.name:
        raise KdepError(
            f"the file {path} contains the probe record {record.id[:120]!r}",
            expected="a file named after the record's id",
            fix="move it elsewhere if it is a copy, otherwise rename it",
        )
    return record


def dump(record: ProbeRecord) -> str:
    """The record as indented JSON with sorted keys."""
    value = record.model_dump(mode="json", by_alias=True)
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write(results: Path, record: ProbeRecord) -> Path:
    """Writes the record atomically; returns its path."""
    path = own_folder(results, PROBES) / f"{safe_name(record.id, 'probe record id')}.json"
    write_atomic(path, dump(record))
    return path


def paths(results: Path) -> list[Path]:
    """The files with the probe records of a results folder, sorted."""
    if not (results / PROBES).is_dir():
        return []
    folder = own_folder(results, PROBES)
    return sorted(p for p in folder.glob("*.json") if not p.name.startswith("."))


def read(results: Path, suite: str | None = None) -> tuple[list[ProbeRecord], list[str]]:
    """(records of `suite`, or of all suites if None; one sentence per damaged file)."""
    records, damaged = [], []
    for path in paths(results):
        try:
            record = load(path)
        except KdepError as e:
            damaged.append(str(e))
            continue
        if suite is None or record.suite == suite:
            records.append(record)
    return records, damaged
