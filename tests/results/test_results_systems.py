"""results/methods.md: a row per system of the literature and per config that implements it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.results.report.systems import (
    Score,
    System,
    published_scores,
    read_systems,
    systems_page,
    write_methods_page,
)
from kdep_bench.suite.config import load_config, names

RESULTS = Path(__file__).resolve().parents[2] / "results"


def test_every_method_is_in_one_row_and_every_row_has_a_config_or_a_missing_part():
    systems = read_systems()
    listed = Counter(config for system in systems for config in system.configs)
    kinds = ("search", "probe", "suite")
    known = {*names("method"), *(f"{kind}:{name}" for kind in kinds for name in names(kind))}
    assert set(names("method")) - set(listed) == set(), "add the method to systems.toml"
    assert set(listed) - known == set(), "systems.toml names a config that does not exist"
    assert max(listed.values()) == 1
    assert all(system.configs or system.missing for system in systems)
    assert len({system.name for system in systems}) == len(systems)


def test_the_published_page_is_up_to_date(tmp_path: Path):
    (tmp_path / "methods_pocket").symlink_to(RESULTS / "methods_pocket")
    configs = {name: load_config("method", name) for name in names("method")}
    for kind in ("probe", "search"):
        configs |= {f"{kind}:{name}": load_config(kind, name) for name in names(kind)}
    written = write_methods_page(tmp_path, configs).read_text()
    for line in written.splitlines():
        # A config whose source says "re-implementation" must have this state.
        assert "| implemented |" not in line or "re-implementation" not in line, line
    assert written == (RESULTS / "methods.md").read_text(), "python tools/report.py --index results"


def test_the_page_of_three_systems_has_the_expected_states_scores_and_ratios():
    systems = [
        System("A (2020)", ("a", "b"), ""),
        System("B (2021)", (), "its generator"),
        System("C (2022)", ("c",), "half of it"),
    ]
    configs = {
        "a": {"labels_used": False, "source": "A et al. | appendix"},
        "b": {"labels_used": True, "source": "A et al.", "reconstruction": True},
        "c": {"labels_used": False, "source": "C et al."},
    }
    page = systems_page(systems, configs, {"a": Score(0.1234, 1.055), "c": Score(0.2, None)})
    assert [line for line in page.splitlines() if line.startswith("|")][2:] == [
        r"| A (2020) | implemented | `a` | no | A et al. \| appendix | 12.3 | 1.05 |",
        "|  | re-implementation | `b` | yes | A et al. | — | — |",
        "| B (2021) | not implemented: its generator |  |  |  |  |  |",
        "| C (2022) | partly implemented; missing: half of it | `c` | no | C et al. | 20.0 | — |",
    ]


def test_a_method_with_a_missing_task_has_no_mean(tmp_path: Path):
    path = tmp_path / "leaderboard.csv"
    # svd has no row for t2, and nfd has no mean there.
    path.write_text(
        "method,task,mean,step_time_over_kdep\n"
        "kdep,t1,0.2,1.0\nkdep,t2,0.4,1.0\nsvd,t1,0.9,1.1\nnfd,t1,0.5,\nnfd,t2,,\n"
    )
    scores = published_scores(path)
    assert scores.keys() == {"kdep"}
    assert scores["kdep"] == (pytest.approx(0.3), 1.0)
    with pytest.raises(KdepError, match="does not exist"):
        published_scores(tmp_path / "other.csv")
