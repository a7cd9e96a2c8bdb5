"""Score differences with intervals over seeds and test images.

They are computed from the per-sample outputs of the rows: files in samples/ with the predictions
for every test image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kdep_bench.errors import KdepError
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.board.image_pairs import ImagePair, image_pair
from kdep_bench.results.records import samples
from kdep_bench.results.records.image_scores import image_scores
from kdep_bench.results.records.store import Run
from kdep_bench.results.statistics import intervals as st
from kdep_bench.results.statistics import over_images, pooled
from kdep_bench.results.statistics.over_images import Resampled

MAX_PAIRS = 400  # differences in the table; each needs all sample files of two rows

# Reasons why a pair of rows has no difference on a task.
NO_OUTPUTS = "the trainings of some seeds stored no predictions"
TOO_LARGE = "the predictions of some seeds are too large for this folder (they are in work_dirs)"
UNUSABLE_FILE = "a file of per-sample outputs cannot be used (see the remarks)"
OTHER_IMAGES = "the per-sample outputs are of different images"
FEW_IMAGES = f"there are fewer than {over_images.MIN_IMAGES} test images"
OTHER_METRIC = "the metric cannot be computed from the per-sample outputs"
NO_TRUTH = "some bootstrap samples of the images have no ground truth"
NO_COMMON_SEEDS = "there is no common seed pair"
TABLE_FULL = f"the table has at most {MAX_PAIRS} rows"


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """The score of `row` minus that of `reference` on a task; positive if `row` is better.

    `adjusted`: p value after Holm's correction for all these differences of the student.
    """

    row: RowKey
    reference: RowKey
    column: Column
    estimate: st.Estimate
    adjusted: float = 1.0

    @property
    def verdict(self) -> str:
        """'better', 'worse' or 'not significant'."""
        if self.adjusted >= 1 - st.LEVEL:
            return "not significant"
        return "better" if self.estimate.mean > 0 else "worse"


@dataclass(slots=True)
class OverImages:
    """The differences of a student's rows, from their per-sample outputs.

    `pairs`: the same differences image by image. `left_out`: reason -> number of pairs of rows on a
    task without a difference. `remarks`: sentences on files that cannot be used.
    """

    differences: list[ImageDifference] = field(default_factory=list)
    pairs: list[ImagePair] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """The scores of one run.

    Attributes:
        images: names of the N test images.
        resampled: scores on bootstrap samples of the images; larger is better.
        per_image: [N] scores of single images.
        measure: name of the score of a single image.
    """

    images: tuple[str, ...]
    resampled: Resampled
    per_image: np.ndarray
    measure: str


def over_test_images(board: Board, student: str, results_dir: Path) -> OverImages:
    """The differences over test images of all pairs in `compare.compared_pairs`.

    A pair is compared on a task if the folder has the outputs of every scored run of both rows, on
    the same images.
    """
    reader, outcome = _Reader(board, results_dir), OverImages()
    for row, reference in compare.compared_pairs(board, student):
        for column in compare.columns_of(board, student):
            if not (board.values(row, column) and board.values(reference, column)):
                continue
            if len(outcome.differences) == MAX_PAIRS:
                outcome.left_out[TABLE_FULL] += 1
                continue
            first, second = reader.trainings(row, column), reader.trainings(reference, column)
            if isinstance(first, str) or isinstance(second, str):
                reason = first if isinstance(first, str) else str(second)
                outcome.left_out[reason] += 1
                continue
            estimate = _difference(board, first, second, reference)
            if isinstance(estimate, str):
                outcome.left_out[estimate] += 1
                continue
            outcome.differences.append(ImageDifference(row, reference, column, estimate))
            per_image = [
                np.stack([training.per_image for training in trainings.values()])
                for trainings in (first, second)
            ]
            example = next(iter(first.values()))
            pair = image_pair(row, reference, column, example.measure, example.images, *per_image)
            outcome.pairs.append(pair)
    p_values = {i: st.p_two_sided(d.estimate) for i, d in enumerate(outcome.differences)}
    adjusted = pooled.holm(p_values)
    outcome.differences = [
        replace(d, adjusted=adjusted[i]) for i, d in enumerate(outcome.differences)
    ]
    outcome.remarks = reader.remarks
    return outcome


def _difference(
    board: Board,
    first: Mapping[st.Key, Training],
    second: Mapping[st.Key, Training],
    reference: RowKey,
) -> st.Estimate | str:
    """The difference, or the reason why there is none."""
    every = [*first.values(), *second.values()]
    images = every[0].images
    if any(training.images != images for training in every):
        return OTHER_IMAGES
    if not all(np.isfinite(training.resampled.replicates).all() for training in every):
        return NO_TRUTH
    a, b = ({key: t.resampled for key, t in row.items()} for row in (first, second))
    if board.lacks_pretraining(reference) and len({pretrain for pretrain, _ in b}) == 1:
        # The suite did not pre-train the reference, so it is compared with every pre-training seed
        # of the row (as in `compare.gaps`).
        pretrain_seeds = {pretrain for pretrain, _ in a}
        b = {(p, t): training for p in pretrain_seeds for (_, t), training in b.items()}
    return over_images.paired(a, b, len(images)) or NO_COMMON_SEEDS


class _Reader:
    """Reads each file of per-sample outputs once; `remarks` names the files that cannot be used."""

    def __init__(self, board: Board, results_dir: Path) -> None:
        self.board, self.results_dir, self.remarks = board, results_dir, list[str]()
        self._read: dict[tuple[str, str], Training | str] = {}
        # Image names -> the same names: runs on equal images share one tuple, to save memory.
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    def trainings(self, row: RowKey, column: Column) -> Mapping[st.Key, Training] | str:
        """Seed pair -> training; or the reason why a scored run of the row cannot be used."""
        trainings: dict[st.Key, Training] = {}
        for run in self.board.result(row, column).runs:
            if run.status == "ok" and run.value is not None:
                training = self._training(run, run.value, column)
                if isinstance(training, str):
                    return training
                trainings[run.pretrain_seed, run.transfer_seed] = training
        return trainings

    def _training(self, run: Run, value: float, column: Column) -> Training | str:
        if run.samples is None:
            return NO_OUTPUTS
        file, digest = run.samples
        if not file or ".." in Path(file).parts:
            return TOO_LARGE
        key = file, column.metric
        if key not in self._read:
            try:
                self._read[key] = self._score(self.results_dir / file, digest, value, column)
            except KdepError as e:
                self._read[key] = UNUSABLE_FILE
                self.remarks.append(str(e).replace(f"{self.results_dir}/", ""))
        return self._read[key]

    def _score(self, path: Path, digest: str, value: float, column: Column) -> Training | str:
        outputs = samples.read(path, digest)
        scores, count = image_scores(outputs, column.metric), len(outputs.images)
        if scores is None:
            return OTHER_METRIC
        computed = float(scores.weighted(np.ones((1, count)))[0])
        if not abs(computed - value) <= scores.tolerance:
            raise KdepError(
                f"{path} gives {column.metric} = {computed:.6g}, but its record has {value:.6g}",
                fix="copy the file and its record again; `kdep-bench report validate` compares all",
            )
        if count < over_images.MIN_IMAGES:
            return FEW_IMAGES
        resampled = over_images.resample(scores.weighted, count, value)
        signed = Resampled(column.sign * resampled.score, column.sign * resampled.replicates)
        images = self._names.setdefault(outputs.images, outputs.images)
        return Training(images, signed, scores.per_image, scores.measure)
