"""The record of one transfer run (method, student, task, two seeds): scores, costs, provenance.

One record is one JSON file. Metrics are fractions (0..1); tables show them x100. Times are
seconds, sizes bytes, resolutions pixels. Text fields take any characters and lengths up to
`TEXT_LIMIT`, because a malicious name must be *shown*, as text, instead of breaking the report.

Schemas. 1: the first. 2: adds the teacher's reported accuracy, `teacher.top1` and `top1_source`,
and `cost.extra_parameters` and `teacher_forwards`; unknown in a record of schema 1. 3: renames
fields (`RENAMED_IN_3`) and changes no value. A file keeps the schema it was written in until its
stage is collected again with another result. In the file only where known: `terms` (of a loss of
several terms), `transfer` (where a method acted at transfer), `budget.learning_rate`,
`cost.processor_units`, and `samples` (per-sample outputs; stages that ended before these were kept
have none).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from kdep_bench.errors import KdepError
from kdep_bench.files import LARGEST_NUMBER, parse_strict, read_bytes

SCHEMA = 3
TEXT_LIMIT = 20_000
LONG_TEXT_LIMIT = 200_000
LARGEST_RECORD = 64 << 20  # bytes; the largest published one has 0.1 MB

Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
LongText = Annotated[str, Field(max_length=LONG_TEXT_LIMIT)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Amount = Annotated[float, Field(ge=0, le=LARGEST_NUMBER)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _iso_time(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("should be an ISO 8601 time") from None
    if moment.tzinfo is None:
        raise ValueError("should be an ISO 8601 time with a time zone, such as ...T12:00:00+00:00")
    return text


class Part(BaseModel):
    """Base of the record and its parts: no unknown field, no NaN, no infinity, immutable.

    Strict: text that looks like a number, and true or false, are no numbers.
    """

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, populate_by_name=True, strict=True
    )


class Method(Part):
    """The pre-training method: the part `arm` of a record.

    `reconstruction`: the formula is re-implemented from the paper's text, not from the authors'
    code. `labels_used`: by the pre-training itself or by what made its teacher.
    """

    method: Text
    family: Text = ""
    label_policy: Literal["label-free", "labels", "none"]
    labels_used: bool
    reconstruction: bool = False
    source: Text = ""


class Transfer(Part):
    """A method that acted at transfer, and the teacher and resources that it used.

    `pretrained_by` and `method` name the pre-training and the transfer method; `method` of the
    record's `arm` contains both. `teacher` is the student and pre-training of the tuned teacher,
    `teacher_value` its own score on the task, `teacher_labels_used` whether its pre-training used
    labels. `extra_parameters` were trained or stored with the model and removed after the
    training; `extra_forwards` counts the images that the teacher read in it.
    """

    pretrained_by: Text
    method: Text
    teacher: Text | None = None
    teacher_value: Fraction | None = None
    teacher_labels_used: bool | None = None
    extra_parameters: Count | None = None
    extra_forwards: Count | None = None


class Student(Part):
    """The network that is pre-trained and transferred; flops of one forward pass at its input."""

    name: Text
    width: Count
    params: Count | None = None
    flops: Amount | None = None


class RecordedTeacher(Part):
    """The frozen teacher; flops of one forward pass at its input. `top1` is its ImageNet accuracy
    as its authors reported it (never measured here), `top1_source` the place of the report."""

    name: Text
    checksum: Text = ""
    width: Count | None = None
    flops: Amount | None = None
    top1: Fraction | None = None
    top1_source: Text = ""


class Data(Part):
    """The data set, and the fraction `share` of its unlabelled pool used in pre-training.

    `images`: number of images in that fraction.
    """

    name: Text
    fingerprint: Text
    source: Text = ""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    images: Count | None = None


class RecordedBudget(Part):
    """Pre-training budget; None where it is not known (weights that somebody else trained).

    `learning_rate` is the highest of the schedule: the rates of a suite's methods may differ.
    `epochs` were done; `epochs_asked` is set only where complete batches made another number.
    """

    images_seen: Count | None = None
    epochs: Amount | None = None
    steps: Count | None = None
    views: Count | None = None
    learning_rate: Amount | None = None
    epochs_asked: Amount | None = None


class Seed(Part):
    """The two seeds that make a pair."""

    pretrain: Whole
    transfer: Whole


class RecordedTask(Part):
    """The downstream task; chance is the score of an uninformed guess, as a fraction."""

    name: Text
    family: Text
    version: Count
    split: Text
    metric: Text
    direction: Literal["max", "min"] = "max"
    chance: Fraction | None = None


class Gate(Part):
    """Result of the load gate.

    `coverage` ("weights loaded" in the tables): fraction of the backbone's parameters and buffers,
    by element count, that are equal to the exported file.
    """

    model_config = ConfigDict(
        extra="allow", allow_inf_nan=False, frozen=True, populate_by_name=True, strict=True
    )
    coverage: Fraction
    matched: Count | None = None
    missing: list[Text] = []
    unexpected: list[Text] = []
    mismatched: list[Any] = []


class Cost(Part):
    """Cost of a run. Times are wall seconds; `cache_s` is charged by data fraction.

    Pre-training and cache include those of the method that trained the teacher. Peaks: the larger
    of pre-training and transfer, of resident memory and of GPU memory allocated by torch.
    `extra_parameters` are trained or kept next to the student and dropped at export;
    `extra_forwards` counts the forward passes of all other networks in pre-training: cache rows of
    the data fraction, live teachers, peers, moving averages.
    """

    pretrain_s: Amount | None = None
    cache_s: Amount | None = None
    align_s: Amount | None = None
    transfer_s: Amount | None = None
    images_per_s: Amount | None = None
    cache_bytes: Count | None = None
    peak_memory_bytes: Count | None = None
    peak_gpu_bytes: Count | None = None
    extra_parameters: Count | None = None
    extra_forwards: Count | None = None
    device: Text | None = None
    processor_units: list[Text] | None = None
    threads: Count | None = None


class Align(Part):
    """Diagnostics of the alignment, whichever it is.

    `explained_variance_ratio`: fraction of the teacher feature's variance inside the span that the
    alignment keeps. Std ratio: largest over smallest channel standard deviation, of the teacher's
    feature (`before`), the aligned feature (`after_align`), and the target (`after_transform`).
    """

    explained_variance_ratio: Annotated[float, Field(ge=0, le=1 + 1e-6)] | None = None
    std_ratio_before: Amount | None = None
    std_ratio_after_align: Amount | None = None
    std_ratio_after_transform: Amount | None = None


class SampleFile(Part):
    """The per-sample outputs of the transfer; see kdep_bench/results/records/samples.py.

    `file`: its path below the results folder, "" where it is too large and stayed in the work dir.
    """

    file: Text = ""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count
    images: Count


Point = Annotated[list[Number], Field(min_length=2, max_length=2)]


class Record(Part):
    """One transfer run. `status` 'ok' has a value; 'failed' and 'missing' have none.

    `error`: one sentence on why the run failed. `terms`: of a pre-training loss of several
    terms, the mean over all steps of each one's magnitude over the sum of all.
    """

    schema_version: Literal[3] = Field(default=SCHEMA, alias="schema")
    id: Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT)]
    suite: Text
    status: Literal["ok", "failed", "missing"]
    error: LongText | None = None
    arm: Method
    student: Student
    teacher: RecordedTeacher | None = None
    transfer: Transfer | None = None
    data: Data
    budget: RecordedBudget = RecordedBudget()
    seed: Seed
    task: RecordedTask
    value: Fraction | None = None
    metrics: dict[Text, Number] = {}
    per_class: dict[Text, Fraction | None] = {}
    gate: Gate | None = None
    cost: Cost = Cost()
    align: Align | None = None
    curves: dict[Text, list[Point]] = {}
    terms: dict[Text, Fraction] = {}
    pictures: list[Text] = []
    samples: SampleFile | None = None
    notes: list[LongText] = []
    stages: dict[Text, Text] = {}
    config_hash: Text = ""
    git: Text = ""
    packages: dict[Text, Text] = {}
    created: Annotated[str, Field(max_length=64), AfterValidator(_iso_time)]

    @model_validator(mode="after")
    def _status_fits(self) -> Record:
        if self.status == "ok" and self.value is None:
            raise ValueError("status 'ok' needs a value")
        if self.status != "ok" and self.value is not None:
            raise ValueError(f"status {self.status!r} cannot have a value")
        if self.status == "failed" and not self.error:
            raise ValueError("status 'failed' needs an error sentence")
        return self


_FIX = "move the file to another folder and run the suite with --report, which writes it again"


def _refusal(where: str, error: ValidationError) -> KdepError:
    """One sentence of the first faults pydantic names."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False)[:3]:
        place = ".".join(str(p)[:60] for p in fault["loc"]) or "the whole"
        faults.append(f"{place}: {fault['msg'][:200]}")
    n_more = error.error_count() - len(faults)
    text = ", ".join(faults) + (f" and {n_more} more" if n_more > 0 else "")
    return KdepError(
        f"the record {where} is damaged ({text})",
        expected=f"a record of schema {SCHEMA}, or of an older one that this version can read",
        fix=_FIX,
    )


