"""Transfer methods in a suite: their stages and names, and what planning refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine_fakes as fakes
import pytest

from kdep_bench.engine.collect import collect
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict
from kdep_bench.results.records import record as records
from kdep_bench.results.records.store import records_dir
from kdep_bench.suite.config import CONFIGS, build_suite, load_suite, with_transfer
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.methods import row_name
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Suite

TEACHER = dict(student="resnet18_w48", method="scratch")
TRANSKD = dict(base="transkd", transfer=dict(teacher=dict(TEACHER)))
IRF = "kdep_bench.transfer.methods.irf.IRF"
CLASSIFICATION: dict[str, Any] = dict(tasks=["smoke_finetune"])  # a change of the suite
ROW_NAME = "pre-trained by {}, transferred with {}"


def suite(*methods: Any, **change: Any) -> Suite:
    """A small suite with these methods."""
    raw = dict(
        name="several",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=list(methods),
        tasks=["smoke_seg"],
        budget=load_suite("smoke").budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0, 1]),
    )
    return build_suite({**raw, **change})


def plan(*methods: Any, **change: Any) -> Plan:
    """The plan of a small suite with these methods."""
    return build_plan(suite(*methods, **change))


def ids_of_kind(plan: Plan, kind: str) -> list[str]:
    """Ids of the plan's stages of a kind."""
    return [i for i, s in plan.stages.items() if s.kind == kind]


def test_a_transfer_method_adds_stages_and_changes_no_other_stage():
    without, with_transkd = plan("kdep", "scratch"), plan("kdep", "scratch", "transkd")
    assert set(without.stages) <= set(with_transkd.stages)
    new = [with_transkd.stages[i] for i in with_transkd.stages if i not in without.stages]
    # The teacher's pre-training, export and transfer once, and a transfer for each seed.
    assert sorted(s.kind for s in new) == ["export", "pretrain", *["transfer"] * 3]
    for run in with_transkd.runs:
        stage = with_transkd.stages[run.id]
        assert ("transfer" in stage.spec) == (run.method.get("transfer") is not None)
        assert ("teacher" in stage.needs) == (run.method.get("transfer") is not None)


def test_all_methods_and_seeds_of_a_task_share_one_tuned_teacher():
    a_plan = plan("transkd", "nfd_transfer", dict(base="transkd", pretrained_by="kdep"))
    teachers = [
        i for i in ids_of_kind(a_plan, "transfer") if a_plan.stages[i].spec.get("keep_model")
    ]
    assert len(teachers) == 1
    assert {a_plan.stages[r.id].needs["teacher"] for r in a_plan.runs} == set(teachers)
    assert all(r.chain["tuned.transfer"] == teachers[0] for r in a_plan.runs)
    assert "transfer" not in a_plan.stages[teachers[0]].spec


def test_a_row_names_the_pre_training_and_the_transfer_method():
    methods = suite("kdep", "transkd", dict(base="transkd", pretrained_by="kdep")).methods
    names = [row_name(m) for m in methods]
    assert names == [
        "kdep",
        ROW_NAME.format("scratch", "transkd"),
        ROW_NAME.format("kdep", "transkd"),
    ]


def test_rows_with_and_without_the_transfer_method_share_the_pre_training():
    a_plan = plan("kdep", dict(base="transkd", pretrained_by="kdep"))
    plain_exports, transfer_exports = (
        {r.chain["export"] for r in a_plan.runs if (r.method.get("transfer") is None) == is_plain}
        for is_plain in (True, False)
    )
    assert plain_exports == transfer_exports


def test_specs_contain_arguments_of_a_transfer_method_but_not_its_name_or_source():
    first_plan = plan("transkd")
    other_source = plan(dict(base="transkd", source="elsewhere"))
    assert set(first_plan.stages) == set(other_source.stages)
    other_weight = plan(dict(base="transkd", transfer=dict(weight=2.0)))
    new = [other_weight.stages[i] for i in other_weight.stages if i not in first_plan.stages]
    assert {(s.kind, s.spec["transfer"]["weight"]) for s in new} == {("transfer", 2.0)}


