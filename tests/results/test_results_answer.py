"""The sentences at the top of a leaderboard agree with the tables below them."""

from __future__ import annotations

import itertools
import math

import pytest
from make_records import failed, fields, grid
from test_results_tables import SCORES, board_of

from kdep_bench.results.board import compare
from kdep_bench.results.records.record import make
from kdep_bench.results.report import board_rows, markdown


def answer_sentences(records):
    """The sentences about the only student."""
    view = board_rows.make_view(board_of(records))
    (by_student,) = board_rows.answers(view).values()
    return by_student


def test_the_sentences_agree_with_the_verdicts_of_the_difference_table():
    scores = {
        "kdep": {"probe": [0.50, 0.51, 0.52], "det": [0.20, 0.21, 0.22]},
        "supervised": {"probe": [0.40, 0.41, 0.42], "det": [0.30, 0.31, 0.32]},
        "scratch": {"probe": [0.10, 0.12, 0.11], "det": [0.05, 0.06, 0.07]},
    }
    scratch, supervised, data_and_time, limits = answer_sentences(grid(scores))
    assert scratch.startswith("kdep scores higher than no pre-training: +27.5 points (95 %")
    # +10 on one task family and -10 on the other: the mean is 0, and both are named.
    assert supervised.startswith("kdep is not significantly different from supervised")
    assert ": 0.0 points (95 % interval " in supervised
    assert "mean of 2 tasks (2 task families, equal weights)" in supervised
    assert supervised.endswith(". By task: higher on probe; lower on det.")
    # kdep: 300 s of training, 100 s of cache, 2 s of alignment; supervised: 300 s.
    assert data_and_time == (
        "kdep was pre-trained without labels on as many images as supervised. Pre-training took "
        "1.3 times as long, including the teacher cache."
    )
    assert "from 1 pre-trained network per method and 3 transfer runs per method and task" in limits


@pytest.mark.parametrize(
    ("share", "amount"), [(0.1, "one tenth"), (0.5, "half"), (0.3, "30 %"), (3.0, "3 times")]
)
def test_the_data_fraction_is_stated(share, amount):
    shares = {"kdep": min(share, 1.0), "supervised": min(1 / share, 1.0)}
    records = grid(SCORES)
    if share > 1:
        records = [r for r in records if r.arm.method != "supervised"]
    for method, fraction in shares.items():
        if fraction < 1:
            records += grid({method: SCORES[method]}, share=fraction)
    text = f"without labels on {amount} as many images as supervised"
    assert any(text in s for s in answer_sentences(records))


def test_a_difference_from_one_seed_is_not_tested():
    records = [make(fields(m, "probe", v)) for m, v in (("kdep", 0.9), ("scratch", 0.1))]
    sentences = answer_sentences(records)
    untested = "kdep minus no pre-training: +80.0 points, from one seed pair and not tested."
    assert sentences[0] == untested
    assert sentences[-1].endswith("No difference was tested for significance.")
    assert not any("higher" in s for s in sentences)


def test_all_methods_among_the_best_are_named_in_one_sentence():
    scores = {f"m{i}": {"probe": [v, v + 0.01, v + 0.02]} for i, v in enumerate((0.5, 0.5, 0.1))}
    scores["m0"] = {"probe": [0.51, 0.50, 0.52]}
    scores |= {"kdep": {"probe": [0.2, 0.21, 0.22]}, "scratch": {"probe": [0.1, 0.11, 0.12]}}
    sentences = answer_sentences(grid(scores))
    note = "(sorted by mean; none is significantly worse than the first)."
    assert f"Best of 5 rows on probe: m0, m1 {note}" in sentences


def test_a_significant_difference_is_not_denied_where_all_rows_are_among_the_best():
    """A difference of two rows is corrected for fewer comparisons than the marks of the best."""
    means = {"m0": 0.488, "kdep": 0.5, "scratch": 0.476, "m1": 0.488, "m2": 0.488, "m3": 0.488}
    orders = itertools.permutations((-0.01, 0.0, 0.01))
    scores = {
        name: {"probe": [mean + noise for noise in order]}
        for (name, mean), order in zip(means.items(), orders, strict=True)
    }
    sentences = answer_sentences(grid(scores))
    assert sentences[0].startswith("kdep scores higher than no pre-training: +2.4 points")
    assert "All 6 rows are among the best on probe." in sentences


