"""Variants of a suite (several teachers, budgets per data fraction), and rehearsals of suites.

A rehearsal runs every stage of a suite on tiny generated data.
"""

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
    """The entries of a full-scale suite, with changes."""
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
    """Two teachers, each with all data for 9 epochs and a tenth for 90."""
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
    """The number of stages per kind."""
    return Counter(s.kind for s in build_plan(suite).stages.values())


def test_variants_share_equal_stages() -> None:
    suite = build_suite(raw(variants=variants()))
    plan = build_plan(suite)
    # kdep: 2 teachers x 2 budgets; supervised: 2 budgets for any teacher; scratch once.
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
    methods = {(c.method["name"], c.teacher and c.teacher["name"], c.fraction) for c in plan.runs}
    assert ("supervised", None, 0.1) in methods
    assert ("kdep", "swin_b", 1.0) in methods
    assert len(methods) == 7


def test_a_variant_has_the_ids_of_a_separate_suite() -> None:
    """Ids do not depend on whether a suite is written with variants."""
    separate = build_suite(raw(methods=["kdep"], shares=[0.1]))
    with_variant = build_suite(raw(methods=["kdep"], variants=[{"shares": [0.1]}]))
    assert list(build_plan(separate).stages) == list(build_plan(with_variant).stages)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"techer": "swin_b"}, "did you mean teacher"),
        ({"budget": {"epoch": 3}}, "did you mean epochs"),
        ({"shares": [1.5]}, "the data fraction 1.5"),
        ({"teacher": "swin_x"}, "did you mean swin_b"),
        ({"methods": ["kdep", "kdep"]}, "more than once"),
        ({"methods": []}, "methods"),
    ],
)
def test_wrong_variants_are_refused(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(KdepError, match=message):
        build_suite(raw(variants=[variant]))


def test_a_rehearsal_has_every_stage_of_the_suite_with_another_id() -> None:
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
        # The SVD needs more samples (views) than the student has channels.
        samples = IMAGES * min(variant.shares) * variant.budget.views
        assert samples > max(s["width"] for s in variant.students)
        assert variant.budget.epochs * IMAGES * variant.shares[0] == pytest.approx(STEPS * BATCH)


def test_a_rehearsal_with_many_micro_batches_has_enough_positions_for_the_prototypes() -> None:
    """The plan is accepted: proc_kd needs, in every micro-batch, a map position per prototype."""
    budget = raw()["budget"] | {"accumulate": 8}
    small = rehearsed(build_suite(raw(methods=["proc_kd"], budget=budget)))
    assert build_plan(small).runs


def test_a_rehearsal_has_one_budget_and_seed_per_data_fraction() -> None:
    variants_of_length = [{"shares": [1.0], "budget": {"epochs": e}} for e in (9, 18, 90)]
    suite = build_suite(
        raw(variants=variants_of_length, seeds={"pretrain": [0, 1], "transfer": [0, 1]})
    )
    # kdep and supervised: 3 budgets x 2 seeds each; scratch: other random weights for each of the
    # 2 x 2 seed pairs.
    assert kinds(suite)["pretrain"] == 3 * 2 * 2 + 2 * 2
    assert kinds(rehearsed(suite))["pretrain"] == 3


def differences(a: Any, b: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of the entries in which two nested dicts differ."""
    if isinstance(a, dict) and a.keys() == b.keys():
        return [inner_path for k in a for inner_path in differences(a[k], b[k], (*path, k))]
    return [] if a == b else [path]


def test_a_rehearsal_changes_only_the_listed_numbers_of_a_task() -> None:
    """Apart from the numbers in RECIPE and MODEL, a task keeps its model and augmentations."""
    suite = build_suite(raw())
    for task in suite.tasks:
        small = shrink_task(task)
        different = {k for k in task["recipe"] if task["recipe"][k] != small["recipe"][k]}
        assert different <= set(RECIPE) | {"model"}
        full, reduced = (t["recipe"].get("model") or {} for t in (task, small))
        assert set(differences(full, reduced)) <= set(MODEL)
        assert {k: v for k, v in task.items() if k != "recipe"} == {
            k: v for k, v in small.items() if k != "recipe"
        }


def test_a_rehearsal_takes_the_same_number_of_steps_for_every_data_fraction() -> None:
    """Fractions and epochs that do not divide evenly would round to another number of steps."""
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


def test_the_tiny_pool_has_the_stated_number_of_images() -> None:
    from kdep_bench.data.official import imagenet

    assert len(imagenet.TINY_WNIDS) * imagenet.TINY_IMAGES == IMAGES


def test_a_rehearsal_names_the_function_that_prepares_official_data() -> None:
    from kdep_bench.data.official import stage
    from kdep_bench.suite import rehearse

    assert f"{stage.prepare.__module__}.{stage.prepare.__name__}" == rehearse.OFFICIAL


def test_pocket_suites_are_not_rehearsed() -> None:
    with pytest.raises(KdepError, match="run the suite `smoke`"):
        rehearsed(load_suite("pocket"))


def test_a_refused_rehearsal_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdep_bench.cli.run_suite import main

    assert main(["pocket", "--rehearse", "--work-dir", str(tmp_path)]) == 2
    assert "cannot be rehearsed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_teacher_inside_a_black_box_has_random_weights_in_a_rehearsal():
    suite = rehearsed(build_suite(raw(teacher="efficientnet_lite0_black_box", methods=["tinyvit"])))
    teachers = [t for v in suite.variants for t in v.teachers.values() if t is not None]
    assert teachers
    for teacher in teachers:
        assert "weights" not in teacher
        assert teacher["teacher"]["weights"] == "random"
        assert teacher["teacher"]["input_px"] == TEACHER_PX
    build_plan(suite)


def test_a_grid_of_patches_is_divided_into_no_more_regions_than_the_small_teacher_has():
    """The small DINOv2 has 2 x 2 patches; the full one's are divided into 4 x 4 regions."""
    suite = build_suite(raw(teacher="dinov2_vitb14", methods=["cross_arch", "scratch"]))
    plan = build_plan(rehearsed(suite))
    (objective,) = (
        s.spec["method"]["objective"]
        for s in plan.stages.values()
        if s.kind == "pretrain" and s.spec["method"]["name"] == "cross_arch"
    )
    assert objective["regions"] == TEACHER_PX // 14 == 2
    assert "regions" not in next(m for m in suite.methods if m["name"] == "cross_arch")["objective"]


def test_a_rehearsal_has_no_more_prototypes_than_a_batch_has_positions():
    suite = build_suite(raw(teacher="efficientnet_lite0", methods=["proc_kd", "scratch"]))
    plan = build_plan(rehearsed(suite))
    specs = [s.spec["method"] for s in plan.stages.values() if s.kind == "pretrain"]
    assert {m["objective"]["prototypes"] for m in specs if m["name"] == "proc_kd"} == {4}