def _from_1(old: dict[str, Any]) -> dict[str, Any]:
    return old  # the fields that schema 2 added are unknown in an old record


#: part of the record -> {field up to schema 2: the same field since schema 3}.
RENAMED_IN_3 = {
    "cost": {"teacher_forwards": "extra_forwards"},
    "align": {
        "energy_kept": "explained_variance_ratio",
        "std_ratio_after_svd": "std_ratio_after_align",
    },
}


def _from_2(old: dict[str, Any]) -> dict[str, Any]:
    for part, names in RENAMED_IN_3.items():
        fields = old.get(part)
        if not isinstance(fields, dict):
            continue
        if early := sorted(set(names.values()) & set(fields)):
            # Under its new name in an old file it was written by something else: not guessed at.
            raise ValueError(f"{part}.{early[0]} is a field of schema 3")
        old[part] = {names.get(k, k): v for k, v in fields.items()}
    return old


# Schema -> function from plain JSON values of that schema to those of the next; ValueError for
# values that no version wrote.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
_OLDER = re.compile(rb'"schema"\s*:\s*(?:%b)\b' % b"|".join(b"%d" % k for k in MIGRATIONS))


def _migrated(value: Any, where: str) -> dict[str, Any] | None:
    """The plain values of a record of an older schema as one of `SCHEMA`; None where `value` is no
    JSON object or is of this schema already.

    Raises:
        KdepError: a schema that is newer, or that no migration starts from.
    """
    if not isinstance(value, dict) or value.get("schema") == SCHEMA:
        return None
    schema = value.get("schema")
    if type(schema) is not int or schema not in MIGRATIONS:
        newer = type(schema) is int and schema > SCHEMA
        raise KdepError(
            f"the record {where} has the schema version {str(schema)[:40]}",
            expected=f"schema {SCHEMA}, or one that can be converted to it: {sorted(MIGRATIONS)}",
            fix="update kdep_bench" if newer else "rerun its stage",
        )
    while schema < SCHEMA:
        try:
            value = MIGRATIONS[schema](value)
        except ValueError as e:
            problem = f"the record {where} is damaged ({e})"
            raise KdepError(problem, fix=_FIX) from None
        schema += 1
        value["schema"] = schema
    return value


