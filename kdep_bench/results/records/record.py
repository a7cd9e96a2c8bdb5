"""The record of one transfer run (method, student, task, two seeds): scores, costs, provenance.

One record is one JSON file. Metrics are fractions from 0 to 1; tables show them x100. Times are in
seconds, sizes in bytes, resolutions in pixels. Text fields may contain any characters, up to
`TEXT_LIMIT`: a report shows an unusual or malicious name as text.

Versions of the schema:

1. The first.
2. Adds `teacher.top1`, `teacher.top1_source`, `cost.extra_parameters` and `cost.teacher_forwards`,
   which are unknown in records of schema 1.
3. Renames fields (see `RENAMED_IN_3`). `cost.extra_forwards` also counts the pre-training of a
   teacher that the suite trains for the method (see `Cost.lacks_teacher_passes`).

A file keeps its schema until its stage is collected again with another result. These fields are in
a file only if they are known or apply: `terms` (a loss with several terms), `transfer` (a transfer
method; its fields in TRANSFER_SIZES if it quantises), `samples` (per-sample outputs),
`budget.learning_rate`, `budget.epochs_asked`, `cost.processor_units`, `cost.peak_gpu_bytes` and
`cost.lacks_teacher_passes`.
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

from kdep_bench.errors import KdepError, expected_text, fault_text
from kdep_bench.files import MAX_NUMBER, parse_strict, read_bytes

SCHEMA = 3
TEXT_LIMIT = 20_000
LONG_TEXT_LIMIT = 200_000
MAX_RECORD_BYTES = 64 << 20  # bytes; published records have less than 0.1 MB

# The types of fields, with the values that they allow.
Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
LongText = Annotated[str, Field(max_length=LONG_TEXT_LIMIT)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**64)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Amount = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
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
    """Base class of the record and its parts, which are immutable.

    Unknown fields, NaN, infinity, and a text or a truth value instead of a number are errors.
    """

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, populate_by_name=True, strict=True
    )


class Method(Part):
    """The pre-training method: the part `arm` of a record.

    `reconstruction`: whether it is a re-implementation, as GLOSSARY.md defines it at "method".
    `labels_used`: whether the student's own pre-training used labels, or its initial
    weights were trained with labels. `label_policy` is "labels" also if only the pre-training of a
    teacher that the suite trained used them.
    """

    method: Text
    family: Text = ""
    label_policy: Literal["label-free", "labels", "none"]
    labels_used: bool
    reconstruction: bool = False
    source: Text = ""


class Transfer(Part):
    """The transfer method, with its teacher and costs.

    Attributes:
        pretrained_by: name of the pre-training method. (`arm.method` of the record contains the
            names of both methods.)
        method: name of the transfer method.
        teacher: student and pre-training of the teacher, which was trained on the same task before.
        teacher_value: score of the teacher on the task.
        teacher_labels_used: whether the pre-training of the teacher used labels.
        extra_parameters: number of parameters that were trained or stored with the student and
            removed after the training.
        extra_forwards: number of forward passes in addition to the student's one per training
            image: of the teacher, of moving averages, and additional passes of the student.
        bits: mean number of bits of the quantised weights; None without quantisation.
        megabytes: size of the quantised parts of the network (backbone and neck), 10^6 bytes.
        megabytes_float32: the same with 32 bits.
        bit_operations: multiply-adds * bits of the weights * bits of the input, of these parts for
            one training image.
        bit_operations_float32: the same with 32 bits.
    """

    pretrained_by: Text
    method: Text
    teacher: Text | None = None
    teacher_value: Fraction | None = None
    teacher_labels_used: bool | None = None
    extra_parameters: Count | None = None
    extra_forwards: Count | None = None
    bits: Amount | None = None
    megabytes: Amount | None = None
    megabytes_float32: Amount | None = None
    bit_operations: Amount | None = None
    bit_operations_float32: Amount | None = None


# Fields of `Transfer` that a record has only if the transfer method quantises the network.
TRANSFER_SIZES = (
    "bits",
    "megabytes",
    "megabytes_float32",
    "bit_operations",
    "bit_operations_float32",
)


class Student(Part):
    """The network that is pre-trained; `flops` of one forward pass at its input size."""

    name: Text
    width: Count
    params: Count | None = None
    flops: Amount | None = None


class RecordedTeacher(Part):
    """The frozen teacher; `flops` of one forward pass at its input size.

    `top1`: its ImageNet accuracy as reported by its authors, not measured here. `top1_source`:
    where it was reported.
    """

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
    """Pre-training budget; a value is None if it is not known (published weights).

    `views`: number of views per image. `learning_rate`: the highest of the schedule; the methods of
    a suite may have different ones. `epochs`: the number that was trained. `epochs_asked`: the
    number in the suite, set only if it differs from `epochs`, because only complete batches are
    used.
    """

    images_seen: Count | None = None
    epochs: Amount | None = None
    steps: Count | None = None
    views: Count | None = None
    learning_rate: Amount | None = None
    epochs_asked: Amount | None = None


class Seed(Part):
    """The seed pair: one seed of the pre-training and one of the transfer."""

    pretrain: Int64
    transfer: Int64


class RecordedTask(Part):
    """The downstream task; `chance`: score of predictions that do not depend on the image."""

    name: Text
    family: Text
    version: Count
    split: Text
    metric: Text
    direction: Literal["max", "min"] = "max"
    chance: Fraction | None = None


class Gate(Part):
    """Result of the load gate, which compares the loaded weights with the exported file.

    `coverage` ("weights loaded" in the tables): fraction of the backbone's parameters and buffers,
    by element count, that are equal to the exported file. The lists contain names of tensors.
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
    """Cost of a run. Times are in wall seconds; None if unknown.

    Attributes:
        pretrain_s, cache_s, align_s, transfer_s: each includes the stages of this kind of a teacher
            that the suite trained for the run (an assistant, or the tuned teacher of a transfer
            method). `pretrain_s` also includes the generation of images by a method that makes its
            own. `cache_s` is the time of the teacher cache times the data fraction.
        cache_bytes: size of the teacher caches, times the data fraction; files that are hard links
            to those of another cache count too.
        peak_memory_bytes, peak_gpu_bytes: resident memory, and GPU memory that torch allocated; the
            larger of pre-training and transfer.
        extra_parameters: number of parameters that are trained or stored with the student and
            dropped at export.
        extra_forwards: number of forward passes in pre-training in addition to the student's one
            per image: rows of the teacher cache, the teacher's passes to generate images, live
            teachers, peer networks, moving averages, additional passes of the student; and of all
            networks in the pre-trainings of teachers that the method trains.
        processor_units: matrix and vector instruction sets of the CPU, such as "amx".
        lacks_teacher_passes: whether `extra_forwards` is too low, because it does not count the
            pre-training of a teacher that the method trains; true in such records of schema 2. A
            file has this field only if it is true.
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
    lacks_teacher_passes: bool = False


class Align(Part):
    """Diagnostics of the alignment.

    `explained_variance_ratio`: fraction of the variance of the teacher's feature that the alignment
    keeps. `std_ratio_*`: largest standard deviation of a channel divided by the smallest, of the
    teacher's feature (`before`), the aligned feature (`after_align`) and the training target
    (`after_transform`).
    """

    explained_variance_ratio: Annotated[float, Field(ge=0, le=1 + 1e-6)] | None = None
    std_ratio_before: Amount | None = None
    std_ratio_after_align: Amount | None = None
    std_ratio_after_transform: Amount | None = None


class SampleFile(Part):
    """The per-sample outputs of the transfer; see kdep_bench/results/records/samples.py.

    `file`: its path below the results folder; "" if it is too large and only in the work dir.
    """

    file: Text = ""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count
    images: Count


Point = Annotated[list[Number], Field(min_length=2, max_length=2)]


class Record(Part):
    """One transfer run.

    Attributes:
        status: "ok" has a `value`; "failed" and "missing" have none.
        error: one sentence on why the run failed.
        value: the score, a fraction: the metric of the task.
        metrics: name -> value of every metric that was measured.
        per_class: class -> score.
        gate: how many of the exported weights were loaded.
        align: diagnostics of the alignment.
        curves: name -> points (step, value).
        terms: loss term -> its magnitude divided by the sum of all magnitudes, as a mean over the
            steps of pre-training; only for a loss with several terms.
        pictures: files with sample predictions, below the results folder.
        samples: the file with the predictions for every test image.
        stages: kind of stage -> id of the stage.
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


