"""Records of methods with several teachers: cost, checksums and model card include each teacher."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kdep_bench.engine.collect import _cost_fields, _teacher_fields
from kdep_bench.suite.config import build_suite, load_suite
from kdep_bench.suite.graph import TransferRun
from kdep_bench.suite.plan import build_plan
from kdep_bench.transfer.model_card import about, card


def transfer_run(method: str) -> TransferRun:
    """The first planned transfer run of a suite with this method."""
    raw = dict(
        name="teachers",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=[method],
        tasks=["smoke_probe"],
        budget=load_suite("smoke").budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    return build_plan(build_suite(raw)).runs[0]


def cache_stage(checksum: str, flops: float | None, forwards: int, wall: float) -> dict[str, Any]:
    """The stage.json of a teacher's cache; `wall` in seconds."""
    teacher = {"checksum": checksum, "flops": flops, "width": 1280}
    return {
        "id": f"cache-{checksum}",
        "kind": "cache",
        "spec": {"teacher": {}},
        "wall_s": wall,
        "outputs": {"teacher": teacher, "bytes": 1000, "forwards": forwards, "fill_s": wall},
    }


def stages(**caches: dict[str, Any]) -> dict[str, Any]:
    """Role -> stage.json of the stages before a transfer run: one pre-training and these caches.

    The keyword `first_cache` stands for the role 'first.cache', the cache of the teacher 'first'.
    """
    outputs = {"extra_forwards": 5, "train_s": 3.0, "teachers": {}}
    pretrain = {"kind": "pretrain", "spec": {}, "wall_s": 3.0, "outputs": outputs, "peak_rss": 1}
    environment = {"environment": {"device": "cpu", "threads": 1}}
    return {
        "pretrain": pretrain | environment,
        **{k.replace("_", "."): v for k, v in caches.items()},
    }


def test_the_cost_counts_every_teacher_s_cache():
    run = transfer_run("ebkd")
    upstream = stages(
        first_cache=cache_stage("aa", 2e9, 300, 4.0), second_cache=cache_stage("bb", 3e9, 300, 9.0)
    )
    cost = _cost_fields(run, upstream, report_times=True)
    assert cost["extra_forwards"] == 5 + 300 + 300
    assert cost["cache_bytes"] == 2000
    assert cost["cache_s"] == 13.0


def test_the_forward_passes_of_linked_arrays_are_counted_once():
    """Two caches have arrays of `aa`, which computed them, and state its cost."""
    computed, second = cache_stage("aa", 2e9, 300, 4.0), cache_stage("bb", 3e9, 200, 9.0)
    linked, also_linked = (cache_stage(name, 2e9, 300, 0.1) for name in ("cc", "dd"))
    for cache in (linked, also_linked):
        cache["outputs"] |= {"reused": "cache-aa", "fill_s": 4.0}
    for caches in ({"a_cache": linked, "b_cache": computed}, {"a_cache": linked}):
        upstream = stages(**caches, c_cache=also_linked, d_cache=second)
        cost = _cost_fields(transfer_run("ebkd"), upstream, report_times=True)
        assert cost["extra_forwards"] == 5 + 300 + 200
        assert cost["cache_s"] == 4.0 + 9.0


def test_a_cache_shared_by_two_intermediate_teachers_is_counted_once():
    """Two intermediate teachers, both pre-trained by the suite's teacher."""
    shared, a_cache = cache_stage("aa", 2e9, 300, 4.0), cache_stage("bb", 3e9, 300, 9.0)
    upstream = stages(a_teacher_cache=shared, b_teacher_cache=shared, a_cache=a_cache)
    cost = _cost_fields(transfer_run("ebkd"), upstream, report_times=True)
    assert cost["extra_forwards"] == 5 + 300 + 300
    assert cost["cache_s"] == 13.0


def test_the_images_that_an_intermediate_teacher_s_method_makes_are_part_of_the_cost():
    """At a data fraction of 0.5, the cache of these images has no others, so all of it counts."""
    run = dataclasses.replace(transfer_run("takd"), fraction=0.5)
    made, student_cache = cache_stage("aa", 2e9, 300, 4.0), cache_stage("bb", 3e9, 100, 9.0)
    student_cache["spec"]["share"] = 0.5
    synthesis = {"kind": "prepare", "spec": {}, "wall_s": 50.0, "outputs": {"forwards": 20}}
    upstream = stages(teacher_cache=made, cache=student_cache, teacher_synthesis=synthesis)
    cost = _cost_fields(run, upstream, report_times=True)
    assert cost["cache_s"] == 4.0 + 9.0
    assert cost["extra_forwards"] == 5 + 300 + 100 + 20
    assert cost["pretrain_s"] == 3.0 + 50.0


@pytest.mark.parametrize(("student", "pretrainings"), [(None, 1), ({"name": "other"}, 2)])
def test_a_teacher_with_the_student_s_own_pretraining_adds_none(student: Any, pretrainings: int):
    """All seeds share the teacher, which has the pre-training of the first seed."""
    run = transfer_run("kdep")
    teacher = {"student": student, "method": run.method}
    run = dataclasses.replace(run, method={**run.method, "transfer": {"teacher": teacher}})
    upstream = stages(cache=cache_stage("aa", 2e9, 300, 4.0))
    outputs = {"extra_forwards": 0, "images_seen": 64, "train_s": 3.0}
    first_seed = {**upstream["pretrain"], "outputs": outputs}
    cost = _cost_fields(run, {**upstream, "tuned.pretrain": first_seed}, report_times=True)
    assert cost["pretrain_s"] == 3.0 * pretrainings
    assert cost["extra_forwards"] == 5 + 300 + 64 * (pretrainings - 1)


def test_several_teachers_are_joined_in_a_record_and_unknown_flops_stay_unknown():
    run = transfer_run("ebkd")
    first = cache_stage("aa", 2e9, 300, 4.0)
    recorded = _teacher_fields(
        run, stages(first_cache=first, second_cache=cache_stage("bb", 3e9, 300, 9.0))
    )
    assert recorded == {
        "name": "efficientnet_lite0+efficientnet_lite2",
        "checksum": "aa+bb",
        "flops": 5e9,
    }
    without_flops = _teacher_fields(
        run, stages(first_cache=first, second_cache=cache_stage("bb", None, 300, 9.0))
    )
    assert without_flops is not None
    assert without_flops["flops"] is None
    without_second = _teacher_fields(run, stages(first_cache=first))
    assert without_second is not None
    assert (without_second["checksum"], without_second["flops"]) == ("", None)


def test_the_model_card_names_every_teacher_with_its_checksum():
    run = transfer_run("ebkd")
    description = about(run.method, run.student, run.teacher, "smoke", 1.0, 0)
    outputs = {
        "pretrain": {},
        "first.cache": cache_stage("aa", 1.0, 1, 1.0)["outputs"],
        "second.cache": cache_stage("bb", 1.0, 1, 1.0)["outputs"],
    }
    text = card(
        description, run.student, outputs, {"parameters": 1}, {"backbone.pth": "cc"}, "here"
    )
    assert "| teacher | efficientnet_lite0+efficientnet_lite2 |" in text
    assert "| teacher's checksum | aa, bb |" in text
    assert "efficientnet_lite0: Apache-2.0; efficientnet_lite2: Apache-2.0" in text
    assert "cc  backbone.pth" in text
