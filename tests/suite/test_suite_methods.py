"""The method configs: each is a page that says its source, and alignment ablations share stages."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.features.policies import POLICIES
from kdep_bench.suite.config import CONFIGS, build_suite, load_suite, names, read_room
from kdep_bench.suite.plan import Plan, build_plan


def plan(*methods: str | dict[str, Any], width: int | None = None) -> Plan:
    suite = load_suite("smoke")
    raw = dict(
        name="several",
        data="smoke",
        teacher="efficientnet_lite0",
        students=["resnet18_w32"],
        methods=list(methods),
        tasks=["smoke_probe"],
        budget=suite.budget.model_dump(),
        seeds=dict(pretrain=[0], transfer=[0]),
    )
    built = build_suite(raw)
    if width is not None:
        narrow = {"name": "narrow", "width": width}
        built = built.model_copy(update={"teachers": {"resnet18_w32": narrow}})
    return build_plan(built)


@pytest.mark.parametrize("name", names("method"))
def test_a_method_is_a_page_with_a_source(name: str):
    page = ast.get_docstring(ast.parse((CONFIGS / "methods" / f"{name}.py").read_text())) or ""
    assert len(page.partition("\n")[0]) > 20
    method = read_room("method", name)
    assert method["name"] == name
    assert method["source"]
    assert method["family"]


def test_methods_that_differ_in_the_transform_alone_share_one_alignment():
    stages = plan("kdep", "svd", "phis", "whiten", "stdmatch", "random_basis").stages
    kinds = [s.kind for s in stages.values()]
    assert kinds.count("align") == 2
    assert kinds.count("cache") == 1
    assert kinds.count("pretrain") == 6
    alone = [i for i in plan("kdep").stages if i.startswith("align")]
    assert set(alone) <= set(stages)


@pytest.mark.parametrize("name", ["kdep", "interpolate", "top_variance", "random_basis"])
def test_a_wider_student_is_refused_for_every_alignment(name: str):
    with pytest.raises(KdepError, match="256 wide and the teacher 'narrow' 200"):
        plan(name, width=200)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_serves_a_wider_student_and_is_part_of_the_alignments_identity(policy: str):
    align = dict(_delete_=True, type="svd", policy=policy)
    wide = plan(dict(base="kdep", name="wide", align=align), width=200)
    (stage,) = [s for s in wide.stages.values() if s.kind == "align"]
    assert stage.spec["align"] == {"type": "svd", "policy": policy}
    align["policy"] = policy[:-1]
    with pytest.raises(KdepError, match=f"did you mean {policy}"):
        plan(dict(base="kdep", name="wide", align=align), width=200)


def test_the_identity_wants_equal_widths_before_any_work():
    with pytest.raises(KdepError, match="equal widths"):
        plan("identity", width=512)
    plan("identity", width=256)
