"""The arguments of first_use.py; `make first-use` runs the script itself."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from first_use import empty_folder


def test_a_folder_with_files_is_refused_and_an_empty_or_new_one_is_used(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    for name in ("used", "used/file"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not an empty folder"):
            empty_folder(str(tmp_path / name))
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "new/inner"):
        assert empty_folder(str(tmp_path / name)) == tmp_path / name
