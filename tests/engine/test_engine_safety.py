"""Names from configs and plan files cannot address folders outside the work dir."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suite_config import SUITE

from kdep_bench import paths
from kdep_bench.engine import state
from kdep_bench.errors import KdepError
from kdep_bench.suite import config
from kdep_bench.suite.plan import build_plan

UNSAFE_NAMES = [
    *("..", ".", "", "../x", "/etc/passwd", "a/b", "a\\b", "~", "~root", "-rf", ".hidden"),
    *("a\x00b", "a\nb", "a b", "$HOME", "`x`", "x" * 300, "ü", "a\u202eb", "%2e%2e", "..\\x"),
]
KINDS = ["suite", "method", "student", "teacher", "task", "data"]


def suite_with(kind: str, name: str) -> dict[str, Any]:
    """A suite in which the entry of this kind (method, task, ...) has this name."""
    raw = copy.deepcopy(SUITE)
    if kind == "suite":
        return {**raw, "name": name}
    key = {"data": "data", "teacher": "teacher"}.get(kind, f"{kind}s")
    base = raw[key][0] if isinstance(raw[key], list) else raw[key]
    renamed = {"base": base, "name": name}
    raw[key] = renamed if kind in ("data", "teacher") else [renamed]
    return raw


def is_accepted(kind: str, name: str) -> bool:
    """Whether the name is accepted; if so, asserts that every stage's folder is in the work dir."""
    work = Path("/work dir/of the suite")
    try:
        suite = config.build_suite(suite_with(kind, name))
        plan = build_plan(suite)
    except KdepError:
        return False
    for stage_id in plan.stages:
        out = state.folder(work, stage_id)
        assert os.path.normpath(out) == str(out)
        assert out.parent == work
        assert len(stage_id.encode()) <= 255  # the limit of common file systems
    assert "/" not in suite.name
    assert not suite.name.startswith(".")
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_names_with_paths_or_special_characters_are_refused(kind):
    for name in UNSAFE_NAMES:
        assert not is_accepted(kind, name), name
    assert is_accepted(kind, "Ok_name-1.0+x")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.text(max_size=60))
def test_random_names_are_refused_or_stay_in_the_work_dir(kind, name):
    is_accepted(kind, name)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="./\\~-_aA0 \x00\n", max_size=12))
def test_random_names_of_dots_and_slashes_are_refused_or_stay_in_the_work_dir(name):
    for kind in KINDS:
        is_accepted(kind, name)


def test_a_plan_file_cannot_name_a_folder_outside_the_work_dir(tmp_path):
    import engine_fakes as fakes

    from kdep_bench.engine import stage as command

    plan = fakes.diamond()
    path = tmp_path / "plan.json"
    command.write_plan(path, "p", plan.stages.values())
    text = path.read_text()
    stage_id = fakes.id_of(plan, "a")
    path.write_text(text.replace(stage_id, "../../etc"))
    with pytest.raises(KdepError):
        command.read_stage(path, "../../etc")


def test_no_source_file_loads_a_pickle():
    """Unpickling a file can run code, so `weights_only=False` may not be in any source file."""
    places = [
        f"{p}:{n}"
        for folder in ("kdep_bench", "tools", "configs")
        for p in (paths.ROOT / folder).rglob("*.py")
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if "weights_only=False" in line or "allow_pickle=True" in line
    ]
    assert places == []
