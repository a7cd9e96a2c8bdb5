"""Search configs: an invalid one, or one that uses the test split, is refused before training."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.search.config import check_values, load_search
from kdep_bench.search.run import header_of
from kdep_bench.suite.config import load_config, names
from kdep_bench.suite.plan import build_plan

SMOKE = load_config("search", "smoke_kdep")


def load_changed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """The smoke search with these keys changed."""
    monkeypatch.setattr("kdep_bench.search.config.read_dict", lambda *_: SMOKE | changes)
    return load_search("smoke_kdep")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(task="smoke_probe"),
            r"scores proposals on the split 'test' of task 'smoke_probe'.*a task with split='val'",
        ),
        (dict(trials=0), "trials = 0; expected a number of at least 1"),
        (dict(space=[]), "has no dimension"),
        (dict(limits=dict(params=10)), "no student of the space is within the limits of 10 param"),
        (dict(budget=SMOKE["budget"] | {"epochs": 3}), "`halving` sets the epochs"),
        (
            dict(method=dict(base="kdep", optimizer=dict(lr=1.0))),
            "sets 'method.optimizer.lr' twice, in `space` and in `method`",
        ),
        (dict(halving=dict(epochs=1, factor=1)), "halving.factor = 1"),
        (dict(trial=3), "unknown key 'trial' in the search 'smoke_kdep'.*did you mean trials"),
    ],
)
def test_an_invalid_search_config_gives_an_error_that_names_its_key(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(KdepError, match=message):
        load_changed(monkeypatch, **changes)


def test_a_search_is_given_by_the_path_of_its_config(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"search = {SMOKE | dict(trials=7)!r}\n")
    assert load_search(str(path)).file.trials == 7
    with pytest.raises(KdepError, match=r"the search file .*gone\.py does not exist"):
        load_search(str(tmp_path / "gone.py"))


def test_a_task_has_the_default_split_test_and_the_default_direction_max(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = load_config("task", "smoke_probe")
    plain = {k: v for k, v in task.items() if k not in ("split", "direction")}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "plain.py").write_text(f"task = {plain | {'name': 'plain'}!r}\n")
    monkeypatch.setenv("KDEP_CONFIGS", str(tmp_path))
    with pytest.raises(KdepError, match="on the split 'test'"):
        load_changed(monkeypatch, task="plain")
    search = load_changed(monkeypatch, task=dict(base="plain", name="plain_val", split="val"))
    assert header_of(search, tmp_path).settings["direction"] == "max"


def test_the_stated_fix_for_a_score_on_the_test_split_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = dict(task=dict(base="smoke_probe", name="my_val", split="val"))
    assert load_changed(monkeypatch, **task).first_proposal


def test_data_without_a_validation_split_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = dict(base="smoke", classify=dict(train=80, val=0, test=80))
    search = load_changed(monkeypatch, data=data)
    with pytest.raises(KdepError, match="classify/val"):
        check_values(search)


def test_a_value_that_the_method_does_not_accept_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = [*SMOKE["space"][:2], dict(key="method.transform.n", values=[1.0, -1.0])]
    with pytest.raises(KdepError, match=r"value -1.0 of the dimension 'method.transform.n'"):
        check_values(load_changed(monkeypatch, space=space))


def test_a_proposal_gives_a_suite_with_the_values_of_the_proposal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = load_changed(monkeypatch)
    proposal = search.first_proposal | {"method.transform.n": 3.0, "method.optimizer.lr": 0.05}
    plan = build_plan(search.suite(proposal, search.epochs[1]))
    (run,) = plan.runs
    spec = plan.stages[run.chain["pretrain"]].spec
    assert spec["method"]["transform"]["n"] == 3.0
    assert spec["budget"]["optimizer"]["lr"] == 0.05
    assert spec["budget"]["epochs"] == 2.0
    assert run.task["split"] == "val"


def test_the_hash_of_a_search_s_log_changes_with_settings_that_scores_depend_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def hash_of(**changes: Any) -> str:
        """The hash in the header of the search's log."""
        return header_of(load_changed(monkeypatch, **changes), tmp_path).hash

    changes_of_scores = [
        dict(seed=1),
        dict(sampler="random"),
        dict(pretrain_seed=1),
        dict(limits=dict(params=140_000)),
        dict(fraction=0.5),
        dict(method="stdmatch", space=SMOKE["space"][:2]),
        dict(data=dict(base="smoke", seed=1)),
        dict(teacher="efficientnet_lite2"),
        dict(budget=SMOKE["budget"] | {"warmup": 0.0}),
    ]
    hashes = [hash_of(), *(hash_of(**change) for change in changes_of_scores)]
    assert len(set(hashes)) == len(hashes)
    harmless_changes = [dict(trials=9), dict(about="x"), dict(runtime=dict(timed=False))]
    assert {hash_of(**change) for change in harmless_changes} == {hashes[0]}


@pytest.mark.parametrize("name", names("search"))
def test_every_search_of_the_project_can_be_planned(name: str) -> None:
    check_values(load_search(name))


def test_without_optuna_the_error_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("kdep_bench.search.sampler.metadata.version", missing)
    with pytest.raises(KdepError, match=r"needs optuna.*pip install 'kdep_bench\[search\]'"):
        header_of(load_search("smoke_kdep"), tmp_path)
