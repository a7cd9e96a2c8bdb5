"""Invalid arguments, optimisers, seeds and method names are refused when the suite is planned."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from test_suite_config import SUITE, build

from kdep_bench.errors import KdepError
from kdep_bench.signatures import check_value, class_value, names_something, signature
from kdep_bench.suite import config
from kdep_bench.suite.plan import build_plan

OBJECTIVES = "kdep_bench.objectives."
SGD = dict(type="SGD", lr=0.1)


def refusal(**change: Any) -> str:
    """The error of planning the test suite with these changes; asserts that it is one line."""
    with pytest.raises(KdepError) as error:
        build_plan(build(**change))
    assert "\n" not in str(error.value)
    return str(error.value)


def one_method(base: str = "kdep", **entries: Any) -> dict[str, Any]:
    """Suite changes: a single method with these entries."""
    return dict(methods=[dict(base=base, **entries)])


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (dict(type="SDG", lr=0.1), "did you mean SGD"),
        (dict(type="LBFGS", lr=0.1), "unknown optimizer type"),
        (dict(lr=0.1), "has no `type`"),
        (dict(type="SGD"), "no learning rate `lr`"),
        (dict(type="SGD", learning_rate=0.1), "has 'learning_rate' but no `lr`. Fix: rename it"),
        (dict(SGD, params=[1]), "has `params`"),
        (dict(SGD, lr=0.0), "greater than 0"),
        (dict(SGD, lr=-0.1), "greater than 0"),
        (dict(SGD, lr="0.1"), "number"),
        (dict(SGD, lr=True), "number"),
        (dict(SGD, lr=float("nan")), "finite"),
        (dict(SGD, lr=float("inf")), "finite"),
        (dict(SGD, momentum=1.0), "less than 1"),
        (dict(SGD, momentum=-0.5), "of at least 0"),
        (dict(SGD, momentm=0.9), "did you mean momentum"),
        (dict(SGD, weight_decay=-1e-4), "of at least 0"),
        (dict(SGD, nesterov=True), "momentum above 0"),
        (dict(SGD, nesterov=1), "boolean"),
        (dict(type="AdamW", lr=0.1, momentum=0.9), "'momentum'"),
        (dict(type="AdamW", lr=0.1, betas=[0.9, 1.0]), "less than 1"),
        (dict(type="AdamW", lr=0.1, betas=0.9), "betas"),
        (dict(SGD, betas=[0.9, 0.99]), "'betas' in"),
    ],
)
def test_an_optimiser_that_could_not_train_is_refused(optimizer, message):
    budget = dict(SUITE["budget"], optimizer=optimizer)
    assert message in refusal(budget=budget)
    if "type" in optimizer and "lr" in optimizer:
        # A method's optimiser overrides that of the budget.
        assert message in refusal(**one_method(optimizer=optimizer))


def test_a_wrong_argument_of_a_later_method_is_refused():
    """The cache of the first method has the outputs that all methods read."""
    later = dict(base="fitnets", objective=dict(levels=dict(s16=[])))
    assert "'s16': []" in refusal(methods=["kdep", later], claims=[])


def test_the_error_for_an_unknown_argument_does_not_offer_the_parameters():
    text = refusal(budget=dict(SUITE["budget"], optimizer=dict(SGD, warmup_epochs=5)))
    assert "choose one of: dampening" in text
    assert "params" not in text


def test_valid_arguments_of_optimisers_are_accepted():
    for optimizer in (
        dict(SGD, momentum=0.9, nesterov=True, weight_decay=5e-4),
        dict(type="AdamW", lr=1e-3, betas=[0.9, 0.95], weight_decay=0.05),
        dict(type="Muon", lr=0.02, momentum=0.95),
        dict(type="timm.optim.Lamb", lr=0.1, beta3=7),
    ):
        build_plan(build(budget=dict(SUITE["budget"], optimizer=optimizer)))
    # `nesterov` is not in the config, but it is an argument of the class.
    momentum = dict(SGD, momentum=0.9)
    suite = build(
        budget=dict(SUITE["budget"], optimizer=momentum),
        **one_method(optimizer=dict(nesterov=True)),
    )
    plan = build_plan(suite)
    optimizers = [
        s.spec["budget"]["optimizer"] for s in plan.stages.values() if s.kind == "pretrain"
    ]
    assert optimizers == [dict(momentum, nesterov=True)]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (one_method(transform=dict(T=0.0)), "T = 0.0; expected a number greater than 0"),
        (one_method(transform=dict(T=-1)), "greater than 0"),
        (one_method(transform=dict(n=0)), "of at least 1"),
        (one_method(transform=dict(T="warm")), "number"),
        (one_method(transform=dict(t=0.1)), "choose one of: T, n, type"),
        (one_method("stdmatch", transform=dict(ratio=0.5)), "of at least 1"),
        (
            one_method(transform=dict(_delete_=True, type="pts")),
            "kdep_bench.features.transform.NoTransform, kdep_bench.features.transform.PowerTemp",
        ),
        (
            one_method(transform=dict(_delete_=True, type="kdep_bench.features.aligners.Svd")),
            "choose one of: kdep_bench.features.phi_s.PhiS, ",
        ),
        (
            one_method(transform=dict(type="kdep_bench.features.transform.PowerTemp")),
            "does not exist",
        ),
        (
            one_method(transform=dict(type="kdep_bench.features.transform.NoTransform")),
            "_delete_=True",
        ),
        (one_method(transform=None), "has no `transform`"),
        (one_method(align=None), "has no `align`"),
        (one_method(align=dict(policy="zero_pad", sed=1)), "did you mean seed"),
        (one_method(objective=dict(weight="aut")), "number or 'auto'"),
        (one_method(objective=dict(weight=-3.0)), "greater than 0"),
        (one_method(objective=dict(scale=0)), "greater than 0"),
        (one_method(objective=dict(weigth=3.0)), "did you mean weight"),
        (
            one_method("logit_kd", objective=dict(tau=0.0)),
            "expected a number greater than 0 or the config of a schedule. Fix",
        ),
        (one_method("logit_kd", needs=["pooled"]), "reads logits from a batch"),
        (one_method("fitnets", objective=dict(levels="s16")), "dictionary"),
        (one_method("supervised", objective=dict(label_smoothing=1.0)), "less than 1"),
        (one_method("supervised", labels_used=False, needs=[]), "labels_used=True"),
        (one_method("mean_teacher", objective=dict(decay=1.0)), "less than 1"),
        (
            one_method(objective=dict(_delete_=True, type=OBJECTIVES + "kdep.KDEP")),
            "there is no module kdep_bench.objectives.kdep",
        ),
    ],
)
def test_an_argument_out_of_its_range_is_refused(method, message):
    budget = dict(SUITE["budget"], views=2)
    assert message in refusal(budget=budget, **method)


@pytest.mark.parametrize(
    ("annotation", "value", "refused"),
    [
        ("Literal[0, 1]", 1, (True, False, 1.0, "1", 2, [1])),
        ("Literal[1, 2] | None", None, (True, 2.0)),
        ("Literal[False, 'auto']", False, (0, 0.0, True)),
        ("Literal['auto', 'none']", "auto", (0, None)),
        ("Sequence[Literal[1, 3]]", [3, 1], ([True], [1, 3.0])),
        ("KernelSizes", [1, 7], ([True], [1.0], [2])),
        ("int", 1, (True, 1.0)),
        ("float", 1, (True, "1")),
        ("bool", True, (1, 0, 1.0)),
        ("str", "1", (1, True)),
        ("dict[str, float]", {"a": 1}, ({"a": True},)),
    ],
)
def test_an_equal_value_of_another_type_is_refused(annotation, value, refused):
    check_value(annotation, value, "a config", "x")
    for wrong in refused:
        with pytest.raises(KdepError, match=r"a config has x.* = .*; expected "):
            check_value(annotation, wrong, "a config", "x")


@pytest.mark.parametrize(
    "change",
    [
        one_method(objective=dict(type="FeatureRegresion")),
        one_method(
            objective=dict(type="kdep_bench.objectives.feature_regresion.FeatureRegression")
        ),
        one_method(objective=dict(type="torch.nn.NoSuchLoss")),
        one_method(objective=dict(type=3)),
        one_method(objective=dict(_delete_=True, weight=1.0)),
        one_method("continuation", objective=dict(phi=dict(type="Exponental"))),
        one_method(
            "eskd", objective=dict(parts=dict(labels=dict(objective=dict(type="CrossEntropi"))))
        ),
        one_method("bd_kd", objective=dict(peer=dict(backbone=dict(type="ResNt")))),
        one_method(align=dict(type="svdd")),
        one_method(transform=dict(type="PTZ")),
        one_method(augment=dict(type="Mixupp")),
        one_method("fs_bbt", synthesis=dict(type="FewShotImage")),
        one_method(weights=dict(type="no_such_package.imagenet_weights")),
        one_method("takd", teacher=dict(method=dict(base="kdep", align=dict(type="svdd")))),
        dict(budget=dict(SUITE["budget"], optimizer=dict(type="no_such_package.Sgd", lr=0.1))),
        one_method(optimizer=dict(type="no_such_package.Sgd")),
        dict(teacher=dict(base="efficientnet_lite0", type="EfficientNetLit")),
        dict(teacher=dict(base="efficientnet_lite0_black_box", teacher=dict(type="Lite"))),
        dict(students=[dict(base="resnet18_w32", backbone=dict(type="mmpretrain.ResNt"))]),
        dict(students=[dict(base="resnet18_w32", backbone=dict(type="kdep_bench.students.ResNt"))]),
        dict(tasks=[dict(base="smoke_probe", type="LinearProb")]),
        dict(probes=[dict(base="knn", type="Knnn")]),
        dict(data=dict(name="images", type="kdep_bench.data.pocket.mak.prepare")),
        dict(one_method("quantised", transfer=dict(type="Quantized")), tasks=["smoke_det"]),
    ],
)
def test_a_type_that_names_no_class_is_refused(change):
    """Otherwise the error would come from a stage, after other stages have run for hours."""
    message = refusal(**change)
    assert any(text in message for text in ("does not exist", "unknown type", "`type`", "type = 3"))


# A class that exists, but is of none of the kinds that are expected below.
SCHEDULE: dict[str, Any] = dict(_delete_=True, type="kdep_bench.schedules.step.Step")


@pytest.mark.parametrize(
    "change",
    [
        one_method(objective=SCHEDULE),
        one_method("eskd", objective=dict(parts=dict(labels=dict(objective=SCHEDULE)))),
        one_method(align=SCHEDULE),
        one_method(transform=SCHEDULE),
        dict(tasks=[dict(base="smoke_probe", type=SCHEDULE["type"])]),
        dict(teacher=dict(base="efficientnet_lite0", type=SCHEDULE["type"])),
        dict(one_method("quantised", transfer=SCHEDULE), tasks=["smoke_det"]),
    ],
)
def test_a_type_of_another_kind_of_class_is_refused(change):
    assert "a class of another kind; expected a subclass of kdep_bench." in refusal(**change)


def test_a_teacher_whose_file_of_weights_does_not_exist_is_refused(tmp_path):
    """Otherwise its cache would fail after the views are stored."""
    file = tmp_path / "w.pth"
    teacher = dict(base="efficientnet_lite0", weights=str(file))
    assert f"the weights file {file} of the teacher" in refusal(teacher=teacher)
    inside = dict(base="efficientnet_lite0_black_box", teacher=dict(weights=str(file)))
    assert "does not exist" in refusal(teacher=inside, methods=["fs_bbt"])
    # The base config states the SHA-256 of its own weights.
    assert "the weights file nope.pth" in refusal(teacher=dict(base="resnet50", weights="nope.pth"))
    build_plan(build(teacher=teacher, methods=["scratch"]))  # no stage reads it
    build_plan(build(teacher=dict(teacher, weights="random")))
    file.touch()
    build_plan(build(teacher=teacher))


@pytest.mark.parametrize(
    ("path", "exists"),
    [
        ("kdep_bench.features.aligners.Svd", True),
        ("kdep_bench.suite.plan.check_type", True),  # imported there
        ("kdep_bench.signatures._STRICT", True),  # a variable
        ("torch.nn.ReLU", True),  # imported with *
        ("torch.nn.Relu", False),
        ("timm.create_model", True),
        ("builtins.dict", True),  # has no source
        ("kdep_bench.features.aligners.Svdd", False),
        ("kdep_bench/features/aligners.Svd", False),
        ("kdep_bench..Svd", False),
        ("no_such_package.Svd", False),
        ("Svd", False),
        ("", False),
    ],
)
def test_a_dotted_path_is_found_in_source_code_without_an_import(path, exists):
    assert names_something(path) == exists


@pytest.mark.parametrize(
    ("phi", "message"),
    [
        (dict(t_max=0), "t_max=0"),
        (dict(t_max="ten"), "integer"),
        (dict(span=0), "span=0"),
        (dict(span=5.0), "lasts 5 epochs"),
        (dict(t_mx=3), "did you mean t_max"),
        (
            dict(_delete_=True, type="kdep_bench.schedules.ramp.Ramp", start=0, end=1, over=2),
            "over=2",
        ),
        (
            dict(_delete_=True, type="kdep_bench.schedules.ramp.Ramp", start=0),
            "lacks the argument 'end'",
        ),
        (dict(_delete_=True, type="kdep_bench.schedules.ramp.Rmp"), "does not exist"),
    ],
)
def test_an_impossible_schedule_is_refused(phi, message):
    assert message in refusal(**one_method("continuation", objective=dict(phi=phi)))


def test_a_suite_may_set_arguments_that_the_method_s_config_omits():
    suite = build(**one_method(objective=dict(unit=True), align=dict(policy="zero_pad")))
    build_plan(suite)
    assert suite.methods[0]["objective"]["unit"] is True
    assert suite.methods[0]["align"] == dict(type="svd", policy="zero_pad")


def test_accumulation_is_refused_for_an_objective_that_couples_samples():
    """Otherwise it would be refused only after the teacher's cache was filled."""
    budget = dict(SUITE["budget"], accumulate=2)
    assert "compares the samples" in refusal(budget=budget, **one_method("similarity"))
    two_processes = dict(processes=dict(pretrain=2))
    assert "compares the samples" in refusal(runtime=two_processes, **one_method("similarity"))
    build_plan(build(budget=budget, **one_method("kdep")))


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (dict(pretrain=[-1], transfer=[0]), "of at least 0"),
        (dict(pretrain=[0], transfer=[2**32]), "of at most 4000000"),
        (dict(pretrain=[True], transfer=[0]), "integer"),
        (dict(pretrain=[0.5], transfer=[0]), "integer"),
        (dict(pretrain=[0], transfer=[0], share=-1), "of at least 0"),
        (dict(pretrain=[0, 0], transfer=[0]), "more than once"),
    ],
)
def test_a_seed_that_random_generators_do_not_accept_is_refused(seeds, message):
    assert message in refusal(seeds=seeds)


