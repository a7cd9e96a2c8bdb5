"""Variants of a suite (several teachers, budgets by share), and its rehearsal."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import build_suite, load_suite
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.rehearse import (
    BATCH,
    COST,
    IMAGES,
    MODEL,
    RECIPE,
    STEPS,
    TEACHER_PX,
    changes,
    rehearsed,
    shrink_task,
)
from kdep_bench.suite.schema import Suite


def raw(**changes: Any) -> dict[str, Any]:
    suite = {
        "name": "full",
        "data": "imagenet",
        "students": ["resnet18"],
        "teacher": "resnet50",
        "methods": ["kdep", "supervised", "scratch"],
        "tasks": ["dtd", "cityscapes", "voc0712_c4"],
        "budget": {
            "epochs": 90,
            "views": 2,
            "batch": 512,
            "optimizer": {"type": "SGD", "lr": 0.3},
        },
        "seeds": {"pretrain": [0], "transfer": [0]},
    }
    return suite | changes


def variants() -> list[dict[str, Any]]:
    return [
        {
            "teacher": teacher,
            "methods": ["kdep", "supervised", *(["scratch"] if share == 1 else [])],
            "shares": [share],
            "budget": {"epochs": epochs},
        }
        for teacher in ("resnet50", "swin_b")
        for share, epochs in ((1.0, 9), (0.1, 90))
    ]


def kinds(suite: Suite) -> Counter[str]:
    return Counter(s.kind for s in build_plan(suite).stages.values())


def test_variants_share_what_is_equal() -> None:
    suite = build_suite(raw(variants=variants()))
    plan = build_plan(suite)
    # kdep: 2 teachers x 2 budgets; supervised: 2 budgets, whatever the teacher; scratch once.
    assert kinds(suite) == {
        "prepare": 1,
        "views": 1,
        "cache": 2,
        "align": 4,
        "pretrain": 7,
        "export": 7,
        "transfer": 21,
    }
    assert len(plan.runs) == 21
    arms = {(c.method["name"], c.teacher and c.teacher["name"], c.fraction) for c in plan.runs}
    assert ("supervised", None, 0.1) in arms
    assert ("kdep", "swin_b", 1.0) in arms
    assert len(arms) == 7


def test_a_variant_equals_a_suite_of_its_own() -> None:
    """Ids do not depend on whether a suite is written with variants."""
    alone = build_suite(raw(methods=["kdep"], shares=[0.1]))
    within = build_suite(raw(methods=["kdep"], variants=[{"shares": [0.1]}]))
    assert list(build_plan(alone).stages) == list(build_plan(within).stages)


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ({"techer": "swin_b"}, "did you mean teacher"),
        ({"budget": {"epoch": 3}}, "did you mean epochs"),
        ({"shares": [1.5]}, "the data fraction 1.5"),
        ({"teacher": "swin_x"}, "did you mean swin_b"),
        ({"methods": ["kdep", "kdep"]}, "more than once"),
        ({"methods": []}, "methods"),
    ],
)
def test_wrong_variants(variant: dict[str, Any], said: str) -> None:
    with pytest.raises(KdepError, match=said):
        build_suite(raw(variants=[variant]))


def test_a_rehearsal_has_every_stage_and_no_id_of_the_suite() -> None:
    suite = build_suite(raw(variants=variants()))
    small = rehearsed(suite)
    assert kinds(small) == kinds(suite)
    planned = build_plan(small).stages
    assert not set(planned) & set(build_plan(suite).stages)
    assert {stage.cost for stage in planned.values()} == {COST}
    assert small.name == "rehearsal_full"
    for variant in small.variants:
        for teacher in variant.teachers.values():
            assert teacher is not None
            assert teacher["weights"] == "random"
            assert teacher["name"].startswith("random_")
            assert teacher["input_px"] == TEACHER_PX
        rows = IMAGES * min(variant.shares) * variant.budget.views
        assert rows > max(s["width"] for s in variant.students)
        assert variant.budget.epochs * IMAGES * variant.shares[0] == pytest.approx(STEPS * BATCH)


def test_budgets_and_seeds_of_one_share_become_one() -> None:
    many = [{"shares": [1.0], "budget": {"epochs": e}} for e in (9, 18, 90)]
    suite = build_suite(raw(variants=many, seeds={"pretrain": [0, 1], "transfer": [0, 1]}))
    assert kinds(suite)["pretrain"] == 3 * 2 * 2 + 2 * 2
    assert kinds(rehearsed(suite))["pretrain"] == 3


def differences(a: Any, b: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(a, dict) and a.keys() == b.keys():
        return [found for k in a for found in differences(a[k], b[k], (*place, k))]
    return [] if a == b else [place]


def test_only_the_listed_numbers_change() -> None:
    """The rest of every task, its models and augmentations included, is rehearsed as it is."""
    suite = build_suite(raw())
    for task in suite.tasks:
        small = shrink_task(task)
        different = {k for k in task["recipe"] if task["recipe"][k] != small["recipe"][k]}
        assert different <= set(RECIPE) | {"model"}
        whole, shrunk = (t["recipe"].get("model") or {} for t in (task, small))
        assert set(differences(whole, shrunk)) <= set(MODEL)
        assert {k: v for k, v in task.items() if k != "recipe"} == {
            k: v for k, v in small.items() if k != "recipe"
        }


def test_both_steps_are_taken_in_every_share() -> None:
    """A share and an epoch that do not divide well would round to one step and a half."""
    from kdep_bench.pretrain.budgets import whole_batches

    for variant in rehearsed(build_suite(raw(variants=variants()))).variants:
        images = round(IMAGES * variant.shares[0])
        assert whole_batches(variant.budget.spec(), images, IMAGES) == STEPS


def test_a_rehearsal_lists_its_changes(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from kdep_bench.cli.run_suite import main

    assert main(["paper_r18", "--rehearse", "--dry-run", "--work-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert changes() in output
    assert all(f"{key} " in output for key in (*RECIPE, *(".".join(m) for m in MODEL)))


def test_the_tiny_pool_is_as_large_as_it_says() -> None:
    from kdep_bench.data.official import imagenet, stage
    from kdep_bench.suite import rehearse

    assert len(imagenet.TINY_WNIDS) * imagenet.TINY_IMAGES == IMAGES
    assert f"{stage.prepare.__module__}.{stage.prepare.__name__}" == rehearse.OFFICIAL


def test_pocket_suites_are_not_rehearsed() -> None:
    with pytest.raises(KdepError, match="run the suite `smoke`"):
        rehearsed(load_suite("pocket"))


def test_rehearsals_use_a_separate_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdep_bench.cli.run_suite import main

    assert main(["pocket", "--rehearse", "--work-dir", str(tmp_path)]) == 2
    assert "cannot be rehearsed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
