"""Imports that fail: the error names the cause."""

import pytest

from kdep_bench import registry
from kdep_bench.engine import stage_process
from kdep_bench.errors import KdepError

# The messages of numpy and of the dynamic loader when memory runs out while a library is loaded.
NO_MEMORY = (
    "Importing the numpy C-extensions failed. Original error was: x.so: failed to map segment"
    " from shared object",
    "x.so: cannot allocate memory in static TLS block",
)


@pytest.mark.parametrize("text", NO_MEMORY)
def test_running_out_of_memory_is_not_reported_as_a_missing_package(tmp_path, monkeypatch, text):
    (tmp_path / "starved.py").write_text(f"raise ImportError({text!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    for locate in (
        lambda: registry.locate("starved.Thing"),
        lambda: stage_process.locate("starved:run"),
    ):
        with pytest.raises(KdepError, match="the memory ran out"):
            locate()


def test_a_missing_package_is_not_reported_as_running_out_of_memory():
    with pytest.raises(KdepError, match="correct `type=`"):
        registry.locate("no_such_package.Thing")
    with pytest.raises(KdepError, match="install what it needs"):
        stage_process.locate("no_such_package:run")
