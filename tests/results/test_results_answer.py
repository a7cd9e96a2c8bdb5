"""The sentences at the top of a leaderboard say what the table below them says, and no more."""

from __future__ import annotations

from make_records import fields, grid
from test_results_tables import SCORES, board_of

from kdep_bench.results import leaderboard
from kdep_bench.results.record import make


def answer(records):
    view = leaderboard.make_view(board_of(records))
    (some,) = leaderboard.answers(view).values()
    return some


def test_higher_lower_and_not_significant_are_those_of_the_difference_table():
    scores = {
        "kdep": {"probe": [0.50, 0.51, 0.52], "det": [0.20, 0.21, 0.22]},
        "supervised": {"probe": [0.40, 0.41, 0.42], "det": [0.30, 0.31, 0.32]},
        "scratch": {"probe": [0.10, 0.12, 0.11], "det": [0.05, 0.06, 0.07]},
    }
    scratch, supervised, spent, limits = answer(grid(scores))
    assert scratch.startswith("kdep scores higher than no pre-training: +27.5 [")
    # +10 on one family and -10 on the other: the mean is 0, and both are named.
    assert supervised.startswith("kdep is not significantly different from supervised")
    assert ": 0.0 [" in supervised
    assert "mean of 2 tasks (2 families, each counts the same)" in supervised
    assert supervised.endswith("; higher on probe; lower on det.")
    # 300 s, 100 s of cache and 2 s of alignment against 300 s.
    assert spent == (
        "kdep used 100 % of the images of supervised, without labels, and 1.3 times its time, "
        "teacher cache included."
    )
    assert limits.startswith("This rests on 1 pre-trained network and 3 transfer runs per method")


def test_a_tenth_of_the_images_is_said():
    records = grid(SCORES) + grid({"kdep": SCORES["kdep"]}, share=0.1)
    assert any(s.startswith("kdep · 10 % data used 10 % of the images of") for s in answer(records))


def test_one_seed_answers_nothing():
    records = [make(fields(m, "probe", v)) for m, v in (("kdep", 0.9), ("scratch", 0.1))]
    found = answer(records)
    assert found[0].startswith("kdep cannot be compared with no pre-training: too few seeds")
    assert found[-1].endswith("With one run no difference can be tested.")
    assert not any("higher" in s for s in found)


def test_the_best_of_many_methods_are_named_together():
    scores = {f"m{i}": {"probe": [v, v + 0.01, v + 0.02]} for i, v in enumerate((0.5, 0.5, 0.1))}
    scores["m0"] = {"probe": [0.51, 0.50, 0.52]}
    scores |= {"kdep": {"probe": [0.2, 0.21, 0.22]}, "scratch": {"probe": [0.1, 0.11, 0.12]}}
    found = answer(grid(scores))
    assert "Best on probe, of 5 methods: m0, m1 (none significantly worse than the first)." in found


def test_a_mean_below_chance_or_below_no_pre_training_is_marked():
    scores = {
        "kdep": {"probe": [0.30, 0.31, 0.32]},
        "svd": {"probe": [0.19, 0.20, 0.21]},  # below scratch
        "scratch": {"probe": [0.20, 0.21, 0.22]},
        "supervised": {"probe": [0.10, 0.11, 0.12]},  # below chance, 12.5 %
    }
    table = leaderboard.markdown(leaderboard.make_view(board_of(grid(scores))))
    table = table.split("## Task family")[1].split("##")[0]
    marked = {
        line.split("|")[2].strip() for line in table.splitlines() if leaderboard.BELOW in line
    }
    assert marked == {"svd", "supervised"}


def test_less_is_better_turns_the_mark_around():
    records = [
        make(fields(m, "probe", v, transfer=s) | {"task": {**fields()["task"], **minimised}})
        for minimised in [{"direction": "min", "chance": None}]
        for m, values in {"kdep": [0.3, 0.31], "svd": [0.1, 0.11], "scratch": [0.2, 0.21]}.items()
        for s, v in enumerate(values)
    ]
    table = leaderboard.markdown(leaderboard.make_view(board_of(records)))
    table = table.split("## Task family")[1].split("##")[0]
    marked = {
        line.split("|")[2].strip() for line in table.splitlines() if leaderboard.BELOW in line
    }
    assert marked == {"kdep"}