def test_tasks_of_a_transfer_method_restrict_only_that_method():
    restricted = dict(base="transkd", transfer=dict(tasks=["smoke_seg"]))
    a_plan = plan("kdep", restricted, tasks=["smoke_seg", "smoke_finetune"])
    rows = {(row_name(r.method), r.task["name"]) for r in a_plan.runs}
    assert rows == {
        ("kdep", "smoke_seg"),
        ("kdep", "smoke_finetune"),
        (ROW_NAME.format("scratch", "transkd"), "smoke_seg"),
    }


WITHOUT_TEACHER = dict(base="transkd", transfer=dict(teacher=None))
# {level of the student: map of the teacher}; s64 does not exist.
NO_LEVELS = dict(_delete_=True, s4="s4", s64="s32")
NO_MAPS = dict(_delete_=True, s4="s4", s32="s64")
KD = dict(_delete_=True, type="kdep_bench.objectives.logit_kd.LogitKD", tau=1.0)
UNKNOWN_ARGUMENT = dict(base="nfd_transfer", transfer=dict(objective=dict(wieght=1.0)))


@pytest.mark.parametrize(
    ("method", "change", "match"),
    [
        (
            WITHOUT_TEACHER,
            {},
            "needs a teacher that was transferred to the same task, and has none",
        ),
        ("transkd", dict(tasks=["smoke_finetune"]), "does not support the task 'smoke_finetune'"),
        ("transkd", dict(tasks=["smoke_probe"]), "does not support the task 'smoke_probe'"),
        (dict(base="transkd", transfer=dict(weigth=1.0)), {}, "did you mean weight"),
        (dict(base="transkd", transfer=dict(weight=-1.0)), {}, "weight = -1.0"),
        (UNKNOWN_ARGUMENT, {}, "did you mean weight"),
        (dict(base="nfd_transfer", transfer=dict(objective=KD)), {}, "reads logits"),
        (
            dict(base="transkd", transfer=dict(levels=NO_LEVELS)),
            {},
            "in the student 'resnet18_w32'",
        ),
        (dict(base="transkd", transfer=dict(levels=NO_MAPS)), {}, "in the teacher 'efficientnet"),
        (dict(base="transkd", transfer=dict(tasks=["smoke_sge"])), {}, "did you mean smoke_seg"),
        (
            dict(
                base="transkd", transfer=dict(teacher=dict(method="imagenet", student="resnet18"))
            ),
            {},
            "a method for other students",
        ),
        (
            dict(base="transkd", transfer=dict(teacher=dict(method="kdep"))),
            dict(teacher=None),
            "needs a teacher, but the suite has none",
        ),
        (dict(base="kdep", transfer=dict(type="x.Y")), {}, "also sets"),
        (dict(base="kdep", pretrained_by="scratch"), {}, "has `pretrained_by` but no `transfer`"),
        (dict(base="transkd", pretrained_by="nfd_transfer"), {}, "which is a transfer method"),
        (
            dict(base="transkd", transfer=dict(teacher=dict(method="nfd_transfer"))),
            {},
            "is transferred with 'nfd_transfer'",
        ),
        ("ssda", dict(tasks=["smoke_det"]), "has no target images"),
        ("ssda", dict(tasks=["smoke_seg"]), "does not support the task 'smoke_seg'"),
        (
            "ssda",
            dict(tasks=["smoke_det_fog"], runtime=dict(processes=dict(transfer=2))),
            "cannot divide a training over processes",
        ),
        ("ota", dict(tasks=["smoke_seg"]), "does not support the task 'smoke_seg'"),
        ("ota", dict(tasks=["smoke_probe"]), "does not support the task 'smoke_probe'"),
        (
            dict(base="ota", transfer=dict(teacher=None)),
            CLASSIFICATION,
            "needs a teacher that was transferred to the same task",
        ),
        (
            dict(base="ota", transfer=dict(teacher=dict(transfer=dict(wieght=1.0)))),
            CLASSIFICATION,
            "teacher.transfer.* did you mean weight",
        ),
        (
            dict(base="ota", transfer=dict(teacher=dict(transfer=dict(weight=-1.0)))),
            CLASSIFICATION,
            "the transfer method 'ota.teacher'.* has weight = -1.0",
        ),
        (
            dict(base="ota", transfer=dict(teacher=dict(transfer=dict(type=f"{IRF}F")))),
            CLASSIFICATION,
            "does not exist",
        ),
        (
            dict(
                base="ota",
                transfer=dict(
                    teacher=dict(student=dict(base="efficientnet_lite0_trunk", input_px=96))
                ),
            ),
            CLASSIFICATION,
            "is trained on images of 96 pixels, but reads those .* of 64 pixels",
        ),
        (dict(base="ota", transfer=dict(start="pixels")), CLASSIFICATION, "start = 'pixels'"),
        (
            "scratch",
            dict(tasks=[dict(base="smoke_det_fog", recipe=dict(domain="fogg"))]),
            "has domain = 'fogg'",
        ),
        (
            dict(base="transkd", transfer=dict(type="kdep_bench.transfer.methods.transkd.Trans")),
            {},
            "does not exist",
        ),
    ],
)
def test_invalid_transfer_methods_are_refused_when_planned(method, change, match):
    """Each error has a fix or states what is expected."""
    with pytest.raises(KdepError, match=match) as error_info:
        plan(method, **change)
    assert error_info.value.fix or error_info.value.expected


