"""`kdep-bench data CONFIG --out FOLDER` writes the same data as the stage `prepare` of a suite."""

from __future__ import annotations

from pathlib import Path

from kdep_bench.cli import prepare_data
from kdep_bench.data.pocket.verify import verify
from kdep_bench.paths import CONFIGS
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.plan import build_plan


def test_the_data_of_a_config_equal_those_of_the_suite_s_prepare_stage(tmp_path: Path):
    assert prepare_data.main([str(CONFIGS / "data" / "smoke.py"), "--out", str(tmp_path)]) == 0
    spec = next(s.spec for s in build_plan(load_suite("smoke")).stages.values()
                if s.kind == "prepare")  # fmt: skip
    stage_folder = tmp_path / "staged"
    from kdep_bench.data.pocket import prepare

    outputs = prepare(spec, {}, stage_folder, lambda *_: None)
    assert verify(tmp_path / "data") == outputs["fingerprint"]


def test_the_error_for_a_path_says_whether_it_exists(tmp_path: Path, capsys):
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "x", "a path that does not exist")):
        assert prepare_data.main([str(path)]) == 2
        assert f"{str(path)!r} is {kind}, not an official data set" in capsys.readouterr().err
