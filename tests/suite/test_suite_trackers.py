"""`runtime.trackers`: named in a suite, checked before any work, no part of a stage's identity."""

from __future__ import annotations

import importlib.util
import os

import engine_fakes as fakes
import pytest
from test_suite_config import build

from kdep_bench import trackers
from kdep_bench.errors import KdepError
from kdep_bench.suite.plan import build_plan

BOARD = {"type": "mmengine.TensorboardVisBackend"}


@pytest.fixture(autouse=True)
def _told_nothing(monkeypatch):
    monkeypatch.delenv("KDEP_TRACKERS", raising=False)


@pytest.fixture
def all_installed(monkeypatch):
    real, packages = importlib.util.find_spec, {t.package for t in trackers.TRACKERS.values()}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name in packages else real(name)
    )


def test_trackers_change_no_stage_id_and_reach_what_has_a_runner(all_installed):
    plain = build_plan(build(), fakes.PRETEND)
    watched = build_plan(build(runtime=dict(trackers=["tensorboard"])), fakes.PRETEND)
    assert list(plain.stages) == list(watched.stages)
    assert not any(s.trackers for s in plain.stages.values())
    for stage in watched.stages.values():
        assert list(stage.trackers) == ([BOARD] if stage.kind in ("pretrain", "transfer") else [])
        assert "ensorboard" not in str(stage.spec)


def test_a_worker_names_only_its_current_stage(all_installed):
    expected = ["tensorboard", dict(type="mlflow", tracking_uri="http://host:5000")]
    trackers.set_backends(trackers.resolve(expected), "pretrain-x")
    backends = trackers.current_backends()
    assert backends[0] == BOARD
    assert backends[1]["tracking_uri"] == "http://host:5000"
    assert backends[1]["run_name"] == "pretrain-x"
    trackers.set_backends([], "pretrain-y")
    assert trackers.current_backends() == []
    assert "KDEP_TRACKERS" not in os.environ


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        (["tensorbord"], "tensorboard"),
        ([dict(type="mlflow", tracking_url="x")], "tracking_uri"),
        ([3], "runtime.trackers contains 3"),
        ([dict(save_dir="x")], "runtime.trackers contains"),
    ],
)
def test_mistakes_raise_kdep_error(all_installed, wanted, word):
    with pytest.raises(KdepError) as e:
        build(runtime=dict(trackers=wanted))
    assert word in str(e.value)


def test_a_missing_package_raises_kdep_error_before_any_work(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda n: None if n == "mlflow" else real(n)
    )
    with pytest.raises(KdepError, match="mlflow is not installed") as e:
        build(runtime=dict(trackers=["mlflow"]))
    assert "kdep_bench[trackers]" in str(e.value)
