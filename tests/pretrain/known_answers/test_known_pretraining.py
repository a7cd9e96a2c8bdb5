"""The images, views, labels and teacher outputs that each step of the real stages reads."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.data.views import open_views, subset
from kdep_bench.pretrain import checkpoint, stage
from tests.pretrain.conftest import silent
from tests.pretrain.known_answers import numbered
from tests.pretrain.known_answers.numbered import (
    BUDGET,
    IMAGES,
    LABELS,
    TEACHER,
    TOLERANCE,
    VIEWS,
    Log,
    LogWithoutLabels,
    ReadableMeanTeacher,
    expected_rows,
    means,
    method,
    spec,
)

SAMPLES = BUDGET["epochs"] * IMAGES
Steps = list[dict[str, Any]]  # what each step reads, see numbered.append_step


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the finished stages before pre-training."""
    return numbered.prepare(tmp_path_factory.mktemp("numbered"))


def pretrain(
    out: Path, inputs: dict[str, Path], **changes: Any
) -> tuple[Steps, dict[str, torch.Tensor]]:
    """Runs the stage; returns (what the objective read in each step, the trained tensors)."""
    Log.seen.clear()
    out.mkdir(exist_ok=True)
    stage.run(spec(**changes), inputs, out, silent)
    return list(Log.seen), torch.load(out / checkpoint.CHECKPOINT, weights_only=True)


def column(seen: Steps, key: str) -> np.ndarray:
    """[samples, ...]: the values of a key in all steps, concatenated."""
    return np.concatenate([np.asarray(step[key], float) for step in seen])


def image_number(file: str) -> int:
    """The number of the image in a file."""
    return int(Path(file).stem)


def test_image_means_identify_every_view(stages: dict[str, Path]) -> None:
    """All rows have different means, so that a wrong row fails the other tests."""
    opened = open_views(stages["views"])
    all_means = means(torch.from_numpy(np.array(opened.pixels)).permute(0, 3, 1, 2)).numpy()
    gaps = np.abs(all_means[:, None] - all_means[None]).max(2)
    assert gaps[~np.eye(IMAGES * VIEWS, dtype=bool)].min() > 2 * TOLERANCE
    numbers = [image_number(f) for f in opened.files]
    assert numbers != sorted(numbers)
    np.testing.assert_allclose(all_means[:, 0], np.repeat(numbers, VIEWS) * 16 + 8, atol=0.5)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("seed", [3, 4])
