"""The number of loader workers, and how far they read ahead, does not change the training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import DefaultSampler

from kdep_bench import devices
from kdep_bench.errors import KdepError
from kdep_bench.pretrain import loop, stage
from kdep_bench.pretrain.stream import ViewStream
from tests.pretrain.conftest import TEACHER
from tests.pretrain.test_pretrain import (
    EMA_AND_ACCUMULATION,
    KDEP,
    STATEFUL,
    pretrain,
    silent,
    spec,
)


def with_workers(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Sets the number of loader workers."""
    monkeypatch.setattr(stage, "workers_for", lambda *_: count)


def test_a_resumed_run_with_loader_workers_equals_an_uninterrupted_run_without(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_workers(monkeypatch, 0)
    without_workers, state = pretrain(
        tmp_path / "uninterrupted", stages, STATEFUL, budget=EMA_AND_ACCUMULATION
    )
    with_workers(monkeypatch, 2)

    def interrupt(done: int, *_: object) -> None:
        """A progress function that interrupts the run in step 8."""
        if done == 8:  # the last checkpoint is of step 6; four batches are read ahead
            raise KeyboardInterrupt

    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    with pytest.raises(KeyboardInterrupt):
        stage.run(spec(STATEFUL, budget=EMA_AND_ACCUMULATION), stages, interrupted, interrupt)
    resumed_outputs, resumed = pretrain(interrupted, stages, STATEFUL, budget=EMA_AND_ACCUMULATION)
    assert resumed_outputs["curves"] == without_workers["curves"]
    assert resumed_outputs["terms"] == without_workers["terms"]
    assert all(torch.equal(v, resumed[k]) for k, v in state.items())


def test_a_resumed_run_reads_only_the_remaining_batches(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_workers(monkeypatch, 0)
    first_positions: list[int] = []
    read_batch = ViewStream._batch

    def record_and_read(stream: ViewStream, positions: Any) -> Any:
        """Records the first position of the batch."""
        first_positions.append(positions[0])
        return read_batch(stream, positions)

    monkeypatch.setattr(ViewStream, "_batch", record_and_read)

    def interrupt(done: int, *_: object) -> None:
        """A progress function that interrupts the run in step 8."""
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(spec(KDEP), stages, tmp_path, interrupt)
    assert first_positions == [16 * k for k in range(8)]
    first_positions.clear()
    stage.run(spec(KDEP), stages, tmp_path, silent)
    assert first_positions == [16 * k for k in range(6, 12)]  # the checkpoint is of step 6


def test_an_unreadable_image_in_a_loader_worker_raises_kdep_error(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(stages["prepare"], tmp_path / "images")
    (tmp_path / "images/data/pool/images/00/000007.jpg").write_bytes(b"no picture")
    with_workers(monkeypatch, 2)
    (tmp_path / "out").mkdir()
    live_teacher = spec(KDEP, teacher=TEACHER)
    with pytest.raises(KdepError, match=r"000007\.jpg is not an image") as raised:
        stage.run(live_teacher, stages | {"images": tmp_path / "images"}, tmp_path / "out", silent)
    assert "\n" not in str(raised.value)  # without the worker's traceback


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 3), (2, 3)])
def test_positions_are_those_of_mmengine_s_default_sampler(rank, ranks, monkeypatch):
    """A rank is one of several processes. A resumed run skips the positions that were read."""
    for module in ("kdep_bench.pretrain.loop", "mmengine.dataset.sampler"):
        monkeypatch.setattr(f"{module}.get_dist_info", lambda: (rank, ranks))
    data, positions = range(24), loop.Positions(range(24))
    assert list(positions) == list(DefaultSampler(data, shuffle=False))
    assert len(positions) == 24 // ranks
    positions.n_skipped = 5
    assert list(positions) == list(DefaultSampler(data, shuffle=False))[5:]


def test_the_number_of_workers_is_limited_by_cores_and_shared_memory(stages, monkeypatch):
    shared_memory = os.statvfs_result((1 << 20, 1 << 20, 90, 90, 90, 0, 0, 0, 0, 255))  # 90 MiB
    monkeypatch.setattr(os, "statvfs", lambda _: shared_memory)
    for cpus, batch_mib, ranks, workers in (
        (1, 1, 1, 0),
        (3, 1, 1, 2),  # one core is left for the training
        (64, 1, 1, 8),  # the largest number
        (64, 10, 1, 3),  # batches of the workers fill the shared memory
        (64, 10, 2, 1),  # two processes share the memory
        (64, 40, 1, 0),
    ):
        monkeypatch.setenv("KDEP_CPUS", str(cpus))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert devices.loader_workers(batch_mib << 20) == workers
    dataset = dict(type="ViewStream", views=stages["views"], length=64, share=1.0)
    dataset |= dict(share_seed=0, seed=0, cache=stages["cache"])
    monkeypatch.setattr(loop, "compute_device", lambda: torch.device("cpu"))
    assert loop.workers_for(dataset, 16) == 0
    passed_bytes: list[int] = []
    monkeypatch.setattr(loop, "compute_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(loop, "loader_workers", lambda b: passed_bytes.append(b) or 5)
    assert loop.workers_for(dataset, 16) == 5
    # Per sample: pixels, an 8-byte row number, a float16 feature.
    assert passed_bytes == [16 * (3 * 32 * 32 + 8 + 2 * 1280)]