def test_the_transfer_of_a_teacher_needs_a_type():
    teacher_transfer: dict[str, Any] = dict(weight=1.0)
    teacher = dict(TEACHER, transfer=teacher_transfer)
    method = dict(name="m", pretrained_by="scratch", transfer=dict(type="x.Y", teacher=teacher))
    with pytest.raises(KdepError, match="has no `type`"):
        with_transfer(method, CONFIGS)
    teacher_transfer["type"] = IRF
    assert with_transfer(method, CONFIGS)["transfer"]["teacher"]["transfer"]["type"] == IRF


def test_ota_reads_no_image_of_the_pool_and_its_teacher_is_trained_with_irf():
    """With views or a teacher cache, it would depend on pre-training images."""
    a_plan = plan("ota", **CLASSIFICATION)
    assert {s.kind for s in a_plan.stages.values()} == {
        *("prepare", "pretrain", "export", "transfer")
    }
    assert not [s for s in a_plan.stages.values() if "views" in s.needs or "cache" in s.needs]
    run = a_plan.runs[0]
    teacher = a_plan.stages[a_plan.stages[run.id].needs["teacher"]]
    assert teacher.spec["transfer"]["type"].endswith("IRF")
    assert teacher.spec["keep_model"]
    without = plan(dict(base="ota", transfer=dict(teacher=dict(transfer=None))), **CLASSIFICATION)
    plain_teacher = without.stages[without.stages[without.runs[0].id].needs["teacher"]]
    assert "transfer" not in plain_teacher.spec
    assert plain_teacher.id != teacher.id


def test_ssda_is_planned_on_both_domains_and_changes_no_stage_of_other_methods():
    tasks = ["smoke_det_fog", dict(base="smoke_det_fog", name="s", recipe=dict(scored_on="source"))]
    ssda = dict(base="ssda", pretrained_by="scratch")
    without, both = plan("scratch", tasks=tasks), plan("scratch", ssda, tasks=tasks)
    assert set(without.stages) <= set(both.stages)
    assert len(ids_of_kind(both, "transfer")) == 2 * len(ids_of_kind(without, "transfer"))


