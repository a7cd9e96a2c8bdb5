"""Every method config declares to the plan what its objective reads."""

from __future__ import annotations

import pytest

from kdep_bench.objectives.base import demands
from kdep_bench.suite.config import method_needs, names, resolve


@pytest.mark.parametrize("name", names("method"))
def test_declared_needs_are_those_of_the_objective(name: str):
    method = resolve("method", name)
    if method.get("objective") is None:
        assert not method_needs(method)
        return
    reads = demands(method["objective"]).needs
    want = {"pooled" if n == "target" else n for n in reads}
    assert method_needs(method) == want
    assert ("target" in reads) == bool(method.get("align"))
    assert ("labels" in reads) == method["labels_used"]
