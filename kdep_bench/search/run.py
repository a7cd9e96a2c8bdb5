"""Runs a search: propose, count, train briefly, score, log; continues where its log ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdep_bench.errors import KdepError
from kdep_bench.search.config import Search, check_values
from kdep_bench.search.log import Header, Trial, Writer, make_header, writing
from kdep_bench.search.sampler import Sampler
from kdep_bench.students.space import Json, Size
from kdep_bench.suite.methods import PROSE, without

MOST_OVER_LIMIT = 1000  # successive proposals above the limits
MOST_FAILED = 3  # successive failed trials

Say = Callable[[str], object]


class TrialFailed(Exception):
    """A proposal that has no score; its text is the reason."""


class Interrupted(Exception):
    """The search was stopped; `signal` is the number of the signal."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass(frozen=True)
class Score:
    """A score, and the ids of the stages that gave it, by role."""

    value: float
    stages: Mapping[str, str] = field(default_factory=dict)


class Evaluate(Protocol):
    """Trains a proposal for some epochs and scores it; raises TrialFailed where that fails."""

    def __call__(self, proposal: Json, epochs: float, size: Size) -> Score: ...


def header_of(search: Search, work: Path) -> Header:
    """The header of the search's log, with the content of its data.

    Raises:
        KdepError: a value that cannot be planned, or data that cannot be read.
    """
    from kdep_bench.suite import data_identity
    from kdep_bench.suite.image_counts import check_counts

    check_values(search)
    suite = search.suite(search.first, search.epochs[0])
    check_counts(suite)
    suite, _ = data_identity.with_content(suite, work)
    return make_header(search.name, search.settings(suite))


def run(search: Search, path: Path, header: Header, evaluate: Evaluate, say: Say) -> list[Trial]:
    """Runs the search until it has `trials` evaluations; returns all trials of its log.

    Args:
        search: what to run.
        path: of the log, which is continued where it exists.
        header: of the log; see `header_of`.
        evaluate: trains and scores a proposal.
        say: receives a line per trial.

    Raises:
        KdepError: a log of another search, limits that almost no proposal meets, or several failed
            trials in succession.
        Interrupted: raised by `evaluate`; the current trial is not in the log.
    """
    with writing(path, header) as (writer, log):
        trials = list(log.trials) if log is not None else []
        if log is not None and log.torn:
            say(
                f"the last line of {path} is incomplete (interrupted while it was written): "
                f"trial {len(trials)} is proposed again"
            )
        if trials:
            say(f"{len(trials)} trials are in {path}")
        if _evaluations(trials) >= search.file.trials:
            return trials
        sampler = Sampler(
            search.space,
            search.file.sampler,
            search.file.seed,
            search.file.halving.factor,
            header.settings["direction"],
        )
        for trial in trials:
            sampler.repeat(trial)
        _continue(search, trials, sampler, writer, evaluate, say)
        return trials


def _continue(
    search: Search,
    trials: list[Trial],
    sampler: Sampler,
    writer: Writer,
    evaluate: Evaluate,
    say: Say,
) -> None:
    resumed = len(trials)
    while _evaluations(trials) < search.file.trials:
        trial = _trial(search, len(trials), sampler, evaluate)
        sampler.finish(trial)
        writer.append(trial)
        trials.append(trial)
        say(_line(trial))
        last = [t.state for t in trials[max(resumed, len(trials) - MOST_OVER_LIMIT) :]]
        if len(last) == MOST_OVER_LIMIT and set(last) == {"over_limit"}:
            raise KdepError(
                f"the last {MOST_OVER_LIMIT} proposals of the search {search.name!r} are above its "
                f"limits of {search.limits}",
                fix="raise `limits` in its config, or remove large values from its space",
            )
        tried = [t for t in trials[resumed:] if t.trained][-MOST_FAILED:]
        if len(tried) == MOST_FAILED and all(t.state == "failed" for t in tried):
            raise KdepError(
                f"the last {MOST_FAILED} trials of the search {search.name!r} failed; the last "
                f"error: {trial.error.partition(' Fix: ')[0].rstrip('.')[:500]}",
                fix="correct its cause; the same command then continues with the next trial",
            )


def _evaluations(trials: Sequence[Trial]) -> int:
    return sum(t.trained for t in trials)