def _may_double(raw: bytes, r: Record) -> bool:
    """Whether a key may occur twice in an object of `raw`, the text that `r` was read from.

    Counts the keys of both; text that only looks like a key, and a gate's nested extras, make it
    True as well.
    """
    keys = len(r.__pydantic_fields_set__) + len(r.metrics) + len(r.per_class) + len(r.curves)
    keys += len(r.terms) + len(r.stages) + len(r.packages)
    for part in (r.arm, r.student, r.teacher, r.data, r.budget, r.seed, r.task, r.gate, r.cost,
                 r.align, r.transfer, r.samples):  # fmt: skip
        if part is not None:
            keys += len(part.__pydantic_fields_set__)
    return raw.translate(None, b" \n\t\r").count(b'":') != keys


def _strict(raw: bytes, where: str) -> Any:
    try:
        return parse_strict(raw, where)
    except KdepError as e:
        got = f"the record {where} is damaged ({e.problem})"
        raise KdepError(got, fix=_FIX) from None


def parse(raw: bytes | str, where: str = "given") -> Record:
    """The record in JSON text, converted to `SCHEMA`.

    Args:
        raw: the text.
        where: name of the record in errors.

    Raises:
        KdepError: no valid record of this schema or of an older one.
    """
    raw = raw.encode(errors="surrogateescape") if isinstance(raw, str) else raw
    if _OLDER.search(raw):  # spares a validation that an older schema would fail
        older = _migrated(_strict(raw, where), where)
        if older is not None:
            return _converted(older, where)
    try:
        record = Record.model_validate_json(raw)
        if "schema_version" in record.model_fields_set:
            # pydantic's reader takes the last of two equal keys. Only a text that may hold such a
            # pair is read a second time: 100,000 records are to be read in seconds.
            if _may_double(raw, record):
                _strict(raw, where)
            return record
    except ValidationError as e:
        error = e
    else:
        raise KdepError(
            f"the record {where} has no schema version",
            expected=f"schema {SCHEMA}",
            fix="rerun its stage",
        )
    older = _migrated(_strict(raw, where), where)
    if older is None:
        raise _refusal(where, error)
    return _converted(older, where)


def _converted(migrated: dict[str, Any], where: str) -> Record:
    try:
        return Record.model_validate(migrated)
    except ValidationError as e:
        raise _refusal(where, e) from None


def make(fields: dict[str, Any]) -> Record:
    """A record from plain values, as `engine.collect` has them.

    Raises:
        KdepError: an unknown field or a wrong value.
    """
    try:
        return Record.model_validate(fields)
    except ValidationError as e:
        raise _refusal(str(fields.get("id", "given"))[:120], e) from None


def load(path: str | Path) -> Record:
    """The record in the file `path`.

    Raises:
        KdepError: a missing, damaged or too large file, or one that is no record.
    """
    return parse(read_bytes(path, LARGEST_RECORD, follow=False), str(path))


def dump(record: Record) -> str:
    """Strict, indented JSON with sorted keys: equal records give equal text."""
    import json

    value = record.model_dump(mode="json", by_alias=True)
    if not record.terms:
        del value["terms"]
    if record.transfer is None:
        del value["transfer"]
    if record.samples is None:
        del value["samples"]
    if record.cost.peak_gpu_bytes is None:
        del value["cost"]["peak_gpu_bytes"]
    if record.cost.processor_units is None:
        del value["cost"]["processor_units"]
    if record.budget.learning_rate is None:
        del value["budget"]["learning_rate"]
    if record.budget.epochs_asked is None:
        del value["budget"]["epochs_asked"]
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
