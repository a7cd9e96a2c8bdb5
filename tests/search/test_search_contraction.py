"""Contraction of a large student: limits and candidates of every step, resuming, bad configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdep_bench.errors import KdepError
from kdep_bench.search import log as logs
from kdep_bench.search.config import load_search
from kdep_bench.search.contraction import candidates, limits_of_step
from kdep_bench.search.run import Interrupted, Score
from kdep_bench.students.space import Limits, Size

from .closed_form import run_search, search

DEPTHS, WIDTHS = [1, 2, 3, 4], [8, 16, 24, 32, 48, 64]
SPACE: list[dict[str, Any]] = [
    dict(key="student.depth3", values=DEPTHS),
    dict(key="student.width", values=WIDTHS),
]
KEYS = [d["key"] for d in SPACE]
CONTRACTION: dict[str, Any] = dict(
    space=SPACE,
    limits=dict(params=700_000, flops=30_000_000),
    sampler="contraction",
    steps=3,
    trials=9,
    halving=dict(epochs=1.0, rungs=1),
)


def contracted(**changes: Any) -> Any:
    """A contraction in three steps over depth3 and width, with these changes."""
    return search(**CONTRACTION | changes)


def largest_wins(proposal: dict[str, Any], epochs: float, size: Any) -> Score:
    """A score that grows with the number of parameters."""
    return Score(float(size.params))


def test_limits_fall_by_the_same_factor_in_every_step_and_end_at_those_of_the_search():
    parent, final = Size(1000, 64_000), Limits(params=125, flops=8_000)
    steps = [limits_of_step(parent, final, k, 3) for k in (1, 2, 3)]
    assert [s.params for s in steps] == pytest.approx([500, 250, 125], abs=1)
    assert [s.flops for s in steps] == pytest.approx([32_000, 16_000, 8_000], abs=1)
    assert steps[2] == final
    assert limits_of_step(parent, Limits(params=125), 1, 3).flops is None
    # A parent that is within a limit is not contracted along it.
    assert limits_of_step(Size(100, 64_000), final, 1, 3).params == 125


def test_candidates_are_exactly_the_largest_students_within_the_limits_and_below_the_parent():
    """Largest: with one value raised by a step, the student is above a limit or the parent."""
    space = contracted().space
    parent = {"student.depth3": 3, "student.width": 48}
    limits = Limits(params=3_000_000)

    def allowed(proposal: dict[str, Any]) -> bool:
        return limits.allow(space.member(proposal).size())

    expected = []
    for depth in (1, 2, 3):
        for width in (8, 16, 24, 32, 48):
            raised = [{"student.depth3": depth + 1, "student.width": width}] if depth < 3 else []
            if width < 48:
                wider = WIDTHS[WIDTHS.index(width) + 1]
                raised.append({"student.depth3": depth, "student.width": wider})
            student = {"student.depth3": depth, "student.width": width}
            if allowed(student) and not any(map(allowed, raised)):
                expected.append(student)
    assert candidates(space, parent, limits) == expected
    assert [p["student.depth3"] for p in expected] == [2, 3]
    with pytest.raises(KdepError, match="no contraction of the student"):
        candidates(space, parent, Limits(params=1000))


def test_every_step_starts_from_the_best_of_the_step_before_and_stays_within_its_limits(
    tmp_path: Path,
):
    searched = contracted()
    trials = run_search(searched, tmp_path / "log.jsonl", largest_wins)
    parent = {"student.depth3": 4, "student.width": 64}
    size = searched.space.member(parent).size()
    seen, number = 0, 0
    while seen < len(trials):
        number += 1
        limits = limits_of_step(size, searched.limits, number, 3)
        allowed = candidates(searched.space, parent, limits)
        step = trials[seen : seen + min(3, len(allowed))]
        assert all(t.proposal in allowed for t in step)
        assert len({t.student for t in step}) == len(step)
        assert all(t.state == "complete" for t in step)
        best = max(step, key=lambda t: t.params)
        assert all(best.proposal[key] <= parent[key] for key in KEYS)
        parent, seen = best.proposal, seen + len(step)
    assert number == 3


def test_the_best_student_is_within_the_limits_although_larger_ones_scored_higher(tmp_path: Path):
    searched = contracted()
    trials = run_search(searched, tmp_path / "log.jsonl", largest_wins)
    settings = {"direction": "max", "limits": searched.file.limits.model_dump()}
    chosen = logs.best(trials, settings)
    assert chosen is not None
    assert chosen.params <= 700_000
    assert chosen.flops <= 30_000_000
    assert max(t.scores[-1] for t in trials) > chosen.scores[-1]
    text = logs.summary(trials, settings | {"metric": "top1", "split": "val"})
    assert f"{chosen.params:,} parameters" in text


def test_an_interrupted_contraction_continues_with_the_same_proposals(tmp_path: Path):
    expected = run_search(contracted(), tmp_path / "whole.jsonl", largest_wins)
    path, counts = tmp_path / "log.jsonl", iter(range(100))

    def interrupted(proposal: dict[str, Any], epochs: float, size: Any) -> Score:
        """Stopped at every third trial."""
        if next(counts) % 3 == 2:
            raise Interrupted(2)
        return largest_wins(proposal, epochs, size)

    for _ in range(10):
        try:
            trials = run_search(contracted(), path, interrupted)
        except Interrupted:
            continue
        break
    assert trials == expected
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_log_of_other_candidates_is_refused(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    (first, *_) = run_search(contracted(), path, largest_wins)
    width = first.proposal["student.width"]
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace(f'"student.width": {width}', '"student.width": 8')
    path.write_text("".join(f"{line}\n" for line in lines[:2]))
    with pytest.raises(KdepError, match="not the next candidate of the contraction"):
        run_search(contracted(), path, largest_wins)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(trials=10), "in 3 steps has 10 trials"),
        (dict(halving=dict(epochs=1.0, rungs=2)), "halving with 2 rungs"),
        (dict(limits=dict(params=100_000_000)), "is within the limits"),
        (dict(limits={}), "is within the limits"),
        (
            dict(space=[*SPACE, dict(key="method.transform.n", values=[1.0, 2.0])]),
            "'method.transform.n' cannot be contracted",
        ),
        (
            dict(space=[*SPACE, dict(key="student.stem", values=["7x7", "3x3"])]),
            "'student.stem' cannot be contracted",
        ),
        (dict(sampler="tpe"), "steps=3, but its sampler is 'tpe'"),
    ],
)
def test_configs_that_are_no_contraction_are_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
):
    raw = contracted(**changes).file.model_dump()
    monkeypatch.setattr("kdep_bench.search.config.read_dict", lambda *_: raw)
    with pytest.raises(KdepError, match=message):
        load_search("smoke_kdep")  # `raw` is read in place of its file


def test_every_limit_of_the_pocket_contraction_allows_a_student():
    searched = load_search("pocket_contraction")
    parent = {d.key: d.values[-1] for d in searched.space.dimensions}
    size = searched.space.member(parent).size()
    assert size.params == pytest.approx(10.5e6, rel=0.01)
    for step in (1, 2, 3):
        limits = limits_of_step(size, searched.limits, step, 3)
        allowed = candidates(searched.space, parent, limits)
        assert len(allowed) >= 4
        parent = allowed[-1]


def test_the_listed_steps_of_the_pocket_contraction_end_at_its_limits():
    searched = load_search("pocket_contraction")
    steps = searched.steps()
    assert len(steps) == 3
    assert "2,800,000 parameters and 79,000,000 FLOPs" in steps[2]
    assert load_search("smoke_kdep").steps() == []  # not a contraction
