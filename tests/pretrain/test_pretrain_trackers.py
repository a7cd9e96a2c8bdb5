"""Losses that the trackers TensorBoard and MLflow record during a real pre-training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kdep_bench import trackers
from tests.pretrain.conftest import BUDGET
from tests.pretrain.test_pretrain import KDEP, pretrain

STEPS = BUDGET | dict(epochs=34)  # 102 steps, of which mmengine logs the 50th and the 100th


@pytest.fixture(autouse=True)
def without_trackers() -> Iterator[None]:
    """No tracker is set before and after each test."""
    trackers.set_backends([], "")
    yield
    trackers.set_backends([], "")


def test_tensorboard_gets_the_losses_and_the_result_is_the_same(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plain, state = pretrain(tmp_path / "plain", stages, KDEP, budget=STEPS)
    trackers.set_backends(trackers.resolve(["tensorboard"]), "pretrain-x")
    tracked, tracked_state = pretrain(tmp_path / "watched", stages, KDEP, budget=STEPS)
    (events,) = (tmp_path / "watched").rglob("events.out.tfevents.*")
    events_read = accumulator.EventAccumulator(str(events.parent)).Reload()
    scalars = events_read.Scalars("loss")
    assert [scalar.step for scalar in scalars] == [50, 100]
    # mmengine averages over 10 steps; the recorded curve has one point per step.
    curve = dict(tracked["curves"]["pretrain_loss"])
    for scalar in scalars:
        window = [curve[step] for step in range(scalar.step - 9, scalar.step + 1)]
        assert scalar.value == pytest.approx(sum(window) / 10, rel=1e-5)
    assert not list((tmp_path / "plain").rglob("events.out.tfevents.*"))
    assert tracked["curves"] == plain["curves"]
    assert all((state[k] == tracked_state[k]).all() for k in state)


def test_mlflow_gets_the_losses_in_a_file_store(stages: dict[str, Path], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="no mlflow here: pip install mlflow-skinny")
    uri = (tmp_path / "mlruns").as_uri()
    trackers.set_backends(trackers.resolve([dict(type="mlflow", tracking_uri=uri)]), "pretrain-x")
    pretrain(tmp_path / "watched", stages, KDEP, budget=STEPS)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("kdep_bench").experiment_id])
    assert run.info.run_name == "pretrain-x"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [50, 100]
