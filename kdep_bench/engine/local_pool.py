"""The local pool: runs each stage in a process, on the cores and GPUs of this machine.

Of the stages that can start, the one with the longest chain of dependent stages starts first. The
processes are forks of a server that has imported the toolkits (see `fork_server`), which starts
only if a stage must run. All state is in the stage directories, so the pool can be killed at any
time without losing results.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from kdep_bench.engine import stage_process, state, worker
from kdep_bench.engine.fork_server import ForkServer
from kdep_bench.engine.lock import LOCKS, StageLock, Watch
from kdep_bench.engine.machine import cpu_count, git_revision
from kdep_bench.engine.progress import Silent, View
from kdep_bench.engine.select import select_stages
from kdep_bench.engine.student_check import check_students
from kdep_bench.errors import KdepError
from kdep_bench.forecast.costs import Costs
from kdep_bench.safe_files import real_folder
from kdep_bench.suite.graph import Plan, Stage

PRELOAD = "kdep_bench.engine.preload"
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_POLL = 0.25  # seconds between updates if no process reports anything
_ELSEWHERE_POLL = 1.0  # seconds between checks of a stage that another process runs


@dataclass(frozen=True)
class PoolOptions:
    """Options of a run in the local pool.

    Attributes:
        jobs: largest number of stages at once; None: one per core.
        cpus: cores for all stages together; None: all that this process may use.
        gpus: device numbers for all stages together.
        fail_fast: whether to start no more stages after the first failure.
        retry: number of retries of a failed stage.
        preload: module that the fork server imports first.
    """

    jobs: int | None = None
    cpus: int | None = None
    gpus: tuple[str, ...] = ()
    fail_fast: bool = False
    retry: int = 0
    preload: str = PRELOAD


@dataclass
class Outcome:
    """Result of a run: stage ids by outcome.

    Attributes:
        ran: stages that this run finished.
        elsewhere: stages that another process finished during this run.
        failed: stage id -> error.
        skipped: stage id -> reason.
        unfinished: stages that did not finish because the run was stopped.
        signal: number of the signal that stopped the run, or 0.
    """

    ran: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    signal: int = 0

    @property
    def ok(self) -> bool:
        return not (self.failed or self.skipped or self.unfinished or self.signal)


@dataclass
class _Child:
    """A process that runs a stage.

    Attributes:
        stage: the stage.
        process: the process.
        pipe: reading end of its pipe, with progress and errors as JSON lines.
        started: time.monotonic() of its start.
        gpus: device numbers assigned to it.
        incomplete_line: bytes read from the pipe after the last complete line.
        is_timed_out: whether it was killed at its time limit.
        reported_error: error that it sent through the pipe.
    """

    stage: Stage
    process: Any
    pipe: Any
    started: float
    gpus: tuple[str, ...]
    incomplete_line: bytes = b""
    is_timed_out: bool = False
    reported_error: str | None = None


def chain_costs(plan: Plan, ids: set[str], cost: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the longest chain of dependent stages that starts at each of `ids`."""
    consumers, out = plan.consumers(), dict[str, float]()
    for stage_id in reversed(plan.stages):  # consumers first
        if stage_id in ids:
            consumer_costs = (out[c] for c in consumers[stage_id] if c in out)
            out[stage_id] = cost[stage_id] + max(consumer_costs, default=0.0)
    return out


