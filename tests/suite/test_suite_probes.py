"""Probes in a suite: which stages are added, and what is refused when planned."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_suite_config import SUITE, build, refusal

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite, names, resolve
from kdep_bench.suite.image_counts import check_counts
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.probes import READS
from kdep_bench.suite.schema import Json, Suite

POCKET = {**SUITE, "data": "pocket", "tasks": ["pocket_probe"]}
# Probes of teachers leave out methods without a teacher.
ALL = sorted(set(names("probe")) - {"teacher", "sgva_clip_text", "sgva_clip_prompt"})


def planning_error(**change: Any) -> str:
    """The error of planning a suite on the pocket data with these changes."""
    suite = build(**{**POCKET, **change})
    with pytest.raises(KdepError) as error:
        plan_and_count(suite)
    return str(error.value)


def plan_and_count(suite: Suite) -> None:
    """Plans the suite and checks its counts, as the command does before anything runs."""
    build_plan(suite)
    check_counts(suite)


def test_a_suite_without_probes_has_no_stages_of_probes():
    plan = build_plan(build())
    assert not plan.probes
    assert not {s.kind for s in plan.stages.values()} & {"features", "probe"}


def test_probes_add_stages_and_change_no_other_stage():
    without, plan = build_plan(build(**POCKET)), build_plan(build(**POCKET, probes=ALL))
    added = [s for i, s in plan.stages.items() if i not in without.stages]
    assert set(without.stages) <= set(plan.stages)
    assert {s.kind for s in added} == {"features", "probe"}  # the cache is that of kdep
    exports = [s for s in plan.stages.values() if s.kind == "export"]
    # Features of three sets of images: class folders, scenes with masks, pool.
    assert len([s for s in added if s.kind == "features"]) == 3 * len(exports)
    assert len(plan.probes) == len(ALL) * len(exports)


def test_features_of_a_backbone_are_extracted_once_for_all_probes():
    plan = build_plan(build(**POCKET, probes=ALL))
    ids = {r.chain["features"] for r in plan.probes if r.seed == 0 and "features" in r.chain}
    assert len(ids) == 2 * 2  # kdep and scratch; class folders and scenes
    retrieval_only = build_plan(build(**POCKET, probes=["retrieval"]))  # reads only the test split
    assert {s.id for s in retrieval_only.stages.values() if s.kind == "features"} <= set(
        plan.stages
    )


def test_transfer_seeds_share_the_probes_of_one_pre_training():
    plan = build_plan(build(**POCKET, probes=["knn"]))  # two transfer seeds
    methods = [(r.method["name"], r.seed) for r in plan.probes]
    assert methods == [("kdep", 0), ("scratch", 0), ("scratch", 1)]


def test_variants_share_probes_of_equal_backbones():
    variants = [{"budget": {"epochs": 1}}, {"budget": {"epochs": 2}}]
    plan = build_plan(build(**POCKET, probes=["knn"], variants=variants))
    assert len({r.id for r in plan.probes}) == len(plan.probes) == 4


def test_for_an_unknown_probe_a_similar_one_is_suggested():
    assert "did you mean" in refusal(probes=["kn"])
    assert "more than once" in refusal(probes=["knn", "knn"])


def test_a_wrong_argument_is_refused_before_anything_runs():
    wrong_entry = planning_error(probes=[{"base": "knn", "k": [1, 0]}])
    assert "k[1] = 0; expected a number of at least 1" in wrong_entry
    no_list = planning_error(probes=[{"base": "latency", "batches": 1}])
    assert "batches = 1; expected a list, such as [1]" in no_list
    assert "k = []" in planning_error(probes=[{"base": "knn", "k": []}])
    assert "corruptions" in planning_error(probes=[{"base": "robustness", "corruptions": ["fog"]}])
    assert "teacher = 'own'" in planning_error(probes=[{"base": "cka", "teacher": "own"}])
    assert "radii[0] = 0.0" in planning_error(probes=[{"base": "flatness", "radii": [0.0]}])
    assert "T = 'warm'" in planning_error(probes=[{"base": "knn", "T": "warm"}])
    assert "key" in refusal(probes=[{"base": "knn", "kk": [1]}])


def test_a_type_that_is_not_a_probe_is_refused():
    probe = {"name": "odd", "type": "kdep_bench.objectives.pkt.PKT", "weight": 1.0}
    suite = build(**POCKET).model_copy(update={"probes": [probe]})
    with pytest.raises(KdepError, match="is not a probe"):
        build_plan(suite)


def test_a_missing_split_is_refused_with_a_fix_that_works():
    data = {"base": "pocket", "classify": {"val": 0}}
    change = {"data": data, "tasks": ["pocket_finetune"]}
    message = planning_error(**change, probes=["knn"])
    assert "probe 'knn' reads classify/val" in message
    assert "add classify.val to the data config, or remove the probe" in message
    plan = build_plan(build(**{**POCKET, **change}, probes=["retrieval"]))  # needs no val
    spec = next(s.spec for s in plan.stages.values() if s.kind == "features")
    assert spec["images"] == {"folder": "classify", "splits": ["train", "test"]}
    assert build_plan(build(**POCKET, probes=["knn"])).probes


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("detect", "has boxes"),
        ("cityscapes", "has masks"),
        ("photos", "has no splits"),
        ("classfy", "reads the folder 'classfy'"),
    ],
)
def test_a_folder_without_class_labels_or_splits_is_refused(folder, reason):
    assert reason in planning_error(probes=[{"base": "knn", "folder": folder}])


def test_official_data_have_no_class_folders():
    suite = load_suite("paper_r18")
    parts = [v.model_copy(update={"probes": [resolve("probe", "knn")]}) for v in suite.variants]
    with pytest.raises(KdepError, match="has no class folders"):
        build_plan(suite.model_copy(update={"variants": parts}))


def test_a_probe_that_compares_with_a_teacher_requires_one():
    without_teacher = {"teacher": None, "methods": ["supervised", "scratch"]}
    message = planning_error(**without_teacher, probes=["cka"])
    assert "the suite has none for student 'resnet18_w32'" in message
    cka_with_method_teacher = {"base": "cka", "teacher": "method"}
    message = planning_error(probes=[cka_with_method_teacher])
    assert "the method 'scratch' has none" in message
    assert "set teacher='suite'" in message
    assert build_plan(
        build(**{**POCKET, "methods": ["kdep"]}, probes=[cka_with_method_teacher])
    ).probes
    live = {**POCKET["budget"], "teacher": "live"}
    assert "budget.teacher is 'live'" in planning_error(budget=live, probes=["cka"])


def test_a_probe_with_teacher_method_uses_the_method_s_intermediate_teacher():
    """It uses the intermediate teacher's cache and data fraction instead of the suite's teacher."""
    change = {"methods": ["takd"], "shares": [0.1]}
    probes = ["cka", {"base": "cka", "name": "cka_own", "teacher": "method"}]
    plan = build_plan(build(**{**POCKET, **change}, probes=probes))
    suite_cache, method_cache = (
        next(r.chain["cache"] for r in plan.probes if r.probe["name"] == name)
        for name in ("cka", "cka_own")
    )
    assert "efficientnet_lite0" in suite_cache
    assert "resnet18_w48" in method_cache
    pools = {r.probe["name"]: plan.stages[r.chain["pool"]].spec["images"] for r in plan.probes}
    assert "share" not in pools["cka"]
    assert pools["cka_own"]["share"] == plan.stages[method_cache].spec["share"] == 0.1


def test_more_shots_than_images_are_refused_with_a_fix_that_works():
    data = {"base": "pocket", "classify": {"train": 100}}  # 8 classes; the smallest has 12 images
    message = planning_error(data=data, probes=["few_shot"])
    assert "uses 16 training images per class, but the smallest class of classify/train" in message
    assert "has 12" in message
    suite = build(**{**POCKET, "data": data}, probes=[{"base": "few_shot", "shots": [1, 12]}])
    check_counts(suite)


def test_the_effective_rank_of_fewer_images_than_dimensions_is_refused():
    message = planning_error(
        data={"base": "pocket", "classify": {"test": 200}}, probes=["effective_rank"]
    )
    assert "needs more images than the student 'resnet18_w32' has dimensions (256)" in message


def test_pocket_probes_uses_the_backbones_of_methods_pocket():
    """With other stage ids, 30 backbones would be trained again."""
    plan, methods_pocket = (
        build_plan(load_suite("pocket_probes")),
        build_plan(load_suite("methods_pocket")),
    )
    added = [s.kind for i, s in plan.stages.items() if i not in methods_pocket.stages]
    assert set(added) == {"features", "probe"}
    assert len(plan.probes) == 10 * 10 * 3  # probes x methods x seeds


def test_the_planner_has_the_same_list_of_probe_inputs_as_the_probes():
    from kdep_bench.probes import base

    assert READS == base.READS


def test_every_probe_has_a_description():
    for name in names("probe"):
        probe = resolve("probe", name)
        assert probe["about"], f"{name} has no description for the tables"


MAPS = {"base": "linear_segmentation"}


def test_linear_segmentation_reads_maps_of_the_size_in_its_config():
    plan = build_plan(build(**POCKET, probes=[{**MAPS, "size": [60, 80]}]))
    (spec, *rest) = [s.spec for s in plan.stages.values() if s.kind == "features"]
    assert spec["images"] == {
        "folder": "cityscapes",
        "splits": ["train", "val", "test"],
        "size": [60, 80],
    }
    assert all(s["images"] == spec["images"] for s in rest)


def test_linear_segmentation_that_cannot_run_is_refused_before_anything_runs():
    assert "set folder='cityscapes'" in planning_error(probes=[{**MAPS, "folder": "classify"}])
    assert "set size=(120, 160)" in planning_error(probes=[{**MAPS, "size": [120]}])
    data = {"base": "pocket", "scenes": {"val": 0}}
    change = {"data": data, "tasks": ["pocket_probe"]}
    assert "add scenes.val to the data config" in planning_error(**change, probes=[MAPS])
    suite = build(**POCKET, probes=[MAPS])
    student = {k: v for k, v in suite.students[0].items() if k != "pyramid"}
    with pytest.raises(KdepError, match="has no `pyramid`"):
        build_plan(suite.model_copy(update={"students": [student]}))


# kdep with a teacher that the suite pre-trains itself
SELF_TRAINED = dict(base="kdep_assistant", name="kdep_from_student")


def test_teachers_are_probed_once_per_backbone_and_run_once_for_all_students():
    methods = ["scratch", "supervised", "kdep", "svd", SELF_TRAINED]
    without, plan = (
        build_plan(build(**{**POCKET, "methods": methods, "probes": probes}))
        for probes in ([], ["teacher"])
    )
    assert set(without.stages) <= set(plan.stages)
    assert {r.method["name"] for r in plan.probes} == {"kdep", "svd", "kdep_from_student"}
    n_seeds = len({r.seed for r in plan.probes})
    of_teachers = [s for s in plan.stages.values() if "teacher" in s.spec and s.kind == "features"]
    # Lite0 once; the self-trained teacher once per seed, with the weights of its export.
    assert len(of_teachers) == 1 + n_seeds
    for run in plan.probes:
        stage = plan.stages[run.chain["teacher_features"]]
        assert stage.spec["images"]["splits"] == ["train", "val", "test"]
        is_trained_here = run.method["name"] == "kdep_from_student"
        assert ("export" in stage.needs) == is_trained_here
        cache = plan.stages[run.chain["cache"]]
        assert cache.spec["teacher"]["name"] == stage.spec["teacher"]["name"]
        assert cache.needs.get("export") == stage.needs.get("export")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(methods=["scratch", "supervised"]), "no method of the suite has a single teacher"),
        (dict(methods=["kdep"], teacher=None), "teacher"),
        (
            dict(methods=[dict(base="logit_kd", teacher_source="live")]),
            "stores none, because its teacher is live",
        ),
        (dict(methods=["tinyvit"]), "stores none, because it stores class probabilities only"),
    ],
)
def test_a_probe_of_teachers_without_stored_features_is_refused(change, message):
    assert message in planning_error(probes=["teacher"], **change)


POCKET_CLASSES = (
    "mammal",
    "bird",
    "other_animal",
    "food",
    "plant",
    "household",
    "coin",
    "vehicle",
)


def write_texts(path: Path, classes: tuple[str, ...] = POCKET_CLASSES, **arrays: Any) -> Json:
    """The probe with a file of text embeddings for these classes, for the teacher clip_vitb16."""
    text = np.random.default_rng(0).normal(size=(len(classes), 512))
    np.savez(path, classes=classes, **{"text": text, "projection": np.ones((768, 512)), **arrays})
    return dict(base="sgva_clip_text", text=str(path), shots=[1])


def test_a_vision_language_teacher_is_probed_with_texts_once_per_backbone(tmp_path):
    clip = {**POCKET, "teacher": "clip_vitb16"}
    without = build_plan(build(**clip))
    suite = build(**clip, probes=[write_texts(tmp_path / "texts.npz")])
    plan = build_plan(suite)
    check_counts(suite)
    assert set(without.stages) <= set(plan.stages)
    assert {r.method["name"] for r in plan.probes} == {"kdep"}  # scratch has no teacher
    for run in plan.probes:
        assert set(plan.stages[run.id].needs) == {"teacher_features"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(classes=POCKET_CLASSES[1:]), r"lacks .* 1 of 8 classes \('mammal'\)"),
        (dict(projection=np.ones((512, 512))), r"shape \(512, 512\).*'clip_vitb16' has 768 dim"),
        (dict(projection=np.ones((512, 768))), r"expected finite floats of shape \(.*, 512\)"),
        (dict(text=np.eye(7, 512)), "one for each of `classes`"),
    ],
)
def test_texts_that_do_not_fit_the_classes_or_the_teacher_are_refused_when_planned(
    tmp_path, change, message
):
    probe = write_texts(tmp_path / "texts.npz", **change)
    assert re.search(message, planning_error(probes=[probe], teacher="clip_vitb16"))


def test_texts_of_another_dimension_than_the_teacher_s_feature_are_refused_when_planned(tmp_path):
    probe = write_texts(tmp_path / "texts.npz")
    text = np.random.default_rng(0).normal(size=(8, 512))
    np.savez(probe["text"], classes=POCKET_CLASSES, text=text)
    message = planning_error(probes=[probe], teacher="clip_vitb16")
    assert "have 512 dimensions, but the feature of the teacher 'clip_vitb16' has 768" in message
    assert "of shape (768, 512)" in message


def test_a_probe_with_texts_requires_an_existing_file():
    assert "no file of text embeddings" in planning_error(probes=["sgva_clip_text"])
    absent = dict(base="sgva_clip_text", text="absent.npz")
    assert "absent.npz does not exist" in planning_error(probes=[absent])
    black_box = planning_error(
        probes=[absent], methods=["tinyvit"], teacher="efficientnet_lite0_black_box"
    )
    assert "compares texts with the feature of the teacher" in black_box


def write_clip(path: Path, width: int = 768, positions: int = 77) -> str:
    """The folder of a CLIP with all that planning reads; returns its path."""
    path.mkdir()
    config = {"model_type": "clip", "text_config": {"max_position_embeddings": positions}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    header = json.dumps({"visual_projection.weight": {"shape": [512, width]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return str(path)


def test_a_probe_with_a_prompt_requires_the_folder_of_the_teacher_s_clip(tmp_path, monkeypatch):
    def error(teacher: str = "clip_vitb16", **change: Any) -> str:
        return planning_error(probes=[dict(base="sgva_clip_prompt", **change)], teacher=teacher)

    assert "no text encoder" in error()
    assert "absent does not exist" in error(text_model="absent")
    monkeypatch.setattr("kdep_bench.probes.clip_folder._installed", lambda _: False)
    clip = write_clip(tmp_path / "clip")
    assert "pip install 'transformers" in error(text_model=clip)
    monkeypatch.setattr("kdep_bench.probes.clip_folder._installed", lambda _: True)
    narrow = write_clip(tmp_path / "narrow", width=512)
    assert "reads features of 512 dimensions" in error(text_model=narrow)
    assert "has at least 77 tokens" in error(text_model=clip, context=76)
    assert "has at least 77 tokens" in error(text_model=clip, words="a " * 76)
    assert "words" in error(text_model=clip, words=" ")
    probe = dict(base="sgva_clip_prompt", text_model=clip, context=74)
    plan = build_plan(build(**{**POCKET, "teacher": "clip_vitb16"}, probes=[probe]))
    assert {r.method["name"] for r in plan.probes} == {"kdep"}
