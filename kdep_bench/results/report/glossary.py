"""The terms of tables, page and configs, each defined once.

The page shows `TERMS` at its foot and as hover titles of its column headings; GLOSSARY.md is
`markdown()` (a test compares the two; `python -m kdep_bench.results.report.glossary > GLOSSARY.md`
rewrites it).
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple


class Term(NamedTuple):
    """A term, its definition, and the column headings (page, Markdown, CSV) that it explains."""

    name: str
    meaning: str
    headings: tuple[str, ...] = ()


TERMS = (
    Term(
        "student",
        "The small backbone that is pre-trained, exported and transferred to the tasks.",
        ("student",),
    ),
    Term(
        "teacher",
        "The large frozen network whose outputs the student learns to reproduce. An assistant is a "
        "teacher that the suite itself pre-trained from the larger one. Several teachers of one "
        "method are joined by '+'.",
        ("teacher",),
    ),
    Term(
        "method",
        "How a student was pre-trained: kdep, one of the other distillation methods, supervised, "
        "scratch, imagenet. Where a method was run several times, the row also names what differs: "
        "teacher, data fraction, epochs. '(re-implementation)': written from the paper's text, "
        "because the authors' code is not public or does not cover these networks.",
        ("method", "row", "reimplementation"),
    ),
    Term(
        "transfer method",
        "A method that acts while the student is trained on a task: it adds losses and, usually, a "
        "tuned teacher, another student that was trained on the same task before. 'pre-trained by "
        "X, transferred with Y': X is the pre-training, Y the transfer method. Only the task's own "
        "network is scored.",
    ),
    Term(
        "normalised mean",
        "Mean over tasks of (score - chance) / (reference - chance): 0 is chance, 1 the reference, "
        "which is the supervised row with the most data and epochs. Every task family has the same "
        "weight. 'without one task': the lowest and highest value when one task is left out.",
        ("normalised mean", "without one task"),
    ),
    Term(
        "scratch, supervised, imagenet",
        "The references: no pre-training (random weights); pre-training on the same images with "
        "their labels; published weights trained on ImageNet with labels.",
    ),
    Term(
        "arm",
        "In configs and code: one method with its student, teacher, data fraction and epochs, that "
        "is, one row of the tables.",
    ),
    Term(
        "labels used",
        "Whether pre-training read image labels: yes, no, 'by its teacher' (only to train the "
        "assistant that is its teacher), or no pre-training; 'by its teacher at transfer': only "
        "the pre-training of the tuned teacher read labels.",
        ("labels used", "labels", "labels_used", "label_policy"),
    ),
    Term(
        "data fraction",
        "Fraction of the pre-training images that a method may use.",
        ("data fraction", "data_fraction"),
    ),
    Term(
        "images seen, epochs",
        "Samples processed in pre-training, repeats included; epochs = images seen / images of the "
        "data fraction.",
        ("images seen", "images_seen", "epochs"),
    ),
    Term(
        "view",
        "A fixed random crop and flip of an image. Views are drawn once and stored, so every "
        "method trains on the same pixels, and the teacher's output for each is computed once.",
    ),
    Term(
        "tap",
        "The layer whose average-pooled output is used as the feature of a teacher or student; for "
        "KDEP the input of the last activation.",
    ),
    Term(
        "teacher cache",
        "The teacher's outputs for every (image, view), computed once and stored. Its time is "
        "charged to a method in proportion to the data fraction, also where methods share a cache.",
        ("incl. teacher cache", "cache_s"),
    ),
    Term(
        "pre-training cost",
        "Wall time of pre-training, teacher cache and alignment together, in the CSV in seconds; "
        "cost ratio: that of one method divided by that of the other.",
        ("pre-training cost", "cost", "cost ratio", "cost_s", "pretrain_s", "align_s"),
    ),
    Term(
        "step time",
        "Mean seconds of one optimiser step of pre-training; step time / kdep: divided by that of "
        "kdep with the same student, teacher, data fraction and epochs.",
        ("step time", "step time / kdep", "step_s", "step_time_over_kdep"),
    ),
    Term(
        "extra parameters",
        "Parameters that are trained or stored with the student (projectors, heads, peers) and "
        "dropped at export.",
        ("extra parameters", "extra_parameters"),
    ),
    Term(
        "extra forward passes",
        "Forward passes of all networks other than the student during pre-training: cached or live "
        "teacher, peer networks, moving averages. Tables: per image seen; CSV: in total.",
        ("extra forward passes per image seen", "extra_forwards"),
    ),
    Term(
        "loss weight, loss terms",
        "KDEP's loss weight is set automatically: 20 / (mean square of the target). Loss terms: "
        "mean fraction of the total loss magnitude that each term contributes, where a loss has "
        "several.",
        ("loss terms",),
    ),
    Term(
        "method family",
        "Methods that use the same kind of teacher signal. Inputs: what their losses read of a "
        "batch (pooled features, logits, maps, tokens, labels), with the number of methods. A task "
        "family is a kind of task: classification, detection, segmentation.",
        ("method family", "method_family", "task_family", "methods", "inputs", "methods left out"),
    ),
    Term(
        "alignment, explained variance ratio",
        "The alignment is a fixed linear map from the teacher's feature to the student's width "
        "(KDEP: SVD). Explained variance ratio: fraction of the feature's variance inside the span "
        "that the alignment keeps.",
        ("explained variance ratio", "explained_variance_ratio"),
    ),
    Term(
        "std ratio",
        "Largest over smallest standard deviation among a feature's channels: of the raw teacher "
        "feature, after the alignment, and after the transform (the training target).",
        (
            "std ratio: raw",
            "std ratio: aligned",
            "std ratio: transformed",
            "std_ratio_before",
            "std_ratio_after_align",
            "std_ratio_after_transform",
        ),
    ),
    Term(
        "PTS",
        "Power temperature scaling, KDEP's transform of the aligned feature: "
        "sign(a) |a / T|^(1/n). It lowers the std ratio.",
    ),
    Term(
        "weights loaded",
        "Fraction of the backbone's parameters and buffers, by element count, that were equal to "
        "the exported file when transfer training began. Below 1, some weights were not loaded.",
        ("weights loaded", "weights_loaded"),
    ),
    Term(
        "linear probe, fine-tuned",
        "Two ways to score a backbone on classification: a linear classifier on frozen features, "
        "or training of all weights.",
    ),
    Term(
        "chance",
        "Score of a guess that does not look at the image; for segmentation the mIoU of predicting "
        "background everywhere.",
        ("chance",),
    ),
    Term(
        "probe",
        "A measurement of an exported backbone that is shown and used for nothing else: no mean, "
        "rank, difference or claim includes it. Its features are extracted once for all probes.",
        ("probe", "seed", "better", "folder", "features_s", "probe_s"),
    ),
    Term(
        "top1 (of a probe)",
        "Accuracy on the test split: of k nearest neighbours, of logistic regression on a few "
        "images per class, or of a linear probe on clean and corrupted images.",
        ("top1",),
    ),
    Term(
        "mAP, recall at K (of a probe)",
        "Every test image is a query for the others, ranked by cosine similarity: mean average "
        "precision of images of its class; fraction of queries with one among the K most similar.",
        ("mAP", "recall"),
    ),
    Term(
        "ECE, classwise ECE, Brier, NLL",
        "Calibration of the linear probe. Expected calibration error: gap between predicted "
        "probability and accuracy, for the predicted class or for every class. Brier score: "
        "squared error of the probabilities, from 0 to 2. NLL: negative log-likelihood in nats.",
        ("ECE", "classwise ECE", "Brier", "NLL"),
    ),
    Term(
        "effective rank, participation ratio, dead dimensions",
        "How many dimensions of the feature vary: exp(entropy of the singular values), "
        "(sum of variances)² / sum of squared variances, and the fraction of channels that hardly "
        "vary. 'before activation': of the feature that KDEP trains.",
        ("effective rank", "participation ratio", "dead dimensions"),
    ),
    Term(
        "CKA",
        "Centred kernel alignment (linear, unbiased) of the student's and the teacher's feature of "
        "the same images: 1 where one is a rotation of the other, about 0 where unrelated.",
        ("CKA",),
    ),
    Term(
        "stage",
        "One step of a suite (prepare, views, cache, align, pretrain, export, transfer; with "
        "probes also features and probe) with its own directory in work_dirs.",
    ),
    Term(
        "cell, record",
        "A cell is one transfer run: method, student, task, pre-training seed, transfer seed. Its "
        "result is one record, a JSON file in records/. ok, failed and missing count cells.",
        ("ok", "failed", "missing", "run"),
    ),
    Term(
        "seed pair",
        "(pre-training seed, transfer seed). Two methods are compared within each pair; the "
        "independent seeds are the pre-training seeds, or the transfer seeds where there is only "
        "one pre-training seed.",
        ("seed pairs", "seeds", "n", "independent seeds per method"),
    ),
    Term(
        "interval",
        "95 % confidence interval over the seeds that were run. Of a mean: Student's t below 50 "
        "values, BCa bootstrap from 50 to 300. Of a difference: Student's t with the spread of all "
        "methods of the task, or the pair's own where that is larger. Clustered where pre-training "
        "and transfer seeds cross. Another test set is not covered.",
        ("low95", "high95", "measured", "mean difference"),
    ),
    Term(
        "differences over test images, covers",
        "The difference of two methods with an interval over seeds and test images: the images are "
        "drawn with replacement 1000 times, the same draw for both methods, and the metric is "
        "computed for each draw (AP: COCO's 101 recalls over all detections of the drawn images). "
        "It needs the per-sample outputs of every run; earlier records have none. Covers: seeds "
        "and images that the interval speaks for.",
        ("covers",),
    ),
    Term(
        "images on which two methods differ",
        "Test images with the largest differences of their own score, a mean over trainings. "
        "Classification: right or wrong. Segmentation: mIoU of the image, over its classes. "
        "Detection: best F1 of the image at IoU 0.5, 2 true positives / (detections + true boxes), "
        "at the score threshold that is best for that image. Gains: the first method is better.",
        ("images: better / equal / worse", "score of an image", "largest gains", "largest losses"),
    ),
    Term(
        "better, worse, not significant",
        "Result of a comparison: the mean difference is above or below 0 with p (Holm) below 0.05, "
        "or not. p (Holm): two-sided p value after Holm's correction (1979), made separately for "
        "kdep and for the other methods, for means over tasks and for single tasks. Too few seed "
        "pairs: no p value.",
        (
            "result",
            "p (Holm)",
            "comparison",
            "mean difference to kdep",
            "mean difference to scratch",
        ),
    ),
    Term(
        "among the best",
        "The best mean of a task and every method not significantly worse (multiple comparisons "
        "with the best, Hsu 1984): with probability 0.95 the method with the best true mean is "
        "among them. Summary: in how many tasks. rank_best and rank_worst: the ranks that "
        "Dunnett's tests leave possible.",
        ("among the best", "among_best", "rank_best", "rank_worst"),
    ),
    Term(
        "mean rank",
        "Mean over all tasks of the rank by mean score, among the methods that have results for "
        "every task and seed.",
        ("mean rank", "mean_rank"),
    ),
    Term(
        "minimum detectable difference",
        "Smallest true paired difference that the present number of independent seeds shows with "
        "power 0.8, before correction. Std. dev. over seeds: pooled over methods.",
        ("minimum detectable difference", "std. dev. over seeds"),
    ),
    Term(
        "claim, verdict",
        "A claim states what must be measured (threshold). Supported or refuted: the whole "
        "interval is on one side of the threshold, no task family contradicts, and it holds after "
        "Holm's correction for all claims of the suite. Undecided: otherwise. For one pre-trained "
        "network: there is one pre-training seed, and another network may differ. Not testable "
        "here: the records lack a method.",
        ("claim", "verdict", "threshold", "tasks"),
    ),
    Term(
        "seeds needed",
        "Number of independent seeds that would decide a claim with power 0.8 if mean and standard "
        "deviation stayed as measured; a dash where none or more than 1000 are needed.",
        ("seeds needed",),
    ),
    Term(
        "seeds needed (report --seeds-needed)",
        "For each task and each probe, the pre-training seeds with which a paired t test "
        "(two-sided, 5 %) finds the measured difference of two methods with power 0.8. Difference "
        "/ std. dev.: mean over standard deviation of the paired differences. Range: for the ends "
        "of the 95 % interval of that standard deviation (chi squared).",
    ),
    Term(
        "budget, reduction factor",
        "Budget: what pre-training spends, as images, images seen, time or FLOPs. Reduction "
        "factor: the reference's budget divided by the budget with which the method reaches the "
        "reference's score.",
        ("budget", "reduction factor", "reference"),
    ),
    Term(
        "fingerprint",
        "Hash of the data's content; data with different fingerprints are never compared.",
        ("data", "fingerprint"),
    ),
)

# Units and qualifiers of a heading; of probes also the direction and what was measured.
_UNIT = re.compile(
    r"\s*(\[95.%\]|\(power 0\.8\)|\(x100\)|x100|, max\.|, approx\.|[↑↓]"
    r"|(?<=^top1), .*|(?<=^recall) at \d+.*| before activation)"
)


@cache
def _by_heading() -> dict[str, Term]:
    by_heading: dict[str, Term] = {}
    for term in TERMS:
        for heading in term.headings:
            assert heading not in by_heading, heading
            by_heading[heading] = term
    return by_heading


def plain_heading(heading: str) -> str:
    """A column heading less its units and qualifiers."""
    return _UNIT.sub("", heading).strip()


def term_of(heading: str) -> Term | None:
    """The term that explains a column heading; None for a textbook term."""
    return _by_heading().get(plain_heading(heading))


def markdown() -> str:
    """The text of GLOSSARY.md."""
    lines = [
        "# Glossary",
        "",
        "Terms of the leaderboards, the HTML pages and the configs. Textbook terms (epoch, mIoU, "
        "AP50, top-1) are not repeated here.",
        "",
        "| term | meaning |",
        "| --- | --- |",
        *(f"| {t.name} | {t.meaning.replace('|', chr(92) + '|')} |" for t in TERMS),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
