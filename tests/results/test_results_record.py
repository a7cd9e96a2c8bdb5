from __future__ import annotations

import json

import pytest
from make_records import fields, record

from kdep_bench.errors import KdepError
from kdep_bench.results.record import dump, load, make, parse


def test_a_record_survives_the_file_unchanged(tmp_path):
    r = record()
    path = tmp_path / "r.json"
    path.write_text(dump(r))
    assert load(path) == r
    assert json.loads(dump(r))["schema"] == 1
    assert dump(load(path)) == dump(r)


@pytest.mark.parametrize(
    ("change", "word"),
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
def test_a_bad_record_is_refused_with_a_sentence(change, word):
    with pytest.raises(KdepError) as e:
        make(fields() | change)
    assert word in str(e.value)
    assert "to mend it" in str(e.value)


def test_another_schema_is_refused_with_a_sentence():
    raw = json.dumps(fields() | {"schema": 2})
    with pytest.raises(KdepError, match="another schema version"):
        parse(raw, "old.json")
    with pytest.raises(KdepError, match=r"old\.json"):
        parse(raw, "old.json")


@pytest.mark.parametrize("raw", ["", "{", "[]", "null", '{"schema": 1}', "\x00\xff"])
def test_damage_names_the_file(raw, tmp_path):
    path = tmp_path / "hurt.json"
    path.write_text(raw, encoding="latin-1")
    with pytest.raises(KdepError, match=r"hurt\.json"):
        load(path)


def test_the_gate_may_say_more_than_we_know():
    r = record(gate={"coverage": 1.0, "matched": 3, "waived": ["head.*"]})
    assert json.loads(dump(r))["gate"]["waived"] == ["head.*"]
