"""Forecasts of images, FLOPs, disk space and hours equal closed forms; unknown values stay so."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suite_config import SUITE, build

from kdep_bench.errors import KdepError
from kdep_bench.forecast import rates
from kdep_bench.forecast.costs import Costs
from kdep_bench.forecast.work import (
    NETWORKS_FILE,
    Forecast,
    ResourceEstimate,
    count_steps,
    network_id,
    networks,
    size_text,
    student_network,
    table,
    task_network,
    teacher_network,
)
from kdep_bench.pretrain.budgets import whole_batches
from kdep_bench.suite.config import build_suite, load_config, load_suite
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.plan import build_plan

COUNTS: dict[str, Any] = json.loads(NETWORKS_FILE.read_text())  # network id -> its FLOPs
IMAGES = 1_281_167  # of ImageNet-1K's training set


@pytest.fixture(scope="module")
def paper() -> Plan:
    """The plan of the suite paper_r18."""
    return build_plan(load_suite("paper_r18"))


def stage(plan: Plan, kind: str, *parts: str) -> Stage:
    """The first stage of a kind with all `parts` in its name."""
    return next(
        s for s in plan.stages.values() if s.kind == kind and all(p in s.name for p in parts)
    )


def test_every_network_of_the_paper_suites_is_counted():
    for name in ("paper_r18", "paper_mnv2", "paper_foggy"):
        for network in networks(build_plan(load_suite(name))):
            assert COUNTS[network_id(network)]["flops"] > 0, network["name"]


def test_resources_of_each_kind_of_stage_equal_closed_forms(paper):
    forecast, flops = Forecast(paper, COUNTS), {c["name"]: c["flops"] for c in COUNTS.values()}
    rows = 2 * IMAGES  # two views
    assert forecast.estimate(stage(paper, "views")) == ResourceEstimate(disk=rows * 224 * 224 * 3)
    # The feature (2048) and the logits (1000) that logit_kd reads, in half precision.
    expected = ResourceEstimate(rows, rows * flops["resnet50"], rows * 2 * (2048 + 1000))
    assert forecast.estimate(stage(paper, "cache", "resnet50")) == expected
    tenth = [s for s in paper.stages.values() if s.kind == "pretrain" and "kdep.0.1.s0" in s.name]
    # A tenth of the images, in whole batches of 512; a training step costs 3 forward passes.
    images_seen = [math.floor(e * 128_117 / 512) * 512 for e in (90, 180, 900)]
    estimates = sorted((forecast.estimate(s).images, forecast.estimate(s).flops) for s in tenth)
    four_teachers = range(4)
    assert estimates == [(n, 3 * n * flops["resnet18"]) for n in images_seen for _ in four_teachers]
    scratch = forecast.estimate(stage(paper, "pretrain", "scratch"))
    assert (scratch.images, scratch.flops) == (0, 0)
    cub_images = 150 * (5994 // 64) * 64  # epochs, whole batches of 64
    expected = ResourceEstimate(cub_images, 3 * cub_images * flops["resnet18"])
    assert forecast.estimate(stage(paper, "transfer", "cub200")) == expected
    coco_images = 90_000 * 16  # iterations, batch
    expected = ResourceEstimate(coco_images, 3 * coco_images * flops["coco_c4.resnet18"])
    assert forecast.estimate(stage(paper, "transfer", "coco_c4")) == expected


def test_a_shared_stage_is_counted_once_in_the_sums(paper):
    forecast = Forecast(paper, COUNTS)
    caches = [s for s in paper.stages.values() if s.kind == "cache"]
    assert len(caches) == 4
    line = next(x for x in table(paper, forecast, paper.stages, None) if x.startswith("cache"))
    assert line.split()[1:3] == ["4", f"{4 * 2 * IMAGES:,}"]
    assert line.split()[-1] == "-"  # no rate, no hours


def test_a_network_with_unknown_flops_is_shown_as_a_dash_with_the_reason(paper):
    other_counts = {k: v for k, v in COUNTS.items() if v["name"] != "swin_b"}
    forecast = Forecast(paper, other_counts)
    estimate = forecast.estimate(stage(paper, "cache", "swin_b"))
    assert (estimate.images, estimate.flops, estimate.disk) == (2 * IMAGES, None, None)
    lines = table(paper, forecast, paper.stages, None)
    assert ">= " in next(x for x in lines if x.startswith("cache"))
    assert "excluded: the FLOPs of teacher swin_b are unknown: add --count-flops (1 stage)" in lines
    without_counts = table(paper, Forecast(paper, {}), paper.stages, None)
    assert next(x for x in without_counts if x.startswith("transfer")).split()[-3] == "-"


def test_the_number_of_pool_images_is_that_of_the_config_or_of_the_finished_stage():
    plan = build_plan(build())
    views = stage(plan, "views")
    spec = plan.stages[views.needs["prepare"]].spec
    pool = spec["pool_composites"] + spec["pool_crops"]
    assert Forecast(plan, {}).pool(views.id) == pool
    outputs = {"counts": {"images": {"pool": 77}}}
    finished_stage = {"id": views.needs["prepare"], "kind": "prepare", "outputs": outputs}
    assert Forecast(plan, {}, [finished_stage]).pool(views.id) == 77
    user_plan = build_plan(load_suite("mine"))
    cache = Forecast(user_plan, COUNTS).estimate(stage(user_plan, "cache"))
    assert cache.images is None
    assert "until the data are prepared" in cache.why


def test_a_live_teacher_runs_in_every_step():
    suite = build(budget={**SUITE["budget"], "teacher": "live"}, methods=["kdep"])
    plan = build_plan(suite)
    pretrain_stage = stage(plan, "pretrain")
    student = student_network(pretrain_stage.spec["student"])
    teacher = teacher_network(pretrain_stage.spec["teacher"])
    counts = {network_id(student): {"flops": 10, "bytes": 1}, network_id(teacher): {"flops": 7}}
    estimate = Forecast(plan, counts).estimate(pretrain_stage)
    assert estimate.images
    assert estimate.flops == estimate.images * (3 * 10 + 7)


def test_four_rotations_of_an_image_cost_four_forward_passes_of_student_and_live_teacher():
    plan = build_plan(build(methods=["hssakd", "dml"]))
    by_method = {s.spec["method"]["name"]: s for s in plan.stages.values() if s.kind == "pretrain"}
    student = student_network(by_method["hssakd"].spec["student"])
    teacher = teacher_network(by_method["hssakd"].spec["teacher"])
    counts = {network_id(student): {"flops": 10, "bytes": 1}, network_id(teacher): {"flops": 7}}
    forecast = Forecast(plan, counts)
    rotated, upright = (forecast.estimate(by_method[name]) for name in ("hssakd", "dml"))
    assert upright.images
    assert rotated.images
    assert rotated.images == 4 * upright.images
    assert rotated.flops == rotated.images * (3 * 10 + 7)


def test_a_peer_that_is_trained_costs_as_much_as_a_student():
    four = dict(base="mfef", name="mfef_4", objective=dict(peers=3))
    plan = build_plan(build(methods=["supervised", "dml", "bd_kd", "hssakd_online", "mfef", four]))
    by_method = {s.spec["method"]["name"]: s for s in plan.stages.values() if s.kind == "pretrain"}
    student = student_network(by_method["dml"].spec["student"])
    wide = student_network(by_method["bd_kd"].spec["method"]["objective"]["peer"])
    assert {network_id(student), network_id(wide)} <= {network_id(n) for n in networks(plan)}
    counts = {network_id(student): {"flops": 10, "bytes": 1}, network_id(wide): {"flops": 23}}
    forecast = Forecast(plan, counts)
    base = forecast.estimate(by_method["supervised"]).images
    assert base
    expected = {
        "supervised": 30,
        "dml": 2 * 30,
        "bd_kd": 30 + 3 * 23,
        "hssakd_online": 4 * 2 * 30,
        "mfef": 2 * 30,
        "mfef_4": 4 * 30,
    }
    for name, flops in expected.items():
        assert forecast.estimate(by_method[name]).flops == base * flops, name
    del counts[network_id(wide)]
    unknown = Forecast(plan, counts).estimate(by_method["bd_kd"])
    assert unknown.flops is None
    assert "resnet18_w48 are unknown" in unknown.why


def test_a_moving_average_costs_a_forward_pass_also_inside_a_weighted_sum():
    weighted = "kdep_bench.objectives.weighted_sum.WeightedSum"
    parts = ("mean_teacher", "dml")
    configs = {name: load_config("method", name)["objective"] for name in parts}
    two_views = {**SUITE["budget"], "views": 2}
    both = dict(
        base="mean_teacher",
        name="both",
        objective=dict(
            type=weighted, parts={k: dict(objective=v) for k, v in configs.items()}, _delete_=True
        ),
    )
    plan = build_plan(build(methods=["supervised", "mean_teacher", both], budget=two_views))
    by_method = {s.spec["method"]["name"]: s for s in plan.stages.values() if s.kind == "pretrain"}
    student = student_network(by_method["both"].spec["student"])
    forecast = Forecast(plan, {network_id(student): {"flops": 10, "bytes": 1}})
    images = forecast.estimate(by_method["supervised"]).images
    assert images
    for name, flops in {"supervised": 30, "mean_teacher": 40, "both": 30 + 10 + 30}.items():
        assert forecast.estimate(by_method[name]).flops == images * flops, name


def test_the_images_of_fs_bbt_are_counted_and_its_generator_is_named_as_excluded():
    plan = build_plan(build(methods=["fs_bbt"], shares=[0.5]))
    made = next(s for s in plan.stages.values() if "synthesis" in s.spec)
    spec = plan.stages[made.needs["prepare"]].spec
    fraction_images = round(0.5 * (spec["pool_composites"] + spec["pool_crops"]))
    forecast = Forecast(plan, {})
    views = next(s for s in plan.stages.values() if s.needs.get("prepare") == made.id)
    assert forecast.pool(views.id) == fraction_images + made.spec["synthesis"]["images"]
    estimate = forecast.estimate(made)
    assert (estimate.images, estimate.flops) == (fraction_images, None)
    text = " ".join(table(plan, forecast, plan.stages, None))
    excluded = "FLOPs and disk space of the network that generates images (FewShotImages)"
    assert f"excluded: {excluded}" in text
    assert "extra layers and decoders of objectives are not included" in text


@pytest.mark.parametrize(("generated", "real"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_images_that_ota_generates_cost_passes_of_the_tuned_teacher(generated: float, real: float):
    suite = load_suite("paper_r18")
    methods = [
        "scratch",
        dict(
            base="ota",
            transfer=dict(
                tasks=["cub200"],
                images=8,
                steps=5,
                generated=generated,
                real=real,
                teacher=dict(student=dict(base="efficientnet_lite0_trunk", input_px=224)),
            ),
        ),
    ]
    (student,) = suite.students
    raw = dict(name="t", data=suite.data["name"], teacher="resnet50", students=[student["name"]])
    seeds = dict(pretrain=[0], transfer=[0])
    raw |= dict(methods=methods, tasks=["cub200"], budget=suite.budget.model_dump(), seeds=seeds)
    plan = build_plan(build_suite(raw))
    counts: dict[str, Any] = {}
    for network in networks(plan):
        flops = 10.0 if network["name"] == student["name"] else 7.0
        counts[network_id(network)] = {"flops": flops, "bytes": 1}
    (run,) = (run for run in plan.runs if run.method.get("transfer"))
    images = 150 * (5994 // 64) * 64  # epochs, whole batches of 64
    generation = 8 * (2 + 5 * 2 + 1)  # two guides, five steps with the gradient, one score
    trained = images * (2 if generated else 1)  # images on which the student is trained
    teacher = (images if real else 0) + (generation if generated else 0)
    expected = trained * 3 * 10 + teacher * 7
    assert Forecast(plan, counts).estimate(plan.stages[run.id]).flops == expected


def test_passes_on_augmented_images_are_counted_for_cached_and_live_teachers():
    live = dict(base="tst", name="live", teacher_source="live")
    plan = build_plan(build(methods=["logit_kd", "tst", live]))
    by_method = {s.spec["method"]["name"]: s for s in plan.stages.values() if s.kind == "pretrain"}
    student = student_network(by_method["tst"].spec["student"])
    teacher = teacher_network(by_method["live"].spec["teacher"])
    counts = {network_id(student): {"flops": 10, "bytes": 1}, network_id(teacher): {"flops": 7}}
    forecast = Forecast(plan, counts)
    images = forecast.estimate(by_method["logit_kd"]).images
    assert images
    for name, flops in {"logit_kd": 30, "tst": 2 * 30 + 7, "live": 2 * 30 + 2 * 7}.items():
        assert forecast.estimate(by_method[name]).flops == images * flops, name


def test_a_network_s_id_depends_only_on_what_changes_its_flops():
    suite = load_suite("paper_r18")
    (student,), teacher = suite.students, suite.variants[0].teachers["resnet18"]
    task = next(t for t in suite.tasks if t["name"] == "coco_c4")
    assert teacher is not None

    def with_changes(config: dict[str, Any], **change: Any) -> dict[str, Any]:
        return {**config, **change}

    def with_recipe(**change: Any) -> dict[str, Any]:
        return with_changes(task, name="other", recipe={**task["recipe"], **change})

    first_id = network_id(task_network(task, student))
    assert network_id(task_network(with_recipe(lr=1.0, iters=9, batch=3), student)) == first_id
    assert network_id(task_network(with_recipe(head="fpn"), student)) != first_id
    deeper = with_changes(student, backbone={**student["backbone"], "depth": 34})
    assert network_id(task_network(task, deeper)) != first_id
    first_id = network_id(teacher_network(teacher))
    assert (
        network_id(teacher_network(with_changes(teacher, name="x", weights="y", card={})))
        == first_id
    )
    assert network_id(teacher_network(with_changes(teacher, input_px=256))) != first_id
    first_id = network_id(student_network(student))
    assert network_id(student_network(with_changes(student, name="x", tap="output"))) == first_id
    assert network_id(student_network(with_changes(student, input_px=256))) != first_id


@settings(deadline=None)
@given(st.floats(0.01, 1000), st.integers(1, 10**7), st.integers(1, 4096))
def test_forecast_steps_equal_those_of_training(epochs, images, batch):
    budget = {"epochs": epochs, "batch": batch}
    assert count_steps(budget, images) == max(1, whole_batches(budget, images, images))


def test_gpu_hours_are_flops_divided_by_the_stated_throughput(paper):
    forecast, cache = Forecast(paper, COUNTS), stage(paper, "cache", "resnet50")
    views = stage(paper, "views")
    rate = rates.stated_rate("a100.tf32:0.25")
    gpu_hours = rates.at_rate(paper, forecast, rate, [cache.id, views.id])
    flops = 2 * IMAGES * COUNTS[network_id(teacher_network(cache.spec["teacher"]))]["flops"]
    # 156 TFLOP/s at a quarter of the peak.
    assert gpu_hours.by_stage[cache.id] == pytest.approx(flops / (156e12 * 0.25) / 3600)
    assert gpu_hours.by_stage[views.id] == 0
    assert gpu_hours.source.startswith(
        "from --device-rate (a100's datasheet, tf32: 156 TFLOP/s, 0.25"
    )
    lines = table(paper, forecast, [cache.id], gpu_hours)
    assert lines[2].split()[-1] == f"{gpu_hours.by_stage[cache.id]:.2g}"
    assert rates.stated_rate("12.5").default == 12.5e12
    assert rates.stated_rate("100:0.5").default == 50e12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a100", "lacks the number format and the fraction of the peak, which training never"),
        ("a100.tf32", "lacks the fraction of the peak, which training never reaches"),
        ("a100:0.3", "lacks the number format; expected"),
        ("h100.fp64:0.5", "unknown number format 'fp64' in --device-rate"),
        ("a10.tf32:0.5", "unknown device"),
        ("12x", "--device-rate is '12x'"),
        ("-3", "--device-rate is '-3'"),
        ("nan", "--device-rate is 'nan'"),
        ("12:1.5", "FRACTION at most 1"),
        ("12:half", "--device-rate is '12:half'"),
    ],
)
def test_an_invalid_device_rate_raises_kdep_error(text, message):
    with pytest.raises(KdepError) as error:
        rates.stated_rate(text)
    assert message in str(error.value)


def test_a_network_without_a_measured_throughput_uses_the_flop_rate_of_the_student(paper):
    student = network_id(student_network(stage(paper, "pretrain", "kdep").spec["student"]))
    cache, coco = stage(paper, "cache", "swin_b"), stage(paper, "transfer", "coco_c4")
    teacher = network_id(teacher_network(cache.spec["teacher"]))
    throughputs = {
        "device": "a test",
        student: {"kind": "student", "images_per_s": 100.0},
        teacher: {"kind": "teacher", "images_per_s": 50.0},
    }
    rate = rates.measured_rate(throughputs, COUNTS)
    assert rate.source.startswith("measured here (a test;")
    forecast = Forecast(paper, COUNTS)
    hours = rates.at_rate(paper, forecast, rate, [cache.id, coco.id]).by_stage
    assert hours[cache.id] == pytest.approx(2 * IMAGES / 50 / 3600)
    flops = forecast.estimate(coco).flops
    assert flops is not None
    assert hours[coco.id] == pytest.approx(flops / (300 * COUNTS[student]["flops"]) / 3600)
    with pytest.raises(KdepError, match=r"images per second of the suite.s students"):
        rates.measured_rate({"device": "a test"}, COUNTS)


def test_gpu_hours_from_finished_stages_exclude_stages_without_gpu(paper):
    """The finished stages took two hours each; rendering views uses no GPU."""
    cache, views = stage(paper, "cache", "resnet50"), stage(paper, "views")
    other = stage(paper, "pretrain", "kdep")

    def record(planned: Stage) -> dict[str, Any]:
        outputs = {"images": IMAGES, "views": 2, "rows": 2 * IMAGES}
        base = dict(kind=planned.kind, id=planned.id, name=planned.name, spec=planned.spec)
        return {**base, "outputs": outputs, "wall_s": 7200.0}

    costs = Costs(paper, [record(cache), record(views)])
    gpu_hours = rates.from_finished(paper, costs, [cache.id, views.id, other.id])
    assert gpu_hours.by_stage[cache.id] == pytest.approx(2.0, rel=0.01)
    assert gpu_hours.by_stage[views.id] == 0
    assert gpu_hours.by_stage[other.id] is None


def test_sizes_are_printed_with_their_unit():
    assert [size_text(b) for b in (0, 999, 1e4, 385.7e9, 2e13)] == [
        "0 B", "999 B", "10 kB", "386 GB", "20 TB"
    ]  # fmt: skip


def test_the_forward_passes_of_a_transfer_method_s_teacher_are_counted():
    """Without them, a transfer with a large teacher would appear cheap."""
    suite = load_suite("smoke")
    raw = dict(
        name="t",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=["scratch", "transkd"],
        tasks=["smoke_seg"],
        budget=suite.budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    plan = build_plan(build_suite(raw))
    counts = {}
    for network in networks(plan):
        flops = {"student": 1.0, "teacher": 1.0}.get(network["kind"], 100.0)
        small = network["kind"] == "task" and network["student"]["name"] == "resnet18_w32"
        counts[network_id(network)] = {"flops": 10.0 if small else flops, "bytes": 7}
    forecast = Forecast(plan, counts)
    # Whether the run has a transfer method -> its stage.
    stage_by_method = {
        run.method.get("transfer") is not None: plan.stages[run.id] for run in plan.runs
    }
    images = 10 * 2  # iterations, batch
    assert forecast.estimate(stage_by_method[False]).flops == images * 3 * 10
    assert forecast.estimate(stage_by_method[True]).flops == images * (3 * 10 + 100)
    teacher = plan.stages[stage_by_method[True].needs["teacher"]]
    assert forecast.estimate(teacher).flops == images * 3 * 100
    assert forecast.estimate(teacher).disk == 7
    assert forecast.estimate(stage_by_method[True]).disk == 0


def test_the_additional_passes_of_a_transfer_method_are_counted():
    """SSDA trains the detector on two more images per image; its moving average processes one more.

    Fog does not change the network, so its FLOPs are those of the task without fog.
    """
    suite = load_suite("smoke")
    raw = dict(
        name="t",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=[
            "scratch",
            dict(base="ssda", pretrained_by="scratch", transfer=dict(tasks=["smoke_det_fog"])),
        ],
        tasks=["smoke_det_fog", "smoke_det"],
        budget=suite.budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    plan = build_plan(build_suite(raw))
    assert len([n for n in networks(plan) if n["kind"] == "task"]) == 1
    forecast = Forecast(plan, {network_id(n): {"flops": 10.0, "bytes": 7} for n in networks(plan)})
    flops = {
        (run.task["name"], "transfer" in plan.stages[run.id].spec): forecast.estimate(
            plan.stages[run.id]
        ).flops
        for run in plan.runs
    }
    forward = 10 * 2 * 10.0  # iterations, batch, FLOPs
    assert flops == {
        ("smoke_det", False): 3 * forward,
        ("smoke_det_fog", False): 3 * forward,
        ("smoke_det_fog", True): (3 * 3 + 1) * forward,
    }
