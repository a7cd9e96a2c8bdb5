"""Trackers: TensorBoard, MLflow and Weights & Biases record the losses of a real pre-training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdep_bench import trackers
from tests.pretrain.conftest import BUDGET
from tests.pretrain.test_pretrain import KDEP, pretrain

LOGGED_TWICE = BUDGET | dict(epochs=34)  # 102 steps, of which mmengine logs the 50th and the 100th


@pytest.fixture(autouse=True)
def without_trackers() -> Iterator[None]:
    """No tracker is set before and after each test."""
    trackers.set_backends([], "")
    yield
    trackers.set_backends([], "")


def test_tensorboard_receives_the_losses_and_the_training_is_unchanged(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plain, state = pretrain(tmp_path / "plain", stages, KDEP, budget=LOGGED_TWICE)
    trackers.set_backends(trackers.resolve(["tensorboard"]), "pretrain-x")
    tracked, tracked_state = pretrain(tmp_path / "tracked", stages, KDEP, budget=LOGGED_TWICE)
    (events,) = (tmp_path / "tracked").rglob("events.out.tfevents.*")
    scalars = accumulator.EventAccumulator(str(events.parent)).Reload().Scalars("loss")
    assert [scalar.step for scalar in scalars] == [50, 100]
    # mmengine averages over 10 steps; the recorded curve has one point per step.
    curve = dict(tracked["curves"]["pretrain_loss"])
    for scalar in scalars:
        window = [curve[step] for step in range(scalar.step - 9, scalar.step + 1)]
        assert scalar.value == pytest.approx(sum(window) / 10, rel=1e-5)
    assert not list((tmp_path / "plain").rglob("events.out.tfevents.*"))
    assert tracked["curves"] == plain["curves"]
    assert all((state[k] == tracked_state[k]).all() for k in state)


def test_mlflow_receives_the_losses_in_a_file_store(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="run: make trackers")
    uri = (tmp_path / "mlruns").as_uri()
    trackers.set_backends(trackers.resolve([dict(type="mlflow", tracking_uri=uri)]), "pretrain-x")
    pretrain(tmp_path / "tracked", stages, KDEP, budget=LOGGED_TWICE)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("kdep_bench").experiment_id])
    assert run.info.run_name == "pretrain-x"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [metric.step for metric in history] == [50, 100]


def test_wandb_receives_the_losses_of_two_runs_of_a_process_without_a_network(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="run: make trackers")
    monkeypatch.setenv("WANDB_SILENT", "true")
    entry = dict(type="wandb", mode="offline", dir=str(tmp_path))
    for run in ("pretrain-x", "pretrain-y"):
        trackers.set_backends(trackers.resolve([entry]), run)
        pretrain(tmp_path / run, stages, KDEP, budget=LOGGED_TWICE)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file, run in zip(files, ("pretrain-x", "pretrain-y"), strict=True):
        records = _wandb_records(file)
        (run_record,) = (r.run for r in records if r.WhichOneof("record_type") == "run")
        assert (run_record.project, run_record.display_name) == ("kdep_bench", run)
        histories = (r.history for r in records if r.WhichOneof("record_type") == "history")
        logged = [
            {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in history.item
            }
            for history in histories
        ]
        assert [row["iter"] for row in logged if "loss" in row] == [50, 100]


def _wandb_records(file: Path) -> list[Any]:
    """The records of an offline run: a log in LevelDB's format after a header of 7 bytes.

    A block has 32 KiB. A chunk has a checksum (4 bytes), a length (2) and a type (1: a complete
    record; 2, 3, 4: its first, a middle, its last part). No chunk begins in the last 6 bytes of a
    block.
    """
    Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record

    data, position, chunks, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if position % 32768 > 32768 - 7:
            position += 32768 - position % 32768
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        chunks += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(chunks))
            chunks = b""
    return records
