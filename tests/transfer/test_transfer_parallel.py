"""A transfer as two gloo processes: the same data, steps and scores as with one process."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from torch import Tensor, distributed, nn

from kdep_bench.data.official import stage as official
from kdep_bench.errors import KdepError
from kdep_bench.pretrain.parallel import share_batch_norm
from kdep_bench.suite.config import resolve
from kdep_bench.suite.rehearse import shrink_task
from kdep_bench.transfer import parallel
from kdep_bench.transfer import stage as transfer_stage
from kdep_bench.transfer.classification import FineTune
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL
from kdep_bench.transfer.methods.ghost import Switch, _projected
from kdep_bench.transfer.methods.transkd import Selection
from tests.transfer.conftest import config, quiet, with_toolkits

# ---- the order of images ----


@given(images=st.integers(1, 200), part=st.integers(1, 8), ranks=st.integers(1, 5))
def test_the_ranks_read_what_one_process_reads(images: int, part: int, ranks: int):
    batch, data = part * ranks, range(images)
    whole = DefaultSampler(data, shuffle=True, seed=7)
    whole.set_epoch(3)
    order = list(whole)
    expected = [order[i : i + batch] for i in range(0, images - batch + 1, batch)]
    per_rank = []
    for rank in range(ranks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "get_dist_info", lambda rank=rank: (rank, ranks))
            # DealtBatches gives each rank its part of every batch.
            sampler = parallel.DealtBatches(data, batch=batch, seed=7)
        sampler.set_epoch(3)
        own = list(sampler)
        assert len(own) == len(sampler) == len(expected) * part
        per_rank.append([own[i : i + part] for i in range(0, len(own), part)])
    # The parts of all ranks in a step together are the batch of a single process.
    joined = [
        [i for part_of_step in step for i in part_of_step] for step in zip(*per_rank, strict=True)
    ]
    assert [sorted(step) for step in joined] == [sorted(step) for step in expected]


# ---- the config of a rank ----


def whole_batch_config() -> Config:
    """The part of a task's Config that is divided among processes."""
    return Config(
        dict(
            train_dataloader=dict(
                batch_size=16, drop_last=True, sampler=dict(type="DefaultSampler", shuffle=True)
            ),
            randomness=dict(seed=3, diff_rank_seed=False),
        )
    )


def test_the_config_of_a_single_process_is_unchanged():
    cfg = whole_batch_config()
    assert parallel.split_over_ranks(cfg, 3, "t") == []
    assert cfg.to_dict() == whole_batch_config().to_dict()


def test_a_batch_is_divided_among_the_ranks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    cfg = whole_batch_config()
    parallel.split_over_ranks(cfg, 3, "t")
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_dataloader.sampler.batch == 16
    assert cfg.train_dataloader.sampler.seed == 3
    assert cfg.randomness.diff_rank_seed
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(KdepError, match=r"batch of task t of 16 images .* among 3 processes"):
        parallel.split_over_ranks(whole_batch_config(), 3, "t")


# ---- two processes ----


class WithoutAugmentation(FineTune):
    """Fine-tuning without augmentation, the only step whose random numbers depend on the ranks."""

    def build_cfg(self, *args: Any, **kwargs: Any) -> Any:
        cfg = super().build_cfg(*args, **kwargs)
        cfg.train_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline
        return cfg


def run_rank(
    rank: int,
    ranks: int,
    port: int,
    changes: dict[str, Any],
    task: dict[str, Any],
    student: dict[str, Any],
    *paths: Path,
) -> dict[str, Any]:
    """One process of a transfer stage; `ranks` 1 is a plain process. `changes` go into its spec."""
    prepare, export, out, *teacher = paths
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",  # the store is the test's own, on a free port
            CUDA_VISIBLE_DEVICES="",
        )
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    spec = {"task": task, "student": student, "seed": 0, "threads": 1, **changes}
    inputs = {"prepare": prepare, "export": export, **dict(zip(["teacher"], teacher, strict=False))}
    return transfer_stage.run(spec, inputs, out, quiet)


