"""Runs a search: proposes students, trains and scores them; continues from the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kdep_bench.errors import KdepError
from kdep_bench.search.config import Search, check_values
from kdep_bench.search.contraction import Contraction
from kdep_bench.search.log import Header, Trial, Writer, make_header, writing
from kdep_bench.search.sampler import Sampler
from kdep_bench.students.space import Json, Size
from kdep_bench.suite.methods import DESCRIPTION_KEYS, without

MAX_OVER_LIMIT = 1000  # successive proposals above the limits, after which the search stops
MAX_FAILED = 3  # successive failed trials, after which the search stops

PrintLine = Callable[[str], object]  # prints a line


class TrialFailed(Exception):
    """A proposal could not be scored; the message is the reason."""


class Interrupted(Exception):
    """The search was interrupted by the signal with the number `signal`."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@dataclass(frozen=True)
class Score:
    """The score of a proposal, and {kind: id} of the stages that computed it."""

    value: float
    stages: Mapping[str, str] = field(default_factory=dict)


class Evaluate(Protocol):
    """Trains a proposal for some epochs and scores it; raises TrialFailed if that fails."""

    def __call__(self, proposal: Json, epochs: float, size: Size) -> Score: ...


def header_of(search: Search, work: Path) -> Header:
    """The header of the search's log, which includes hashes of its data.

    `work`: the work dir.

    Raises:
        KdepError: a value of the space is not valid, or the data cannot be read.
    """
    from kdep_bench.suite import data_identity
    from kdep_bench.suite.image_counts import check_counts

    check_values(search)
    suite = search.suite(search.first_proposal, search.epochs[0])
    check_counts(suite)
    suite, _ = data_identity.with_content(suite, work)
    return make_header(search.name, search.settings(suite))


def run(
    search: Search, path: Path, header: Header, evaluate: Evaluate, print_line: PrintLine
) -> list[Trial]:
    """Runs the search until it has as many trained trials as its config says; returns all trials.

    A contraction also ends if all candidates of its last step have been trained.

    Args:
        search: the search.
        path: file of the log, which is continued if it exists.
        header: header of the log; see `header_of`.
        evaluate: trains and scores a proposal.
        print_line: called with a line of text per trial.

    Raises:
        KdepError: the log belongs to another search or has a proposal that the search does not
            make, MAX_OVER_LIMIT successive proposals are above the limits, MAX_FAILED successive
            trained trials failed, or all candidates of a contraction's step failed.
        Interrupted: raised by `evaluate`; the current trial is not logged.
    """
    with writing(path, header) as (writer, log):
        trials = list(log.trials) if log is not None else []
        if log is not None and log.is_torn:
            print_line(
                f"the last line of {path} is incomplete, because writing it was interrupted; "
                f"trial {len(trials)} is proposed again"
            )
        if trials:
            print_line(f"{path} has {len(trials)} trials")
        if _evaluations(trials) >= search.file.trials:
            return trials
        sampler = search.sampler(header.settings["direction"])
        for trial in trials:
            sampler.repeat(trial)
        _continue(search, trials, sampler, writer, evaluate, print_line)
        return trials


def _continue(
    search: Search,
    trials: list[Trial],
    sampler: Sampler | Contraction,
    writer: Writer,
    evaluate: Evaluate,
    print_line: PrintLine,
) -> None:
    """Runs and logs trials until the search has its number of trained trials."""
    n_logged = len(trials)  # trials of earlier runs of the command
    while _evaluations(trials) < search.file.trials and not sampler.is_finished:
        trial = _run_trial(search, len(trials), sampler, evaluate)
        sampler.finish(trial)
        writer.append(trial)
        trials.append(trial)
        print_line(_trial_line(trial))
        last_states = [t.state for t in trials[max(n_logged, len(trials) - MAX_OVER_LIMIT) :]]
        if len(last_states) == MAX_OVER_LIMIT and set(last_states) == {"over_limit"}:
            raise KdepError(
                f"the last {MAX_OVER_LIMIT} proposals of the search {search.name!r} are above its "
                f"limits of {search.limits}",
                fix="raise `limits` in its config, or remove large values from its space",
            )
        last_trained = [t for t in trials[n_logged:] if t.trained][-MAX_FAILED:]
        if len(last_trained) == MAX_FAILED and all(t.state == "failed" for t in last_trained):
            raise KdepError(
                f"the last {MAX_FAILED} trials of the search {search.name!r} failed; the last "
                f"error: {trial.error.partition(' Fix: ')[0].rstrip('.')[:500]}",
                fix="correct the cause of the error, then run the same command again; it continues "
                "with the next trial",
            )


def _evaluations(trials: Sequence[Trial]) -> int:
    """Number of trained trials."""
    return sum(t.trained for t in trials)


