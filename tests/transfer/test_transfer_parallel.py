"""A transfer in two processes: the same data, steps and scores as in one process.

A process is called a rank. The processes communicate through torch's backend gloo.
"""

from __future__ import annotations

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
from tests.transfer.conftest import config, quiet, server_with_toolkits, with_toolkits

# ---- the order of images ----


@given(images=st.integers(1, 200), part=st.integers(1, 8), ranks=st.integers(1, 5))
def test_the_ranks_together_read_the_batches_of_one_process(images: int, part: int, ranks: int):
    """`part` is the number of images per rank and step."""
    batch, data = part * ranks, range(images)
    single = DefaultSampler(data, shuffle=True, seed=7)
    single.set_epoch(3)
    order = list(single)
    expected = [order[i : i + batch] for i in range(0, images - batch + 1, batch)]
    per_rank = []
    for rank in range(ranks):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "get_dist_info", lambda rank=rank: (rank, ranks))
            # DealtBatches gives each rank its part of every batch.
            sampler = parallel.DealtBatches(data, batch=batch, seed=7)
        sampler.set_epoch(3)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == len(expected) * part
        per_rank.append([drawn[i : i + part] for i in range(0, len(drawn), part)])
    # The parts of all ranks in a step together are the batch of a single process.
    joined = [[i for part in step for i in part] for step in zip(*per_rank, strict=True)]
    assert [sorted(step) for step in joined] == [sorted(step) for step in expected]


# ---- the config of a rank ----


def undivided_config() -> Config:
    """The part of a task's Config that changes with the number of processes: a batch of 16."""
    return Config(
        dict(
            train_dataloader=dict(
                batch_size=16, drop_last=True, sampler=dict(type="DefaultSampler", shuffle=True)
            ),
            randomness=dict(seed=3, diff_rank_seed=False),
        )
    )


def test_the_config_of_a_single_process_is_unchanged():
    cfg = undivided_config()
    assert parallel.split_over_ranks(cfg, 3, "t") == []
    assert cfg.to_dict() == undivided_config().to_dict()


def test_the_batch_is_divided_among_the_ranks_or_refused_if_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")
    cfg = undivided_config()
    parallel.split_over_ranks(cfg, 3, "t")
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_dataloader.sampler.batch == 16
    assert cfg.train_dataloader.sampler.seed == 3
    assert cfg.randomness.diff_rank_seed
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(KdepError, match=r"batch of task t of 16 images .* among 3 processes"):
        parallel.split_over_ranks(undivided_config(), 3, "t")


# ---- two processes ----


class WithoutAugmentation(FineTune):
    """Fine-tuning without augmentation, whose random numbers would depend on the rank."""

    def build_cfg(self, *args: Any, **kwargs: Any) -> Any:
        """The Config with the test images' pipeline for training."""
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
    """The outputs of one process of a transfer stage.

    Args:
        rank, ranks: number of this process, and of processes; with 1 it is a usual stage.
        port: of the store through which the processes find each other.
        changes: entries of the stage's spec that are changed or added.
        task, student: configs.
        paths: directories of the stages prepare and export, of this stage, and, if the method needs
            one, of a tuned teacher.
    """
    prepare, export, out, *teacher = paths
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(ranks),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_USE_AGENT_STORE="True",  # the store that `run_ranks` opened
            CUDA_VISIBLE_DEVICES="",
        )
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    spec = {"task": task, "student": student, "seed": 0, "threads": 1, **changes}
    inputs = {"prepare": prepare, "export": export}
    if teacher:
        inputs["teacher"] = teacher[0]
    return transfer_stage.run(spec, inputs, out, quiet)