_FIX = "move the file to another folder; running the suite with --report then writes it again"


def _damaged(where: str, error: ValidationError) -> KdepError:
    """The error that names the first three faults of a validation."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False)[:3]:
        place = ".".join(str(p)[:60] for p in fault["loc"]) or "the whole"
        has_value = fault_text(fault).startswith("Input should be")
        text = f"expected {expected_text(fault)}" if has_value else fault_text(fault)
        faults.append(f"{place}: {text[:200]}")
    n_more = error.error_count() - len(faults)
    text = ", ".join(faults) + (f" and {n_more} more" if n_more > 0 else "")
    return KdepError(
        f"the record {where} is damaged ({text})",
        expected=f"a record of schema {SCHEMA}, or of an older one that this version can read",
        fix=_FIX,
    )


def _from_1(old: dict[str, Any]) -> dict[str, Any]:
    return old  # the fields that schema 2 added stay unknown


#: Part of the record -> {name of a field in schema 1 and 2: its name in schema 3}.
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
            # No version wrote the new name in an old schema, so its meaning is unknown.
            raise ValueError(f"{part}.{early[0]} is a field of schema 3")
        old[part] = {names.get(k, k): v for k, v in fields.items()}
    stages, cost = old.get("stages"), old.get("cost")
    if isinstance(stages, dict) and isinstance(cost, dict):
        # The teacher of a transfer method can be the student itself, with the same pre-training.
        trains_teacher = any(
            role.endswith(".pretrain") and stage_id != stages.get("pretrain")
            for role, stage_id in stages.items()
        )
        if trains_teacher and cost.get("extra_forwards") is not None:
            old["cost"] = cost | {"lacks_teacher_passes": True}
    return old


# Schema -> function that converts JSON values of this schema to the next schema. It raises
# ValueError for values that no version wrote.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1, 2: _from_2}
_OLDER = re.compile(rb'"schema"\s*:\s*(?:%b)\b' % b"|".join(b"%d" % k for k in MIGRATIONS))


def _migrated(value: Any, where: str) -> dict[str, Any] | None:
    """The JSON values of a record with an older schema, converted to `SCHEMA`.

    Returns:
        None if `value` is not a JSON object, or has this schema already.

    Raises:
        KdepError: the schema is newer, or cannot be converted.
    """
    if not isinstance(value, dict) or value.get("schema") == SCHEMA:
        return None
    schema = value.get("schema")
    if type(schema) is not int or schema not in MIGRATIONS:
        newer = type(schema) is int and schema > SCHEMA
        raise KdepError(
            f"the record {where} has "
            + ("no schema version" if schema is None else f"the schema version {str(schema)[:40]}"),
            expected=f"{SCHEMA}, or an older one: {', '.join(map(str, sorted(MIGRATIONS)))}",
            fix="update kdep_bench" if newer else _FIX,
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
    """Whether an object in `raw`, the text from which `r` was read, may contain a key twice.

    It compares the numbers of keys. The result can be True without a double key: for text that
    looks like a key, and for nested extra fields of the gate.
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
        got = f"the record {where} is damaged: {e.problem}"
        raise KdepError(got, fix=_FIX) from None


