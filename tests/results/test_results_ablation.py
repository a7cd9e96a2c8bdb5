"""Contrasts of an ablation: known differences, incomplete results, and unequal students."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from make_records import fields
from scipy import stats

from kdep_bench.errors import KdepError
from kdep_bench.files import write_json
from kdep_bench.results.board.ablation import ablation
from kdep_bench.results.records import store
from kdep_bench.results.records.record import make
from kdep_bench.results.report import report
from kdep_bench.results.report.page.comparisons import ablation_sections

KNOWLEDGE, MATCHING, INITS = (
    ("logits", "hidden", "attention"),
    ("last", "all"),
    ("random", "copied"),
)
METHODS = {
    f"{k}_{m}": {"knowledge": k, "matching": m}
    for k in KNOWLEDGE
    for m in MATCHING
    if k != "logits" or m == "last"
}
GRID = {
    "levels": [
        ["knowledge", list(KNOWLEDGE)],
        ["matching", list(MATCHING)],
        ["initialisation", list(INITS)],
    ],
    "methods": METHODS,
    "students": {f"net_{i}": {"initialisation": i} for i in INITS},
}
# Score of a level; the noise of a seed depends on the combination.
EFFECT = {"logits": 0.30, "hidden": 0.40, "attention": 0.31, "last": 0.0, "all": 0.05}
EFFECT |= {"random": 0.0, "copied": 0.02}


def score(method: str, init: str, seed: int) -> float:
    """The sum of the effects of the levels, with a noise of at most 0.004."""
    levels = {**METHODS[method], "initialisation": init}
    noise = 0.002 * ((7 * seed + sum(map(ord, method + init))) * (seed + 1) % 5 - 2)
    return sum(EFFECT[level] for level in levels.values()) + noise


def write(results: Path, params: tuple[int | None, int | None] = (1000, 1020)) -> None:
    """Writes records of all combinations and three seeds; `params`: parameters of each student."""
    for method in METHODS:
        for init, n in zip(INITS, params, strict=True):
            for seed in range(3):
                values = fields(
                    method,
                    value=score(method, init, seed),
                    pretrain=seed,
                    transfer=seed,
                    id=f"transfer-{method}-{init}-{seed}",
                )
                values["student"] = {"name": f"net_{init}", "width": 8, "params": n}
                store.write(results, make(values))
    write_json(results / "factors.json", GRID)


def result_of(results: Path) -> Any:
    """The ablation of a results folder."""
    view = report.view_of(results)
    assert view.grid is not None
    return ablation(view.board, view.grid)


def test_a_level_is_compared_over_the_combinations_that_both_levels_have(tmp_path):
    write(tmp_path)
    contrasts = {(c.factor, c.level): c for c in result_of(tmp_path).contrasts}
    hidden = contrasts["knowledge", "hidden"]
    assert hidden.combinations == 2  # both initialisations; "logits" has only the matching "last"
    assert hidden.reference == "logits"
    by_seed = [
        sum(score("hidden_last", i, s) - score("logits_last", i, s) for i in INITS) / 2
        for s in range(3)
    ]
    mean = sum(by_seed) / 3
    assert hidden.estimate.mean == pytest.approx(mean)
    t = stats.t.interval(0.95, 2, loc=mean, scale=stats.sem(by_seed))
    assert (hidden.estimate.low, hidden.estimate.high) == pytest.approx(t)
    assert hidden.score == pytest.approx(
        sum(score("hidden_last", i, s) for i in INITS for s in range(3)) / 6
    )
    assert contrasts["matching", "all"].combinations == 4
    assert contrasts["initialisation", "copied"].combinations == 5
    assert contrasts["initialisation", "copied"].estimate.mean == pytest.approx(0.02, abs=2e-3)


def test_the_best_practice_is_the_level_with_the_highest_significant_difference(tmp_path):
    write(tmp_path)
    best = result_of(tmp_path).best()
    assert {f: level for f, (level, _) in best.items()} == {
        "knowledge": "hidden",
        "matching": "all",
        "initialisation": "copied",
    }
    report.build(tmp_path, claims=[])
    page = (tmp_path / "leaderboard.md").read_text()
    assert "### Best practice" in page
    assert "| knowledge | hidden | +1" in page
    assert "| hidden | logits | 2 |" in page
    assert "records/transfer-hidden_all-copied-0.json" in page.replace("\\", "")
    assert len([s for s in ablation_sections(report.view_of(tmp_path)) if s]) == 2


def test_the_first_level_is_the_best_practice_if_no_other_is_significantly_better(tmp_path):
    write(tmp_path)
    for init in INITS:  # logits with scores as high as those of hidden maps
        for seed in range(3):
            values = fields(
                "logits_last", value=0.47 + 0.01 * seed, pretrain=seed, transfer=seed
            ) | {"id": f"transfer-logits_last-{init}-{seed}"}
            values["student"] = {"name": f"net_{init}", "width": 8, "params": 1000}
            store.write(tmp_path, make(values))
    assert result_of(tmp_path).best()["knowledge"] == ("logits", None)


def test_no_contrast_contains_a_failed_run(tmp_path):
    write(tmp_path)
    broken = fields("hidden_last", pretrain=2, transfer=2, value=None) | {
        "id": "transfer-hidden_last-copied-2",
        "status": "failed",
        "error": "the loss became NaN.",
    }
    broken["student"] = {"name": "net_copied", "width": 8, "params": 1020}
    store.write(tmp_path, make(broken))
    result = result_of(tmp_path)
    contrasts = {(c.factor, c.level): c for c in result.contrasts}
    assert contrasts["knowledge", "hidden"].combinations == 1
    assert contrasts["matching", "all"].combinations == 3
    assert any("hidden_last (net_copied)" in remark for remark in result.remarks)


@pytest.mark.parametrize(
    ("params", "reason"), [((1000, 1200), "1.20 times"), ((1000, None), "net_copied is not rec")]
)
def test_students_of_unequal_size_are_not_compared(tmp_path, params, reason):
    write(tmp_path, params)
    result = result_of(tmp_path)
    assert {c.factor for c in result.contrasts} == {"knowledge", "matching"}
    assert any(reason in remark for remark in result.remarks)


def test_methods_are_compared_within_students_that_are_not_in_the_grid(tmp_path):
    write(tmp_path)
    write_json(tmp_path / "factors.json", {**GRID, "levels": GRID["levels"][:2], "students": {}})
    contrasts = {(c.factor, c.level): c for c in result_of(tmp_path).contrasts}
    assert contrasts["knowledge", "hidden"].combinations == 2
    assert contrasts["matching", "all"].combinations == 4


def test_a_damaged_file_of_factors_is_named_and_given_factors_replace_it(tmp_path):
    write(tmp_path)
    write_json(tmp_path / "factors.json", {"levels": []})
    with pytest.raises(KdepError, match=r"factors\.json has the wrong structure"):
        report.build(tmp_path, claims=[])
    report.build(tmp_path, claims=[], factors=GRID)  # what --report does
    assert "## Ablation" in (tmp_path / "leaderboard.md").read_text()