def _run_trial(
    search: Search, number: int, sampler: Sampler | Contraction, evaluate: Evaluate
) -> Trial:
    """Proposes a student, trains and scores it at every rung, and returns the trial."""
    proposal = sampler.propose()
    member = search.space.member(proposal)
    size = member.size()
    fields: dict[str, Any] = {
        "trial": number,
        "proposal": proposal,
        "student": member.student()["name"],
        "params": size.params,
        "flops": size.flops,
    }
    if not sampler.limits.allow(size):
        return Trial(state="over_limit", **fields)
    scores: list[float] = []
    stages: Mapping[str, str] = {}
    for rung, epochs in enumerate(search.epochs):
        fields["epochs"] = epochs
        try:
            score = evaluate(proposal, epochs, size)
            if not math.isfinite(score.value):
                raise TrialFailed(f"the score is {score.value}")
        except TrialFailed as e:
            error = str(e)[:2000]
            return Trial(state="failed", scores=scores, stages={}, error=error, **fields)
        scores.append(score.value)
        stages = dict(score.stages)
        if epochs != search.epochs[-1] and not sampler.continues(rung, score.value):
            return Trial(state="pruned", scores=scores, stages=stages, **fields)
    return Trial(state="complete", scores=scores, stages=stages, **fields)


def _trial_line(trial: Trial) -> str:
    """The line that is printed for a trial."""
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


# ---- evaluation by the stages of a suite ----

# Kinds of stages that depend on the proposal. An error in another stage would occur in every trial.
_PROPOSAL_KINDS = {"align", "pretrain", "export", "transfer"}


@dataclass(frozen=True)
class Stages:
    """Evaluates proposals by running the stages of a suite on this machine.

    Attributes:
        search: the search.
        data: the data config in the log's header, with the hashes of the files.
        work: the work dir.
        options: `local_pool.PoolOptions`, or None for the defaults.
        view: a `progress.View` that shows the progress, or None.
    """

    search: Search
    data: Json
    work: Path
    options: Any = None
    view: Any = None

    def __call__(self, proposal: Json, epochs: float, size: Size) -> Score:
        """Trains and scores a proposal; see `Evaluate`.

        Raises:
            TrialFailed: the proposal is not valid, or a stage that depends on it failed.
            KdepError: another stage failed, or the data changed.
            Interrupted: a signal stopped the stages.
        """
        from kdep_bench.engine import local_pool, state
        from kdep_bench.suite import data_identity
        from kdep_bench.suite.plan import build_plan

        try:
            suite = self.search.suite(proposal, epochs)
            build_plan(suite)
        except KdepError as e:
            raise TrialFailed(str(e)) from None
        suite, _ = data_identity.with_content(suite, self.work)
        if without(suite.data, DESCRIPTION_KEYS) != self.data:
            raise KdepError(
                f"the data {suite.data['name']!r} changed while the search {self.search.name!r} "
                "ran, so its scores would not be comparable",
                fix="restore the data, or start a new log with --log",
            )
        plan = build_plan(suite)
        (run,) = plan.runs
        statuses = state.statuses(plan, self.work)
        if any(status.run for status in statuses.values()):
            outcome = local_pool.run_plan(plan, self.work, statuses, self.options, self.view)
            if outcome.signal:
                raise Interrupted(outcome.signal)
            for stage_id, error in outcome.failed.items():
                if plan.stages[stage_id].kind not in _PROPOSAL_KINDS:
                    raise KdepError(
                        f"the stage {stage_id}, which all trials need, failed: {error}",
                        fix="correct the cause of the error, then run the same command again",
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
        """Raises KdepError unless `size` is the measured size of the exported network."""
        counted = Size(exported["parameters"], exported["flops"] or size.flops)
        if counted != size:
            raise KdepError(
                f"the class {self.search.file.family['type']} computes {size} for a student that "
                f"has {counted}, so the limits of the search {self.search.name!r} do not hold",
                fix="correct the method `size` of this class, and start a new log with --log",
            )


def description(search: Search, trials: Sequence[Trial] = ()) -> str:
    """A text about the search: number of possible proposals, limits and budgets.

    `trials`: the trials that are already in the log.
    """
    epochs = search.epochs
    n_done = _evaluations(trials)
    max_epochs = sum(epochs)
    steps = "".join(f"{line}\n" for line in search.steps())
    rungs = f"epochs of a trial: {epochs[0]:g}"
    if len(epochs) > 1:
        rungs = (
            f"epochs of a trial: {', then '.join(f'{e:g}' for e in epochs)}, at most "
            f"{max_epochs:g}; of the trials at a rung, the best 1/{search.file.halving.factor} "
            "continue"
        )
    return (
        f"{search.name}: {len(search.space):,} proposals, limits {search.limits}\n{steps}"
        f"{search.file.sampler} sampler, seed {search.file.seed}, {search.file.trials} trials "
        f"({n_done} done)\n{rungs}\n"
        f"at most {(search.file.trials - n_done) * max_epochs:g} epochs to run"
    )
