"""A wrong argument, optimiser, seed or name of an arm is refused when the suite is planned."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from test_suite_config import GOOD, build

from kdep_bench.errors import KdepError
from kdep_bench.signatures import class_value, signature
from kdep_bench.suite import config
from kdep_bench.suite.plan import build_plan

KDEP = "kdep_bench.objectives."
SGD = dict(type="SGD", lr=0.1)


def refusal(**change: Any) -> str:
    with pytest.raises(KdepError) as e:
        build_plan(build(**change))
    assert "\n" not in str(e.value)
    return str(e.value)


def arm(base: str = "kdep", **over: Any) -> dict[str, Any]:
    return dict(methods=[dict(base=base, **over)])


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        (dict(type="SDG", lr=0.1), "did you mean SGD"),
        (dict(type="LBFGS", lr=0.1), "unknown type"),
        (dict(lr=0.1), "has no `type`"),
        (dict(type="SGD"), "no learning rate `lr`"),
        (dict(SGD, lr=0.0), "greater than 0"),
        (dict(SGD, lr=-0.1), "greater than 0"),
        (dict(SGD, lr="0.1"), "number"),
        (dict(SGD, lr=True), "number"),
        (dict(SGD, lr=float("nan")), "finite"),
        (dict(SGD, lr=float("inf")), "finite"),
        (dict(SGD, momentum=1.0), "less than 1"),
        (dict(SGD, momentum=-0.5), "greater than or equal to 0"),
        (dict(SGD, momentm=0.9), "did you mean momentum"),
        (dict(SGD, weight_decay=-1e-4), "greater than or equal to 0"),
        (dict(SGD, nesterov=True), "momentum above 0"),
        (dict(SGD, nesterov=1), "boolean"),
        (dict(type="AdamW", lr=0.1, momentum=0.9), "'momentum'"),
        (dict(type="AdamW", lr=0.1, betas=[0.9, 1.0]), "less than 1"),
        (dict(type="AdamW", lr=0.1, betas=0.9), "betas"),
    ],
)
def test_an_optimiser_that_could_not_train_is_refused(optimizer, says):
    budget = dict(GOOD["budget"], optimizer=optimizer)
    assert says in refusal(budget=budget)
    if "type" in optimizer and "lr" in optimizer:  # of a method: laid on the budget's
        assert says in refusal(**arm(optimizer=optimizer))


def test_arguments_that_an_optimiser_takes_are_taken():
    for optimizer in (
        dict(SGD, momentum=0.9, nesterov=True, weight_decay=5e-4),
        dict(type="AdamW", lr=1e-3, betas=[0.9, 0.95], weight_decay=0.05),
        dict(type="Muon", lr=0.02, momentum=0.95),
        dict(type="mypackage.optim.Mine", lr=0.1, beta=7),
    ):
        build_plan(build(budget=dict(GOOD["budget"], optimizer=optimizer)))
    # Not in the page, and no slip: the class takes it.
    momentum = dict(SGD, momentum=0.9)
    suite = build(
        budget=dict(GOOD["budget"], optimizer=momentum), **arm(optimizer=dict(nesterov=True))
    )
    plan = build_plan(suite)
    got = [s.spec["budget"]["optimizer"] for s in plan.stages.values() if s.kind == "pretrain"]
    assert got == [dict(momentum, nesterov=True)]


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (arm(transform=dict(T=0.0)), "T = 0.0; expected greater than 0"),
        (arm(transform=dict(T=-1)), "greater than 0"),
        (arm(transform=dict(n=0)), "greater than or equal to 1"),
        (arm(transform=dict(T="warm")), "number"),
        (arm(transform=dict(t=0.1)), "choose one of: T, n, type"),
        (arm("stdmatch", transform=dict(ratio=0.5)), "greater than or equal to 1"),
        (arm(transform=dict(type="kdep_bench.features.transform.PowerTemp")), "does not exist"),
        (arm(transform=dict(type="kdep_bench.features.transform.NoTransform")), "_delete_=True"),
        (arm(transform=None), "has no `transform`"),
        (arm(align=None), "has no `align`"),
        (arm(align=dict(policy="zero_pad", sed=1)), "did you mean seed"),
        (arm(objective=dict(weight="aut")), "number or 'auto'"),
        (arm(objective=dict(weight=-3.0)), "greater than 0"),
        (arm(objective=dict(scale=0)), "greater than 0"),
        (arm(objective=dict(weigth=3.0)), "did you mean weight"),
        (arm("logit_kd", objective=dict(tau=0.0)), "greater than 0"),
        (arm("logit_kd", needs=["pooled"]), "reads logits of a batch"),
        (arm("fitnets", objective=dict(levels="s16")), "dictionary"),
        (arm("supervised", objective=dict(label_smoothing=1.0)), "less than 1"),
        (arm("supervised", labels_used=False, needs=[]), "labels_used=True"),
        (arm("mean_teacher", objective=dict(decay=1.0)), "less than 1"),
        (
            arm(objective=dict(_delete_=True, type=KDEP + "kdep.KDEP")),
            "there is no module kdep_bench.objectives.kdep",
        ),
    ],
)
def test_an_argument_out_of_its_range_is_refused(method, says):
    budget = dict(GOOD["budget"], views=2)
    assert says in refusal(budget=budget, **method)


@pytest.mark.parametrize(
    ("phi", "says"),
    [
        (dict(t_max=0), "t_max=0"),
        (dict(t_max="ten"), "integer"),
        (dict(span=0), "span=0"),
        (dict(span=5.0), "5 epochs, but trains for 1"),
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
def test_an_impossible_schedule_is_refused(phi, says):
    assert says in refusal(**arm("continuation", objective=dict(phi=phi)))


def test_an_argument_that_the_class_takes_is_not_called_unknown():
    suite = build(**arm(objective=dict(unit=True), align=dict(policy="zero_pad")))
    build_plan(suite)
    assert suite.methods[0]["objective"]["unit"] is True
    assert suite.methods[0]["align"] == dict(type="svd", policy="zero_pad")


def test_accumulation_is_refused_for_an_objective_that_couples_samples():
    """It was refused by the pre-training, when the teacher's cache was full."""
    budget = dict(GOOD["budget"], accumulate=2)
    assert "compares the samples" in refusal(budget=budget, **arm("similarity"))
    two = dict(processes=dict(pretrain=2))
    assert "compares the samples" in refusal(runtime=two, **arm("similarity"))
    build_plan(build(budget=budget, **arm("kdep")))


