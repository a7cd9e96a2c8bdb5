"""Records: the schema, migrations from older versions, and the refusal of damaged records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_records import fields, record

from kdep_bench.errors import KdepError
from kdep_bench.results.records import store
from kdep_bench.results.records.record import (
    MIGRATIONS,
    RENAMED_IN_3,
    SCHEMA,
    dump,
    load,
    make,
    parse,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_record_written_and_read_is_unchanged(tmp_path):
    original = record()
    path = tmp_path / "r.json"
    path.write_text(dump(original))
    assert load(path) == original
    assert json.loads(dump(original))["schema"] == SCHEMA
    assert dump(load(path)) == dump(original)


def test_gpu_memory_is_only_in_records_of_runs_on_a_gpu():
    on_cpu, cost = record(), fields()["cost"]
    assert "peak_gpu_bytes" not in json.loads(dump(on_cpu))["cost"]
    on_gpu = make(fields() | {"cost": cost | {"peak_gpu_bytes": 5}})
    assert json.loads(dump(on_gpu))["cost"]["peak_gpu_bytes"] == 5
    assert parse(dump(on_gpu).encode(), "r.json") == on_gpu


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "surprise"),
        ({"metrics": {"a": float("nan")}}, "finite"),
        ({"metrics": {"a": float("inf")}}, "finite"),
        ({"curves": {"loss": [[0, float("nan")]]}}, "finite"),
        ({"value": float("nan")}, "finite"),
        ({"value": 50.0}, "value"),
        ({"value": None}, "needs a value"),
        ({"status": "failed", "value": None}, "error"),
        ({"status": "missing"}, "cannot have a value"),
        ({"created": "yesterday"}, "ISO 8601"),
        ({"created": "2026-01-01T00:00:00"}, "time zone"),
        ({"suite": "x" * 20_001}, "suite"),
        ({"seed": {"pretrain": 0}}, "transfer"),
    ],
)
def test_a_bad_record_raises_kdep_error(change, message):
    with pytest.raises(KdepError) as error:
        make(fields() | change)
    assert message in str(error.value)
    assert " Fix: " in str(error.value)


@pytest.mark.parametrize(
    ("schema", "fix"), [(SCHEMA + 1, "update"), (0, "--report"), ("1", "--report")]
)
def test_an_unknown_schema_raises_kdep_error(schema, fix):
    raw = json.dumps(fields() | {"schema": schema})
    with pytest.raises(KdepError, match="has the schema version") as error:
        parse(raw, "old.json")
    assert "old.json" in str(error.value)
    assert fix in str(error.value)


def test_a_file_that_names_no_schema_is_refused():
    with pytest.raises(KdepError, match="has no schema"):
        parse(json.dumps(fields()), "bare.json")


def test_every_older_schema_has_a_migration():
    assert sorted(MIGRATIONS) == list(range(1, SCHEMA))


def without_added_fields(value: dict) -> dict:
    """A record's JSON without the fields that schemas 2 and 3 added."""
    out = json.loads(json.dumps(value))
    del out["schema"]
    if out["teacher"]:
        assert out["teacher"].pop("top1", None) is None
        assert out["teacher"].pop("top1_source", "") == ""
    for key in ("extra_parameters", "teacher_forwards"):
        assert out["cost"].pop(key, None) is None
    return out


def with_names_of_schema_2(value: dict) -> dict:
    """A record's JSON with the field names of schema 2 instead of schema 3."""
    out = json.loads(json.dumps(value))
    for part, names in RENAMED_IN_3.items():
        for old, new in names.items():
            if new in (out[part] or {}):
                out[part][old] = out[part].pop(new)
    return out


def test_published_records_of_schema_1_are_read_completely(results):
    """Records of results/pocket were written with schema 1 and have not been rewritten."""
    paths = sorted((ROOT / "results" / "pocket" / "records").glob("*.json"))
    old = [p for p in paths if json.loads(p.read_text())["schema"] == 1]
    for path in old[:12]:
        r = load(path)
        assert r.schema_version == SCHEMA
        now = json.loads(dump(r))
        old_names = without_added_fields(with_names_of_schema_2(now))
        assert old_names == without_added_fields(json.loads(path.read_text()))
        assert load(store.write(new_results_folder(results), r)) == r


def new_results_folder(results) -> Path:
    """A new results folder."""
    return results([], "again")


def test_a_record_of_schema_1_is_migrated(tmp_path):
    new = json.loads(dump(record()))
    old = without_added_fields(with_names_of_schema_2(new)) | {"schema": 1}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(old))
    assert load(path) == record()
    path.write_text(json.dumps(old | {"value": "high"}))
    with pytest.raises(KdepError, match=r"r\.json is damaged .*value"):
        load(path)


def test_a_record_of_schema_2_keeps_every_value_under_its_new_name():
    """The file is as an earlier version wrote it; each field has a different number."""
    new = json.loads(dump(record()))
    new["cost"] |= {"extra_forwards": 123456, "extra_parameters": 7}
    new["align"] = {
        "explained_variance_ratio": 0.25,
        "std_ratio_before": 5.0,
        "std_ratio_after_align": 8.0,
        "std_ratio_after_transform": 2.0,
    }
    old = json.loads(json.dumps(new)) | {"schema": 2}
    del old["cost"]["extra_forwards"]
    old["cost"]["teacher_forwards"] = 123456
    old["align"] = {
        "energy_kept": 0.25,
        "std_ratio_before": 5.0,
        "std_ratio_after_svd": 8.0,
        "std_ratio_after_transform": 2.0,
    }
    migrated = parse(json.dumps(old), "old.json")
    assert json.loads(dump(migrated)) == new
    for part in ("cost", "align"):
        with pytest.raises(KdepError, match=rf"old\.json is damaged .*{part}"):
            parse(json.dumps(old | {part: new[part]}), "old.json")  # no version wrote this
    assert parse(json.dumps(old | {"align": None}), "old.json").align is None


