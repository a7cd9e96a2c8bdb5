"""Seeds that a task or a probe needs to detect the difference of two methods: known answers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from make_records import grid
from test_results_probes import probe

from kdep_bench.cli.report import main
from kdep_bench.results.board.board import RowKey
from kdep_bench.results.board.seeds_needed import Evidence, compute_need, pair_needs
from kdep_bench.results.records import probe_record, store
from kdep_bench.results.report.seeds_table import tables
from kdep_bench.results.statistics import power

# {difference / standard deviation: (pairs needed, power with these pairs, power with three pairs)}
# by statsmodels 0.15.0, TTestPower, alpha 0.05, power 0.8, two-sided.
STATSMODELS = {
    0.3: (90, 0.8037942968932215, 0.06242244046377568),
    0.5: (34, 0.8077775012792737, 0.0841070558963894),
    0.8: (15, 0.8213105387241096, 0.1348853992309049),
    1.0: (10, 0.8030968566327218, 0.1792553937765517),
    1.5: (6, 0.8325292798668078, 0.3163818615591505),
    2.0: (5, 0.9088848681009402, 0.4707494312784346),
    3.0: (4, 0.9670006399114975, 0.7452680070062834),
}


@pytest.mark.parametrize("effect", STATSMODELS)
def test_power_and_seeds_equal_those_of_statsmodels(effect):
    n, at_n, at_3 = STATSMODELS[effect]
    assert power.seeds_needed(0.02 * effect, 0.02) == n
    assert power.power(0.02 * effect, 0.02, n) == pytest.approx(at_n, abs=1e-9)
    assert power.power(-0.02 * effect, 0.02, 3) == pytest.approx(at_3, abs=1e-9)


def test_the_interval_of_a_standard_deviation_is_computed_from_chi_squared():
    low, high = power.sd_interval(1.0, 2)  # quantiles 0.05064 and 7.3778 with 2 degrees of freedom
    assert (low, high) == pytest.approx(((2 / 7.37776) ** 0.5, (2 / 0.0506356) ** 0.5), rel=1e-5)


def test_the_seeds_needed_for_three_differences_are_those_computed_by_hand():
    """0.01, 0.02, 0.03: mean 0.02, standard deviation 0.01, so as for an effect of 2."""
    need = compute_need(Evidence("task", "t", {0: 0.01, 1: 0.02, 2: 0.03}))
    assert need is not None
    assert (need.n, need.gap, need.sd) == (3, pytest.approx(0.02), pytest.approx(0.01))
    assert need.seeds == 5
    assert need.low is not None
    assert need.high is not None
    assert need.low < 5 < need.high
    assert compute_need(Evidence("task", "t", {0: 0.01})) is None
    without_effect = compute_need(Evidence("task", "t", {0: 0.01, 1: -0.01}))
    assert without_effect is not None
    assert without_effect.seeds is None
    without_noise = compute_need(Evidence("task", "t", {0: 0.1 + 0.2, 1: 0.3}))
    assert without_noise is not None
    assert without_noise.seeds == 2


def test_a_measure_that_needs_too_many_seeds_raises_the_median_and_is_not_left_out():
    rows = [RowKey("r18", name, "", 1.0, None) for name in ("a", "b")]
    gaps = {0: 0.01, 1: 0.02, 2: 0.03}
    evidence = [
        Evidence("task", "t", gaps),
        Evidence("task", "mean", {0: 1.0, 1: 1.0}, first=False),
        Evidence("probe", "p", gaps),
        Evidence("probe", "q", {0: 1.0, 1: -1.0}),
        Evidence("probe", "r", {0: 1.0, 1: -1.0}),
        Evidence("probe", "s", {0: 1.0}),
    ]
    pair = pair_needs(rows[0], rows[1], evidence)
    assert pair.median("task") == 5
    assert pair.median("probe") == math.inf
    assert pair.median("other") is None
    assert pair.too_few == ("s",)


def write_scores(folder: Path, kdep: list[float], scratch: list[float]) -> None:
    """Writes records of two methods with these scores by pre-training seed."""
    for method, scores in {"kdep": kdep, "scratch": scratch}.items():
        for seed, score in enumerate(scores):
            (record,) = grid({method: {"probe": [score]}}, pretrain=seed)
            store.write(folder, record)


def test_tasks_and_probes_are_compared_on_the_same_pairs(tmp_path):
    write_scores(tmp_path, [0.5, 0.6, 0.7], [0.3, 0.3, 0.3])  # differences 0.2, 0.3, 0.4: effect 3
    for seed, (kdep, scratch) in enumerate(zip((0.5, 0.6, 0.7), (0.3, 0.3, 0.1), strict=True)):
        probe_record.write(tmp_path, probe("kdep", seed, kdep, epochs=6.03))
        # Another budget is another row, which must not be used.
        probe_record.write(tmp_path, probe("kdep", seed, 0.1, epochs=2.0, id=f"other.s{seed}"))
        change = {"teacher": "", "epochs": None}
        probe_record.write(tmp_path, probe("scratch", seed, scratch, **change))
    text = tables(tmp_path)
    (line,) = [x for x in text.splitlines() if x.startswith("| resnet18_w32 | kdep - scratch")]
    # Probe: the differences of top1 are 0.2, 0.3, 0.6; those of NLL have the opposite sign.
    effect = (1.1 / 3) / 0.20816659994661327
    seeds = power.seeds_needed(effect, 1.0)
    assert line == f"| resnet18_w32 | kdep - scratch | 4 | {seeds} | — |"
    assert "| task probe (top1) | 30.00 (x100) | 10.00 (x100) | 3.00 | 3 | 4 |" in text
    assert f"| probe knn (classify): top1 | 36.67 (x100) | 20.82 (x100) | {effect:.2f} |" in text
    assert f"| probe knn (classify): NLL | 0.367 | 0.208 | {effect:.2f} | 3 | {seeds} |" in text


def test_one_pretraining_seed_is_refused_with_the_reason(tmp_path, capsys):
    for record in grid({"kdep": {"probe": [0.5, 0.6]}, "scratch": {"probe": [0.2, 0.3]}}):
        store.write(tmp_path, record)
    assert main([str(tmp_path), "--seeds-needed"]) == 2
    assert "have two pre-training seeds in common" in capsys.readouterr().err
    write_scores(tmp_path, [0.5, 0.6], [0.2, 0.3])
    assert main([str(tmp_path), "--seeds-needed"]) == 0  # nothing is written
    assert not (tmp_path / "leaderboard.md").exists()
