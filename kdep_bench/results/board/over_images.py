"""Differences over seeds and test images, for rows whose per-sample outputs are in the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kdep_bench.errors import KdepError
from kdep_bench.results.board import compare
from kdep_bench.results.board.board import Board, Column, RowKey
from kdep_bench.results.records import samples
from kdep_bench.results.records.samples import Samples
from kdep_bench.results.records.store import Run
from kdep_bench.results.statistics import intervals as st
from kdep_bench.results.statistics import over_images, pooled

MOST_PAIRS = 400  # compared pairs of rows and tasks; each reads all files of both rows


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """`row` - `reference` on a task, larger is better for `row`; `adjusted`: p after Holm's
    correction for all such differences of the student."""

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


def differences(
    board: Board, student: str, results_dir: Path
) -> tuple[list[ImageDifference], list[str]]:
    """(differences of the compared pairs of rows, remarks on files that cannot be used).

    A pair is compared on a task where every scored run of both rows has its outputs in the folder,
    on the same images.
    """
    reader = _Reader(board, results_dir)
    table: list[ImageDifference] = []
    for row, reference in compare.compared(board, student):
        for column in compare.columns_of(board, student):
            if len(table) == MOST_PAIRS:
                break
            estimate = _difference(board, reader, row, reference, column)
            if estimate is not None:
                table.append(ImageDifference(row, reference, column, estimate))
    adjusted = pooled.holm({i: st.p_two_sided(d.estimate) for i, d in enumerate(table)})
    return [replace(d, adjusted=adjusted[i]) for i, d in enumerate(table)], reader.remarks


def _difference(
    board: Board, reader: _Reader, row: RowKey, reference: RowKey, column: Column
) -> st.Estimate | None:
    first, second = reader.outputs(row, column), reader.outputs(reference, column)
    if not first or not second:
        return None
    pretrained = {key[0] for key in first}
    if board.fixed(reference) and len({key[0] for key in second}) == 1:
        # Without pre-training of its own it stands against every pre-training seed, as in gaps.
        second = {(p, t): o for p in pretrained for (_, t), o in second.items()}
    every = [*first.values(), *second.values()]
    images = every[0].images
    if len(images) < over_images.FEWEST_IMAGES or any(o.images != images for o in every):
        return None
    if samples.weighted_scores(every[0], column.metric, np.ones((1, len(images)))) is None:
        return None

    def weighted(outputs: Samples, weights: np.ndarray) -> np.ndarray:
        score = samples.weighted_scores(outputs, column.metric, weights)
        assert score is not None
        return column.sign * score

    return over_images.paired(first, second, weighted, len(images))


class _Reader:
    """Reads per-sample outputs once each; a file that cannot be used is a remark."""

    def __init__(self, board: Board, results_dir: Path) -> None:
        self.board, self.results_dir, self.remarks = board, results_dir, list[str]()
        self._read: dict[str, Samples | None] = {}

    def outputs(self, row: RowKey, column: Column) -> Mapping[st.Key, Samples]:
        """By seed pair; empty unless every scored run of the row has them."""
        result = self.board.result(row, column)
        runs = [r for r in result.runs if r.status == "ok"]
        loaded = {(r.pretrain_seed, r.transfer_seed): self._load(r) for r in runs}
        complete = {key: outputs for key, outputs in loaded.items() if outputs is not None}
        return complete if len(complete) == len(result.values) else {}

    def _load(self, run: Run) -> Samples | None:
        if run.samples is None or not run.samples[0] or ".." in Path(run.samples[0]).parts:
            return None
        file, digest = run.samples
        if file not in self._read:
            try:
                self._read[file] = samples.read(self.results_dir / file, digest)
            except KdepError as e:
                self._read[file] = None
                self.remarks.append(str(e).replace(f"{self.results_dir}/", ""))
        return self._read[file]
