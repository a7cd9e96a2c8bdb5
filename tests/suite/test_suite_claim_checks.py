"""A claim that the suite cannot test, or that is malformed, is refused before anything runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_suite_config import SUITE, build

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.plan import build_plan

REPO = Path(__file__).resolve().parents[2]
BEATS = "kdep_beats_scratch"


def refusal(claim: Any, **change: Any) -> str:
    """The error of planning the test suite with this claim; asserts that it is one line."""
    with pytest.raises(KdepError) as error:
        build_plan(build(claims=[claim], **change))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (dict(base=BEATS, b=None), "needs b"),
        (dict(base=BEATS, kind="diference"), "'difference', 'efficiency' or 'rank_correlation'"),
        (dict(base=BEATS, kind="efficiency"), "needs at_least"),
        (dict(base=BEATS, kind="rank_correlation"), "needs one of at_least and at_most"),
        (dict(base=BEATS, margn=0.1), "did you mean margin"),
        (dict(base=BEATS, a=dict(methd="kdep")), "did you mean method"),
        (dict(base=BEATS, a=dict(share=1.5)), "of at most 1"),
        (dict(base=BEATS, margin="much"), "has margin = 'much'; expected a number. Fix"),
        (dict(base=BEATS, max_cost_ratio=0.0), "greater than 0"),
        (dict(base=BEATS, a=dict(method="kdepp")), "correct `a` of the claim: did you mean kdep?"),
        (dict(base=BEATS, a=dict(method="fitnet")), "did you mean fitnets?"),
        (
            dict(base=BEATS, b=dict(method="supervised")),
            "the claim 'kdep_beats_scratch' is about the method 'supervised' (`b`), which the "
            "suite does not run; expected one of: kdep, scratch. Fix: add it to the suite's "
            "`methods`, or remove the claim.",
        ),
        (dict(base=BEATS, by="top2"), "has by = 'top2'; expected one of explained_variance_ratio"),
        (dict(base=BEATS, a=dict(share=0.1)), "expected a data fraction of the suite: 1."),
        (dict(base=BEATS, a=dict(epochs=7)), "expected epochs of the suite: 1."),
        (dict(base=BEATS, a=dict(teacher="efficientnet_lite1")), "did you mean efficientnet_lite0"),
        (dict(base=BEATS, b=dict(teacher="efficientnet_lite0")), "uses no teacher"),
        (dict(base=BEATS, families=["clasification"]), "did you mean classification"),
        (dict(base=BEATS, families=[]), "1 or more entries"),
        (dict(base=BEATS, b=dict(method="kdep")), "with itself"),
        (dict(base=BEATS, a=dict(method=["kdp", "scratch"])), "with itself"),
        ("data_10x", "'supervised' (`b`), which the suite does not run"),
        (dict(base="data_10x", b=dict(method="scratch")), "has only one value"),
        ("compact_teacher_is_worse", "with one teacher"),
        (
            dict(base="compact_teacher_is_worse", by=dict(efficientnet_lite0=1.0, resnet50=2.0)),
            "resnet50",
        ),
    ],
)
def test_a_claim_that_the_suite_cannot_test_is_refused(claim, message):
    assert message in refusal(claim)


@pytest.mark.parametrize(
    "changes",
    [
        dict(margin=0.02),
        dict(families=["classification"]),
        dict(a=dict(teacher="efficientnet_lite0")),
        dict(a=dict(epochs=1.0)),
        dict(max_cost_ratio=2.0, per_family=False),
        dict(a=dict(method=["kdep_v2", "kdep"])),
    ],
)
def test_a_suite_can_set_keys_that_the_claim_config_omits(changes):
    suite = build(claims=[dict(base=BEATS, **changes)])
    build_plan(suite)
    for key, value in changes.items():
        resolved = suite.claims[0][key]
        assert resolved == ({**resolved, **value} if isinstance(value, dict) else value)


def test_a_claim_between_two_data_fractions_of_one_method_is_accepted():
    claim = dict(base=BEATS, a=dict(share=0.5), b=dict(method="kdep"))
    build_plan(build(claims=[claim], shares=[1.0, 0.5]))
    same = dict(base=BEATS, a=dict(share=0.5), b=dict(method="kdep", share=0.5))
    assert "with itself" in refusal(same, shares=[1.0, 0.5])


def test_a_claim_about_methods_without_a_common_student_is_refused():
    """Without a common student there would be no verdict."""
    methods = [dict(base="kdep", students=["resnet18_w32"]), "imagenet"]
    message = refusal(
        "kdep_reaches_imagenet", methods=methods, students=["resnet18_w32", "efficientnet_lite0"]
    )
    assert "has no student with both" in message


def test_epochs_in_a_claim_are_those_over_the_images_of_the_data_fraction():
    """With epochs over the pool, a tenth of the images is seen ten times per epoch."""
    budget = dict(SUITE["budget"], epochs_over="pool", epochs=2)
    claim = dict(base=BEATS, a=dict(share=0.1, epochs=20))
    build_plan(build(claims=[claim], budget=budget, shares=[1.0, 0.1]))


def test_a_dry_run_with_a_typo_in_a_claim_exits_with_2(tmp_path):
    """Otherwise the error would come only after the run, which would have no leaderboard."""
    path = tmp_path / "s.py"
    path.write_text(f"suite = {SUITE | dict(claims=[dict(base=BEATS, kind='diference')])!r}\n")
    command = [sys.executable, "tools/run_suite.py", str(path), "--dry-run"]
    command += ["--work-dir", str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 2
    assert "kdep_beats_scratch" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_claim_that_the_suite_defines_completely_needs_no_config_file():
    complete = dict(
        name="kdep_above_scratch",
        title="kdep above scratch",
        kind="difference",
        a=dict(method="kdep"),
        b=dict(method="scratch"),
    )
    assert build(claims=[complete]).claims == [complete]
    for key in ("name", "title", "a"):
        assert key in refusal({k: v for k, v in complete.items() if k != key})


def test_the_claims_of_one_method_above_another_state_their_condition():
    suites = ("kdep_maps", "kdep_maps_budget", "paper_maps_r18", "kdep_anatomy")
    claims = {name: {c["name"]: c for c in load_suite(name).claims} for name in suites}
    assert claims["kdep_maps"]["fitnets_above_kdep_maps"] == dict(
        name="fitnets_above_kdep_maps",
        title="fitnets beats kdep_maps",
        statement="fitnets scores above kdep_maps at the same data and epochs.",
        kind="difference",
        a=dict(method="fitnets"),
        b=dict(method="kdep_maps"),
    )
    at_four_epochs = claims["kdep_maps_budget"]["kdep_maps_above_kdep_4_epochs"]
    assert at_four_epochs["a"] == dict(method="kdep_maps", epochs=4.0)
    assert at_four_epochs["statement"].endswith("above kdep at 4 epochs of the same images.")
    on_a_tenth = claims["paper_maps_r18"]["kdep_maps_4_above_kdep_0.1"]
    assert on_a_tenth["title"] == "kdep_maps_4 beats kdep, 10 % of the images"
    title = claims["kdep_anatomy"]["svd_above_kdep"]["title"]
    assert title == "step 1 of 7 helps: PTS n = 1 instead of 3 (svd - kdep)"
