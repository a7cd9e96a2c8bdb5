"""The terms of the tables, the page and the configs, each defined once.

The page shows `TERMS` at its foot and as hover texts of its column headings. GLOSSARY.md contains
the output of `markdown()`; a test compares them. This command rewrites the file:
`python -m kdep_bench.results.report.glossary > GLOSSARY.md`.
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


# True of every config with `reconstruction=True` (methods, probes) or `reimplementation=True`
# (searches).
REIMPLEMENTATION = (
    "parts were chosen in this project, because the source used is incomplete (an abstract, a "
    "quotation, one equation) or the original does not fit these networks and tasks"
)

TERMS = (
    Term(
        "student",
        "The small backbone that is pre-trained, exported and transferred to the tasks.",
        ("student",),
    ),
    Term(
        "teacher",
        "The large frozen network whose outputs the student learns to reproduce. An assistant "
        "(intermediate teacher in code and errors) is a smaller teacher that the suite itself "
        "pre-trained, from the large one or with labels. Its name is 'student.method'; '.8ep' is "
        "added if it was trained for its own number of epochs, here 8. If a method has several "
        "teachers, their names are joined by '+'.",
        ("teacher",),
    ),
    Term(
        "method",
        "How a student was pre-trained: by kdep, by another distillation method, supervised, "
        "scratch or imagenet. If one method was run with several settings, the row also names the "
        "setting that differs: teacher, data fraction or epochs. '(re-implementation)': "
        f"{REIMPLEMENTATION}.",
        ("method", "row", "reimplementation"),
    ),
    Term(
        "transfer method",
        "A method that is used while the student is trained on a task. It adds losses or changes "
        "the network (for example, quantises it), and usually has a teacher that was trained on "
        "the same task before (a tuned teacher). "
        "'pre-trained by X, transferred with Y': X is the pre-training method (scratch: no "
        "pre-training), Y the transfer method. Only the student is scored. In the name of a tuned "
        "teacher, 'with' is followed by the transfer method with which it was trained; IRF is "
        "image re-representation fine-tuning, which adds a contrastive loss.",
        ("teacher used labels", "teacher's score", "transfer time", "transfer_s"),
    ),
    Term(
        "normalised mean",
        "Mean over tasks of (score - chance) / (reference - chance). 0 is chance. 1 is the "
        "reference: the supervised row with the most data and epochs. Every task family has the "
        "same weight. 'with one task left out': the lowest and the highest normalised mean when "
        "one task is left out.",
        ("normalised mean", "with one task left out", "mean score"),
    ),
    Term(
        "scratch, supervised, imagenet",
        "The references. scratch: no pre-training (random weights; its cost is the time to "
        "initialise them). supervised: pre-training on the same images with their labels. "
        "imagenet: published weights that were trained on ImageNet with labels.",
    ),
    Term(
        "arm",
        "Used in configs and code: one method with its student, teacher, data fraction and epochs. "
        "It is one row of the tables.",
    ),
    Term(
        "labels used",
        "Whether pre-training used image labels: yes, no, or 'no pre-training'. 'by its teacher': "
        "labels were used only to train its assistant teacher. 'by its teacher at transfer': "
        "labels were used only in the pre-training of the teacher of the transfer method.",
        ("labels used", "labels_used", "label_policy"),
    ),
    Term(
        "data fraction",
        "Fraction of all pre-training images that a method uses.",
        ("data fraction", "data_fraction"),
    ),
    Term(
        "images seen, epochs",
        "Images seen: number of samples in pre-training; an image counts every time it is used. "
        "Epochs: images seen / number of images of the data fraction.",
        ("images seen", "images_seen", "epochs"),
    ),
    Term(
        "view",
        "A fixed random crop and flip of an image. The views are chosen once and stored. So every "
        "method trains on the same pixels, and the teacher's output for a view is computed once.",
    ),
    Term(
        "tap",
        "The layer of a teacher or student whose average-pooled output is used as its feature. For "
        "KDEP it is the layer before the last activation.",
    ),
    Term(
        "signed pair",
        "Two channels for one component of a target: its positive part and its negative part. A "
        "student's feature after a ReLU has no negative values, so it can follow both.",
    ),
    Term(
        "teacher cache",
        "The teacher's outputs for every (image, view), computed once and stored. Methods share a "
        "cache, but the pre-training cost of each includes the time to compute it, in proportion "
        "to the data fraction. 'of which teacher cache': this part of the pre-training cost.",
        ("of which teacher cache", "cache_s"),
    ),
    Term(
        "pre-training cost",
        "Wall time of pre-training, teacher cache and alignment together; in the CSV in seconds. "
        "Cost ratio: the pre-training cost of a claim's first method divided by that of its "
        "second.",
        ("pre-training cost", "cost ratio", "cost_s", "pretrain_s", "align_s"),
    ),
    Term(
        "step time",
        "Mean time of one optimiser step of pre-training; in the CSV in seconds. Step time / kdep: "
        "divided by that of kdep with the same student and data fraction. Of several rows of kdep, "
        "it is the one with the same epochs and teacher.",
        ("step time", "step time / kdep", "step_s", "step_time_over_kdep"),
    ),
    Term(
        "peak memory",
        "Of a run: the larger of the memory peaks of its pre-training and its transfer. Of a "
        "method: the lowest peak of its runs. Largest peak memory: the largest of the methods of a "
        "family.",
        ("peak memory", "largest peak memory", "peak_memory_bytes"),
    ),
    Term(
        "extra parameters",
        "Parameters that are trained or stored with the student (projectors, heads, peers) and "
        "dropped at export.",
        ("extra parameters", "extra_parameters"),
    ),
    Term(
        "extra forward passes",
        "Forward passes during pre-training in addition to the student's one per image seen: of "
        "all other networks (cached or live teacher, peer networks, moving averages), additional "
        "passes of the student (on augmented images), and all passes in the pre-training of a "
        "teacher that the suite trains for the method. Records of earlier versions do not count "
        "this pre-training; ‡ marks them in tables. Per image seen; in the CSV in total. In the "
        "table of transfer methods: passes in addition to the student's one per training image, in "
        "total: of the transfer method's teacher, of moving averages, and additional passes of the "
        "student on other images (target domain, generated or masked images).",
        ("extra forward passes per image seen", "extra forward passes", "extra_forwards"),
    ),
    Term(
        "weight bits, megabytes, bit-operations",
        "Of a network that a transfer method quantises, without its heads. Weight bits: mean over "
        "the quantised weights. Megabytes: 10^6 bytes of all its tensors, quantised weights at "
        "their bits. Bit-operations: multiply-adds of one training image times the bits of the "
        "weights times the bits of the input of each layer.",
        ("weight bits", "megabytes", "bit-operations"),
    ),
    Term(
        "loss weight, loss terms",
        "KDEP's loss weight is set automatically: 20 / (mean square of the target). Loss terms: if "
        "a loss has several terms, the mean percentage of the total loss magnitude that each "
        "contributes. The text above the table explains the names of the terms.",
        ("loss terms",),
    ),
    Term(
        "method family",
        "Methods that use the same kind of teacher signal: feature (pooled features or feature "
        "maps), relation (relations between the images of a batch), logit (class scores), online "
        "(networks that are trained together with the student). Inputs: what their losses read, "
        "with the number of methods that read it.",
        ("method family", "method_family", "methods", "inputs", "methods left out"),
    ),
    Term(
        "task, task family",
        "A data set with a metric on which the exported students are compared. A task family is a "
        "kind of task: classification, detection or segmentation.",
        ("task", "task_family", "tasks"),
    ),
    Term(
        "pocket_probe, pocket_finetune, pocket_photos, pocket_det, pocket_seg",
        "Tasks of the pocket suites. pocket_probe and pocket_finetune: eight classes of composite "
        "scenes, by linear probe and by fine-tuning. pocket_photos: linear probe on photographs of "
        "other classes. pocket_det: detection, scored by bbox_mAP_50, the AP at an IoU of 0.5. "
        "pocket_det_fog: trained as pocket_det, scored on the test scenes in generated fog; "
        "'_source': scored on the clear test scenes. pocket_few: pocket_finetune with few images. "
        "pocket_seg: semantic segmentation. '_val': scored on the validation split, to choose "
        "settings.",
        (
            "pocket_probe",
            "pocket_finetune",
            "pocket_photos",
            "pocket_det",
            "pocket_seg",
            "pocket_probe_val",
        ),
    ),
    Term(
        "alignment, explained variance ratio",
        "Alignment: a fixed linear map from the teacher's feature to the student's width (KDEP: "
        "SVD). Explained variance ratio: fraction of the feature's variance that the alignment "
        "keeps. A target of signed pairs has only half of the aligned components, so it keeps "
        "less.",
        ("explained variance ratio", "explained_variance_ratio"),
    ),
    Term(
        "std ratio",
        "The largest standard deviation of a feature's channel divided by the smallest. It is "
        "given for the teacher's feature (raw), after the alignment (aligned), and for the "
        "training target (transformed).",
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
        "Power temperature scaling: KDEP's transform of the aligned feature a, "
        "sign(a) |a / T|^(1/n), with constants T and n. It lowers the std ratio.",
    ),
    Term(
        "weights loaded",
        "Fraction of the backbone's weights (elements of parameters and buffers) that were equal "
        "to the exported file when transfer training began. Below 1, some weights were not loaded.",
        ("weights loaded", "weights_loaded"),
    ),
    Term(
        "linear probe, fine-tuned",
        "Two ways to score a backbone on classification: a linear classifier on frozen features, "
        "or training of all weights.",
    ),
    Term(
        "chance",
        "Expected score of predictions that do not depend on the image. For segmentation: the mIoU "
        "of predicting the most frequent class everywhere.",
        ("chance",),
    ),
    Term(
        "probe",
        "A measurement of an exported backbone, without training the backbone, that is shown in a "
        "separate table. No mean, rank, difference or claim includes it, except tables of teachers "
        "and claims about them, which read the probe `teacher`. The backbone's features are "
        "extracted once for all probes.",
        ("probe", "seed", "better", "folder", "features_s", "probe_s"),
    ),
    Term(
        "ms, images/s (of a probe)",
        "Latency: median milliseconds per batch, from RGB pixels to the pooled feature, and images "
        "per second, on one CPU thread, with torch or onnxruntime. They depend on the processor "
        "and on other work on the machine, not on the weights.",
        ("ms", "images/s"),
    ),
    Term(
        "top1 (of a probe)",
        "Accuracy on the test split, of one of these classifiers: k nearest neighbours, logistic "
        "regression on a few images per class, class means of a few images with or without an "
        "adapter, or a linear probe on clean and corrupted images. Probe other_domain: k nearest "
        "neighbours and a linear probe, fitted on the images as they are (source), on the same "
        "test images in fog, at night or as drawings (sketch). Mean of targets: mean over these "
        "three.",
        ("top1",),
    ),
    Term(
        "mIoU, pixel accuracy (of a probe)",
        "Linear segmentation: one 1x1 convolution on the frozen feature maps of strides 8, 16 and "
        "32, trained on the scenes with masks; mean IoU over classes, and the fraction of labelled "
        "pixels that are right, on the test split.",
        ("mIoU", "pixel accuracy"),
    ),
    Term(
        "mAP, recall at K (of a probe)",
        "Image retrieval: for every test image, the other test images are ranked by the cosine "
        "similarity of their features. mAP: mean average precision of finding images of the same "
        "class. Recall at K: fraction of images with an image of the same class among the K most "
        "similar ones.",
        ("mAP", "recall"),
    ),
    Term(
        "ECE, classwise ECE, Brier, NLL",
        "Calibration of the linear probe. ECE: expected calibration error, the mean gap between "
        "predicted probability and accuracy, for the predicted class; classwise ECE: for every "
        "class. Brier: squared error of the probabilities, from 0 to 2. NLL: negative "
        "log-likelihood in nats.",
        ("ECE", "classwise ECE", "Brier", "NLL"),
    ),
    Term(
        "loss, Hessian, sharpness, loss increase (of a probe)",
        "Flatness of the loss of a linear probe as a function of the backbone's weights; lower is "
        "flatter. Loss: at the exported weights. Largest Hessian eigenvalue, Hessian trace: of its "
        "second derivatives. Sharpness: increase of the loss after a step in the direction of its "
        "gradient; radius: length of the step / norm of the weights. Loss increase: mean over "
        "random directions, in which every filter has the norm of the network's filter; distance: "
        "factor by which the direction is multiplied.",
        (
            *("loss", "largest Hessian eigenvalue", "Hessian trace"),
            *("sharpness", "loss increase"),
        ),
    ),
    Term(
        "effective rank, participation ratio, dead dimensions",
        "How many dimensions of the feature vary. Effective rank: exp(entropy of the normalised "
        "singular values). Participation ratio: (sum of variances)² / sum of squared variances. "
        "Dead dimensions: fraction of channels that hardly vary. 'before activation': the feature "
        "before the last activation, which KDEP trains.",
        ("effective rank", "participation ratio", "dead dimensions"),
    ),
    Term(
        "measure (of a teacher)",
        "A property of a teacher that may predict how good its students are. Participation ratio, "
        "effective rank, explained variance (fraction of the variance in as many principal "
        "components as the student has channels), mean cosine between images and uniformity (log "
        "of the mean of exp(-2 d²) over pairs of normalised features) need no labels. Within-class "
        "variance (as a fraction of all variance) and linear probe accuracy need labels. Reported "
        "top-1: ImageNet accuracy stated by its authors. CKA with the student is known only after "
        "pre-training. Expected: sign of its correlation with the score that was expected before "
        "the run.",
        (
            *("measure", "known from", "expected", "explained variance", "mean cosine"),
            *("uniformity", "within-class variance", "linear probe accuracy", "reported top-1"),
            "CKA with the student",
        ),
    ),
    Term(
        "choice, regret (of a teacher)",
        "Choice: the teacher with the best value of a measure. Regret: mean score of the best "
        "teacher's students minus that of the choice's; 0 is a perfect choice. Spearman's rho, "
        "Kendall's tau: rank correlations of measure and mean score over the teachers.",
        ("choice", "regret", "teachers", "Spearman's rho", "Kendall's tau"),
    ),
    Term(
        "CKA",
        "Centred kernel alignment (linear, unbiased) of the student's and the teacher's features "
        "of the same images: 1 if one is a rotation of the other, about 0 if they are unrelated.",
        ("CKA",),
    ),
    Term(
        "suite",
        "A config that lists data, teacher, students, methods, tasks and seeds. `kdep-bench run` "
        "runs it, and its results are one leaderboard. A rehearsal runs every stage of a suite on "
        "tiny generated data.",
    ),
    Term(
        "pool",
        "All images for pre-training. A data fraction is a part of it.",
    ),
    Term(
        "level",
        "The feature maps of a network with one stride: s4, s8, s16 and s32 have 1/4 to 1/32 of "
        "the image's height and width.",
    ),
    Term(
        "stage",
        "One step of a suite, with its own directory in work_dirs: prepare, views, cache, align, "
        "pretrain, export or transfer; suites with probes also have features and probe.",
    ),
    Term(
        "transfer run, record",
        "A transfer run trains one exported student on one task, with one pre-training seed and "
        "one transfer seed. Its result is one record, a JSON file in records/. ok, failed and "
        "missing are numbers of transfer runs.",
        ("ok", "failed", "missing", "run", "status"),
    ),
    Term(
        "seed pair",
        "A pre-training seed and a transfer seed. The scores of two methods are compared within "
        "each seed pair. Independent seeds: the pre-training seeds; if there is only one, the "
        "transfer seeds.",
        ("seed pairs", "independent seeds", "n", "independent seeds per method"),
    ),
    Term(
        "interval",
        "95 % confidence interval; it covers the variation between seeds, not between test sets. "
        "Of a mean: Student's t, or BCa bootstrap for 50 to 300 values. Of a difference: "
        "Student's t with the standard deviation pooled over all methods of the task, or with that "
        "of the pair's own differences if it is larger; a method with significantly larger "
        "variance is compared only by its own differences. If every pre-training seed was combined "
        "with every transfer seed: two-way clustered variance.",
        ("low95", "high95", "measured", "mean difference"),
    ),
    Term(
        "differences over test images, covers",
        "The difference of two methods with an interval over seeds and test images: the images are "
        "drawn with replacement 1000 times, the same draw for both methods, and the metric is "
        "computed for each draw (AP: COCO's 101 recalls over all detections of the drawn images). "
        "It needs the predictions of every run for every test image; runs of earlier versions did "
        "not store them. Covers: the numbers of seeds and test images whose variation the interval "
        "includes.",
        ("covers",),
    ),
    Term(
        "images on which two methods differ",
        "Test images whose scores differ most between the two methods. The score of an image is a "
        "mean over the trainings of a method. Classification: fraction of trainings that are "
        "right ('correct'). Segmentation: mIoU over the classes of the image. Detection: F1 of the "
        "image at IoU 0.5, 2 true positives / (detections + true boxes), at the score threshold "
        "that is best for that image. Gains: the first method is better.",
        ("images: better / equal / worse", "score of an image", "largest gains", "largest losses"),
    ),
    Term(
        "better, worse, not significant",
        "Result of a comparison. Better or worse: the mean difference is above or below 0, and p "
        "(Holm) is below 0.05. p (Holm): two-sided p value after Holm's correction (1979). In "
        "the table of differences it is made separately for four groups: (first method is kdep, or "
        "another) x (single task, or mean over tasks); in the table of differences over test "
        "images, for all rows of the student; in an ablation, for all contrasts. 'too few seed "
        "pairs': there is no p value.",
        (
            "result",
            "p (Holm)",
            "comparison",
            "mean difference from kdep",
            "mean difference from scratch",
        ),
    ),
    Term(
        "among the best",
        "No other method of the task is significantly better (multiple comparisons with the best, "
        "Hsu 1984). With probability 0.95 the method with the best true mean is among the best. If "
        "the differences of two methods have a larger standard deviation than the pooled one, "
        "their own is used, which widens the interval, so a method whose scores vary more can be "
        "among the best while one with a higher mean is not. In the summary: number of "
        "tasks on which a method is among the best. "
        "rank_best, rank_worst: the best and the worst rank that Dunnett's tests do not exclude.",
        ("among the best", "among_best", "rank_best", "rank_worst"),
    ),
    Term(
        "mean rank",
        "A method's rank by mean score, averaged over all tasks. Only methods that have results "
        "for every task and seed are ranked; the others are marked 'incomplete'.",
        ("mean rank", "mean_rank"),
    ),
    Term(
        "minimum detectable difference",
        "The smallest true difference between two methods that a paired t test at 5 % finds with "
        "probability 0.8 (its power), with the present number of independent seeds and before "
        "correction for several comparisons. Std. dev. over seeds: the standard deviation of a "
        "method's scores, pooled over all methods of the task. The minimum detectable difference "
        "leaves out a method with significantly larger variance.",
        ("minimum detectable difference", "std. dev. over seeds", "degrees of freedom"),
    ),
    Term(
        "claim, verdict",
        "A claim is a statement that the suite tests, with a threshold for the measured value. "
        "Supported: the whole interval meets the threshold. Refuted: no part of the interval meets "
        "it. Except for claims about teachers, either verdict must also hold after Holm's "
        "correction (for all claims of the suite, separately for verdicts over all tasks and for "
        "those on single task families). A verdict over all tasks is undecided if a task family "
        "has the opposite verdict before the correction. A claim with a limit on the cost ratio is "
        "refuted if the ratio is higher. Undecided: otherwise. 'for one pre-trained network': "
        "there is one pre-training seed, and another network may give another result. 'not "
        "testable here': the records of a method are missing. Basis: the seeds and the reason of "
        "the verdict.",
        ("claim", "verdict", "threshold", "basis"),
    ),
    Term(
        "seeds needed",
        "Number of independent seeds with which an undecided claim would be decided with "
        "probability 0.8, if mean and standard deviation stayed as measured. A dash: the claim is "
        "decided, more than 1000 seeds would be needed, or the number is not computed (the claim "
        "is undecided only because of Holm's correction or because task families disagree, scores "
        "are missing, or it is about teachers or about a budget outside the curve).",
        ("seeds needed",),
    ),
    Term(
        "seeds needed (report --seeds-needed)",
        "For each task and each probe, the number of pre-training seeds with which a paired t test "
        "(two-sided, 5 %) finds the measured difference of two methods with power 0.8. Difference "
        "/ std. dev.: mean of the paired differences divided by their standard deviation. Range: "
        "the same number for the ends of the 95 % interval of this standard deviation (chi "
        "squared).",
    ),
    Term(
        "budget, reduction factor",
        "Budget: the images, images seen, time or FLOPs of pre-training. Reduction factor: the "
        "reference's budget divided by the budget with which the method reaches the reference's "
        "score. 'at least', 'at most': a bound, because the smallest budget of the method already "
        "reaches the score, or its largest budget does not reach it.",
        ("budget", "reduction factor", "reference"),
    ),
    Term(
        "fingerprint",
        "Hash of the content of the data. Scores on data with different fingerprints are never "
        "compared.",
        ("data", "fingerprint"),
    ),
)

# Units and qualifiers of a heading; in the headings of probes also the direction and the variant.
_UNIT = re.compile(
    r"\s*(\[95.%\]|\(power 0\.8\)|x100|, approx\.|[↑↓]|\((top1|mIoU|bbox_mAP_50)\)"
    r"|(?<=^top1), .*|(?<=^ms), .*|(?<=^images/s), .*|(?<=^recall) at \d+.*| before activation"
    r"|(?<=^sharpness), .*|(?<=^loss increase), .*)"
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
    """A column heading without its units and qualifiers."""
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