def parse(raw: bytes | str, where: str = "given") -> Record:
    """The record in a JSON text, converted to `SCHEMA`.

    Args:
        raw: the text.
        where: name of the record in error texts.

    Raises:
        KdepError: the text is not a valid record of this schema or an older one.
    """
    raw = raw.encode(errors="surrogateescape") if isinstance(raw, str) else raw
    if _OLDER.search(raw):  # convert first: the validation below would fail
        older = _migrated(_strict(raw, where), where)
        if older is not None:
            return _converted(older, where)
    try:
        record = Record.model_validate_json(raw)
        if "schema_version" in record.model_fields_set:
            # Of two equal keys pydantic uses the last. The strict reader, which raises an error, is
            # slow, so it reads only texts that may have equal keys.
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
        raise _damaged(where, error)
    return _converted(older, where)


def _converted(migrated: dict[str, Any], where: str) -> Record:
    try:
        return Record.model_validate(migrated)
    except ValidationError as e:
        raise _damaged(where, e) from None


def make(fields: dict[str, Any]) -> Record:
    """A record from JSON values.

    Raises:
        KdepError: a field is unknown or has a wrong value.
    """
    try:
        return Record.model_validate(fields)
    except ValidationError as e:
        raise _damaged(str(fields.get("id", "given"))[:120], e) from None


def load(path: str | Path) -> Record:
    """The record in the file `path`.

    Raises:
        KdepError: the file is missing, damaged, too large, or not a record.
    """
    return parse(read_bytes(path, MAX_RECORD_BYTES, follow=False), str(path))


def dump(record: Record) -> str:
    """The record as indented JSON with sorted keys; equal records have equal texts."""
    import json

    value = record.model_dump(mode="json", by_alias=True)
    if not record.terms:
        del value["terms"]
    if record.transfer is None:
        del value["transfer"]
    elif record.transfer.bits is None:
        for name in TRANSFER_SIZES:
            del value["transfer"][name]
    if record.samples is None:
        del value["samples"]
    if record.cost.peak_gpu_bytes is None:
        del value["cost"]["peak_gpu_bytes"]
    if record.cost.processor_units is None:
        del value["cost"]["processor_units"]
    if not record.cost.lacks_teacher_passes:
        del value["cost"]["lacks_teacher_passes"]
    if record.budget.learning_rate is None:
        del value["budget"]["learning_rate"]
    if record.budget.epochs_asked is None:
        del value["budget"]["epochs_asked"]
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
