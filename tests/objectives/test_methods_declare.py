"""Every method config declares the inputs that its objective reads."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import kdep_bench.objectives
from kdep_bench.objectives.base import NEEDS, TEACHER_ARGUMENTS, Objective, demands
from kdep_bench.suite.config import names, resolve
from kdep_bench.suite.schema import method_needs


@pytest.mark.parametrize("name", names("method"))
def test_declared_inputs_are_those_that_the_objective_reads(name: str):
    method = resolve("method", name)
    if method.get("objective") is None:
        assert not method_needs(method)
        return
    reads = demands(method["objective"]).needs
    # The target is computed from the pooled feature, which is what a method config declares.
    expected = {"pooled" if n == "target" else n for n in reads}
    assert method_needs(method) == expected
    assert ("target" in reads) == bool(method.get("align"))
    assert ("labels" in reads) == method["labels_used"]


def objectives() -> list[type[Objective]]:
    """Every concrete class of kdep_bench/objectives, sorted by name."""
    defined = set()
    for module in pkgutil.iter_modules(kdep_bench.objectives.__path__):
        loaded = importlib.import_module(f"kdep_bench.objectives.{module.name}")
        defined |= {v for v in vars(loaded).values() if isinstance(v, type)}
    return sorted(
        (c for c in defined if issubclass(c, Objective) and not inspect.isabstract(c)),
        key=lambda c: c.__qualname__,
    )


@pytest.mark.parametrize("kind", objectives(), ids=lambda k: k.__name__)
def test_an_objective_requires_every_argument_missing_from_its_config(kind: type[Objective]):
    """`stage_arguments` names the constructor's arguments that the pre-training stage provides."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    accepted = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    no_default = {
        p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    }
    # Arguments without a default that a method config itself sets.
    from_config = {"self", "levels", "parts", "teachers", "top_classes", "teacher_layer"}
    from_config |= {"held_out", "reference", "prototypes"}
    assert no_default - kind.stage_arguments <= from_config
    assert ("teachers" in no_default) == kind.every_teacher
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        # With several teachers, `teachers` holds the arguments of each teacher.
        in_teachers = TEACHER_ARGUMENTS if kind.every_teacher else set()
        assert kind.stage_arguments - in_teachers <= accepted
    assert kind.needs <= NEEDS
    # The check that labels and teacher have the same classes needs both numbers.
    if "classes" in kind.needs:
        assert {"classes", "teacher_classes"} <= kind.stage_arguments