def test_each_sample_has_the_label_and_teacher_row_of_its_own_image_and_view(
    stages: dict[str, Path], tmp_path: Path, seed: int, share: float
) -> None:
    """A shift by one row, the other view or the order of another seed would give other values."""
    budget = BUDGET | {"epochs": BUDGET["epochs"] / share}  # SAMPLES samples
    seen, _ = pretrain(tmp_path / "p", stages, seed=seed, share=share, share_seed=1, budget=budget)
    opened = open_views(stages["views"])
    rows = column(seen, "rows").astype(int)
    numbers = np.array([image_number(opened.files[row // VIEWS]) for row in rows])
    stored = means(torch.from_numpy(np.array(opened.pixels))[rows].permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(column(seen, "image_means"), stored, atol=1e-3)
    np.testing.assert_array_equal((column(seen, "image_means")[:, 0] // 16).astype(int), numbers)
    np.testing.assert_array_equal(column(seen, "labels"), [LABELS[i] for i in numbers])
    np.testing.assert_allclose(column(seen, "pooled"), stored, atol=TOLERANCE)
    np.testing.assert_allclose(column(seen, "logits"), 2 * stored, atol=2 * TOLERANCE)
    images = subset(IMAGES, share, 1)
    assert len(images) == IMAGES * share
    assert [step["rows"] for step in seen] == expected_rows(images, seed, SAMPLES)
    assert [step["step"] for step in seen] == list(range(SAMPLES // BUDGET["batch"]))


def test_a_live_teacher_receives_the_same_crop_as_the_student(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    """Another view, an unflipped crop or the complete image would give other means."""
    inputs = {"views": stages["views"], "images": stages["prepare"]}
    budget = BUDGET | {"epochs": 2}
    seen, _ = pretrain(
        tmp_path / "p",
        inputs,
        teacher=TEACHER,
        method=method(LogWithoutLabels, labels=False),
        budget=budget,
    )
    np.testing.assert_allclose(column(seen, "pooled"), column(seen, "image_means"), atol=TOLERANCE)
    assert [step["rows"] for step in seen] == expected_rows(np.arange(IMAGES), 3, 2 * IMAGES)
    assert all(step["labels"] is None for step in seen)


def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resumed run reads only the remaining samples and continues the dropout's random numbers.

    The interrupted run uses loader workers, and the uninterrupted one does not.
    """
    all_steps, weights = pretrain(tmp_path / "uninterrupted", stages)
    monkeypatch.setattr(stage, "workers_for", lambda *_: 2)

    def interrupt(step: int, *_: object) -> None:
        """A progress function that interrupts the run in step 8."""
        if step == 8:  # the last checkpoint is of step 6
            raise KeyboardInterrupt

    Log.seen.clear()
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    with pytest.raises(KeyboardInterrupt):
        stage.run(spec(), stages, interrupted, interrupt)
    assert [step["rows"] for step in Log.seen] == [step["rows"] for step in all_steps[:8]]
    torch.manual_seed(99)  # another state of the generator, as in a new process
    resumed_steps, resumed = pretrain(interrupted, stages)
    assert resumed_steps == all_steps[6:]
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(v, resumed[k]) for k, v in weights.items())


def run_rank(number: int, ranks: int, port: int, inputs: dict[str, Path], out: Path) -> None:
    """Runs process `number` of `ranks` of the stage; writes what it read to seen-NUMBER.json."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",
    )
    stage.run(spec(), inputs, out, silent)
    (out / f"seen-{number}.json").write_text(json.dumps(Log.seen))


def test_two_processes_read_the_batches_of_one_process(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    """Each process reads every second sample of each batch."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        port = free_socket.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    processes = [
        context.Process(target=run_rank, args=(number, 2, port, stages, tmp_path))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (
        json.loads((tmp_path / f"seen-{number}.json").read_text()) for number in range(2)
    )
    expected = expected_rows(np.arange(IMAGES), 3, SAMPLES)
    assert len(first) == len(second) == len(expected)
    for first_step, second_step, rows in zip(first, second, expected, strict=True):
        merged = [None] * len(rows)
        merged[::2], merged[1::2] = first_step["rows"], second_step["rows"]
        assert merged == rows
    for seen in (first, second):
        np.testing.assert_allclose(
            column(seen, "pooled"), column(seen, "image_means"), atol=TOLERANCE
        )


def test_the_mean_teacher_gets_the_next_view_of_the_same_image(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    """The student's own view or another image would give other probabilities."""
    ReadableMeanTeacher.seen.clear()
    pretrain(tmp_path / "p", stages, method=method(ReadableMeanTeacher), budget=BUDGET)
    seen = ReadableMeanTeacher.seen
    rows = [step["rows"] for step in seen]
    assert rows == expected_rows(np.arange(IMAGES), 3, SAMPLES, together=True)
    opened = open_views(stages["views"])
    for step in seen:
        # Rows 2 i and 2 i + 1 are the two views of image i.
        next_view = [row // VIEWS * VIEWS + 1 - row % VIEWS for row in step["rows"]]
        pixels = torch.from_numpy(np.array(opened.pixels))
        expected, same_view = (
            torch.softmax(means(pixels[rows].permute(0, 3, 1, 2)) @ step["head"].T, 1)
            for rows in (next_view, step["rows"])
        )
        torch.testing.assert_close(step["probabilities"], expected, atol=1e-3, rtol=0)
        assert ((expected - same_view).abs().max(1).values > 0.01).all()