def test_two_seed_pairs_never_have_the_same_random_initial_weights():
    """Otherwise (0, 1000) and (1, 0) would both use the initialisation 1000."""
    seeds = dict(pretrain=[0, 1], transfer=[0, 1000])
    assert "the same random weights" in refusal(seeds=seeds)
    build_plan(build(seeds=dict(pretrain=[0, 1], transfer=[1500, 1600])))
    build_plan(build(seeds=seeds, methods=["kdep"]))
    variants = [dict(methods=["scratch"])]
    assert "the same random weights" in refusal(seeds=seeds, methods=["kdep"], variants=variants)


@pytest.mark.parametrize("count", [2_000, 100_000])
def test_millions_of_runs_are_refused_in_seconds(count):
    seeds = dict(pretrain=list(range(count)), transfer=list(range(count)))
    start = time.monotonic()
    assert "at most 20,000" in refusal(seeds=seeds)
    assert time.monotonic() - start < 10
    seeds = dict(pretrain=[0] * count, transfer=[0])
    assert "more than once" in refusal(seeds=seeds)
    assert time.monotonic() - start < 20


def test_two_variants_must_not_use_one_name_for_different_configs():
    """Otherwise their scores would be averaged in one row."""
    other_t = dict(base="kdep", transform=dict(T=1.0))
    assert "under one name" in refusal(variants=[dict(methods=["kdep"]), dict(methods=[other_t])])
    other_teacher = dict(base="efficientnet_lite2", name="efficientnet_lite0")
    assert "under one name" in refusal(methods=["kdep"], variants=[{}, dict(teacher=other_teacher)])
    build_plan(build(variants=[{}, dict(methods=[dict(other_t, name="kdep_T1")])]))
    build_plan(build(variants=[{}, dict(budget=dict(epochs=2))]))