def test_a_network_that_the_method_cannot_read_is_refused():
    a_suite = suite("transkd")
    student = {**a_suite.students[0], "backbone": {"type": "mmpretrain.VisionTransformer"}}
    a_suite = a_suite.model_copy(update={"students": [student]})
    with pytest.raises(KdepError, match="cannot read the backbone VisionTransformer"):
        build_plan(a_suite)


def test_the_fix_for_a_missing_teacher_works():
    with pytest.raises(KdepError, match="add teacher=dict"):
        plan(WITHOUT_TEACHER)
    assert plan(TRANSKD).runs


def test_one_transfer_method_may_follow_two_pre_trainings_but_not_twice_the_same():
    with pytest.raises(KdepError, match="more than once"):
        suite("transkd", dict(base="transkd", pretrained_by="scratch"))
    assert len(suite("transkd", dict(base="transkd", pretrained_by="kdep")).methods) == 2


def test_a_claim_is_about_the_plain_method_unless_it_names_the_transfer_method():
    """A claim about kdep is not tested on kdep with a transfer method."""
    both = dict(base="transkd", pretrained_by="kdep")
    claim = dict(
        base="kdep_beats_scratch", name="c", a=dict(method=ROW_NAME.format("kdep", "transkd"))
    )
    assert plan("kdep", "scratch", both, claims=[claim]).runs
    with pytest.raises(KdepError, match=r"is about the method .* which the suite does not run"):
        plan("kdep", "scratch", claims=[claim])


# ---- quantised networks ----

GHOST_KDEP = dict(base="ghost", pretrained_by="kdep")


def test_the_teacher_of_ghost_is_the_same_student_and_pre_training():
    """A teacher of another pre-training would bring the gain of that pre-training."""
    students = ["resnet18_w32", "resnet18_w48"]
    a_plan = plan("kdep", "scratch", "ghost", GHOST_KDEP, students=students, tasks=["smoke_det"])
    plain = {
        (r.student["name"], r.method["name"]): r.chain["export"]
        for r in a_plan.runs
        if r.method.get("transfer") is None and r.transfer_seed == 0
    }
    ghost_runs = [r for r in a_plan.runs if r.method.get("transfer") is not None]
    assert len(ghost_runs) == 2 * 2 * 2  # students, pre-trainings, seeds
    for r in ghost_runs:
        teacher = a_plan.stages[r.chain["tuned.transfer"]]
        assert teacher.needs["export"] == plain[r.student["name"], r.method["name"]]
        assert teacher.spec["student"]["name"] == r.student["name"]
        assert a_plan.stages[r.id].spec["teacher"]["name"] == r.student["name"]


def test_ghost_with_another_network_as_teacher_is_refused_and_the_fix_works():
    with pytest.raises(KdepError, match="is the student 'resnet18_w48', but the student") as error:
        plan(dict(base="ghost", transfer=dict(teacher=dict(_delete_=True, **TEACHER))))
    assert "set teacher='self'" in str(error.value)
    assert plan("ghost").runs


@pytest.mark.parametrize("bits", [1, 9, 32, 4.0])
def test_a_number_of_bits_that_does_not_exist_is_refused_when_planned(bits):
    with pytest.raises(KdepError, match="bits = "):
        plan(dict(base="quantised", transfer=dict(bits=bits)))


def test_ghost_on_a_student_without_feature_maps_is_refused_when_planned():
    with pytest.raises(KdepError, match="reads feature maps, but student 'vit_t' has no"):
        plan("ghost", students=["vit_t"], tasks=["smoke_finetune"])
    assert plan("quantised", students=["vit_t"], tasks=["smoke_finetune"]).runs


def test_quantised_rows_run_on_all_three_task_families_and_not_on_a_probe():
    tasks = ["smoke_det", "smoke_seg", "smoke_finetune"]
    a_plan = plan("quantised", tasks=tasks)
    assert {r.task["name"] for r in a_plan.runs} == set(tasks)
    with pytest.raises(KdepError, match="does not train the whole network"):
        plan("quantised", tasks=["smoke_probe"])