class Pool:
    """Runs the stages of `plan` that must run according to `statuses`, in the work dir `work`."""

    def __init__(
        self,
        plan: Plan,
        work: Path,
        statuses: Mapping[str, state.Status],
        options: PoolOptions | None = None,
        view: View | None = None,
    ) -> None:
        self.options = options or PoolOptions()
        self.plan, self.work, self.view = plan, work, view or Silent()
        self.todo = {stage_id for stage_id, status in statuses.items() if status.run}
        self.forced = {stage_id for stage_id in self.todo if statuses[stage_id].forced}
        self.cpus = self.options.cpus or cpu_count()
        self.jobs = self.options.jobs or self.cpus
        self.free_cpus, self.free_gpus = self.cpus, list(self.options.gpus)
        self.estimator = Costs(plan, state.records(work, statuses))
        # Stage id -> estimated seconds of the stage, and of the longest chain that starts with it.
        self.seconds = self.estimator.estimates(plan.stages[i] for i in self.todo)
        self.chain_seconds = chain_costs(plan, self.todo, self.seconds)
        self.done = {stage_id for stage_id, status in statuses.items() if status.done}
        # Stage id -> its upstream stages that have not finished.
        self.unfinished_inputs = {
            i: {upstream for upstream in plan.stages[i].needs.values() if upstream in self.todo}
            for i in self.todo
        }
        self.consumers = plan.consumers()
        self.running: dict[str, _Child] = {}
        # Stages that another process runs -> time.monotonic() of the next check.
        self.elsewhere: dict[str, float] = {}
        self.watch = Watch(work)
        self.failed_attempts: dict[str, int] = {}
        self.outcome = Outcome()
        self.signal = 0
        self.git = ""
        self.run_token = uuid.uuid4().hex[:16]
        self.server = ForkServer(self.options.preload, lambda: bool(self.signal), self.view.refresh)

    # --- the loop ---

    def run(self) -> Outcome:
        """Runs until no other stage can run, or until a signal stops the run.

        Raises:
            KdepError: the work dir is not writable, the fork server cannot start, or a student's
                network does not fit its config.
        """
        if not self.todo:
            return self.outcome
        self._prepare_work_dir()
        self.git = git_revision()
        with self._recorded_signals():
            self.view.begin(len(self.todo), self.eta)
            try:
                seconds = self.server.start()
                if seconds is not None:
                    self.view.note(f"toolkits imported in {seconds:.1f} s")
                    stages = (self.plan.stages[i] for i in sorted(self.todo))
                    check_students(self.server, stages, lambda: bool(self.signal))
                while (self.todo or self.running) and not self.signal:
                    self._start_ready()
                    if not self.running and not self.elsewhere:
                        break
                    self._wait()
            finally:
                self._stop_all()
                self.outcome.unfinished = sorted(self.todo)
                self.outcome.signal = self.signal
                self.view.end()
        return self.outcome

    def _prepare_work_dir(self) -> None:
        try:
            real_folder(self.work / LOCKS)
        except OSError as e:
            if isinstance(e, NotADirectoryError | FileExistsError):
                raise KdepError(
                    f"the work dir {self.work} is a file, or is below a file",
                    expected="a folder, or a path that does not exist yet",
                    fix="choose another with --work-dir",
                ) from None
            raise KdepError(
                f"the work dir {self.work} cannot be created or written ({e.strerror})",
                fix="choose another with --work-dir, or correct the permissions",
            ) from None

    def eta(self) -> float:
        """Estimated seconds until the end.

        This is the larger of two lower bounds: the longest chain of stages, and the core-seconds of
        all stages divided by the number of cores.
        """
        now = time.monotonic()
        remaining = dict(self.seconds)
        for stage_id, child in self.running.items():
            remaining[stage_id] = max(0.0, self.seconds[stage_id] - (now - child.started))
        ids = [*self.todo, *self.running]
        core_seconds = sum(remaining[i] * self._cores_for(self.plan.stages[i]) for i in ids)
        chains = (self.chain_seconds[i] - self.seconds[i] + remaining[i] for i in ids)
        return max(core_seconds / self.cpus, max(chains, default=0.0))

    @contextlib.contextmanager
    def _recorded_signals(self) -> Any:
        """Records SIGINT, SIGTERM and SIGHUP in `self.signal` (main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, _: Any) -> None:
            self.signal = self.signal or number

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        old_handlers = {number: signal.signal(number, on_signal) for number in numbers}
        # `connection.wait` continues to wait after a signal handler (PEP 475); a byte in this
        # pipe ends the wait.
        self._wake_reader, wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(wake_writer, False)
        old_fd = signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            os.close(self._wake_reader)
            os.close(wake_writer)

    # --- starting ---

    def _cores_for(self, stage: Stage) -> int:
        """Cores that the stage gets."""
        cores = stage.cpus * stage.processes or self.cpus
        if gpus := min(stage.gpus, len(self.options.gpus)):
            # One core cannot decode images fast enough for a GPU. So each GPU gets an equal number
            # of cores, and one core remains for other stages.
            cores = max(cores, (self.cpus - 1) * gpus // len(self.options.gpus))
        return min(cores, self.cpus)

    def _start_ready(self) -> None:
        """Starts stages whose upstream stages are done, longest chain first.

        If there are too few free cores or GPUs for a stage, the stages after it do not start
        either. Otherwise small stages could delay a large stage forever.
        """
        ready = [i for i in self.todo if not self.unfinished_inputs[i] and i not in self.elsewhere]
        for stage_id in sorted(ready, key=lambda i: (-self.chain_seconds[i], i)):
            stage = self.plan.stages[stage_id]
            gpus = min(stage.gpus, len(self.options.gpus))
            if (
                len(self.running) >= self.jobs
                or self._cores_for(stage) > self.free_cpus
                or gpus > len(self.free_gpus)
                or self.signal
            ):
                return
            self._start(stage, tuple(self.free_gpus.pop(0) for _ in range(gpus)))

    def _start(self, stage: Stage, gpus: tuple[str, ...]) -> None:
        """Starts a process for the stage, or postpones the stage if another process runs it."""
        if self.watch.held(stage.id):
            self.free_gpus.extend(gpus)
            self._postpone(stage)
            return
        cpus = self._cores_for(stage)
        # One process per GPU, if the stage gets GPUs; the processes share the cores equally.
        processes = len(gpus) if gpus else stage.processes
        resized = replace(stage, cpus=max(1, cpus // processes), processes=processes)
        forced = stage.id in self.forced
        request = stage_process.StageRequest(
            resized, self.work, forced, gpus, self.git, self.run_token
        )
        process, reader = self.server.launch(worker.main, request, stage.id)
        self.running[stage.id] = _Child(stage, process, reader, time.monotonic(), gpus)
        self.todo.discard(stage.id)
        self.free_cpus -= cpus
        self.view.started(stage)

    def _postpone(self, stage: Stage) -> None:
        """Notes that another process runs the stage; it is checked again later."""
        if stage.id not in self.elsewhere:
            self.view.elsewhere(stage, StageLock(self.work, stage.id).owner())
        self.elsewhere[stage.id] = time.monotonic() + _ELSEWHERE_POLL

    # --- watching ---

    def _wait(self) -> None:
        """Waits for an event of a child (at most _POLL seconds) and handles what has happened."""
        sentinels: dict[Any, str] = {c.process.sentinel: i for i, c in self.running.items()}
        pipes = {c.pipe: i for i, c in self.running.items() if not c.pipe.closed}
        wake_up_pipes = [self._wake_reader] if hasattr(self, "_wake_reader") else []
        ready = connection.wait([*sentinels, *pipes, *wake_up_pipes], timeout=_POLL)
        for source in ready:
            if source in pipes:
                self._read_progress(self.running[pipes[source]])
        for source in ready:
            if isinstance(source, int) and source in sentinels:
                self._finish(self.running[sentinels[source]])
        now = time.monotonic()
        for child in list(self.running.values()):
            if now - child.started > child.stage.timeout:
                child.is_timed_out = True
                self._kill([child])
                self._finish(child)
        for stage_id, check_at in list(self.elsewhere.items()):
            if now >= check_at:
                self._check_elsewhere(self.plan.stages[stage_id])
        self.view.refresh()

    def _read_progress(self, child: _Child) -> None:
        """Reads the lines in the child's pipe: progress as a list, an error as a string."""
        try:
            piece = os.read(child.pipe.fileno(), 65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            child.pipe.close()
            return
        *lines, child.incomplete_line = (child.incomplete_line + piece).split(b"\n")
        latest = None
        for line in lines:
            message = json.loads(line)
            if isinstance(message, str):
                child.reported_error = message
            else:
                latest = message
        if latest is not None:
            self.view.progress(child.stage, *latest)

    def _finish(self, child: _Child) -> None:
        """Handles a child that has ended; the stage succeeded only if its stage.json is valid."""
        child.process.join(GRACE)
        code = child.process.exitcode
        with contextlib.suppress(OSError):  # processes of the stage may still be running
            os.killpg(child.process.pid, signal.SIGKILL)
        if not child.pipe.closed:
            self._read_progress(child)
            child.pipe.close()
        stage = child.stage
        del self.running[stage.id]
        self.free_cpus += self._cores_for(stage)
        self.free_gpus.extend(child.gpus)
        if code == worker.BUSY:
            self.todo.add(stage.id)
            self._postpone(stage)
            return
        record, fault = state.finished(stage, self.work)
        if record is not None and not child.is_timed_out and code == worker.DONE:
            self._succeed(stage, record)
        else:
            self._fail(child, code, fault)

    def _succeed(self, stage: Stage, record: dict[str, Any]) -> None:
        ran_here = record.get("run") == self.run_token
        (self.outcome.ran if ran_here else self.outcome.elsewhere).append(stage.id)
        self.todo.discard(stage.id)
        self.done.add(stage.id)
        for consumer in self.consumers[stage.id]:
            if consumer in self.unfinished_inputs:
                self.unfinished_inputs[consumer].discard(stage.id)
        self._update_estimates(stage, record)
        self.view.finished(stage, record, len(self.todo) + len(self.running))

    def _update_estimates(self, stage: Stage, record: dict[str, Any]) -> None:
        """Updates the estimated seconds of unfinished stages after `stage` has finished."""
        self.estimator.learn(record)
        unfinished = self.todo | set(self.running)
        affected = (self.plan.stages[i] for i in unfinished)
        # The outputs of `prepare` and `views` change the estimates of all kinds of stages.
        if stage.kind not in ("prepare", "views"):
            affected = (s for s in affected if s.kind == stage.kind)
        estimates = self.estimator.estimates(affected)
        # Small changes are ignored, because the chains of all stages would be computed again.
        has_changed = (
            abs(new - self.seconds[i]) > 0.05 * self.seconds[i] for i, new in estimates.items()
        )
        if any(has_changed):
            self.seconds.update(estimates)
            self.chain_seconds = chain_costs(self.plan, unfinished, self.seconds)

    def _fail(self, child: _Child, code: int | None, fault: str | None) -> None:
        """Handles a child without a valid result: retries the stage, or skips its dependents.

        Args:
            child: the child.
            code: its exit code.
            fault: what is wrong with its stage.json, as a clause; None if nothing is wrong.
        """
        stage = child.stage
        out = state.folder(self.work, stage)
        failure = state.failure(out)
        reported: str | None = child.reported_error or (failure["error"] if failure else None)
        if reported and not child.is_timed_out:
            sentence = reported
        else:
            sentence = self._cause(child, code, fault)
        if self.signal:  # the run was stopped; the stage did not fail by itself
            self.todo.add(stage.id)
            return
        if not failure or failure["error"] != sentence:
            stage_process.note_failure(out, sentence, stage)
        n_failed = self.failed_attempts.get(stage.id, 0) + 1
        self.failed_attempts[stage.id] = n_failed
        if n_failed <= self.options.retry:
            self.todo.add(stage.id)
            self.view.retrying(stage, sentence, n_failed, self.options.retry)
            return
        self.outcome.failed[stage.id] = sentence
        self.view.failed(stage, sentence, out / state.LOG)
        for stage_id in sorted(self.plan.downstream([stage.id]) - {stage.id}):
            if stage_id in self.todo:
                self.todo.discard(stage_id)
                self.elsewhere.pop(stage_id, None)
                self.outcome.skipped[stage_id] = f"skipped, because {stage.id} failed"
        if self.options.fail_fast:
            for stage_id in sorted(self.todo):
                self.outcome.skipped[stage_id] = (
                    f"not started, because {stage.id} failed (--fail-fast)"
                )
            self.todo.clear()
            self.elsewhere.clear()

    def _cause(self, child: _Child, code: int | None, fault: str | None) -> str:
        """Error message for a child that reported none itself."""
        fix = f"read its {state.LOG}"
        if child.is_timed_out:
            stage = child.stage
            problem = f"the stage was stopped after its time limit of {stage.timeout:g} s"
            fix += f"; if it was not stuck, raise runtime.timeout['{stage.kind}']"
        elif code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            problem = f"the stage was killed by {name}"
            if -code == signal.SIGKILL:
                fix = "if the machine ran out of memory, run fewer stages at once (--jobs)"
        elif code == worker.STOPPED:
            problem = "the stage was stopped by a SIGTERM from another process"
        elif fault:
            problem = f"the stage ended, but {fault}"
        else:
            problem = f"the stage ended with exit code {code} and no result"
        return str(KdepError(problem, fix=fix))

    def _check_elsewhere(self, stage: Stage) -> None:
        """Takes the result of a stage that another process ran, once its lock is free."""
        if self.watch.held(stage.id):
            self.elsewhere[stage.id] = time.monotonic() + _ELSEWHERE_POLL
            return
        del self.elsewhere[stage.id]
        self.forced.discard(stage.id)  # the other process has run it since this run began
        record, _ = state.finished(stage, self.work)
        if record is not None:
            self._succeed(stage, record)

    # --- stopping ---

    def _kill(self, children: list[_Child]) -> None:
        """Sends SIGTERM to the process groups, and SIGKILL after GRACE seconds."""
        for child in children:
            _signal_group(child.process.pid, signal.SIGTERM)
        end = time.monotonic() + GRACE
        for child in children:
            child.process.join(max(0.0, end - time.monotonic()))
            _signal_group(child.process.pid, signal.SIGKILL)
            child.process.join(GRACE)

    def _stop_all(self) -> None:
        children = list(self.running.values())
        if children:
            self.view.note(f"stopping {len(children)} running stage(s)")
        self._kill(children)
        for child in children:
            record, _ = state.finished(child.stage, self.work)
            child.pipe.close()
            del self.running[child.stage.id]
            if record is not None:  # it finished meanwhile
                self._succeed(child.stage, record)
            else:
                self.todo.add(child.stage.id)


def _signal_group(pid: int | None, number: int) -> None:
    if pid is None:
        return
    # Until the child calls setsid, it is in the fork server's process group, which must not get
    # the signal.
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def run_plan(
    plan: Plan,
    work: Path,
    statuses: Mapping[str, state.Status],
    options: PoolOptions | None = None,
    view: View | None = None,
) -> Outcome:
    """Runs the stages that must run according to `statuses` (from `state.statuses`); see `Pool`."""
    return Pool(plan, work, statuses, options, view).run()


__all__ = ["Outcome", "Pool", "PoolOptions", "run_plan", "select_stages"]