@pytest.mark.parametrize(
    ("seeds", "says"),
    [
        (dict(pretrain=[-1], transfer=[0]), "greater than or equal to 0"),
        (dict(pretrain=[0], transfer=[2**32]), "less than or equal to 4000000"),
        (dict(pretrain=[True], transfer=[0]), "integer"),
        (dict(pretrain=[0.5], transfer=[0]), "integer"),
        (dict(pretrain=[0], transfer=[0], share=-1), "greater than or equal to 0"),
        (dict(pretrain=[0, 0], transfer=[0]), "more than once"),
    ],
)
def test_a_seed_that_a_generator_would_not_take_is_refused(seeds, says):
    assert says in refusal(seeds=seeds)


def test_two_pairs_of_seeds_never_draw_the_same_untrained_weights():
    """(0, 1000) and (1, 0) both were the initialisation 1000, counted as independent."""
    seeds = dict(pretrain=[0, 1], transfer=[0, 1000])
    assert "the same random weights" in refusal(seeds=seeds)
    build_plan(build(seeds=dict(pretrain=[0, 1], transfer=[1500, 1600])))
    build_plan(build(seeds=seeds, methods=["kdep"]))


@pytest.mark.parametrize("count", [2_000, 100_000])
def test_millions_of_runs_are_refused_in_seconds(count):
    seeds = dict(pretrain=list(range(count)), transfer=list(range(count)))
    start = time.monotonic()
    assert "at most 20,000" in refusal(seeds=seeds)
    assert time.monotonic() - start < 10
    seeds = dict(pretrain=[0] * count, transfer=[0])
    assert "more than once" in refusal(seeds=seeds)
    assert time.monotonic() - start < 20


def test_one_name_for_two_contents_in_two_variants_is_refused():
    """Their rows were one row: a mean over two methods, or over two teachers' weights."""
    other = dict(base="kdep", transform=dict(T=1.0))
    assert "under one name" in refusal(variants=[dict(methods=["kdep"]), dict(methods=[other])])
    weights = dict(base="efficientnet_lite2", name="efficientnet_lite0")
    assert "under one name" in refusal(methods=["kdep"], variants=[{}, dict(teacher=weights)])
    build_plan(build(variants=[{}, dict(methods=[dict(other, name="kdep_T1")])]))
    build_plan(build(variants=[{}, dict(budget=dict(epochs=2))]))


@pytest.mark.parametrize(
    "change",
    [
        dict(tasks=["smoke_probe", dict(base="smoke_probe", recipe=dict(max_iter=5))]),
        dict(students=["resnet18_w32", "resnet18_w32"]),
        dict(claims=["kdep_beats_scratch", dict(base="kdep_beats_scratch", margin=0.1)]),
    ],
)
def test_a_name_twice_is_refused(change):
    assert "more than once" in refusal(**change)


@pytest.mark.parametrize(
    ("views", "says"),
    [
        (dict(scale=[0.0, 1.0]), "scale"),
        (dict(scale=[0.5, 1.5]), "scale"),
        (dict(scale=[0.9, 0.1]), "scale"),
        (dict(ratio=[-1.0, 1.0]), "ratio"),
    ],
)
def test_a_crop_of_no_area_is_refused(views, says):
    assert says in refusal(views=views)


@pytest.mark.parametrize("name", config.names("method"))
def test_every_method_s_source_matches_its_class(name):
    """Names, defaults and needs as read from the source, against the imported classes."""
    import inspect

    from kdep_bench.registry import locate
    from kdep_bench.signatures import resolve_alias

    method = config.load_config("method", name)
    for key in ("objective", "align", "transform"):
        if not method.get(key):
            continue
        path = resolve_alias(method[key]["type"])
        kind, stated = locate(path), signature(path)
        assert stated is not None
        expected = inspect.signature(kind).parameters
        kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        own = {k: p.default is p.empty for k, p in expected.items() if p.kind not in kinds}
        got = {a.name: a.required for a in stated.arguments.values()}
        assert got == {**got, **own}
        if key == "objective":
            assert class_value(path, "needs") == kind.needs
            assert (class_value(path, "requires") or frozenset()) == kind.requires
            assert bool(class_value(path, "couples_samples")) == kind.couples_samples


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
