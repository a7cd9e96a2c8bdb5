"""Weights files that a config names are identified by the hash of their content."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdep_bench.data.content import Catalogue
from kdep_bench.data.given_files import check_and_remove_content, given_paths, with_content
from kdep_bench.errors import KdepError


def test_a_weights_file_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"a")
    config = {"type": "x", "name": "mine", "weights": str(file), "card": {}}
    planned = with_content(config, lambda s: Catalogue(s).scan())
    assert check_and_remove_content(planned) == config
    file.write_bytes(b"b")
    with pytest.raises(KdepError, match=r"w\.pth \(weights\) changed after the run was planned"):
        check_and_remove_content(planned)
    assert check_and_remove_content(with_content(config, lambda s: Catalogue(s).scan())) == config
    assert check_and_remove_content({**planned, "weights": "random"})["weights"] == "random"


def test_a_folder_of_weights_is_identified_by_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = {"type": "x", "weights": str(tmp_path)}
    before = with_content(config, lambda s: Catalogue(s).scan())
    (tmp_path / "config.json").write_text("[]")
    assert with_content(config, lambda s: Catalogue(s).scan()) != before


def test_the_weights_of_a_teacher_inside_another_are_identified(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"a")
    config = {"type": "box", "name": "b", "teacher": {"type": "x", "weights": str(file)}}
    planned = with_content(config, lambda s: Catalogue(s).scan())
    assert set(planned["content"]) == {"teacher.weights"}
    assert check_and_remove_content(planned) == config
    file.write_bytes(b"b")
    assert with_content(config, lambda s: Catalogue(s).scan()) != planned
    with pytest.raises(KdepError, match=r"w\.pth \(teacher\.weights\) changed"):
        check_and_remove_content(planned)


def test_values_that_are_not_paths_are_not_read_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("before", "random"):
        (tmp_path / name).touch()
    assert given_paths({"type": "a/b", "tap": "before", "weights": None, "args": {"a": 1}}) == {}
    assert given_paths({"weights": "/nowhere/w.pth", "model": "facebook/none"}) == {}
    # Weights whose hash the config states are identified by this hash.
    stated = {"weights": str(tmp_path / "before"), "sha256": "0676ba61"}
    assert given_paths(stated) == {}
