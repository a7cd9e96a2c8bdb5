"""The error for a file that is not a checkpoint says what it is; no code in a file is run."""

from __future__ import annotations

import argparse
import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kdep_bench.checkpoints import read_checkpoint, unusable_tensors
from kdep_bench.errors import KdepError

STATE = {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.zeros(4)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n"


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip archive of these files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return out.getvalue()


def tarred() -> bytes:
    """A tar archive of one empty file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        t.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


def saved(value: Any, zip_format: bool = True) -> bytes:
    """The bytes that torch.save writes, in its new (zip) or its old format."""
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=zip_format)
    return out.getvalue()


def refusal(path: Path, content: bytes) -> str:
    """The error that this content causes, checked for the parts that every error has."""
    path.write_bytes(content)
    with pytest.raises(KdepError) as error:
        read_checkpoint(path)
    text = str(error.value)
    assert path.name in text
    assert "weights_only" not in text
    assert "\x1b" not in text
    assert ". Fix: " in text
    return text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "is a git-lfs pointer"),
        (b"<!DOCTYPE html><html><title>Sign in</title></html>", "is a web page"),
        (b"\xef\xbb\xbf \n<html>", "is a web page"),
        (b'{"error": "not found"}', "is a JSON file"),
        (b"Not Found", "is a text file"),
        (gzip.compress(b"x", mtime=0), "is a gzip archive"),
        (tarred(), "is a tar archive"),
        (zipped({"model/a.txt": b"x", "b.pth": b""}), r"is a zip archive of other files \(model"),
        (zipped({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/x.py": b""}), "TorchScript"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "is an HDF5 file"),
        (b"\x93NUMPY\x01\0" + b"\0" * 99, "is a NumPy array"),
        (b"\x00\x01\x02\x03" * 99, "is of an unknown format"),
        (b"", "is empty"),
        (saved(STATE)[:-100], "is damaged or truncated"),
        (saved(STATE, False)[:-100], "cannot be read|not a file of plain weights"),
    ],
)
def test_the_error_says_what_the_file_is_instead_of_a_checkpoint(tmp_path, content, message):
    import re

    for name in ("w.pth", "w.safetensors", "w"):
        assert re.search(message, refusal(tmp_path / name, content))


class RunsCode:
    """An object whose unpickling would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["KDEP_TEST_MADE"],)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"w": RunsCode()}, "mkdir"),
        ({"args": argparse.Namespace(lr=1), **STATE}, "argparse.Namespace"),
        ({"epoch": np.float64(1), **STATE}, "numpy"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"p": Path("a"), **STATE}, "pathlib.PosixPath"),
    ],
)
def test_a_pickled_class_is_named_and_never_run(tmp_path, monkeypatch, value, name):
    monkeypatch.setenv("KDEP_TEST_MADE", str(tmp_path / "made"))
    for content in (saved(value), saved(value, False), pickle.dumps(value, protocol=4)):
        text = refusal(tmp_path / "w.pth", content)
        assert "contains more than plain weights: it needs" in text
        assert name in text
    assert not (tmp_path / "made").exists()


def test_the_format_of_a_checkpoint_is_recognised_with_any_suffix(tmp_path):
    save_file(STATE, tmp_path / "renamed.pth")
    torch.save(STATE, tmp_path / "renamed.safetensors")
    torch.save(STATE, tmp_path / "old", _use_new_zipfile_serialization=False)
    for name in ("renamed.pth", "renamed.safetensors", "old"):
        read = read_checkpoint(tmp_path / name)
        assert {k: v.tolist() for k, v in read.items()} == {k: v.tolist() for k, v in STATE.items()}


def test_folders_pipes_and_missing_files_raise_kdep_error_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").touch()
    for name, message in (
        ("hf", r"is a folder.*give the path of the file in it: model\.safetensors"),
        ("pipe", "is a pipe or device"),
        ("none", "does not exist"),
        ("a\0b", "does not exist|cannot be read"),
        ("n" * 300, "does not exist|cannot be read"),
    ):
        with pytest.raises(KdepError, match=message):
            read_checkpoint(tmp_path / name)


def test_a_tensor_larger_than_its_file_is_reported_without_reading_its_values(tmp_path):
    huge = torch.ones(1).expand(10**13)
    # An expanded tensor that is not larger than its file is accepted.
    ids = torch.arange(50).expand((1, -1))
    torch.save({"w": huge, "ids": ids}, tmp_path / "w.pth")
    read = read_checkpoint(tmp_path / "w.pth")
    assert list(unusable_tensors(read)) == ["w"]


def test_tensors_that_cannot_be_weights_are_named():
    named = unusable_tensors(
        {
            "nan": torch.tensor([1.0, torch.nan]),
            "inf": torch.tensor([torch.inf], dtype=torch.float16),
            "complex": torch.tensor([complex(0, torch.inf)]),
            "float8": torch.full((2,), torch.nan).to(torch.float8_e4m3fn),
            "sparse": torch.eye(2).to_sparse(),
            "meta": torch.ones(2, device="meta"),
            "empty": torch.ones(0, 3),
            "whole": torch.arange(3),
            "good": torch.ones(3),
        }
    )
    assert set(named) == {"nan", "inf", "complex", "float8", "sparse", "meta"}
