"""Names from configs and files never lead out of the work dir."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_suite_config import GOOD

from kdep_bench import paths
from kdep_bench.engine import state
from kdep_bench.errors import KdepError
from kdep_bench.suite import config
from kdep_bench.suite.plan import build_plan

NASTY = [
    *("..", ".", "", "../x", "/etc/passwd", "a/b", "a\\b", "~", "~root", "-rf", ".hidden"),
    *("a\x00b", "a\nb", "a b", "$HOME", "`x`", "x" * 300, "ü", "a\u202eb", "%2e%2e", "..\\x"),
]
PLACES = ["suite", "method", "student", "teacher", "task", "data"]


def suite_with(place: str, name: str) -> dict[str, Any]:
    raw = copy.deepcopy(GOOD)
    if place == "suite":
        return {**raw, "name": name}
    key = {"data": "data", "teacher": "teacher"}.get(place, f"{place}s")
    base = raw[key][0] if isinstance(raw[key], list) else raw[key]
    raw[key] = {"base": base, "name": name} if place in ("data", "teacher") else [
        {"base": base, "name": name}
    ]  # fmt: skip
    return raw


def stays_inside(place: str, name: str) -> bool:
    """Whether a plan with that name was made; every one of its folders is then checked."""
    work = Path("/work dir/of the suite")
    try:
        suite = config.build_suite(suite_with(place, name))
        plan = build_plan(suite)
    except KdepError:
        return False
    for one in plan.stages:
        out = state.folder(work, one)
        assert os.path.normpath(out) == str(out)
        assert out.parent == work
        assert len(one.encode()) <= 255
    assert "/" not in suite.name
    assert not suite.name.startswith(".")
    return True


@pytest.mark.parametrize("place", PLACES)
def test_names_that_try_to_leave_are_refused(place):
    for name in NASTY:
        assert not stays_inside(place, name), name
    assert stays_inside(place, "Ok_name-1.0+x")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PLACES), st.text(max_size=60))
def test_any_name_is_refused_or_stays_inside(place, name):
    stays_inside(place, name)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="./\\~-_aA0 \x00\n", max_size=12))
def test_any_name_of_dots_and_slashes_is_refused(name):
    for place in PLACES:
        stays_inside(place, name)


def test_a_written_plan_cannot_name_a_folder_outside(tmp_path):
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
    """`weights_only=False` stands nowhere: an exception would have to be named by the user."""
    said = [
        f"{p}:{n}"
        for folder in ("kdep_bench", "tools", "configs")
        for p in (paths.ROOT / folder).rglob("*.py")
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if "weights_only=False" in line or "allow_pickle=True" in line
    ]
    assert said == []
