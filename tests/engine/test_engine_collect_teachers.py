"""What a record says of a method with several teachers: every one of them is in its cost."""

from __future__ import annotations

from typing import Any

from kdep_bench.engine.collect import _cost, _teacher
from kdep_bench.suite.config import build_suite, load_suite
from kdep_bench.suite.graph import TransferRun
from kdep_bench.suite.plan import build_plan
from kdep_bench.transfer.model_card import about, card


def run_of(method: str) -> TransferRun:
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


def cached(checksum: str, flops: float | None, forwards: int, wall: float) -> dict[str, Any]:
    teacher = {"checksum": checksum, "flops": flops, "width": 1280}
    return {
        "kind": "cache",
        "spec": {"teacher": {}},
        "wall_s": wall,
        "outputs": {"teacher": teacher, "bytes": 1000, "forwards": forwards, "fill_s": wall},
    }


def stages(**caches: dict[str, Any]) -> dict[str, Any]:
    outputs = {"extra_forwards": 5, "train_s": 3.0, "teachers": {}}
    pretrain = {"kind": "pretrain", "spec": {}, "wall_s": 3.0, "outputs": outputs, "peak_rss": 1}
    environment = {"environment": {"device": "cpu", "threads": 1}}
    return {
        "pretrain": pretrain | environment,
        **{k.replace("_", "."): v for k, v in caches.items()},
    }


def test_the_cost_counts_every_teacher_s_cache():
    run = run_of("ebkd")
    upstream = stages(
        first_cache=cached("aa", 2e9, 300, 4.0), second_cache=cached("bb", 3e9, 300, 9.0)
    )
    cost = _cost(run, upstream, True)
    assert cost["extra_forwards"] == 5 + 300 + 300
    assert cost["cache_bytes"] == 2000
    assert cost["cache_s"] == 13.0


def test_a_cache_that_two_teachers_come_from_is_paid_for_once():
    """Two intermediate teachers, both pre-trained by the suite's teacher."""
    shared, own = cached("aa", 2e9, 300, 4.0), cached("bb", 3e9, 300, 9.0)
    upstream = stages(a_teacher_cache=shared, b_teacher_cache=shared, a_cache=own)
    cost = _cost(run_of("ebkd"), upstream, True)
    assert cost["extra_forwards"] == 5 + 300 + 300
    assert cost["cache_s"] == 13.0


def test_several_teachers_are_one_line_of_a_record_and_an_unknown_figure_is_unknown():
    run = run_of("ebkd")
    first = cached("aa", 2e9, 300, 4.0)
    recorded = _teacher(run, stages(first_cache=first, second_cache=cached("bb", 3e9, 300, 9.0)))
    assert recorded == {
        "name": "efficientnet_lite0+efficientnet_lite2",
        "checksum": "aa+bb",
        "flops": 5e9,
    }
    lacking = _teacher(run, stages(first_cache=first, second_cache=cached("bb", None, 300, 9.0)))
    assert lacking is not None
    assert lacking["flops"] is None
    missing = _teacher(run, stages(first_cache=first))
    assert missing is not None
    assert (missing["checksum"], missing["flops"]) == ("", None)


def test_the_model_card_names_every_teacher_with_its_checksum():
    run = run_of("ebkd")
    reasons = about(run.method, run.student, run.teacher, "smoke", 1.0, 0)
    outputs = {
        "pretrain": {},
        "first.cache": cached("aa", 1.0, 1, 1.0)["outputs"],
        "second.cache": cached("bb", 1.0, 1, 1.0)["outputs"],
    }
    text = card(reasons, run.student, outputs, {"parameters": 1}, {"backbone.pth": "cc"}, "here")
    assert "| teacher | efficientnet_lite0+efficientnet_lite2 |" in text
    assert "| teacher's checksum | aa, bb |" in text
    assert "efficientnet_lite0: Apache-2.0; efficientnet_lite2: Apache-2.0" in text
    assert "cc  backbone.pth" in text