def run_ranks(ranks: int, *args: Any, **changes: Any) -> list[dict[str, Any]]:
    """The outputs of a transfer stage in every one of its processes."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.transfer.preload"])
    with ProcessPoolExecutor(ranks, mp_context=context) as pool:
        jobs = [
            pool.submit(with_toolkits, run_rank, r, ranks, store.port, changes, *args)
            for r in range(ranks)
        ]
        return [j.result(timeout=300) for j in jobs]


def test_two_processes_train_and_score_as_one(
    data: Path, exported: Path, student: dict[str, Any], tmp_path: Path
):
    prepare = tmp_path / "p" / "data"
    shutil.copytree(data / "classify", prepare / "classify")
    next(
        (prepare / "classify/test/bird").iterdir()
    ).unlink()  # 47 test images: the smaller share is padded
    next(
        (prepare / "classify/train/bird").iterdir()
    ).unlink()  # 47 training images: 2 whole batches of 16
    task = config("tasks", "smoke_finetune")
    task.update(type=f"{WithoutAugmentation.__module__}.WithoutAugmentation")
    task["recipe"].update(epochs=2, batch=16, test_batch=5, lr=0.01)
    single = run_ranks(1, task, student, prepare.parent, exported, tmp_path / "one")[0]
    first, second = run_ranks(2, task, student, prepare.parent, exported, tmp_path / "two")
    assert [s for s, _ in first["curves"]["loss"]] == [1, 2, 3, 4]
    np.testing.assert_allclose(first["curves"]["loss"], single["curves"]["loss"], rtol=1e-3)
    assert first["value"] * 47 == pytest.approx(round(first["value"] * 47))
    assert first["metrics"] == pytest.approx(single["metrics"])
    assert first["per_class"] == pytest.approx(single["per_class"])
    assert first["gate"] == single["gate"]
    assert {k: v for k, v in second.items() if k in ("value", "curves", "per_class")} == {
        k: v for k, v in first.items() if k in ("value", "curves", "per_class")
    }
    assert not list((tmp_path / "two").glob("**/.dist_test"))


def norms_of_two_images(rank: int, ranks: int, folder: Path) -> dict[str, Tensor]:
    """Outputs of the layers with BatchNorm of `ghost` and `transkd` for the images of one rank.

    There are two images, so that each of two ranks has one.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    switch, selection = Switch({"s8": 3}, 8), Selection(3)
    inputs, rows = torch.randn(2, 3, 4, 4), list(range(rank, 2, ranks))
    if ranks > 1:
        store = f"file://{folder}/store"
        distributed.init_process_group("gloo", store, rank=rank, world_size=ranks)
        share_batch_norm(nn.ModuleList([switch, selection]))
    # The keys: what the switch computes from them is 0 or 1.
    keys, weights = _projected(switch.keys["s8"], inputs[rows]), selection(inputs[rows])
    (keys.square().sum() + weights.sum()).backward()
    return {"keys": keys.detach(), "weights": weights.detach()}


def test_batch_norm_is_not_left_out_if_each_of_two_processes_has_one_image(tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.transfer.preload"])
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        jobs = [pool.submit(norms_of_two_images, rank, 2, tmp_path) for rank in (0, 1)]
        ranks = [job.result(timeout=100) for job in jobs]
    for name, expected in norms_of_two_images(0, 1, tmp_path).items():
        torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]), expected)


@pytest.mark.parametrize("name", ["voc12_seg", "voc0712_fpn"])
def test_dense_tasks_run_as_two_processes(
    name: str, exported: Path, student: dict[str, Any], tmp_path: Path
):
    prepared = tmp_path / "p"
    prepared.mkdir()
    official.prepare({"sets": ["voc"], "pool": "imagenet", "tiny_seed": 0}, {}, prepared, quiet)
    task, student = shrink_task(resolve("task", name)), {**student, "input_px": 32}
    args = (task, student, prepared, exported, tmp_path / "two")
    first, second = run_ranks(2, *args)
    assert first["gate"]["coverage"] == 1.0
    assert first["curves"] == second["curves"]
    assert first["value"] == second["value"]


@pytest.mark.e2e
def test_a_transfer_method_runs_as_two_processes(
    data: Path, exported: Path, student: dict[str, Any], tmp_path: Path
):
    """Its losses are those of the whole batch, and rank 0 saves the task's model without it."""
    task = config("tasks", "smoke_seg")
    task["recipe"].update(iters=2, warmup=1, batch=4)
    shared = (task, student, data.parent, exported)
    run_ranks(1, *shared, tmp_path / "tuned", keep_model=True)
    transkd = {
        "type": "kdep_bench.transfer.methods.transkd.TransKD",
        "levels": {k: k for k in ("s4", "s8", "s16", "s32")},
        "betas": {"s32": 1.0},
    }
    changes = {"transfer": transkd, "teacher": student, "keep_model": True}
    args = (*shared, tmp_path / "two", tmp_path / "tuned")
    first, second = run_ranks(2, *args, **changes)
    assert first["gate"]["coverage"] == 1.0
    assert first["curves"] == second["curves"]
    assert {"loss", "transfer.loss_hcl", "transfer.loss_pea"} == set(first["curves"])
    assert first["transfer"]["extra_forwards"] == 2 * 4
    saved, saved_plain = (read_tensors(tmp_path / n / MODEL) for n in ("two", "tuned"))
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in saved_plain.items()}


def test_a_task_without_openmmlab_runs_in_only_one_of_the_processes(
    data: Path, exported: Path, student: dict[str, Any], tmp_path: Path
):
    task = config("tasks", "smoke_photos")
    first, second = run_ranks(2, task, student, data.parent, exported, tmp_path)
    assert 0 <= first["value"] <= 1
    assert second == {}
