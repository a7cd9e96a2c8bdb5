"""`runtime.trackers` (TensorBoard, MLflow, Weights & Biases) are checked before any work and are
not part of a stage's id."""

from __future__ import annotations

import importlib.util
import os

import engine_fakes as fakes
import pytest
from test_suite_config import build

from kdep_bench import trackers
from kdep_bench.errors import KdepError
from kdep_bench.suite.plan import build_plan

TENSORBOARD = {"type": "mmengine.TensorboardVisBackend"}


@pytest.fixture(autouse=True)
def without_trackers(monkeypatch):
    """No tracker is set by the environment."""
    monkeypatch.delenv("KDEP_TRACKERS", raising=False)


@pytest.fixture
def all_installed(monkeypatch):
    """Every tracker's package counts as installed."""
    real_find_spec, packages = (
        importlib.util.find_spec,
        {t.package for t in trackers.TRACKERS.values()},
    )
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: object() if name in packages else real_find_spec(name),
    )


def test_trackers_change_no_stage_id_and_are_set_for_training_stages(all_installed):
    plain = build_plan(build(), fakes.PRETEND)
    tracked = build_plan(build(runtime=dict(trackers=["tensorboard"])), fakes.PRETEND)
    assert list(plain.stages) == list(tracked.stages)
    assert not any(s.trackers for s in plain.stages.values())
    for stage in tracked.stages.values():
        assert list(stage.trackers) == (
            [TENSORBOARD] if stage.kind in ("pretrain", "transfer") else []
        )
        assert "tensorboard" not in str(stage.spec).lower()


def test_a_tracker_run_has_the_name_of_the_current_stage(all_installed):
    requested = [
        "tensorboard",
        dict(type="mlflow", tracking_uri="http://host:5000"),
        dict(type="wandb", mode="offline", group="a"),
    ]
    trackers.set_backends(trackers.resolve(requested), "pretrain-x")
    backends = trackers.current_backends()
    assert backends[0] == TENSORBOARD
    assert backends[1]["tracking_uri"] == "http://host:5000"
    assert backends[1]["run_name"] == "pretrain-x"
    assert backends[2]["init_kwargs"] == dict(
        project="kdep_bench", name="pretrain-x", mode="offline", group="a"
    )
    trackers.set_backends([], "pretrain-y")
    assert trackers.current_backends() == []
    assert "KDEP_TRACKERS" not in os.environ


@pytest.mark.parametrize(
    ("tracker_list", "message"),
    [
        (["tensorbord"], "tensorboard"),
        ([dict(type="mlflow", tracking_url="x")], "tracking_uri"),
        ([dict(type="wandb", projekt="x")], "project"),
        ([3], "runtime.trackers contains 3"),
        ([dict(save_dir="x")], "runtime.trackers contains"),
    ],
)
def test_wrong_trackers_raise_kdep_error(all_installed, tracker_list, message):
    with pytest.raises(KdepError) as error:
        build(runtime=dict(trackers=tracker_list))
    assert message in str(error.value)


def test_a_missing_package_raises_kdep_error_before_any_work(monkeypatch):
    real_find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        trackers.importlib.util, "find_spec", lambda n: None if n == "mlflow" else real_find_spec(n)
    )
    with pytest.raises(KdepError, match="mlflow is not installed") as error:
        build(runtime=dict(trackers=["mlflow"]))
    assert "kdep_bench[trackers]" in str(error.value)
