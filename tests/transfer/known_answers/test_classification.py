"""Linear probe and fine-tuning give exactly the accuracy calculated by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tests.transfer.conftest import config
from tests.transfer.known_answers.pictures import (
    STILL,
    colour,
    field,
    run_stage,
    save,
    seen_in,
    student,
)

# ---- fine-tuning ----

# Class -> codes of its images. Sorted as the folders are: Ant, b_bird, c10, c9.
# The training split gives the codes their meaning: 5 Ant, 2 b_bird, 7 c10, 0 c9.
FINETUNE: dict[str, dict[str, list[int]]] = {
    "train": {"c9": [0] * 4, "c10": [7] * 4, "b_bird": [2] * 4, "Ant": [5] * 4},
    # Every code stands for another class than in training: 0 of 8 right.
    "val": {"c9": [7] * 2, "c10": [0] * 2, "b_bird": [5] * 2, "Ant": [2] * 2},
    # Right: 1 of 2, 6 of 8, 1 of 4, 2 of 2; 10 of 16.
    "test": {
        "Ant": [5, 2],
        "b_bird": [2, 2, 2, 2, 2, 2, 7, 0],
        "c10": [0, 7, 2, 5],
        "c9": [0, 0],
    },
}
RECALL = {"Ant": 1 / 2, "b_bird": 6 / 8, "c10": 1 / 4, "c9": 2 / 2}
EPOCHS, SEED = 3, 7


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared `classify`; test images are wide, and only their middle holds their code."""
    root = tmp_path_factory.mktemp("finetune")
    for split, table in FINETUNE.items():
        index = 0
        for name in sorted(table):
            for k, code in enumerate(table[name]):
                pixels = field(code, index, (64, 64))
                if split == "test":
                    side = field(2 if code != 2 else 5, 30, (64, 64))
                    pixels = np.concatenate([side, pixels, side], 1)
                save(root / "data/classify" / split / name / f"{k}.png", pixels)
                index += 1
    return root


def finetune(**recipe: Any) -> dict[str, Any]:
    """The pocket fine-tuning task with a short schedule; `recipe` holds further changes."""
    task = config("tasks", "pocket_finetune")
    task["recipe"].update(epochs=EPOCHS, batch=8, test_batch=5, head_lr_mult=1, **recipe)
    return task


def shuffled(images: int, seed: int) -> list[int]:
    """The expected order of all epochs: each is drawn from seed + epoch, and from nothing else."""
    orders = [
        torch.randperm(images, generator=torch.Generator().manual_seed(seed + epoch))
        for epoch in range(EPOCHS)
    ]
    return torch.cat(orders).tolist()