def run_ranks(ranks: int, *args: Any, **changes: Any) -> list[dict[str, Any]]:
    """The outputs of each process of a transfer stage; `args` and `changes` as in `run_rank`."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = server_with_toolkits()
    with ProcessPoolExecutor(ranks, mp_context=context) as pool:
        jobs = [
            pool.submit(with_toolkits, run_rank, rank, ranks, store.port, changes, *args)
            for rank in range(ranks)
        ]
        return [job.result(timeout=300) for job in jobs]


def test_two_processes_train_and_score_as_one(
    data: Path, exported: Path, student: dict[str, Any], tmp_path: Path
):
    prepare = tmp_path / "p" / "data"
    shutil.copytree(data / "classify", prepare / "classify")
    # 47 test images: the second process has one fewer. 47 training images: 2 full batches of 16.
    for split in ("test", "train"):
        next((prepare / "classify" / split / "bird").iterdir()).unlink()
    task = config("tasks", "smoke_finetune")
    task.update(type=f"{WithoutAugmentation.__module__}.WithoutAugmentation")
    task["recipe"].update(epochs=2, batch=16, test_batch=5, lr=0.01)
    single = run_ranks(1, task, student, prepare.parent, exported, tmp_path / "one")[0]
    first, second = run_ranks(2, task, student, prepare.parent, exported, tmp_path / "two")
    assert [step for step, _ in first["curves"]["loss"]] == [1, 2, 3, 4]  # 2 epochs of 2 steps
    np.testing.assert_allclose(first["curves"]["loss"], single["curves"]["loss"], rtol=1e-3)
    # Each test image counts once: the accuracy is a multiple of 1 / 47.
    assert first["value"] * 47 == pytest.approx(round(first["value"] * 47))
    assert first["metrics"] == pytest.approx(single["metrics"])
    assert first["per_class"] == pytest.approx(single["per_class"])
    assert first["gate"] == single["gate"]
    for key in ("value", "curves", "per_class"):
        assert second[key] == first[key]
    assert not list((tmp_path / "two").glob("**/.dist_test"))


def norms_of_two_images(rank: int, ranks: int, folder: Path) -> dict[str, Tensor]:
    """Outputs of the layers with BatchNorm of `ghost` and `transkd` for the images of one rank.

    There are two images in all, so that each of two ranks has one.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    switch, selection = Switch({"s8": 3}, 8), Selection(3)
    inputs, rows = torch.randn(2, 3, 4, 4), list(range(rank, 2, ranks))
    if ranks > 1:
        store = f"file://{folder}/store"
        distributed.init_process_group("gloo", store, rank=rank, world_size=ranks)
        share_batch_norm(nn.ModuleList([switch, selection]))
    # Of the switch the keys, because its output is only 0 or 1.
    keys, weights = _projected(switch.keys["s8"], inputs[rows]), selection(inputs[rows])
    (keys.square().sum() + weights.sum()).backward()
    return {"keys": keys.detach(), "weights": weights.detach()}


def test_batch_norm_of_two_processes_with_one_image_each_is_that_of_both_images(tmp_path: Path):
    context = server_with_toolkits()
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
    """Both processes report the same losses; the saved model is the task's, without the method."""
    task = config("tasks", "smoke_seg")
    task["recipe"].update(iters=2, warmup=1, batch=4)
    common = (task, student, data.parent, exported)
    run_ranks(1, *common, tmp_path / "tuned", keep_model=True)  # the tuned teacher
    transkd = {
        "type": "kdep_bench.transfer.methods.transkd.TransKD",
        "levels": {level: level for level in ("s4", "s8", "s16", "s32")},
        "betas": {"s32": 1.0},
    }
    changes = {"transfer": transkd, "teacher": student, "keep_model": True}
    args = (*common, tmp_path / "two", tmp_path / "tuned")
    first, second = run_ranks(2, *args, **changes)
    assert first["gate"]["coverage"] == 1.0
    assert first["curves"] == second["curves"]
    assert {"loss", "transfer.loss_hcl", "transfer.loss_pea"} == set(first["curves"])
    assert first["transfer"]["extra_forwards"] == 2 * 4  # the teacher's: steps * batch
    saved, without_method = (read_tensors(tmp_path / name / MODEL) for name in ("two", "tuned"))
    shapes = {name: tensor.shape for name, tensor in saved.items()}
    assert shapes == {name: tensor.shape for name, tensor in without_method.items()}


def test_a_task_without_openmmlab_runs_in_only_one_of_the_processes(
    data: Path, exported: Path, student: dict[str, Any], tmp_path: Path
):
    task = config("tasks", "smoke_photos")
    first, second = run_ranks(2, task, student, data.parent, exported, tmp_path)
    assert 0 <= first["value"] <= 1
    assert second == {}  # it only waits
