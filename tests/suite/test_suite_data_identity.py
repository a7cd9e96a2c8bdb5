"""A score is shown for the data it was measured on: edits, moves, touches, and edits during a run.

The true graph over one's own data: stage `prepare` is the real one, the others pretend.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_fakes as fakes
import numpy as np
import pytest
from PIL import Image

from kdep_bench.cli.run_suite_output import changed_data
from kdep_bench.engine import collect, local_pool, state
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json
from kdep_bench.suite import data_identity
from kdep_bench.suite.config import build_suite
from kdep_bench.suite.data_identity import Guard, with_content
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Suite

BUDGET = {"epochs": 1, "views": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}}


def picture(rng: np.random.Generator, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(90, 140, (48, 64, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A pool and two splits of boxes of two classes."""
    rng, root = np.random.default_rng(0), tmp_path / "mine"
    for i in range(8):
        picture(rng, root / "pool" / f"{i}.png")
    for split in ("train", "test"):
        images, boxes = [], []
        for i in range(6):
            picture(rng, root / split / f"{i}.png")
            images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 48})
            box = {"bbox": [4, 5, 20, 30], "area": 600, "iscrowd": 0}
            boxes += [
                {"id": 2 * i + c, "image_id": i, "category_id": 1 + c, **box} for c in range(2)
            ]
        table = {
            "images": images,
            "annotations": boxes,
            "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        }
        (root / f"{split}.json").write_text(json.dumps(table))
    return root


def data_of(root: Path) -> dict[str, Any]:
    splits = {s: {"json": f"{root}/{s}.json", "images": f"{root}/{s}"} for s in ("train", "test")}
    return {
        "type": "kdep_bench.data.own.prepare",
        "name": "case",
        "labels": False,
        "pool": f"{root}/pool",
        "coco": splits,
    }


def suite_of(root: Path) -> Suite:
    return build_suite(
        {
            "name": "case",
            "data": data_of(root),
            "teacher": "efficientnet_lite0",
            "students": ["resnet18_w32"],
            "methods": ["kdep", "scratch"],
            "tasks": [{"base": "pocket_det", "name": "case_det"}],
            "budget": BUDGET,
            "seeds": {"pretrain": [0], "transfer": [0]},
        }
    )


def planned(root: Path, work: Path) -> tuple[Suite, Plan]:
    suite, _ = with_content(suite_of(root), work)
    return suite, build_plan(suite, fakes.PRETEND)


def run(root: Path, work: Path) -> tuple[Plan, local_pool.Outcome]:
    _, plan = planned(root, work)
    return plan, fakes.run(plan, work)


def stage_of(plan: Plan, kind: str) -> Stage:
    return next(s for s in plan.stages.values() if s.kind == kind)


def same_size(root: Path) -> None:
    path = root / "test.json"
    before = path.stat()
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 2'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def half(root: Path) -> None:
    table = read_json(root / "test.json")
    table["annotations"] = table["annotations"][: len(table["annotations"]) // 2]
    (root / "test.json").write_text(json.dumps(table))


def replaced(root: Path) -> None:
    picture(np.random.default_rng(9), root / "train/3.png")


def renamed(root: Path) -> None:
    (root / "pool/3.png").rename(root / "pool/9.png")


def added(root: Path) -> None:
    picture(np.random.default_rng(9), root / "pool/8.png")


EDITS: dict[Callable[[Path], None], str] = {
    same_size: "test.json changed",
    half: "test.json changed",
    replaced: "3.png changed",
    renamed: "1 file added (9.png), 1 removed (3.png)",
    added: "1 file added (8.png)",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: e.__name__)
def test_an_edit_runs_all_that_reads_the_data_again_and_says_why(
    edit: Callable[[Path], None], mine: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    first, outcome = run(mine, work)
    assert outcome.ok
    assert not fakes.run(planned(mine, work)[1], work).ran
    edit(mine)
    _, plan = planned(mine, work)
    known = state.statuses(plan, work)
    why = {plan.stages[i].kind: s.why for i, s in known.items() if s.run}
    assert why["prepare"] == f"data changed: {EDITS[edit]}"
    assert {"prepare", "views", "cache", "transfer"} <= set(why)
    again = [i for i, s in known.items() if s.run]
    assert not set(again) & set(first.stages)
    rerun = f"; {len(again) - 1} downstream stage(s) will be rerun"
    assert changed_data(plan, known)[0].endswith(rerun)
    assert sorted(fakes.run(plan, work).ran) == sorted(again)


def test_a_touched_or_copied_file_runs_nothing_again(mine: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    assert run(mine, work)[1].ok
    os.utime(mine / "test.json")
    shutil.copy(mine / "pool/1.png", tmp_path / "copy.png")
    (tmp_path / "copy.png").replace(mine / "pool/1.png")
    (mine / "pool/.DS_Store").write_bytes(b"x")
    _, outcome = run(mine, work)
    assert outcome.ok
    assert not outcome.ran


def test_an_edit_undone_finds_its_own_stages_again(mine: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    first, _ = run(mine, work)
    before = (mine / "test.json").read_bytes()
    same_size(mine)
    assert run(mine, work)[1].ran
    (mine / "test.json").write_bytes(before)
    plan, outcome = run(mine, work)
    assert plan.stages.keys() == first.stages.keys()
    assert not outcome.ran


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: e.__name__)
def test_a_later_stage_of_a_run_does_not_score_edited_files(
    edit: Callable[[Path], None], mine: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    _, plan = planned(mine, work)
    known = state.statuses(plan, work, plan.upstream([stage_of(plan, "prepare").id]))
    assert local_pool.run_plan(plan, work, known, fakes.FAST).ok
    edit(mine)
    outcome = fakes.run(plan, work)  # the plan of before
    reads_boxes = edit in (same_size, half, replaced)
    kinds = {"transfer"} if reads_boxes else {"views"}
    assert {plan.stages[i].kind for i in outcome.failed} == kinds, outcome
    named: dict[object, str] = {same_size: "test.json", half: "test.json", replaced: "train/3.png"}
    for sentence in outcome.failed.values():
        assert f"the file {mine}/{named.get(edit, 'pool/')}" in sentence
        assert "since it was prepared" in sentence
    assert run(mine, work)[1].ok  # the fix: run again


def test_an_edit_during_a_stage_gives_no_score(mine: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    plan, _ = run(mine, work)
    transfer = stage_of(plan, "transfer")
    guard = Guard(transfer, work, work / transfer.id)
    guard.before()
    assert guard.after({"value": 1}) == {"value": 1}
    same_size(mine)
    with pytest.raises(KdepError, match=rf"while the stage {transfer.id} read it"):
        guard.after({"value": 1})


def test_an_edit_between_plan_and_prepare_or_during_prepare_is_refused(
    mine: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    _, plan = planned(mine, work)
    prepare = stage_of(plan, "prepare")
    guard = Guard(prepare, tmp_path / "other", tmp_path / "out")
    guard.before()
    half(mine)
    with pytest.raises(KdepError, match=r"test\.json changed"):
        guard.after({})
    outcome = fakes.run(plan, work)
    assert "after the run was planned" in outcome.failed[prepare.id]
    assert f"{mine}/test.json" in outcome.failed[prepare.id]
    assert not list(work.glob("transfer-*/stage.json"))
    assert run(mine, work)[1].ok


def test_a_pool_edit_does_not_stop_a_stage_that_reads_boxes_only(
    mine: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    plan, _ = run(mine, work)
    added(mine)
    for kind, stops in (("transfer", False), ("views", True), ("cache", True), ("export", False)):
        stage = stage_of(plan, kind)
        guard = Guard(stage, work, work / stage.id)
        if stops:
            with pytest.raises(KdepError, match=r"pool/8\.png"):
                guard.before()
        else:
            guard.before()


def test_data_absent_where_the_suite_is_planned_still_plans(mine: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    away = mine.rename(tmp_path / "away")
    suite, lines = with_content(suite_of(mine), work)
    plan = build_plan(suite, fakes.PRETEND)
    assert "was not read" in lines[0]
    assert str(mine) in lines[0]
    assert not data_identity.is_read(suite)
    assert not work.exists()
    outcome = fakes.run(plan, work)
    (sentence,) = outcome.failed.values()
    assert "does not exist" in sentence
    away.rename(mine)  # there when the stage runs, and nobody knows what the plan was made for
    outcome = fakes.run(plan, work)
    (sentence,) = outcome.failed.values()
    assert "could not be read when the suite was planned" in sentence
    assert run(mine, work)[1].ok


def test_a_record_keeps_the_fingerprint_of_the_data_it_was_measured_on(
    mine: Path, tmp_path: Path
) -> None:
    work, results = tmp_path / "w", tmp_path / "r"

    def prints(folder: str = "records") -> dict[str, str]:
        paths = [read_json(p) for p in (results / folder).glob("*.json")]
        return {r["id"]: r["data"]["fingerprint"] for r in paths}

    def recorded() -> dict[str, str]:
        suite, plan = planned(mine, work)
        fakes.run(plan, work)
        collect.collect(suite, plan, work, results)
        return prints()

    first = recorded()
    assert len(first) == 2
    assert len(set(first.values())) == 1
    same_size(mine)
    (work / "break-transfers").touch()
    failed = recorded()
    assert not set(failed) & set(first)
    assert not set(failed.values()) & set(first.values())  # a failed cell is one of the new data
    assert prints("superseded") == first
    (work / "break-transfers").unlink()
    second = recorded()
    assert second == failed
    shutil.rmtree(next(work.glob(f"prepare-case-{stage_hash(work, second)}")))
    suite, plan = planned(mine, work)
    collect.collect(suite, plan, work, results)
    assert prints() == second  # `prepare` was pruned


def stage_hash(work: Path, records: dict[str, str]) -> str:
    """Hash in the id of the `prepare` stage that the records' transfers need."""
    (stage_id,) = {read_json(work / i / "stage.json")["needs"]["prepare"] for i in records}
    return stage_id.rpartition("-")[2]


def test_the_path_of_official_sets_is_no_part_of_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdep_bench.data.official import base

    root = tmp_path / "root"
    for name in ("cifar100", "imagenet"):
        (root / name).mkdir(parents=True)
        base.get_set(name).tiny(root / name, np.random.default_rng(0))
    maker = "kdep_bench.data.official.stage.prepare"
    data = {"type": maker, "name": "sets", "sets": ["cifar100"], "pool": "imagenet"}
    suite = suite_of(tmp_path).model_copy(update={"data": data})

    def content(folder: Path) -> dict[str, str]:
        monkeypatch.setenv("KDEP_DATA", str(folder))
        return with_content(suite, tmp_path / "w")[0].data["content"]

    first = content(root)
    assert set(first) == {"cifar100", "imagenet", "pool"}
    moved = root.rename(tmp_path / "moved")
    assert content(moved) == first
    (moved / "imagenet/ILSVRC2012_img_train.tar").write_bytes(b"an archive that was unpacked")
    assert content(moved) == first
    list_file = moved / "cifar100/cifar-100-python/meta"
    list_file.write_bytes(list_file.read_bytes()[::-1])
    other = content(moved)
    assert other["cifar100"] != first["cifar100"]
    assert other["pool"] == first["pool"]


def test_generated_data_has_the_ids_it_had(tmp_path: Path) -> None:
    for name in ("smoke", "paper_r18"):
        from kdep_bench.suite.config import load_suite

        suite = load_suite(name)
        with_it, lines = with_content(suite, tmp_path / "w")
        assert with_it == suite
        assert len(lines) == (name == "paper_r18")  # which has no root here
    assert not (tmp_path / "w").exists()


def test_a_malformed_data_config_prints_one_line(mine: Path, tmp_path: Path) -> None:
    official = "kdep_bench.data.official.stage.prepare"
    for wrong in ({"type": official}, {"coco": 3, "pool": None}, {"coco": {"train": [1]}}):
        suite = suite_of(mine).model_copy(update={"data": {**data_of(mine), **wrong}})
        with_it, lines = with_content(suite, tmp_path / "w")
        assert "content" not in with_it.data or "coco" in wrong
        assert len(lines) <= 1


def test_a_type_that_does_not_say_what_it_reads_gets_a_line(mine: Path, tmp_path: Path) -> None:
    data = {**data_of(mine), "type": "engine_fakes.pretend"}
    suite = suite_of(mine).model_copy(update={"data": data})
    assert with_content(suite, tmp_path)[0] == suite
    assert "changed files are not noticed" in with_content(suite, tmp_path)[1][0]
    assert data_identity.is_read(suite)


# ---- weights files ----


def stages_with(root: Path, work: Path, **change: Any) -> set[str]:
    config = {
        "name": "mine",
        "data": data_of(root),
        "teacher": "efficientnet_lite0",
        "students": ["resnet18_w32"],
        "methods": ["fitnets", "scratch"],
        "tasks": [{"base": "pocket_det", "name": "case_det"}],
        "budget": BUDGET,
        "seeds": {"pretrain": [0], "transfer": [0]},
        **change,
    }
    suite, _ = with_content(build_suite(config), work)
    return set(build_plan(suite, fakes.PRETEND).stages)


def test_another_checkpoint_under_the_same_name_does_not_keep_the_old_scores(
    mine: Path, tmp_path: Path
) -> None:
    file, work = tmp_path / "w.pth", tmp_path / "work"
    teacher = {"base": "efficientnet_lite0", "weights": str(file)}
    file.write_bytes(b"a" * 99)
    before = stages_with(mine, work, teacher=teacher)
    times = file.stat()
    file.write_bytes(b"b" * 99)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = {i.split("-")[0] for i in before - stages_with(mine, work, teacher=teacher)}
    assert {"cache", "pretrain", "export"} <= changed
    assert not changed & {"prepare", "views"}
    file.write_bytes(b"a" * 99)
    assert stages_with(mine, work, teacher=teacher) == before


def test_another_file_of_given_weights_does_not_keep_the_old_scores(
    mine: Path, tmp_path: Path
) -> None:
    file, work = tmp_path / "w.pth", tmp_path / "work"
    given = {"base": "imagenet", "students": None, "weights": {"path": str(file)}}
    given["weights"] |= {"_delete_": True, "type": "nobody.here.load"}
    file.write_bytes(b"a" * 99)
    before = stages_with(mine, work, methods=[given])
    file.write_bytes(b"b" * 99)
    after = stages_with(mine, work, methods=[given])
    assert {i.split("-")[0] for i in before - after} >= {"pretrain", "export"}
