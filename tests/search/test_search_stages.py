"""A search evaluates proposals by running stages: a failed stage makes the trial fail."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_fakes import FAST, PRETEND

from kdep_bench.errors import KdepError
from kdep_bench.search.config import load_search
from kdep_bench.search.run import Stages, TrialFailed, header_of
from kdep_bench.students.space import Size
from kdep_bench.suite import plan as planning


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    """The evaluation of the smoke search, with fake stages that train nothing."""
    plan_of_fakes = partial(planning.build_plan, kinds=PRETEND)
    monkeypatch.setattr("kdep_bench.suite.plan.build_plan", plan_of_fakes)
    search = load_search("smoke_kdep")
    return Stages(search, header_of(search, tmp_path).settings["data"], tmp_path, FAST)


def test_scores_come_from_the_stages_and_a_wrong_size_or_changed_data_raise_kdep_error(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = stages.search.first_proposal
    exported = Size(7, 9)  # the parameters and FLOPs that the fake export reports
    (stages.work / "break-transfers").touch()
    with pytest.raises(TrialFailed, match=r"transfer-smoke_probe_val.*a broken transfer"):
        stages(proposal, 1.0, exported)
    (stages.work / "break-transfers").unlink()
    score = stages(proposal, 1.0, exported)
    assert score.value == 0.25
    assert set(score.stages) >= {"prepare", "cache", "pretrain", "export", "transfer"}
    with pytest.raises(KdepError, match="computes 8 parameters and 9 FLOPs for a student that has"):
        stages(proposal, 1.0, Size(8, 9))
    begun_stages = (stages.work / "trace.log").read_text().count("begin")
    assert stages(proposal, 1.0, exported) == score
    assert (stages.work / "trace.log").read_text().count("begin") == begun_stages

    def changed(suite: Any, work: Path) -> Any:
        """The data as if a file of it had been replaced."""
        return suite.model_copy(update={"data": suite.data | {"content": {"pool": "x"}}}), []

    monkeypatch.setattr("kdep_bench.suite.data_identity.with_content", changed)
    with pytest.raises(KdepError, match="data 'smoke' changed while the search"):
        stages(proposal, 1.0, exported)
