"""JSON files that are refused by `read_json` (a user's files) and `read_strict` (the program's)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json, read_strict, write_json

DEEP = "[" * 100_000 + "]" * 100_000


def write(tmp_path: Path, content: str | bytes) -> Path:
    """Writes a file with this content; returns its path."""
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "message"),
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
def test_an_ambiguous_or_malformed_json_file_raises_kdep_error(tmp_path, read, content, message):
    with pytest.raises(KdepError, match=message) as error:
        read(write(tmp_path, content))
    assert "a.json" in str(error.value)
    assert ("move it to another folder" in error.value.fix) == (read is read_strict)


@pytest.mark.parametrize("content", ["NaN", "[-Infinity]", "1e308", "1e999", '{"a": [-1e101]}',
                                     "[" * 60 + "]" * 60])  # fmt: skip
def test_nan_huge_numbers_and_deep_nesting_are_refused_in_the_program_s_own_files(
    tmp_path, content
):
    path = write(tmp_path, content)
    read_json(path)
    with pytest.raises(KdepError, match=r"number|nested"):
        read_strict(path)


def test_pipes_folders_devices_and_too_large_files_raise_kdep_error_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "is a FIFO; expected a regular file"),
        (tmp_path, "is a folder"),
        (tmp_path / "none", "does not exist"),
        (Path("/dev/zero"), "is a device; expected a regular file"),
        (Path("a\0b"), "null byte"),
    ):
        with pytest.raises(KdepError, match=message):
            read_json(path)
    with pytest.raises(KdepError, match="has 3 bytes; expected at most 2"):
        read_json(write(tmp_path, "[1]"), max_bytes=2)


def test_written_values_are_read_back_and_a_byte_order_mark_is_accepted(tmp_path):
    value = {"a": [1, -(2**63), 2**64 - 1, 0.1, None, True, "é"], "b": {}}
    write_json(tmp_path / "v.json", value)
    assert read_strict(tmp_path / "v.json") == read_json(tmp_path / "v.json") == value
    assert read_json(write(tmp_path, b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}