def _trial(search: Search, number: int, sampler: Sampler, evaluate: Evaluate) -> Trial:
    """Proposes, counts, trains and scores one trial."""
    proposal = sampler.propose()
    member = search.space.member(proposal)
    size = member.size()
    about: dict[str, Any] = {
        "trial": number,
        "proposal": proposal,
        "student": member.student()["name"],
        "params": size.params,
        "flops": size.flops,
    }
    if not search.limits.allow(size):
        return Trial(state="over_limit", **about)
    scores: list[float] = []
    stages: Mapping[str, str] = {}
    for rung, epochs in enumerate(search.epochs):
        about["epochs"] = epochs
        try:
            score = evaluate(proposal, epochs, size)
            if not math.isfinite(score.value):
                raise TrialFailed(f"the score is {score.value}")
        except TrialFailed as e:
            error = str(e)[:2000]
            return Trial(state="failed", scores=scores, stages={}, error=error, **about)
        scores.append(score.value)
        stages = dict(score.stages)
        if epochs != search.epochs[-1] and not sampler.continues(rung, score.value):
            return Trial(state="pruned", scores=scores, stages=stages, **about)
    return Trial(state="complete", scores=scores, stages=stages, **about)


def _line(trial: Trial) -> str:
    values = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in sorted(trial.proposal.items()))
    outcome = {
        "complete": f"{trial.score:.6g}" if trial.scores else "",
        "pruned": f"{trial.score:.6g} after {trial.epochs:g} epochs, stopped"
        if trial.scores
        else "",
        "failed": f"failed: {trial.error[:200]}",
        "over_limit": f"above the limits ({Size(trial.params, trial.flops)}), not trained",
    }[trial.state]
    return f"trial {trial.trial} ({values}): {outcome}"


# ---- by stages ----

# A fault of a stage before these is no fault of the proposal: it would fail every trial.
_OF_PROPOSAL = {"align", "pretrain", "export", "transfer"}


@dataclass(frozen=True)
class Stages:
    """Evaluates proposals by the stages of an ordinary suite, in the local pool.

    Attributes:
        search: whose proposals.
        data: the data of the log's header, with the hashes of their files.
        work: the work dir.
        options: of the pool (`local_pool.PoolOptions`).
        view: shows the progress.
    """

    search: Search
    data: Json
    work: Path
    options: Any = None
    view: Any = None

    def __call__(self, proposal: Json, epochs: float, size: Size) -> Score:
        from kdep_bench.engine import local_pool, state
        from kdep_bench.suite import data_identity
        from kdep_bench.suite.plan import build_plan

        try:
            suite = self.search.suite(proposal, epochs)
            build_plan(suite)
        except KdepError as e:
            raise TrialFailed(str(e)) from None
        suite, _ = data_identity.with_content(suite, self.work)
        if without(suite.data, PROSE) != self.data:
            raise KdepError(
                f"the data {suite.data['name']!r} changed while the search {self.search.name!r} "
                "ran: its scores would be of different data",
                fix="restore the data, or give another file with --log",
            )
        plan = build_plan(suite)
        (run,) = plan.runs
        known = state.statuses(plan, self.work)
        if any(s.run for s in known.values()):
            outcome = local_pool.run_plan(plan, self.work, known, self.options, self.view)
            if outcome.signal:
                raise Interrupted(outcome.signal)
            for stage_id, error in outcome.failed.items():
                if plan.stages[stage_id].kind not in _OF_PROPOSAL:
                    raise KdepError(
                        f"the stage {stage_id}, which all trials need, failed: {error}",
                        fix="correct the cause, then run the same command again",
                    )
                raise TrialFailed(f"{stage_id}: {error}")
        records = {i: state.finished(plan.stages[i], self.work)[0] for i in run.chain.values()}
        transfer, export = records[run.id], records.get(run.chain.get("export", ""))
        if transfer is None:
            raise KdepError(f"the stage {run.id} has no result", fix="run the same command again")
        if export is not None:
            self._check_size(size, export["outputs"])
        return Score(float(transfer["outputs"]["value"]), run.chain)

    def _check_size(self, size: Size, exported: Json) -> None:
        """Raises KdepError where the family computes another size than the exported network has."""
        counted = Size(exported["parameters"], exported["flops"] or size.flops)
        if counted != size:
            raise KdepError(
                f"the family {self.search.file.family['type']} computes {size} for a student that "
                f"has {counted}, so the limits of the search {self.search.name!r} do not hold",
                fix="correct `size` of that class, and give another file with --log",
            )


def planned(search: Search, trials: Sequence[Trial] = ()) -> str:
    """What the search would do, in words: sizes of the space, limits and budgets."""
    epochs = search.epochs
    members = len(search.space)
    done = _evaluations(trials)
    max_epochs = sum(epochs)
    return (
        f"{search.name}: {members:,} proposals, limits {search.limits}\n"
        f"{search.file.sampler} sampler, seed {search.file.seed}, {search.file.trials} trials "
        f"({done} done)\n"
        f"epochs of a trial: {', then '.join(f'{e:g}' for e in epochs)}, at most {max_epochs:g}; "
        f"of the trials at a rung, the best 1/{search.file.halving.factor} continue\n"
        f"at most {(search.file.trials - done) * max_epochs:g} epochs to run"
    )
