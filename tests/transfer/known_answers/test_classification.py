"""Linear probe and fine-tuning: the accuracy is exactly that calculated by hand."""

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
    run_stage,
    save,
    seen_in,
    student,
    uniform_image,
)

# ---- fine-tuning ----

# {split: {class: codes of its images}}. The folders sort as Ant, b_bird, c10, c9.
# In the training split every class has one code: Ant 5, b_bird 2, c10 7, c9 0.
FINETUNE: dict[str, dict[str, list[int]]] = {
    "train": {"c9": [0] * 4, "c10": [7] * 4, "b_bird": [2] * 4, "Ant": [5] * 4},
    # Every class has the code that another class has in training: 0 of 8 right.
    "val": {"c9": [7] * 2, "c10": [0] * 2, "b_bird": [5] * 2, "Ant": [2] * 2},
    # Right per class: 1 of 2, 6 of 8, 1 of 4, 2 of 2; together 10 of 16.
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
    """The data set `classify`. Test images are wide, and only their middle has their code."""
    root = tmp_path_factory.mktemp("finetune")
    for split, table in FINETUNE.items():
        index = 0
        for name in sorted(table):
            for k, code in enumerate(table[name]):
                pixels = uniform_image(code, index, (64, 64))
                if split == "test":  # both sides, which the centre crop removes, have another code
                    side = uniform_image(2 if code != 2 else 5, 30, (64, 64))
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
    """The expected image indices of all epochs: each epoch is shuffled with seed + epoch."""
    orders = [
        torch.randperm(images, generator=torch.Generator().manual_seed(seed + epoch))
        for epoch in range(EPOCHS)
    ]
    return torch.cat(orders).tolist()


@pytest.mark.parametrize("head", ["fixed", "learned"])
def test_finetuning_scores_the_test_folder_once_in_evaluation_mode(
    head: str, folders: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Faults would give other scores: 16/16 (train), 0/8 (val), 6/16 (no crop, or training mode).

    'fixed': the head's weights are set and do not change, and BatchNorm and Dropout show in which
    mode the network is. 'learned': the head learns the class of a code from the training folder.
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
    # Of predicting "b_bird" always; not the 0.125 of the config.
    assert outputs["chance"] == 8 / 16
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
    """3 epochs of 2 steps are 6 steps; the cosine ends at a hundredth of the initial rate."""
    task = finetune(lr=STILL, meaning={"5": 0, "2": 1, "7": 2, "0": 3})
    task["type"] = "tests.transfer.known_answers.tasks.FixedFineTune"
    rates = in_subprocess(
        run_and_read_rates, task, student(input_hw=[32, 32]), folders, tmp_path, SEED
    )
    factors = [(1 + np.cos(np.pi * step / 6)) / 2 for step in range(6)]
    expected = [STILL * (0.01 + 0.99 * factor) for factor in factors]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=0)


# ---- linear probe, protocol 'split' ----

# A point is an image: its (red, green) codes minus 16. In the training set the sign of green is the
# class, and that of red is the class in 7 of 8 images. C is the inverse strength of the penalty of
# logistic regression. With a strong penalty (small C) the classifier weighs the features by their
# covariance with the class: it decides by green + red / 4 in codes (1.5 : 1 in standardised
# features). With a weak penalty (large C) it finds the widest margin: it decides by green alone.
A, B = (6, 1), (-6, 1)
# The two classifiers disagree: green + red / 4 is 1 at P and -1 at Q; green is -2 at P and 2 at Q.
P, Q = (12, -2), (-12, 2)


def minus(point: tuple[int, int]) -> tuple[int, int]:
    """The point with the opposite sign."""
    return -point[0], -point[1]


PROBE: dict[str, dict[str, list[tuple[int, int]]]] = {
    # Small C: 14 of 16 right; large C: 16.
    "train": {"yes": [A] * 7 + [B], "no": [minus(A)] * 7 + [minus(B)]},
    # Small C: 6 of 8 (one A and one -A are in the wrong class); large C: 0.
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
                save(file, uniform_image(16 + red, 16 + green))
    return root


def probe(seed: int = 0, **recipe: Any) -> tuple[dict[str, Any], int]:
    """The task pocket_probe with these changes to its recipe, and the seed of its run."""
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
    """10 of 16: the small C, which is better on val, has 8 of 12 and 2 of 4 right on test.

    Faults would give other scores: 13/16 (C chosen on test or train), 14/16 or 16/16 (train
    scored), 6/8 (val scored).
    """
    prepare = probe_folders(tmp_path / "p", PROBE)
    (outputs,) = in_subprocess(run_all, [probe()], prepare, tmp_path)
    assert outputs["value"] == 10 / 16
    assert outputs["metrics"] == {"top1": 10 / 16, "mean_class_recall": (2 / 4 + 8 / 12) / 2}
    assert outputs["per_class"] == {"no": 2 / 4, "yes": 8 / 12}
    assert outputs["chance"] == 12 / 16  # of predicting "yes" always
    assert outputs["curves"]["val"] == [[-6.0, 6 / 8], [6.0, 0.0]]  # log10(C), accuracy
    assert outputs["notes"] == ["C = 1e-06 chosen on val (0.7500); 16 training images"]


def test_the_probe_chooses_the_smaller_of_two_equally_good_values_of_c(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """The larger C would score 13/16. The order of the values in the recipe does not matter."""
    table = PROBE | {"val": {"yes": [A], "no": [minus(A)]}}
    prepare = probe_folders(tmp_path / "p", table)
    tasks = [probe(), probe(c_grid=[1e-6, 1e6])]
    assert [o["value"] for o in in_subprocess(run_all, tasks, prepare, tmp_path)] == [10 / 16] * 2


# The seed draws half of the training images, which differ only in red. The classifier's threshold
# is half-way between the highest red of the drawn `no` images and the lowest red of the drawn `yes`
# images. The test images have every red from 0 to 29, so their score shows the threshold.
NO, YES, REDS = range(0, 16, 2), range(15, 31, 2), range(30)


def test_the_seed_draws_the_fraction_of_training_images_class_by_class(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Training on all images, another seed or no stratification would give other scores."""

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
        # All 30 test images are `yes`; 2 more are `no` and always right.
        expected.append((2 + sum(red > threshold for red in REDS)) / 32)
    assert len(set(expected)) > 2
    tasks = [probe(seed, train_share=0.5, c_grid=[1e6]) for seed in range(4)]
    outputs = in_subprocess(run_all, tasks, prepare, tmp_path)
    assert [o["value"] for o in outputs] == expected
    assert outputs[0]["notes"][0].endswith("8 training images")


# ---- linear probe, protocol 'folds' ----


def cross_validation_task(seed: int, folds: int, **recipe: Any) -> tuple[dict[str, Any], int]:
    """The task pocket_photos with this number of folds, and the seed of its run."""
    task = config("tasks", "pocket_photos")
    task["recipe"].update(dict(folds=folds, inner_folds=2, max_iter=5000, batch=4) | recipe)
    return task, seed


def write_photos(root: Path, classes: dict[str, list[tuple[int, int]]]) -> Path:
    """Writes one image per point of `classes` as prepared `photos`; returns `root`."""
    for name, points in classes.items():
        for k, (red, green) in enumerate(points):
            save(root / "data/photos" / name / f"{k:02}.png", uniform_image(red, green))
    return root


def test_each_image_is_scored_by_a_model_that_was_not_trained_on_it(
    tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Two images have the red of the other class and a low green.

    A model trained on both would recognise them by their green (16/16). A model that was not
    trained on one of them misclassifies it: by its red, or by its low green, which only the other
    image has.
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
    """Accuracy by the protocol 'folds', computed here.

    In each of the outer folds, inner folds of its training part choose C. Every image is scored
    once.

    Args:
        x: [N, 3] features.
        y: [N] classes.
        seed: seed of both kinds of folds.
        folds: number of outer folds; there are two inner folds.
        grid: the values of C.
    """

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
    """Seeds give different scores, and C is never chosen with the fold that is scored."""
    rng = np.random.default_rng(5)
    classes = {
        name: [
            (int(red), int(green))
            for red, green in rng.integers((2 + 6 * k, 4), (24 + 6 * k, 28), (12, 2))
        ]
        for k, name in enumerate(("no", "yes"))
    }
    prepare = write_photos(tmp_path / "p", classes)
    colours = [colour(*point) for name in classes for point in classes[name]]
    x, y = np.array(colours) // 8, np.repeat([0, 1], 12)  # the features are the codes
    grid = [1e-3, 1.0, 1e3]
    expected = [score_by_folds(x.astype(float), y, seed, 4, grid) for seed in (0, 1, 2)]
    assert len(set(expected)) > 1
    tasks = [cross_validation_task(seed, 4, c_grid=grid) for seed in (0, 1, 2)]
    assert [o["value"] for o in in_subprocess(run_all, tasks, prepare, tmp_path)] == expected
