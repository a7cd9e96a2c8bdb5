"""Suite configs: resolution by name, overrides, and errors in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.suite import config, schema
from kdep_bench.suite.plan import build_plan

SUITE: dict[str, Any] = {
    "name": "tiny",
    "data": "smoke",
    "teacher": "efficientnet_lite0",
    "students": ["resnet18_w32"],
    "methods": ["kdep", "scratch"],
    "tasks": ["smoke_probe"],
    "budget": {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}},
    "seeds": {"pretrain": [0], "transfer": [0, 1]},
}


def build(**change: Any) -> schema.Suite:
    """The test suite with changes."""
    return config.build_suite({**SUITE, **change})


def refusal(**change: Any) -> str:
    """The error of the test suite with these changes; asserts that it is one line."""
    with pytest.raises(KdepError) as error:
        build(**change)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", config.names("suite"))
def test_every_suite_of_the_repository_is_valid(name):
    assert config.load_suite(name).name == name


def test_references_are_resolved_and_classes_become_strings():
    suite = build()
    objective = suite.methods[0]["objective"]
    assert objective["type"] == "kdep_bench.objectives.feature_regression.FeatureRegression"
    assert suite.students[0]["width"] == 256
    teacher = suite.teachers["resnet18_w32"]
    assert teacher is not None
    assert teacher["name"] == "efficientnet_lite0"


def test_overrides_are_merged_and_an_unknown_key_is_refused():
    suite = build(methods=[{"base": "kdep", "name": "kdep_T1", "transform": {"T": 1.0}}])
    assert suite.methods[0]["transform"] == {**build().methods[0]["transform"], "T": 1.0}
    message = refusal(methods=[{"base": "kdep", "transform": {"t": 1.0}}])
    assert "unknown key 't' in method 'kdep'.transform" in message
    replaced = build(methods=[{"base": "kdep", "transform": {"_delete_": True, "type": "x.Y"}}])
    assert replaced.methods[0]["transform"] == {"type": "x.Y"}
    assert "labels_used" in refusal(methods=[{"base": "kdep", "labels_usd": True}])


OWN = "kdep_bench.data.own.prepare"  # the type of a data config for a user's data


def test_a_suite_can_contain_its_data_config():
    user_data = {"type": OWN, "name": "case", "pool": "p", "classify": {"train": "a", "dev": "b"}}
    assert build(data=user_data).data == user_data
    official = {
        "type": "kdep_bench.data.official.stage.prepare",
        "name": "o",
        "sets": [],
        "pool": "x",
    }
    assert build(data=official).data == official
    assert "did you mean classify" in refusal(data={**user_data, "clasify": {}})
    assert "has no `name`" in refusal(data={"type": OWN, "pool": "p"})
    assert "dict(type=..., name=..." in refusal(data={"pool": "p"})


def test_an_override_can_add_any_part_that_the_data_s_prepare_reads():
    suite = build(
        data={"base": "mine", "allow_absent": ["a"], "coco": {"val": {"json": "j", "images": "i"}}}
    )
    assert suite.data["allow_absent"] == ["a"]
    assert sorted(suite.data["coco"]) == ["test", "train", "val"]
    assert suite.data["coco"]["val"] == {"json": "j", "images": "i"}
    assert set(suite.data) - {"allow_absent"} == set(config.load_config("data", "mine"))
    assert build(data={"base": "mine", "classify": None}).data["classify"] is None
    assert "did you mean classify" in refusal(data={"base": "mine", "clasify": {}})
    assert "did you mean test" in refusal(data={"base": "mine", "coco": {"tets": {}}})
    assert "classify" in refusal(data={"base": "smoke", "clasify": {}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metods": ["kdep"]}, "did you mean methods"),
        ({"budget": {**SUITE["budget"], "epoch": 3}}, "did you mean epochs"),
        ({"seeds": {"pretrain": [0], "tranfer": [0]}}, "transfer"),
        ({"methods": ["kdpe"]}, "did you mean kdep"),
        ({"students": []}, "students"),
        (
            {"views": {"scale": [1.0, 0.4]}},
            "the suite has views.scale = [1.0, 0.4]; expected two numbers low, high with "
            "0 < low <= high <= 1.",
        ),
        ({"views": {"ratio": [0.5, 101.0]}}, "0 < low <= high <= 100."),
        ({"views": {"ratio": [0.5, 1.0, 2.0]}}, "expected two numbers low, high"),
        (
            {"methods": [{"base": "kdep", "name": "kdep2", "objective": {"gama": 1.0}}]},
            "unknown key 'gama' in method 'kdep2'.objective",
        ),
        ({"data": "/some/folder"}, "run kdep-bench init FOLDER; or choose one of: "),
        ({"teacher": "weights/net.pth"}, "for your own weights, write a config in"),
        ({"tasks": "smoke_probe"}, "expected a list"),
        (
            {"seeds": {"pretrain": 3, "transfer": [0]}},
            "pretrain=[0, 1, 2] for 3 seeds, or [3] for one",
        ),
        ({"budget": {**SUITE["budget"], "epochs": "three"}}, "expected a number"),
        ({"budget": {**SUITE["budget"], "batch": 0}}, "of at least 1"),
        ({"methods": ["kdep", "kdep"]}, "more than once"),
        ({"methods": ["kdep", {"base": "kdep", "transform": {"T": 1.0}}]}, "more than once"),
        ({"seeds": {"pretrain": [0, 0], "transfer": [0]}}, "pretrain seed 0 more than once"),
        (
            {"seeds": {"pretrain": [0], "transfer": [0, 1], "pairs": "diagonal"}},
            "the same number of both",
        ),
        ({"seeds": {"pretrain": [0], "transfer": [0], "pairs": "diagnal"}}, "diagonal"),
        ({"shares": [0.0]}, "above 0"),
        ({"shares": [1.0, 1.0]}, "more than once"),
        ({"name": "../escape"}, "cannot be used as a file name"),
        ({"methods": [{"base": "kdep", "name": "a/b"}]}, "cannot be used as a file name"),
        ({"methods": [{"base": "kdep", "name": "k" * 60}]}, "at most 48"),
        ({"methods": [{"base": "../../x"}]}, "unknown method config"),
        ({"methods": [{"name": "kdep"}]}, "neither a name nor a dict"),
        ({"teacher": {"resnet18_w23": "efficientnet_lite0"}}, "did you mean resnet18_w32"),
        ({"methods": [{"base": "kdep", "needs": ["logit"]}]}, "did you mean logits"),
        (
            {"students": ["/some/student.py"]},
            "put the file into $KDEP_CONFIGS/students/ and write its name; or choose one",
        ),
        ({"teacher": {"type": "x.Y", "name": "y"}}, "write the dict into $KDEP_CONFIGS/teachers/"),
        ({"students": []}, "the suite has students = []; expected 1 or more entries. Fix: add an"),
        ({"methods": [{"base": "kdep", "shares": [0.5]}]}, "`shares` is a key of the suite"),
        ({"epochs": 3}, "unknown key 'epochs' in the suite. Fix: `epochs` is a key of `budget` of"),
        ({"objective": {}}, "`objective` is a key of a method"),
        ({"pool_labels": True}, "`pool_labels` is a key of the data"),
        ({"data": {"base": "mine", "epochs": 3}}, "`epochs` is a key of `budget` of the suite"),
        ({"tasks": [{"base": "smoke_seg", "shares": [1.0]}]}, "`shares` is a key of the suite"),
        ({"tasks": [{"base": "smoke_seg", "batch": 3}]}, "write recipe=dict(batch=...)"),
        (
            {"claims": [{"base": "kdep_beats_scratch", "share": 1.0}]},
            "write a=dict(share=...) or write b=dict(share=...)",
        ),
        (
            {"claims": [{"kind": "difference", "name": "x", "a": {"margin": 0.0}}]},
            "`margin` is a key of a claim",
        ),
    ],
)
def test_a_wrong_suite_is_refused_in_one_line(change, message):
    assert message in refusal(**change)


def test_a_missing_key_gives_an_error_that_names_it():
    with pytest.raises(KdepError, match="lacks the key 'budget'"):
        config.build_suite({k: v for k, v in SUITE.items() if k != "budget"})


def test_all_faults_of_a_suite_are_reported_at_once():
    """Otherwise each correction would only lead to the next error."""
    budget = {"epochs": "3", "batch": 0, "optimiser": {}}
    with pytest.raises(KdepError) as error:
        build(budget=budget, seeds={"pretrain": [0]})
    assert [fault.problem for fault in error.value.faults] == [
        "unknown key 'optimiser' in `budget` of the suite",
        "the suite has budget.epochs = '3'",
        "the suite has budget.batch = 0",
        "the suite lacks the key 'seeds.transfer'",
    ]
    with pytest.raises(KdepError, match="4 faults"):
        build(metods=[], teacher="eficientnet_lite0", tasks=["smoke_prob"], data="smok")
    with pytest.raises(KdepError) as error:
        build(
            teacher="eficientnet_lite0",
            methods=[{"base": "kdep", "transform": {"t": 1.0, "m": 2}}, "kdpe"],
            tasks=["smoke_prob"],
            shares=[2, -1],
            data="smok",
        )
    problems = [fault.problem for fault in error.value.faults]
    assert len(problems) == 7
    assert "the suite has the data fractions 2, -1 in `shares`" in problems


def test_all_methods_and_tasks_that_cannot_work_are_reported_at_once():
    tasks = [{"base": "smoke_finetune", "recipe": {"lr": -1.0, "batch": 0}}, "pocket_photos"]
    suite = build(methods=["supervised", "kdep"], teacher=None, tasks=tasks)
    with pytest.raises(KdepError) as error:
        build_plan(suite)
    text = str(error.value)
    assert "needs a teacher, but the suite has none" in text
    assert "lr = -1.0" in text
    assert "batch = 0" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suite = dict(", "not valid Python in line 1"),
        ("raise SystemError('no')", "cannot be read"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("suites = dict()", "defines no dict named 'suite'"),
        ("suite = dict(name=lambda: 1)", "not plain data"),
        ("suite = dict(name=float('nan'))", "not plain data"),
    ],
)
def test_a_broken_file_raises_kdep_error(tmp_path: Path, text, message):
    path = tmp_path / "s.py"
    path.write_text(text)
    with pytest.raises(KdepError, match=message):
        config.load_suite(path)
    with pytest.raises(KdepError, match="does not exist"):
        config.load_suite(tmp_path / "other.py")


def test_a_relative_import_outside_configs_raises_an_error_with_the_import_that_works(tmp_path):
    path = tmp_path / "mine.py"
    text = "from mmengine.config import read_base\n\nwith read_base():\n    {}\n"
    path.write_text(text.format("from .pocket import suite"))
    with pytest.raises(KdepError, match=r"pocket\.py does not exist") as error:
        config.load_suite(path)
    fix = error.value.fix
    if "move mine.py" in fix:  # a folder above this clone has a name that imports cannot have
        return
    assert fix.startswith("write `from ")
    path.write_text(text.format(fix.split("`")[1]))
    assert config.load_suite(path).name == "pocket"


def test_reading_configs_imports_no_torch():
    code = (
        "import sys; from kdep_bench.cli import run_suite\n"
        "from kdep_bench.suite import config, plan\n"
        "from kdep_bench.engine import collect, local_pool, progress\n"
        "plan.build_plan(config.load_suite('pocket'))\n"
        "print([m for m in ('torch', 'mmdet', 'mmcv') if m in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"


def test_the_error_for_a_warmup_in_epochs_says_that_it_is_a_fraction():
    with pytest.raises(KdepError, match=r"budget.warmup = 5; expected a fraction of the training"):
        build(budget={**SUITE["budget"], "warmup": 5})