def test_forward_passes_of_schema_2_lack_those_of_a_teacher_s_pre_training():
    old = with_names_of_schema_2(json.loads(dump(record())))
    old["schema"] = 2
    old["cost"]["teacher_forwards"] = 5
    assert not parse(json.dumps(old), "old.json").cost.lacks_teacher_passes
    old["stages"] |= {"pretrain": "pretrain-own", "tuned.pretrain": "pretrain-own"}
    assert not parse(json.dumps(old), "old.json").cost.lacks_teacher_passes  # teacher="self"
    old["stages"]["teacher.pretrain"] = "pretrain-other"
    migrated = parse(json.dumps(old), "old.json")
    assert migrated.cost.lacks_teacher_passes
    assert parse(dump(migrated), "copy.json") == migrated  # also as schema 3, in a submission
    old["cost"]["teacher_forwards"] = None
    assert not parse(json.dumps(old), "old.json").cost.lacks_teacher_passes


def test_reading_a_published_record_changes_names_but_no_value():
    """Checks every 40th record of every published folder."""
    for folder in sorted((ROOT / "results").glob("*/records")):
        for path in sorted(folder.glob("*.json"))[::40]:
            raw = json.loads(path.read_text())
            now = json.loads(dump(load(path)))
            if raw["schema"] < 3:
                now = with_names_of_schema_2(now)
                now["cost"].pop("lacks_teacher_passes", None)  # schema 2 does not state it
            if raw["schema"] == 1:
                raw, now = without_added_fields(raw), without_added_fields(now)
            raw.pop("schema", None)
            now.pop("schema", None)
            assert now == raw, path


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", '{"schema": 1}', "\x00\xff"])
def test_an_error_about_a_damaged_record_names_the_file(raw, tmp_path):
    path = tmp_path / "hurt.json"
    path.write_text(raw, encoding="latin-1")
    with pytest.raises(KdepError, match=r"hurt\.json"):
        load(path)


def test_a_field_named_schema_inside_the_record_is_not_its_schema():
    original = record(gate={"coverage": 1.0, "file": {"schema": 1}}, notes=['"schema": 2'])
    assert parse(dump(original), "r.json") == original


def test_the_result_of_the_load_gate_keeps_unknown_fields():
    """The load gate compares the loaded weights with the exported file."""
    original = record(gate={"coverage": 1.0, "matched": 3, "waived": ["head.*"]})
    assert json.loads(dump(original))["gate"]["waived"] == ["head.*"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # Wrong types, numbers out of range, duplicate keys, wrong schemas, and deep nesting.
        ('"value": 0.5', '"value": "0.99"'),
        ('"value": 0.5', '"value": true'),
        ('"value": 0.5', '"value": 1e308'),
        ('"value": 0.5', '"value": NaN'),
        ('"value": 0.5', '"value": 0.5, "value": 0.9'),
        ('"value": 0.5', '"value": 0.5, "value" : 0.9'),
        ('"value": 0.5', '"value": 0.5, "value"\n\n: 0.9'),
        ('"value": 0.5', '"value": 0.5, "val\\u0075e": 0.9'),
        ('"coverage": 1.0', '"coverage": "1.0"'),
        ('"coverage": 1.0', '"coverage": 1.0, "coverage": 0.5'),
        ('"coverage": 1.0', '"coverage": 1.0, "x": {"a": 1, "a": 2}'),
        ('"transfer": 0', '"transfer": false'),
        ('"transfer": 0', '"transfer": 0.0'),
        ('"transfer": 0', '"transfer": 1' + "0" * 30),
        ('"metrics": {', '"metrics": {"a": -1e101, '),
        ('"metrics": {', '"metrics": {"a": 1, "a": 2, '),
        ('"per_class": {', '"per_class": {"a": 1.5, '),
        ('"labels_used": false', '"labels_used": 0'),
        ('"schema": 3', '"schema": "2"'),
        ('"schema": 3', '"schema": true'),
        ('"schema": 3', '"schema": 1, "schema": 3'),
        ('"value": 0.5', '"value": ' + "[" * 5000 + "]" * 5000),
        ('"gate": {', '"gate": {"x": ' + "[" * 5000 + "]" * 5000 + ", "),
    ],
)
def test_a_record_with_invalid_json_values_is_damaged(tmp_path, old, new):
    text = dump(record(gate={"coverage": 1.0}))
    assert text.count(old) >= 1
    path = tmp_path / "r.json"
    path.write_text(text.replace(old, new))
    with pytest.raises(KdepError, match=r"r\.json (is damaged|has the schema)"):
        load(path)


def test_text_that_looks_like_a_key_is_not_a_duplicate_key(tmp_path):
    original = record(
        gate={"coverage": 1.0, "more": {"a": [{"b": 1}]}}, notes=['say "a": 1', 'x" : ']
    )
    (tmp_path / "r.json").write_text(dump(original))
    assert load(tmp_path / "r.json") == original


def test_the_first_three_faults_of_a_record_are_named_and_the_others_counted():
    change = {"value": "a", "suite": 1, "created": 2, "git": 3, "config_hash": 4}
    with pytest.raises(KdepError) as error:
        make(fields() | change)
    assert str(error.value).count(": expected ") == 3
    assert "and 2 more" in str(error.value)