@pytest.mark.parametrize(
    "change",
    [
        dict(tasks=["smoke_probe", dict(base="smoke_probe", recipe=dict(max_iter=5))]),
        dict(students=["resnet18_w32", "resnet18_w32"]),
        dict(claims=["kdep_beats_scratch", dict(base="kdep_beats_scratch", margin=0.1)]),
    ],
)
def test_a_repeated_name_is_refused(change):
    assert "more than once" in refusal(**change)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (dict(scale=[0.0, 1.0]), "scale"),
        (dict(scale=[0.5, 1.5]), "scale"),
        (dict(scale=[0.9, 0.1]), "scale"),
        (dict(ratio=[-1.0, 1.0]), "ratio"),
    ],
)
def test_an_invalid_range_of_random_crops_is_refused(views, message):
    assert message in refusal(views=views)


@pytest.mark.parametrize("name", config.names("method"))
def test_arguments_read_from_source_code_equal_those_of_the_class(name):
    """The planner reads the source code of a method's classes instead of importing torch."""
    import inspect

    from kdep_bench.registry import locate
    from kdep_bench.signatures import resolve_alias

    method = config.load_config("method", name)
    for key in ("objective", "align", "transform"):
        if not method.get(key):
            continue
        path = resolve_alias(method[key]["type"])
        cls, stated = locate(path), signature(path)
        assert stated is not None
        expected = inspect.signature(cls).parameters
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        required = {k: p.default is p.empty for k, p in expected.items() if p.kind not in variable}
        stated_required = {a.name: a.required for a in stated.arguments.values()}
        assert stated_required.items() >= required.items()
        if key == "objective":
            assert class_value(path, "needs") == cls.needs
            assert (class_value(path, "stage_arguments") or frozenset()) == cls.stage_arguments
            assert bool(class_value(path, "couples_samples")) == cls.couples_samples


def test_checking_arguments_imports_no_torch():
    code = (
        "import sys; from kdep_bench.suite import config, plan\n"
        "plan.build_plan(config.load_suite('methods_pocket'))\n"
        "print([m for m in ('torch', 'mmdet', 'mmcv', 'scipy') if m in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"
