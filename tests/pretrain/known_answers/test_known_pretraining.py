"""Which image, view, label and teacher row a step reads, by the real stages."""

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
    Apart,
    Log,
    ReadableMeanTeacher,
    expected_rows,
    means,
    method,
    spec,
)

SAMPLES = BUDGET["epochs"] * IMAGES
Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return numbered.prepare(tmp_path_factory.mktemp("numbered"))


def pretrain(
    out: Path, inputs: dict[str, Path], **more: Any
) -> tuple[Seen, dict[str, torch.Tensor]]:
    """(what the objective saw, the trained tensors)."""
    Log.seen.clear()
    out.mkdir(exist_ok=True)
    stage.run(spec(**more), inputs, out, silent)
    return list(Log.seen), torch.load(out / checkpoint.CHECKPOINT, weights_only=True)


def column(seen: Seen, key: str) -> np.ndarray:
    """[samples, ...] of all steps."""
    return np.concatenate([np.asarray(s[key], float) for s in seen])


def image_of(file: str) -> int:
    return int(Path(file).stem)


def test_views_differ_in_their_means(done: dict[str, Path]) -> None:
    """The log can tell all rows apart, so that the other tests can fail."""
    v = open_views(done["views"])
    all_means = means(torch.from_numpy(np.array(v.pixels)).permute(0, 3, 1, 2)).numpy()
    gaps = np.abs(all_means[:, None] - all_means[None]).max(2)
    assert gaps[~np.eye(IMAGES * VIEWS, dtype=bool)].min() > 2 * TOLERANCE
    numbers = [image_of(f) for f in v.files]
    assert numbers != sorted(numbers)
    np.testing.assert_allclose(all_means[:, 0], np.repeat(numbers, VIEWS) * 16 + 8, atol=0.5)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("seed", [3, 4])
def test_each_sample_has_the_label_and_teacher_row_of_its_own_image_and_view(
    done: dict[str, Path], tmp_path: Path, seed: int, share: float
) -> None:
    """Not those of the row before, of the other view, or of another seed's order."""
    budget = BUDGET | {"epochs": BUDGET["epochs"] / share}
    seen, _ = pretrain(tmp_path / "p", done, seed=seed, share=share, share_seed=1, budget=budget)
    v = open_views(done["views"])
    rows = column(seen, "rows").astype(int)
    numbers = np.array([image_of(v.files[r // VIEWS]) for r in rows])
    stored = means(torch.from_numpy(np.array(v.pixels))[rows].permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(column(seen, "pictures"), stored, atol=1e-3)
    np.testing.assert_array_equal((column(seen, "pictures")[:, 0] // 16).astype(int), numbers)
    np.testing.assert_array_equal(column(seen, "labels"), [LABELS[i] for i in numbers])
    np.testing.assert_allclose(column(seen, "pooled"), stored, atol=TOLERANCE)
    np.testing.assert_allclose(column(seen, "logits"), 2 * stored, atol=2 * TOLERANCE)
    images = subset(IMAGES, share, 1)
    assert len(images) == IMAGES * share
    assert [s["rows"] for s in seen] == expected_rows(images, seed, SAMPLES)
    assert [s["step"] for s in seen] == list(range(SAMPLES // BUDGET["batch"]))


def test_a_live_teacher_sees_the_crop_that_the_student_sees(
    done: dict[str, Path], tmp_path: Path
) -> None:
    """Not another view of the image, unflipped or of the whole image."""
    inputs = {"views": done["views"], "images": done["prepare"]}
    budget = BUDGET | {"epochs": 2}
    seen, _ = pretrain(
        tmp_path / "p", inputs, teacher=TEACHER, method=method(Apart, labels=False), budget=budget
    )
    np.testing.assert_allclose(column(seen, "pooled"), column(seen, "pictures"), atol=TOLERANCE)
    assert [s["rows"] for s in seen] == expected_rows(np.arange(IMAGES), 3, 2 * IMAGES)
    assert all(s["labels"] is None for s in seen)


def test_a_resumed_run_reads_and_draws_what_an_uninterrupted_one_does(
    done: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the first samples again, nor another dropout: the same weights to the last bit.

    With loader workers before and after the interruption, and without in the undisturbed run.
    """
    whole, weights = pretrain(tmp_path / "whole", done)
    monkeypatch.setattr(stage, "workers_for", lambda *_: 2)

    def interrupt(step: int, *_: object) -> None:
        if step == 8:  # the checkpoint is of step 6
            raise KeyboardInterrupt

    Log.seen.clear()
    (tmp_path / "cut").mkdir()
    with pytest.raises(KeyboardInterrupt):
        stage.run(spec(), done, tmp_path / "cut", interrupt)
    assert [s["rows"] for s in Log.seen] == [s["rows"] for s in whole[:8]]
    torch.manual_seed(99)
    rest, resumed = pretrain(tmp_path / "cut", done)
    assert rest == whole[6:]
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(v, resumed[k]) for k, v in weights.items())


def rank(number: int, ranks: int, port: int, inputs: dict[str, Path], out: Path) -> None:
    """One of several processes of the stage; writes what it saw."""
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


def test_two_processes_read_together_what_one_reads(done: dict[str, Path], tmp_path: Path) -> None:
    """Not the same samples twice, nor half of the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    ranks = [context.Process(target=rank, args=(k, 2, port, done, tmp_path)) for k in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
    assert [process.exitcode for process in ranks] == [0, 0]
    a, b = (json.loads((tmp_path / f"seen-{k}.json").read_text()) for k in range(2))
    want = expected_rows(np.arange(IMAGES), 3, SAMPLES)
    assert len(a) == len(b) == len(want)
    for ours, theirs, rows in zip(a, b, want, strict=True):
        both = [None] * len(rows)
        both[::2], both[1::2] = ours["rows"], theirs["rows"]
        assert both == rows
    for seen in (a, b):
        np.testing.assert_allclose(column(seen, "pooled"), column(seen, "pictures"), atol=TOLERANCE)


def test_the_mean_teacher_gets_the_next_view_of_the_same_image(
    done: dict[str, Path], tmp_path: Path
) -> None:
    """Not about the view that the student sees, nor about another image."""
    ReadableMeanTeacher.seen.clear()
    pretrain(tmp_path / "p", done, method=method(ReadableMeanTeacher), budget=BUDGET)
    seen = ReadableMeanTeacher.seen
    assert [s["rows"] for s in seen] == expected_rows(np.arange(IMAGES), 3, SAMPLES, together=True)
    v = open_views(done["views"])
    for step in seen:
        other = [r // VIEWS * VIEWS + 1 - r % VIEWS for r in step["rows"]]
        pixels = torch.from_numpy(np.array(v.pixels))
        want, own = (
            torch.softmax(means(pixels[rows].permute(0, 3, 1, 2)) @ step["head"].T, 1)
            for rows in (other, step["rows"])
        )
        torch.testing.assert_close(step["opinion"], want, atol=1e-3, rtol=0)
        assert ((want - own).abs().max(1).values > 0.01).all()
