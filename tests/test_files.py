"""JSON files: what is refused, in what is ours and in what a person wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, read_strict, write_json

DEEP = "[" * 100_000 + "]" * 100_000


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"value": 0.1, "value": 0.9}', "'value' occurs twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' occurs twice"),
        (DEEP, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        (b"\xff\xfe{}", "not text in UTF-8"),
        ("", "not valid JSON"),
        ("{}{}", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("read", [read_json, read_strict])
def test_no_value_is_taken_from_a_file_that_can_be_read_two_ways(tmp_path, read, content, words):
    with pytest.raises(KdepError, match=words) as e:
        read(write(tmp_path, content))
    assert "a.json" in str(e.value)
    assert ("move it to another folder" in e.value.fix) == (read is read_strict)


@pytest.mark.parametrize("content", ["NaN", "[-Infinity]", "1e308", "1e999", '{"a": [-1e101]}',
                                     "[" * 60 + "]" * 60])  # fmt: skip
def test_a_number_that_no_sum_holds_is_refused_in_what_we_wrote(tmp_path, content):
    path = write(tmp_path, content)
    read_json(path)
    with pytest.raises(KdepError, match=r"number|nested"):
        read_strict(path)


def test_a_pipe_a_folder_and_a_too_large_file_raise_kdep_error_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "pipe", "is a FIFO; expected a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "does not exist"),
        (Path("/dev/zero"), "is a device; expected a regular file"),
        (Path("a\0b"), "null byte"),
    ):
        with pytest.raises(KdepError, match=words):
            read_json(path)
    with pytest.raises(KdepError, match="has 3 bytes; expected at most 2"):
        read_json(write(tmp_path, "[1]"), max_bytes=2)


def test_what_is_written_is_read_and_a_byte_order_mark_is_no_fault(tmp_path):
    value = {"a": [1, -(2**63), 2**64 - 1, 0.1, None, True, "é"], "b": {}}
    write_json(tmp_path / "v.json", value)
    assert read_strict(tmp_path / "v.json") == read_json(tmp_path / "v.json") == value
    assert read_json(write(tmp_path, b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}
