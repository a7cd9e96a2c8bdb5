"""Ten one-line faults; together they cover every `kind` (the scored split, order, labels, ...)."""

from __future__ import annotations

from dataclasses import dataclass

TRANSFER = "tests/transfer/known_answers"
PRETRAIN = "tests/pretrain/known_answers/test_known_pretraining.py"


@dataclass(frozen=True)
class Fault:
    """One changed line.

    Attributes:
        kind: what the line decides.
        wrong: what the changed line would do, in words.
        file: its file, relative to the repository.
        old, new: the text of the line before and after; `old` must occur exactly once.
        tests: pytest arguments ("file -k words") that select the tests that must fail.
    """

    kind: str
    wrong: str
    file: str
    old: str
    new: str
    tests: str


FAULTS: tuple[Fault, ...] = (
    Fault(
        kind="the split that is scored",
        wrong="segmentation is scored on its training split",
        file="kdep_bench/transfer/segmentation.py",
        old="self._dataset(root, self.split, train=False), 1",
        new='self._dataset(root, "train", train=False), 1',
        tests=f"{TRANSFER}/test_segmentation.py -k fixed",
    ),
    Fault(
        kind="the split that is scored",
        wrong="the linear probe's C is chosen on test",
        file="kdep_bench/transfer/classification.py",
        old='fitted.score(*sets["val"])',
        new='fitted.score(*sets["test"])',
        tests=f"{TRANSFER}/test_classification.py -k chooses_c",
    ),
    Fault(
        kind="order and mode",
        wrong="the test loader shuffles",
        file="kdep_bench/transfer/mm_config.py",
        old="sampler=dict(type=kind, shuffle=train)",
        new="sampler=dict(type=kind, shuffle=True)",
        tests=f"{TRANSFER}/test_classification.py -k 'finetuning and fixed'",
    ),
    Fault(
        kind="which value of the metric is read",
        wrong="AP75 is read at another threshold",
        file="kdep_bench/transfer/datasets.py",
        old="np.nanmean(ap[5])",
        new="np.nanmean(ap[4])",
        tests=f"{TRANSFER}/test_full_scale.py -k voc_scores",
    ),
    Fault(
        kind="labels",
        wrong="the stream's label comes from the row before",
        file="kdep_bench/pretrain/stream.py",
        old="self._labels[rows // self.views.views]",
        new="self._labels[rows // self.views.views - 1]",
        tests=f"{PRETRAIN} -k 'own_image and 3-0.5'",
    ),
    Fault(
        kind="labels",
        wrong="an own image's label is its position within its class, not its class number",
        file="kdep_bench/data/own/stage.py",
        old="for n in parts.labelled.classes[name]\n",
        new="for number, n in enumerate(parts.labelled.classes[name])\n",
        tests="tests/data/test_data_own_labels.py -k own",
    ),
    Fault(
        kind="randomness",
        wrong="the stream ignores its seed",
        file="kdep_bench/pretrain/stream.py",
        old="default_rng([self.seed, permutation])",
        new="default_rng([0, permutation])",
        tests=f"{PRETRAIN} -k 'own_image and 3-0.5'",
    ),
    Fault(
        kind="randomness",
        wrong="the mean teacher's second view is the first",
        file="kdep_bench/objectives/mean_teacher.py",
        old=".roll(-1, 1)",
        new="",
        tests=f"{PRETRAIN} -k mean_teacher",
    ),
    Fault(
        kind="identity",
        wrong="the version of a kind of stage does not enter its id",
        file="kdep_bench/suite/graph.py",
        old="[{canonical_json(kind)},{version},",
        new="[{canonical_json(kind)},1,",
        tests="tests/suite/test_suite_identity.py -k kind_s_version",
    ),
    Fault(
        kind="reports",
        wrong="paired differences are zipped instead of joined by seed",
        file="kdep_bench/results/statistics/intervals.py",
        old="return {k: a[k] - b[k] for k in sorted(a) if k in b}",
        new="return {k: x - y for k, x, y in zip(sorted(a), a.values(), b.values())}",
        tests="tests/results/test_results_known_answers.py -k both_seeds",
    ),
)
