"""If data are edited, also during a run, no score of the former data is used for the new data.

The plans use a user's data; stage `prepare` is real, the other stages are fake.
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


def save_noise(rng: np.random.Generator, path: Path) -> None:
    """Saves a random image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(90, 140, (48, 64, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def user_data(tmp_path: Path) -> Path:
    """A user's folder with a pool and two splits of boxes of two classes."""
    rng, root = np.random.default_rng(0), tmp_path / "mine"
    for i in range(8):
        save_noise(rng, root / "pool" / f"{i}.png")
    for split in ("train", "test"):
        images, boxes = [], []
        for i in range(6):
            save_noise(rng, root / split / f"{i}.png")
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
    """The data config of a user's folder."""
    splits = {s: {"json": f"{root}/{s}.json", "images": f"{root}/{s}"} for s in ("train", "test")}
    return {
        "type": "kdep_bench.data.own.prepare",
        "name": "case",
        "labels": False,
        "pool": f"{root}/pool",
        "coco": splits,
    }


def suite_of(root: Path) -> Suite:
    """A suite that uses a user's folder."""
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


def plan_suite(root: Path, work: Path) -> tuple[Suite, Plan]:
    """The suite with its content hashes, and its plan."""
    suite, _ = with_content(suite_of(root), work)
    return suite, build_plan(suite, fakes.PRETEND)


def run(root: Path, work: Path) -> tuple[Plan, local_pool.Outcome]:
    """Plans and runs the suite."""
    _, plan = plan_suite(root, work)
    return plan, fakes.run(plan, work)


def first_stage(plan: Plan, kind: str) -> Stage:
    """The first stage of a kind."""
    return next(s for s in plan.stages.values() if s.kind == kind)


def change_category(root: Path) -> None:
    """Edits test.json without changing its size or time of modification."""
    path = root / "test.json"
    before = path.stat()
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 2'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def drop_half_of_boxes(root: Path) -> None:
    """Removes half of the boxes in test.json."""
    table = read_json(root / "test.json")
    table["annotations"] = table["annotations"][: len(table["annotations"]) // 2]
    (root / "test.json").write_text(json.dumps(table))


def replace_image(root: Path) -> None:
    """Replaces a training image by another one."""
    save_noise(np.random.default_rng(9), root / "train/3.png")


def rename_image(root: Path) -> None:
    """Renames an image of the pool."""
    (root / "pool/3.png").rename(root / "pool/9.png")


def add_image(root: Path) -> None:
    """Adds an image to the pool."""
    save_noise(np.random.default_rng(9), root / "pool/8.png")


# {edit of the user's data: the change that the reason of the rerun names}
EDITS: dict[Callable[[Path], None], str] = {
    change_category: "test.json changed",
    drop_half_of_boxes: "test.json changed",
    replace_image: "3.png changed",
    rename_image: "1 file added (9.png), 1 removed (3.png)",
    add_image: "1 file added (8.png)",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: e.__name__)
def test_stages_that_read_edited_data_run_again_with_the_reason(
    edit: Callable[[Path], None], user_data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    first, outcome = run(user_data, work)
    assert outcome.ok
    assert not fakes.run(plan_suite(user_data, work)[1], work).ran
    edit(user_data)
    _, plan = plan_suite(user_data, work)
    statuses = state.statuses(plan, work)
    reasons = {plan.stages[i].kind: s.why for i, s in statuses.items() if s.run}
    assert reasons["prepare"] == f"data changed: {EDITS[edit]}"
    assert {"prepare", "views", "cache", "transfer"} <= set(reasons)
    rerun_ids = [i for i, s in statuses.items() if s.run]
    assert not set(rerun_ids) & set(first.stages)
    rerun = f"; {len(rerun_ids) - 1} downstream stage(s) will be rerun"
    assert changed_data(plan, statuses)[0].endswith(rerun)
    assert sorted(fakes.run(plan, work).ran) == sorted(rerun_ids)


def test_a_touched_or_copied_file_reruns_no_stage(user_data: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    assert run(user_data, work)[1].ok
    os.utime(user_data / "test.json")
    shutil.copy(user_data / "pool/1.png", tmp_path / "copy.png")
    (tmp_path / "copy.png").replace(user_data / "pool/1.png")
    (user_data / "pool/.DS_Store").write_bytes(b"x")
    _, outcome = run(user_data, work)
    assert outcome.ok
    assert not outcome.ran


def test_after_an_edit_is_undone_the_earlier_stages_are_used_again(
    user_data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    first, _ = run(user_data, work)
    before = (user_data / "test.json").read_bytes()
    change_category(user_data)
    assert run(user_data, work)[1].ran
    (user_data / "test.json").write_bytes(before)
    plan, outcome = run(user_data, work)
    assert plan.stages.keys() == first.stages.keys()
    assert not outcome.ran


@pytest.mark.parametrize("edit", EDITS, ids=lambda e: e.__name__)
def test_a_stage_that_reads_files_edited_after_prepare_fails(
    edit: Callable[[Path], None], user_data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    _, plan = plan_suite(user_data, work)
    statuses = state.statuses(plan, work, plan.upstream([first_stage(plan, "prepare").id]))
    assert local_pool.run_plan(plan, work, statuses, fakes.FAST).ok
    edit(user_data)
    outcome = fakes.run(plan, work)  # the plan made before the edit
    reads_boxes = edit in (change_category, drop_half_of_boxes, replace_image)
    kinds = {"transfer"} if reads_boxes else {"views"}
    assert {plan.stages[i].kind for i in outcome.failed} == kinds, outcome
    changed_file: dict[object, str] = {
        change_category: "test.json",
        drop_half_of_boxes: "test.json",
        replace_image: "train/3.png",
    }
    for sentence in outcome.failed.values():
        assert f"the file {user_data}/{changed_file.get(edit, 'pool/')}" in sentence
        assert "since it was prepared" in sentence
    assert run(user_data, work)[1].ok  # the fix: run again


def test_a_stage_whose_data_are_edited_while_it_runs_fails(user_data: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    plan, _ = run(user_data, work)
    transfer = first_stage(plan, "transfer")
    guard = Guard(transfer, work, work / transfer.id)
    guard.before()
    assert guard.after({"value": 1}) == {"value": 1}
    change_category(user_data)
    with pytest.raises(KdepError, match=rf"while the stage {transfer.id} read it"):
        guard.after({"value": 1})


def test_an_edit_between_plan_and_prepare_or_during_prepare_is_refused(
    user_data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    _, plan = plan_suite(user_data, work)
    prepare = first_stage(plan, "prepare")
    guard = Guard(prepare, tmp_path / "other", tmp_path / "out")
    guard.before()
    drop_half_of_boxes(user_data)  # after the plan, and while `guard` watches a run of `prepare`
    with pytest.raises(KdepError, match=r"test\.json changed"):
        guard.after({})
    outcome = fakes.run(plan, work)
    assert "after the run was planned" in outcome.failed[prepare.id]
    assert f"{user_data}/test.json" in outcome.failed[prepare.id]
    assert not list(work.glob("transfer-*/stage.json"))
    assert run(user_data, work)[1].ok


def test_a_pool_edit_does_not_stop_a_stage_that_reads_only_boxes(
    user_data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    plan, _ = run(user_data, work)
    add_image(user_data)
    for kind, stops in (("transfer", False), ("views", True), ("cache", True), ("export", False)):
        stage = first_stage(plan, kind)
        guard = Guard(stage, work, work / stage.id)
        if stops:
            with pytest.raises(KdepError, match=r"pool/8\.png"):
                guard.before()
        else:
            guard.before()


def test_a_suite_without_its_data_is_planned_but_its_run_fails(
    user_data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    away = user_data.rename(tmp_path / "away")
    suite, lines = with_content(suite_of(user_data), work)
    plan = build_plan(suite, fakes.PRETEND)
    assert "was not read" in lines[0]
    assert str(user_data) in lines[0]
    assert not data_identity.is_read(suite)
    assert not work.exists()
    outcome = fakes.run(plan, work)
    (sentence,) = outcome.failed.values()
    assert "does not exist" in sentence
    away.rename(user_data)  # now present, but its content was unknown when planned
    outcome = fakes.run(plan, work)
    (sentence,) = outcome.failed.values()
    assert "could not be read when the suite was planned" in sentence
    assert run(user_data, work)[1].ok


def test_each_record_has_the_fingerprint_of_the_data_on_which_it_was_measured(
    user_data: Path, tmp_path: Path
) -> None:
    work, results = tmp_path / "w", tmp_path / "r"

    def fingerprints(folder: str = "records") -> dict[str, str]:
        records = [read_json(p) for p in (results / folder).glob("*.json")]
        return {r["id"]: r["data"]["fingerprint"] for r in records}

    def run_and_collect() -> dict[str, str]:
        suite, plan = plan_suite(user_data, work)
        fakes.run(plan, work)
        collect.collect(suite, plan, work, results)
        return fingerprints()

    first = run_and_collect()
    assert len(first) == 2
    assert len(set(first.values())) == 1
    change_category(user_data)
    (work / "break-transfers").touch()
    failed = run_and_collect()
    assert not set(failed) & set(first)
    assert not set(failed.values()) & set(first.values())  # failed runs belong to the new data
    assert fingerprints("superseded") == first
    (work / "break-transfers").unlink()
    second = run_and_collect()
    assert second == failed
    shutil.rmtree(work / prepare_id(work, second))
    suite, plan = plan_suite(user_data, work)
    collect.collect(suite, plan, work, results)
    assert fingerprints() == second  # although the directory of `prepare` was deleted


def prepare_id(work: Path, records: dict[str, str]) -> str:
    """The id of the `prepare` stage that the records' transfers need."""
    (stage_id,) = {read_json(work / i / "stage.json")["needs"]["prepare"] for i in records}
    return stage_id


def test_ids_do_not_depend_on_the_path_of_official_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdep_bench.data.official import base

    root = tmp_path / "root"
    for name in ("cifar100", "imagenet"):
        (root / name).mkdir(parents=True)
        base.get_set(name).tiny(root / name, np.random.default_rng(0))
    prepare = "kdep_bench.data.official.stage.prepare"
    data = {"type": prepare, "name": "sets", "sets": ["cifar100"], "pool": "imagenet"}
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


def test_generated_data_and_absent_official_sets_have_no_content_hash(tmp_path: Path) -> None:
    from kdep_bench.suite.config import load_suite

    for name in ("smoke", "paper_r18"):
        suite = load_suite(name)
        with_hashes, lines = with_content(suite, tmp_path / "w")
        assert with_hashes == suite
        assert len(lines) == (name == "paper_r18")  # its official sets have no root here
    assert not (tmp_path / "w").exists()


def test_of_a_malformed_data_config_only_the_valid_parts_are_hashed(
    user_data: Path, tmp_path: Path
) -> None:
    official = "kdep_bench.data.official.stage.prepare"
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"type": official}, set()),
        ({"coco": 3, "pool": None}, set()),
        ({"coco": {"train": [1]}}, {"pool"}),
    ]
    for wrong, hashed in cases:
        suite = suite_of(user_data).model_copy(update={"data": {**data_of(user_data), **wrong}})
        with_hashes, lines = with_content(suite, tmp_path / "w")
        assert with_hashes.data.get("content", {}).keys() == hashed
        assert len(lines) <= 1


def test_a_data_type_that_does_not_declare_its_files_has_a_note(
    user_data: Path, tmp_path: Path
) -> None:
    data = {**data_of(user_data), "type": "engine_fakes.pretend"}
    suite = suite_of(user_data).model_copy(update={"data": data})
    assert with_content(suite, tmp_path)[0] == suite
    assert "changed files are not noticed" in with_content(suite, tmp_path)[1][0]
    assert data_identity.is_read(suite)


# ---- weights files ----


def stages_with(root: Path, work: Path, **change: Any) -> set[str]:
    """Ids of the stages of a suite with changes."""
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


def test_a_changed_checkpoint_of_a_teacher_runs_its_stages_again(
    user_data: Path, tmp_path: Path
) -> None:
    file, work = tmp_path / "w.pth", tmp_path / "work"
    teacher = {"base": "efficientnet_lite0", "weights": str(file)}
    file.write_bytes(b"a" * 99)
    before = stages_with(user_data, work, teacher=teacher)
    times = file.stat()
    file.write_bytes(b"b" * 99)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = {i.split("-")[0] for i in before - stages_with(user_data, work, teacher=teacher)}
    assert {"cache", "pretrain", "export"} <= changed
    assert not changed & {"prepare", "views"}
    file.write_bytes(b"a" * 99)
    assert stages_with(user_data, work, teacher=teacher) == before


def test_changed_text_embeddings_of_a_probe_run_only_the_probe_again(
    user_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    probe = {"base": "sgva_clip_text", "text": "texts.npz"}  # a path without "/"
    work, rng = tmp_path / "work", np.random.default_rng(0)
    np.savez("texts.npz", classes=["a", "b"], text=rng.normal(size=(2, 1280)))
    before = stages_with(user_data, work, probes=[probe], data="pocket")
    np.savez("texts.npz", classes=["b", "a"], text=rng.normal(size=(2, 1280)))
    after = stages_with(user_data, work, probes=[probe], data="pocket")
    assert {i.split("-")[0] for i in before - after} == {"probe"}


def test_a_changed_file_of_a_clip_folder_runs_only_the_probe_again(
    user_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdep_bench.probes.clip_folder._installed", lambda _: True)
    folder, work = tmp_path / "clip", tmp_path / "work"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "tokenizer.json").write_text("{}")
    header = b'{"visual_projection.weight": {"shape": [512, 1280]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    probe = {"base": "sgva_clip_prompt", "text_model": "clip"}  # a path without "/"
    before = stages_with(user_data, work, probes=[probe], data="pocket")
    (folder / "tokenizer.json").write_text('{"version": 1}')
    after = stages_with(user_data, work, probes=[probe], data="pocket")
    assert {i.split("-")[0] for i in before - after} == {"probe"}


def test_a_changed_weights_file_of_a_method_runs_its_stages_again(
    user_data: Path, tmp_path: Path
) -> None:
    file, work = tmp_path / "w.pth", tmp_path / "work"
    # builtins.dict takes the place of a class that reads the weights: nothing is trained here.
    weights = {"_delete_": True, "type": "builtins.dict", "path": str(file)}
    given = {"base": "imagenet", "students": None, "weights": weights}
    file.write_bytes(b"a" * 99)
    before = stages_with(user_data, work, methods=[given])
    file.write_bytes(b"b" * 99)
    after = stages_with(user_data, work, methods=[given])
    assert {i.split("-")[0] for i in before - after} >= {"pretrain", "export"}