def test_records_of_a_quantised_network_have_its_size_and_other_records_do_not(tmp_path):
    a_suite = suite("scratch", "quantised", TRANSKD)
    a_plan, work, results = build_plan(a_suite, fakes.PRETEND), tmp_path / "w", tmp_path / "r"
    assert fakes.run(a_plan, work).ok
    collect(a_suite, a_plan, work, results)
    for path in records_dir(results).glob("*.json"):
        stored = read_strict(path).get("transfer") or {}
        expected = fakes.SIZES if "quantised" in path.name else {}
        assert {k: v for k, v in stored.items() if k in fakes.SIZES} == expected
        assert records.dump(records.load(path)) == path.read_text()
    text = (results / "leaderboard.md").read_text()
    assert "| 4.0 (32) | 0.90 (3.10) | 2.00 G (30.00 G) |" in text


# ---- records ----


def suite_and_plan(tmp_path: Path) -> tuple[Suite, Plan, Path, Path]:
    """(suite, plan, work dir, results folder) of a suite with a transfer method."""
    a_suite = suite("kdep", "scratch", TRANSKD)
    return a_suite, build_plan(a_suite, fakes.PRETEND), tmp_path / "work", tmp_path / "results"


def test_records_and_rows_of_a_transfer_method_are_separate(tmp_path):
    """They are not averaged with the plain rows, and are named in every table."""
    a_suite, a_plan, work, results = suite_and_plan(tmp_path)
    assert fakes.run(a_plan, work).ok
    collect(a_suite, a_plan, work, results)
    all_records = [records.load(p) for p in records_dir(results).glob("*.json")]
    transfer_records = [r for r in all_records if r.transfer is not None]
    assert len(all_records) == 6
    assert len(transfer_records) == 2
    for r in transfer_records:
        assert r.arm.method == ROW_NAME.format("scratch", "transkd")
        assert r.transfer is not None
        assert r.transfer.teacher == "resnet18_w48.scratch"
        assert (r.transfer.pretrained_by, r.transfer.method) == ("scratch", "transkd")
        # The training of the teacher is part of the cost.
        transfer_s = read_strict(work / r.stages["transfer"] / "stage.json")["wall_s"]
        teacher_s = read_strict(work / r.stages["tuned.transfer"] / "stage.json")["wall_s"]
        assert r.cost.transfer_s == pytest.approx(transfer_s + teacher_s, abs=0.01)
    for name in ("leaderboard.md", "leaderboard.csv", "leaderboard.tex", "index.html"):
        assert ROW_NAME.format("scratch", "transkd") in (results / name).read_text()
    text = (results / "leaderboard.md").read_text()
    assert "## Transfer methods" in text
    assert "transfer-*.resnet18_w32.scratch.s*.transkd-*" in text.replace("\\", "")


def test_a_record_without_a_transfer_method_has_no_field_for_it(tmp_path):
    a_suite, a_plan, work, results = suite_and_plan(tmp_path)
    assert fakes.run(a_plan, work).ok
    collect(a_suite, a_plan, work, results)
    for path in records_dir(results).glob("*.json"):
        assert ("transfer" in read_strict(path)) == ("transkd" in path.name)
        assert records.dump(records.load(path)) == path.read_text()


def test_a_tuned_teacher_trained_on_the_task_s_test_data_has_a_note(tmp_path):
    """The score has a note, as the teacher was trained on the test data."""
    task = dict(base="smoke_seg", tests_on=["imagenet"])
    a_suite = suite("scratch", "transkd", tasks=[task])
    a_plan, work, results = build_plan(a_suite, fakes.PRETEND), tmp_path / "w", tmp_path / "r"
    assert fakes.run(a_plan, work).ok
    collect(a_suite, a_plan, work, results)
    has_note = {
        r.transfer is not None: any("imagenet" in note.lower() for note in r.notes)
        for r in map(records.load, records_dir(results).glob("*.json"))
    }
    assert has_note == {True: True, False: False}
