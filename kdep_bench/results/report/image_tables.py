"""The sections on differences over test images, for leaderboard.md and for the page."""

from __future__ import annotations

from kdep_bench.results import text
from kdep_bench.results.board import compare
from kdep_bench.results.board.image_pairs import MAX_IMAGES, ImageGap, ImagePair
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
NOTES = (
    "These intervals cover the variation between seeds and between test images: the images are "
    "bootstrapped, and the task's metric is computed on every bootstrap sample. All other tables "
    "cover seeds only, so a difference that is significant only in them may not hold on other test "
    "images.",
    "The variance between seeds is that of the pair alone, not pooled over methods, so an interval "
    "may also be narrower than in the other table.",
    "Only methods whose predictions for every test image are stored in this folder are compared. "
    "Holm's correction is made for all rows of the table{per_student}.",
)
HEAD = ["student", "comparison", "task", "mean difference x100 [95 %]", "covers", "p (Holm)"]
HEAD += ["result"]


PAIRS_HEADING = "Images on which two methods differ most"
# Family -> the score of an image.
_IMAGE_SCORES = {
    "classification": "the fraction of trainings that classify it correctly ('correct')",
    "segmentation": "the mIoU over the classes of the image, mean over trainings (not the task's "
    "mIoU, which is computed over all test images together)",
    "detection": "the F1 at IoU 0.5 with the best score threshold for this image, mean over "
    "trainings (not the task's AP)",
}
PAIRS_HEAD = ["student", "comparison", "task", "images: better / equal / worse"]
PAIRS_HEAD += ["score of an image", "largest gains", "largest losses"]


def notes(view: BoardView) -> list[str]:
    """The explanations, and a sentence on the pairs that are not in the table."""
    per_student = "" if view.has_one_student else " with the same student"
    explanations = [note.format(per_student=per_student) for note in NOTES]
    left_out = view.image_left_out
    if not left_out:
        return explanations
    n_left_out = sum(left_out.values())
    total = n_left_out + len(view.image_differences)
    sentence = (
        f"{n_left_out} of the {total} comparisons (each of two methods on one task) are missing"
    )
    if len(left_out) == 1:
        return [*explanations, f"{sentence}, because {next(iter(left_out))}."]
    reasons = "; ".join(f"{count} because {reason}" for reason, count in sorted(left_out.items()))
    return [*explanations, f"{sentence}: {reasons}."]


def pairs_notes(view: BoardView) -> list[str]:
    """The explanations of the table of images."""
    families = sorted({pair.column.family for pair in view.image_pairs} & _IMAGE_SCORES.keys())
    scores = [f"for {family}, {_IMAGE_SCORES[family]}" for family in families]
    return [
        f"Up to {MAX_IMAGES} images on which the first method gains most, and up to {MAX_IMAGES} "
        "on which it loses most. In brackets: its score and that of the second method.",
        "Images: numbers of images on which the first method is better, equal or worse.",
        f"Score of an image: {'; '.join(scores)}." if scores else "",
        "The images are selected by their differences, so they are examples, not evidence of a "
        "difference.",
    ]


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
        images = "image" if n_more == 1 else "images"
        shown.append(f"{n_more} more {images} whose scores differ by {difference}")
    return "; ".join(shown) or "—"


def _pair_texts(pair: ImagePair) -> list[str]:
    """The entries of PAIRS_HEAD from the fourth on."""
    counts = f"{pair.better} / {pair.equal} / {pair.worse}"
    if pair.undefined:
        counts += f", {pair.undefined} without a score"
    gains = _gaps_text(pair, pair.gains, pair.more_equal_gains)
    return [counts, pair.measure, gains, _gaps_text(pair, pair.losses, pair.more_equal_losses)]


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
    shown = [*pairs_notes(view), rest]
    return Section("image-pairs", PAIRS_HEADING, "table", notes=shown, table=table)