@pytest.mark.parametrize("head", ["fixed", "learned"])
def test_finetuning_scores_the_test_folder_once_in_evaluation_mode(
    head: str, folders: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Not the 16/16 of train, the 0/8 of val, the 6/16 of uncropped images or of training mode.

    'fixed': the head's weights are given and do not change, and BatchNorm and Dropout show in which
    mode the network is. 'learned': the head learns from the training folder what a code means.
    """
    if head == "fixed":
        task = finetune(lr=STILL, meaning={"5": 0, "2": 1, "7": 2, "0": 3})
        task["type"] = "tests.transfer.known_answers.tasks.FixedFineTune"
    else:
        task = finetune(lr=1.0, norm_eval=True)
    student_config = student(input_hw=[32, 32], drops=head == "fixed")
    outputs, seen = in_subprocess(run_stage, task, student_config, folders, tmp_path, SEED)
    assert outputs["value"] == 10 / 16
    assert outputs["metrics"] == {"top1": 10 / 16, "constant_top1": 8 / 16}
    assert outputs["per_class"] == RECALL
    assert outputs["chance"] == 8 / 16  # always "b_bird", and not the 0.125 of the config
    assert seen_in(seen, "test") == list(range(16))
    assert seen_in(seen, "train") == shuffled(16, SEED)


def run_and_read_rates(*args: Any) -> list[float]:
    """Runs the real stage; returns the learning rate of every step."""
    from tests.transfer.known_answers.networks import RATES

    run_stage(*args)
    return list(RATES)


def test_the_learning_rate_of_finetuning_falls_along_a_cosine_from_step_to_step(
    folders: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Not from epoch to epoch: 3 epochs of 2 steps, down to a hundredth of the initial rate."""
    task = finetune(lr=STILL, meaning={"5": 0, "2": 1, "7": 2, "0": 3})
    task["type"] = "tests.transfer.known_answers.tasks.FixedFineTune"
    rates = in_subprocess(
        run_and_read_rates, task, student(input_hw=[32, 32]), folders, tmp_path, SEED
    )
    factors = [(1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    expected = [STILL * (0.01 + 0.99 * factor) for factor in factors]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=0)


# ---- linear probe, protocol 'split' ----

# A point is an image with (red, green) codes around 16. The training set can be separated by green
# alone, and red goes with the class in 7 of 8 images. A strong penalty (small C) gives the
# direction of the covariances, 1.5 : 1 in standardised features, green + red / 4 in codes; a weak
# one the widest margin, green alone.
A, B = (6, 1), (-6, 1)
# On opposite sides of the two: red / 4 + green is 1 at P and -1 at Q; green is -2 at P and 2 at Q.
P, Q = (12, -2), (-12, 2)


def minus(point: tuple[int, int]) -> tuple[int, int]:
    """The point on the other side of the centre."""
    return -point[0], -point[1]


PROBE: dict[str, dict[str, list[tuple[int, int]]]] = {
    # Small C: 14 of 16 right; large C: 16.
    "train": {"yes": [A] * 7 + [B], "no": [minus(A)] * 7 + [minus(B)]},
    # Small C: 6 of 8 (an A is in the wrong class, and a -A); large C: 0.
    "val": {"yes": [P, P, P, minus(A)], "no": [Q, Q, Q, A]},
    # Small C: 8 of 12 and 2 of 4; large C: 10 of 12 and 3 of 4.
    "test": {"yes": [A] * 6 + [Q] * 4 + [P] * 2, "no": [minus(A), P, P, Q]},
}


def probe_folders(root: Path, table: dict[str, dict[str, list[tuple[int, int]]]]) -> Path:
    """Writes one image per point of `table` as a prepared `classify`; returns `root`."""
    for split, classes in table.items():
        for name, points in classes.items():
            for number, (red, green) in enumerate(points):
                file = root / "data/classify" / split / name / f"{number:02}.png"
                save(file, field(16 + red, 16 + green))
    return root


def probe(seed: int = 0, **recipe: Any) -> tuple[dict[str, Any], int]:
    """(the pocket probe task with this grid of C, the seed of its run)"""
    task = config("tasks", "pocket_probe")
    task["recipe"].update(
        dict(train_share=1.0, c_grid=[1e6, 1e-6], max_iter=5000, batch=3) | recipe
    )
    return task, seed


def run_all(tasks: list[tuple[dict[str, Any], int]], prepare: Path, out: Path) -> list[Any]:
    """The stage's outputs for each (task, seed), all run in this process."""
    return [
        run_stage(task, student("codes", input_hw=[32, 32]), prepare, out / str(k), seed)[0]
        for k, (task, seed) in enumerate(tasks)
    ]


def test_the_probe_chooses_c_on_val_and_scores_test_in_evaluation_mode(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Not 13/16 (C chosen on test or train), 14/16 or 16/16 (train scored), 6/8 (val scored)."""
    prepare = probe_folders(tmp_path / "p", PROBE)
    (outputs,) = in_subprocess(run_all, [probe()], prepare, tmp_path)
    assert outputs["value"] == 10 / 16
    assert outputs["metrics"] == {"top1": 10 / 16, "mean_class_recall": (2 / 4 + 8 / 12) / 2}
    assert outputs["per_class"] == {"no": 2 / 4, "yes": 8 / 12}
    assert outputs["chance"] == 12 / 16
    assert outputs["curves"]["val"] == [[-6.0, 6 / 8], [6.0, 0.0]]
    assert outputs["notes"] == ["C = 1e-06 chosen on val (0.7500); 16 training images"]


def test_of_two_equally_good_c_the_smaller_is_chosen(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Not the 13/16 of the larger C, whichever of the two is listed first."""
    table = PROBE | {"val": {"yes": [A], "no": [minus(A)]}}
    prepare = probe_folders(tmp_path / "p", table)
    tasks = [probe(), probe(c_grid=[1e-6, 1e6])]
    assert [o["value"] for o in in_subprocess(run_all, tasks, prepare, tmp_path)] == [10 / 16] * 2


# Half the training images are drawn by the seed. The widest margin puts the threshold half-way
# between the highest red of `no` and the lowest of `yes` among those drawn, and the test images
# have every red there is: their score says where it lies.
NO, YES, REDS = range(0, 16, 2), range(15, 31, 2), range(30)


def test_the_seed_draws_the_share_of_training_images_class_by_class(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Not the score of all images, of another seed's, or of a share that is not stratified."""

    def points(reds: Any) -> list[tuple[int, int]]:
        """One point per red code, all with the same green."""
        return [(red - 16, 0) for red in reds]

    table = {
        "train": {"no": points(NO), "yes": points(YES)},
        "val": {"no": points([0]), "yes": points([30])},
        "test": {"no": points([0, 0]), "yes": points(REDS)},
    }
    prepare = probe_folders(tmp_path / "p", table)
    expected = []
    for seed in range(4):
        labels = [0] * 8 + [1] * 8
        drawn, _ = train_test_split([*NO, *YES], train_size=0.5, stratify=labels, random_state=seed)
        no, yes = [red for red in drawn if red in NO], [red for red in drawn if red in YES]
        assert len(no) == len(yes) == 4
        threshold = (max(no) + min(yes)) / 2
        expected.append((2 + sum(red > threshold for red in REDS)) / 32)
    assert len(set(expected)) > 2
    tasks = [probe(seed, train_share=0.5, c_grid=[1e6]) for seed in range(4)]
    outputs = in_subprocess(run_all, tasks, prepare, tmp_path)
    assert [o["value"] for o in outputs] == expected
    assert outputs[0]["notes"][0].endswith("8 training images")


# ---- linear probe, protocol 'folds' ----


def cross_validation_task(seed: int, folds: int, **recipe: Any) -> tuple[dict[str, Any], int]:
    """(the pocket photo task with this number of folds, the seed of its run)"""
    task = config("tasks", "pocket_photos")
    task["recipe"].update(dict(folds=folds, inner_folds=2, max_iter=5000, batch=4) | recipe)
    return task, seed


def write_photos(root: Path, classes: dict[str, list[tuple[int, int]]]) -> Path:
    """Writes one image per point of `classes` as prepared `photos`; returns `root`."""
    for name, points in classes.items():
        for k, (red, green) in enumerate(points):
            save(root / "data/photos" / name / f"{k:02}.png", field(red, green))
    return root


def test_folds_score_each_image_by_a_model_that_did_not_see_it(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Not 16/16: a fit to all images recognises the two that look like the other class by green.

    Left out of the fit, either is taken for the other class: by its red, or by the low green that
    the fit saw in the other of the two.
    """
    prepare = write_photos(
        tmp_path / "p",
        {"no": [(4, 16)] * 8 + [(28, 2)], "yes": [(28, 16)] * 6 + [(4, 2)]},
    )
    tasks = [cross_validation_task(seed, 3, c_grid=[1e6]) for seed in (0, 1)]
    for outputs in in_subprocess(run_all, tasks, prepare, tmp_path):
        assert outputs["value"] == 14 / 16
        assert outputs["per_class"] == {"no": 8 / 9, "yes": 6 / 7}
        assert outputs["chance"] == 9 / 16


def score_by_folds(x: np.ndarray, y: np.ndarray, seed: int, folds: int, grid: list[float]) -> float:
    """The protocol written out: C by inner folds of each training part, all images scored."""

    def fit(c: float, rows: np.ndarray) -> Any:
        """A logistic regression on standardised features, fitted to these rows."""
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000))
        return model.fit(x[rows], y[rows])

    right = 0
    outer = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for train, test in outer.split(x, y):
        inner = StratifiedKFold(2, shuffle=True, random_state=seed)
        splits = [(train[fitted], train[held]) for fitted, held in inner.split(x[train], y[train])]
        means = [
            sum(
                float((fit(c, fitted).predict(x[held]) == y[held]).mean())
                for fitted, held in splits
            )
            for c in grid
        ]
        best = grid[int(np.argmax(means))]
        right += int((fit(best, train).predict(x[test]) == y[test]).sum())
    return right / len(y)


def test_the_seed_of_the_run_draws_the_folds(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Not one score for all seeds, and not that of a C chosen with the fold that is scored."""
    rng = np.random.default_rng(5)
    classes = {
        name: [(int(r), int(g)) for r, g in rng.integers((2 + 6 * k, 4), (24 + 6 * k, 28), (12, 2))]
        for k, name in enumerate(("no", "yes"))
    }
    prepare = write_photos(tmp_path / "p", classes)
    codes = [colour(*p) for name in classes for p in classes[name]]
    x, y = np.array(codes) // 8, np.repeat([0, 1], 12)
    grid = [1e-3, 1.0, 1e3]
    expected = [score_by_folds(x.astype(float), y, seed, 4, grid) for seed in (0, 1, 2)]
    assert len(set(expected)) > 1
    tasks = [cross_validation_task(seed, 4, c_grid=grid) for seed in (0, 1, 2)]
    assert [o["value"] for o in in_subprocess(run_all, tasks, prepare, tmp_path)] == expected