def test_a_mean_below_chance_or_below_scratch_is_marked():
    scores = {
        "kdep": {"probe": [0.30, 0.31, 0.32]},
        "svd": {"probe": [0.19, 0.20, 0.21]},  # below scratch
        "scratch": {"probe": [0.20, 0.21, 0.22]},
        "supervised": {"probe": [0.10, 0.11, 0.12]},  # below chance, 12.5 %
    }
    table = markdown.markdown(board_rows.make_view(board_of(grid(scores))))
    table = table.split("## Task family")[1].split("##")[0]
    marked = {
        line.split("|")[1].strip()
        for line in table.splitlines()
        if board_rows.BELOW_CHANCE_MARK in line
    }
    assert marked == {"svd", "supervised"}


def test_scores_worse_than_scratch_are_marked_if_smaller_is_better():
    task = fields()["task"] | {"direction": "min", "chance": None}
    records = [
        make(fields(m, "probe", v, transfer=s) | {"task": task})
        for m, values in {"kdep": [0.3, 0.31], "svd": [0.1, 0.11], "scratch": [0.2, 0.21]}.items()
        for s, v in enumerate(values)
    ]
    table = markdown.markdown(board_rows.make_view(board_of(records)))
    table = table.split("## Task family")[1].split("##")[0]
    marked = {
        line.split("|")[1].strip()
        for line in table.splitlines()
        if board_rows.BELOW_CHANCE_MARK in line
    }
    assert marked == {"kdep"}


def test_a_failed_score_leaves_no_mean_over_the_other_tasks():
    scores = {
        "kdep": {"probe": [0.50, 0.51, 0.52], "det": [0.10, 0.11, 0.12]},
        "supervised": {"probe": [0.40, 0.41, 0.42], "det": [0.30, 0.31, 0.32]},
    }
    records = grid(scores)
    records[5] = failed("kdep", "det", transfer=2)
    first = answer_sentences(records)[0]
    problem = "A score is missing, so kdep and supervised pre-training are not compared over all"
    assert first.startswith(problem)
    assert first.endswith("higher on probe; lower on det.")


def test_a_reference_without_the_first_task_is_still_compared():
    scores = {
        "kdep": {"probe": [0.50, 0.51, 0.52], "det": [0.10, 0.11, 0.12]},
        "supervised": {"det": [0.30, 0.31, 0.32]},
    }
    assert answer_sentences(grid(scores))[0].endswith("lower on det.")


def test_a_diverging_method_does_not_hide_differences_of_other_methods():
    scores = {
        "kdep": {"probe": [0.600, 0.610, 0.625]},
        "scratch": {"probe": [0.50, 0.52, 0.51]},
        "noisy": {"probe": [0.62, 0.61, 0.13]},
    }
    board = board_of(grid(scores))
    (difference,) = [
        d for d in compare.difference_table(board, "resnet18_w32") if d.row.method == "kdep"
    ]
    assert difference.verdict == "better"
    marked = {a.method for a in compare.best(board, "resnet18_w32", board.columns[0])}
    assert "scratch" not in marked


def test_a_method_with_one_seed_is_not_among_the_best_and_does_not_hide_other_methods():
    scores = {"kdep": {"probe": [0.5, 0.51, 0.52]}, "svd": {"probe": [0.02]}}
    board = board_of(grid(scores | {"scratch": {"probe": [0.1, 0.11, 0.12]}}))
    assert {a.method for a in compare.best(board, "resnet18_w32", board.columns[0])} == {"kdep"}
    (*_, limits) = answer_sentences(grid(scores | {"scratch": {"probe": [0.1, 0.11, 0.12]}}))
    assert "from 1 pre-trained network per method and 1 to 3 transfer runs" in limits


def test_means_that_differ_only_by_rounding_are_not_significant():
    next_float = math.nextafter(0.325, 1)
    scores = {"kdep": {"probe": [next_float] * 3}, "scratch": {"probe": [0.325] * 3}}
    (difference,) = compare.difference_table(board_of(grid(scores)), "resnet18_w32")
    assert difference.verdict == "not significant"


def test_all_crossed_seed_pairs_are_used_if_other_methods_have_fewer_pairs():
    crossed = [
        make(
            fields(m, "probe", v + 0.01 * p + 0.003 * t, pretrain=p, transfer=t)
            | {"id": f"{m}{p}{t}"}
        )
        for m, v in (("kdep", 0.5), ("supervised", 0.45))
        for p in range(3)
        for t in range(3)
    ]
    diagonal = [
        make(fields("svd", "probe", 0.4 + 0.01 * s, pretrain=s, transfer=s) | {"id": f"svd{s}"})
        for s in range(3)
    ]
    without_others, with_others = (
        next(
            d
            for d in compare.difference_table(board_of(r), "resnet18_w32")
            if d.row.method == "kdep"
        )
        for r in (crossed, crossed + diagonal)
    )
    assert with_others.estimate == without_others.estimate
    assert with_others.pairs == 9
