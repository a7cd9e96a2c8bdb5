"""The sections on differences over test images, for leaderboard.md and for the page."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.image_pairs import SHOWN, ImageGap, ImagePair
from kdep_bench.results.board.over_images import ImageDifference
from kdep_bench.results.report import board_rows
from kdep_bench.results.report.board_rows import BoardView
from kdep_bench.results.report.page.entries import (
    LEFT,
    LEFT_WIDE,
    ONE_LINE,
    Entry,
    chip_entry,
    name_entry,
    number_entry,
)
from kdep_bench.results.report.page.tables import Section, page_table

HEADING = "Differences over test images"
NOTE = (
    "Paired differences of the methods whose predictions for every test image are stored in this "
    "folder. These intervals cover the variation between seeds and between test images. The test "
    "images are bootstrapped, and the task's metric is computed for every bootstrap sample. The "
    "intervals of scores and differences in all other tables cover seeds only. p (Holm) is "
    "corrected for all rows that this table has for the student, not for groups of comparisons as "
    "in the other table of differences."
)
HEAD = ["student", "comparison", "task", "mean difference x100 [95 %]", "covers", "p (Holm)"]
HEAD += ["result"]


PAIRS_HEADING = "Images on which two methods differ most"
PAIRS_NOTE = (
    f"For each comparison, up to {SHOWN} images on which the first method gains most and up to "
    f"{SHOWN} on which it loses most. In the columns 'better' and 'largest gains' the first method "
    "scores higher. In brackets: the scores of the first and of the second method. The score of "
    "an image is a mean over the trainings of a method. Classification: the fraction of trainings "
    "that are right ('correct'). Segmentation: the mIoU of the image, over its classes. "
    "Detection: the F1 of the image at IoU 0.5, with the best score threshold for this image. For "
    "segmentation and detection this is not the task's metric, which is computed over all test "
    "images together. The images are selected by their differences, so they are examples, not "
    "evidence of a difference."
)
PAIRS_HEAD = ["student", "comparison", "task", "images: better / equal / worse"]
PAIRS_HEAD += ["score of an image", "largest gains", "largest losses"]


def notes(view: BoardView) -> list[str]:
    """The explanation, and a sentence on the pairs that are not in the table."""
    left_out = view.image_left_out
    if not left_out:
        return [NOTE]
    n_left_out = sum(left_out.values())
    total = n_left_out + len(view.image_differences)
    sentence = (
        f"{n_left_out} of the {total} comparisons (each of two methods on one task) are missing"
    )
    if len(left_out) == 1:
        return [NOTE, f"{sentence}, because {next(iter(left_out))}."]
    reasons = "; ".join(f"{count} because {reason}" for reason, count in sorted(left_out.items()))
    return [NOTE, f"{sentence}: {reasons}."]


def _labels(view: BoardView, d: ImageDifference | ImagePair) -> tuple[str, str, str]:
    """(student, comparison "a - b", task)."""
    names = board_rows.column_names(view.board.columns)
    return (
        d.row.student,
        f"{view.labels[d.row]} - {view.labels[d.reference]}",
        names[d.column],
    )


def markdown_rows(view: BoardView) -> list[list[str]]:
    """The rows of the table of differences in leaderboard.md."""
    rows = []
    for difference in view.image_differences:
        shown = [text.md(name) for name in _labels(view, difference)]
        p_value = text.p_value(difference.adjusted)
        rows.append(
            [
                *shown,
                text.gap(difference.estimate),
                difference.estimate.seeds,
                p_value,
                difference.verdict,
            ]
        )
    return rows


def page_section(view: BoardView) -> Section | None:
    """The section of index.html with the differences; None if there are no differences."""
    rows = []
    for difference in view.image_differences:
        student, comparison, task = _labels(view, difference)
        entries = [
            name_entry(student),
            Entry(text.plain(comparison), LEFT),
            name_entry(task),
            number_entry(text.gap(difference.estimate), difference.estimate.mean),
            Entry(difference.estimate.seeds, ONE_LINE),
            number_entry(text.p_value(difference.adjusted), difference.adjusted),
            chip_entry(difference.verdict),
        ]
        rows.append((student, entries))
    if not rows:
        return None
    table = page_table(view, HEADING, HEAD, rows, 3)
    return Section("over-images", HEADING, "table", notes=notes(view), table=table)


def _shown_pairs(view: BoardView) -> tuple[list[ImagePair], str]:
    """(the pairs that are shown, those of kdep first; a sentence on the others, or "")."""
    pairs = sorted(view.image_pairs, key=lambda p: p.row.method != compare.BASE)
    if len(pairs) <= board_rows.LONG:
        return pairs, ""
    sentence = f"Only the first {board_rows.LONG} of {len(pairs)} comparisons are shown."
    return pairs[: board_rows.LONG], sentence


def _gaps_text(pair: ImagePair, gaps: tuple[ImageGap, ...], n_more: int) -> str:
    """The images of `gaps` with their scores.

    `n_more` other images have the same difference as the last one listed.
    """
    shown = []
    for gap in gaps:
        if pair.is_accuracy:
            first, second = pair.trainings
            scores = f"{gap.first * first:.0f} of {first} against {gap.second * second:.0f}"
            scores += f" of {second}"
        else:
            scores = f"{gap.first:.2f} against {gap.second:.2f}"
        shown.append(f"{gap.image} ({scores})")
    if n_more:
        difference = f"{abs(gaps[-1].first - gaps[-1].second):.2f}"
        if pair.is_accuracy and len(set(pair.trainings)) == 1:
            trainings = pair.trainings[0]
            count = abs(gaps[-1].first - gaps[-1].second) * trainings
            difference = f"{count:.0f} of {trainings}"
        shown.append(f"{n_more} more with the last difference ({difference})")
    return "; ".join(shown) or "—"


def _pair_texts(pair: ImagePair) -> list[str]:
    """The entries of PAIRS_HEAD from the fourth on."""
    counts = f"{pair.better} / {pair.equal} / {pair.worse}"
    if pair.undefined:
        counts += f", {pair.undefined} without a score"
    gains = _gaps_text(pair, pair.gains, pair.more_gains)
    return [counts, pair.measure, gains, _gaps_text(pair, pair.losses, pair.more_losses)]


def pairs_markdown(view: BoardView) -> tuple[list[list[str]], str]:
    """(rows of the table in leaderboard.md; a sentence on pairs that are not shown, or "")."""
    pairs, rest = _shown_pairs(view)
    rows = [[text.md(t, 600) for t in (*_labels(view, pair), *_pair_texts(pair))] for pair in pairs]
    return rows, rest


def pairs_section(view: BoardView) -> Section | None:
    """The section on the images on which two methods differ; None if there are no such pairs."""
    pairs, rest = _shown_pairs(view)
    rows = []
    for pair in pairs:
        student, comparison, task = _labels(view, pair)
        counts, measure, gains, losses = (text.plain(t, 600) for t in _pair_texts(pair))
        entries = [name_entry(student), Entry(text.plain(comparison), LEFT), name_entry(task)]
        entries += [number_entry(counts, pair.better - pair.worse), Entry(measure, LEFT)]
        rows.append((student, [*entries, Entry(gains, LEFT_WIDE), Entry(losses, LEFT_WIDE)]))
    if not rows:
        return None
    table = page_table(view, PAIRS_HEADING, PAIRS_HEAD, rows, 3)
    shown = [PAIRS_NOTE, rest] if rest else [PAIRS_NOTE]
    return Section("image-pairs", PAIRS_HEADING, "table", notes=shown, table=table)
