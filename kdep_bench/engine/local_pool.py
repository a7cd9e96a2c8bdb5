"""The local pool: one process per stage on the cores and GPUs of this machine.

The stage with the longest chain of dependents starts first. Stages are forks of a server that has
imported the toolkits; it starts only when a stage must run. Process sentinels report the end of
children. All state is in the stage directories: the pool can be killed at any time.
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
from kdep_bench.errors import KdepError
from kdep_bench.forecast.costs import Costs
from kdep_bench.safe_files import real_folder
from kdep_bench.suite.graph import Plan, Stage

PRELOAD = "kdep_bench.engine.preload"
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_POLL = 0.25
_ELSEWHERE_POLL = 1.0


@dataclass(frozen=True)
class PoolOptions:
    """Options of a run in the local pool.

    Attributes:
        jobs: most stages at once; None = as many as the cores allow.
        cpus: cores for all stages together; None = those this process may use.
        gpus: device numbers for all stages together.
        fail_fast: start nothing more after the first failure.
        retry: number of retries of a failed stage.
        preload: module the fork server imports first.
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
        ran: finished by this run.
        elsewhere: finished by another process meanwhile.
        failed: stage id -> error.
        skipped: stage id -> reason.
        left: not finished, because the run was stopped.
        signal: number of the signal that stopped the run, or 0.
    """

    ran: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    signal: int = 0

    @property
    def ok(self) -> bool:
        return not (self.failed or self.skipped or self.left or self.signal)


@dataclass
class _Running:
    stage: Stage
    process: Any
    pipe: Any
    started: float
    gpus: tuple[str, ...]
    pending: bytes = b""
    timed_out: bool = False
    reported_error: str | None = None


def chain_costs(plan: Plan, ids: set[str], cost: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the longest chain of dependent stages that starts at each of `ids`."""
    consumers, out = plan.consumers(), dict[str, float]()
    for stage_id in reversed(plan.stages):
        if stage_id in ids:
            following = (out[c] for c in consumers[stage_id] if c in out)
            out[stage_id] = cost[stage_id] + max(following, default=0.0)
    return out


class Pool:
    """Runs the stages of `plan` that must run according to `known`, in the work dir `work`."""

    def __init__(
        self,
        plan: Plan,
        work: Path,
        known: Mapping[str, state.Status],
        options: PoolOptions | None = None,
        view: View | None = None,
    ) -> None:
        self.options = options or PoolOptions()
        self.plan, self.work, self.view = plan, work, view or Silent()
        self.todo = {i for i, s in known.items() if s.run}
        self.forced = {i for i in self.todo if known[i].forced}
        self.cpus = self.options.cpus or cpu_count()
        self.jobs = self.options.jobs or self.cpus
        self.free_cpus, self.free_gpus = self.cpus, list(self.options.gpus)
        self.costs = Costs(plan, state.records(work, known))
        self.cost = self.costs.estimates(plan.stages[i] for i in self.todo)
        self.chain = chain_costs(plan, self.todo, self.cost)
        self.done = {i for i, s in known.items() if s.done}
        self.waits = {
            i: {u for u in plan.stages[i].needs.values() if u in self.todo} for i in self.todo
        }
        self.consumers = plan.consumers()
        self.running: dict[str, _Running] = {}
        self.elsewhere: dict[str, float] = {}
        self.watch = Watch(work)
        self.tries: dict[str, int] = {}
        self.outcome = Outcome()
        self.signal = 0
        self.git = ""
        self.run_token = uuid.uuid4().hex[:16]
        self.server = ForkServer(self.options.preload, lambda: bool(self.signal), self.view.refresh)

    # --- the loop ---

    def run(self) -> Outcome:
        """Runs until no stage is left that can run.

        Raises:
            KdepError: the work dir is not writable, or the fork server cannot start.
        """
        if not self.todo:
            return self.outcome
        self._prepare_work_dir()
        self.git = git_revision()
        with self._signals():
            self.view.begin(len(self.todo), self.eta)
            try:
                seconds = self.server.start()
                if seconds is not None:
                    self.view.note(f"toolkits imported in {seconds:.1f} s")
                while (self.todo or self.running) and not self.signal:
                    self._start_ready()
                    if not self.running and not self.elsewhere:
                        break
                    self._wait()
            finally:
                self._stop_all()
                self.outcome.left = sorted(self.todo)
                self.outcome.signal = self.signal
                self.view.end()
        return self.outcome

    def _prepare_work_dir(self) -> None:
        try:
            real_folder(self.work / LOCKS)
        except OSError as e:
            raise KdepError(
                f"the work dir {self.work} is not writable ({e.strerror})",
                fix="correct its permissions, or choose another with --work-dir",
            ) from None

    def eta(self) -> float:
        """Estimated seconds left: the longest chain or all work divided by the cores."""
        now = time.monotonic()
        left = dict(self.cost)
        for stage_id, r in self.running.items():
            left[stage_id] = max(0.0, self.cost[stage_id] - (now - r.started))
        ids = [*self.todo, *self.running]
        load = sum(left[i] * self._cpus_of(self.plan.stages[i]) for i in ids) / self.cpus
        longest = max((self.chain[i] - self.cost[i] + left[i] for i in ids), default=0.0)
        return max(load, longest)

    @contextlib.contextmanager
    def _signals(self) -> Any:
        """Records SIGINT, SIGTERM and SIGHUP in `self.signal` (main thread only)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, _: Any) -> None:
            self.signal = self.signal or number

        old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        # A handler alone does not wake `connection.wait` (PEP 475): the wake-up pipe does.
        self._wake_r, wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(wake_w, False)
        old_fd = signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for s, handler in old.items():
                signal.signal(s, handler)
            os.close(self._wake_r)
            os.close(wake_w)

    # --- starting ---

    def _cpus_of(self, stage: Stage) -> int:
        cores = stage.cpus * stage.processes or self.cpus
        if gpus := min(stage.gpus, len(self.options.gpus)):
            # One core cannot decode images for a GPU: each GPU gets an equal part of the cores,
            # and one core is left for other stages.
            cores = max(cores, (self.cpus - 1) * gpus // len(self.options.gpus))
        return min(cores, self.cpus)

    def _start_ready(self) -> None:
        """Starts ready stages, longest chain first; waits where the first does not fit."""
        ready = [i for i in self.todo if not self.waits[i] and i not in self.elsewhere]
        for stage_id in sorted(ready, key=lambda i: (-self.chain[i], i)):
            stage = self.plan.stages[stage_id]
            gpus = min(stage.gpus, len(self.options.gpus))
            if (
                len(self.running) >= self.jobs
                or self._cpus_of(stage) > self.free_cpus
                or gpus > len(self.free_gpus)
                or self.signal
            ):
                return
            self._start(stage, tuple(self.free_gpus.pop(0) for _ in range(gpus)))

    def _start(self, stage: Stage, gpus: tuple[str, ...]) -> None:
        if self.watch.held(stage.id):
            self.free_gpus.extend(gpus)
            self._postpone(stage)
            return
        cpus = self._cpus_of(stage)
        # One process per GPU where there are any; the cores are divided among the processes.
        processes = len(gpus) if gpus else stage.processes
        resized = replace(stage, cpus=max(1, cpus // processes), processes=processes)
        forced = stage.id in self.forced
        request = stage_process.StageRequest(
            resized, self.work, forced, gpus, self.git, self.run_token
        )
        process, reader = self.server.launch(worker.main, request, stage.id)
        self.running[stage.id] = _Running(stage, process, reader, time.monotonic(), gpus)
        self.todo.discard(stage.id)
        self.free_cpus -= cpus
        self.view.started(stage)

    def _postpone(self, stage: Stage) -> None:
        if stage.id not in self.elsewhere:
            self.view.elsewhere(stage, StageLock(self.work, stage.id).owner())
        self.elsewhere[stage.id] = time.monotonic() + _ELSEWHERE_POLL

    # --- watching ---

    def _wait(self) -> None:
        sentinels: dict[Any, str] = {r.process.sentinel: i for i, r in self.running.items()}
        pipes = {r.pipe: i for i, r in self.running.items() if not r.pipe.closed}
        extra = [self._wake_r] if hasattr(self, "_wake_r") else []
        ready = connection.wait([*sentinels, *pipes, *extra], timeout=_POLL)
        for thing in ready:
            if thing in pipes:
                self._read_progress(self.running[pipes[thing]])
        for thing in ready:
            if isinstance(thing, int) and thing in sentinels:
                self._finish(self.running[sentinels[thing]])
        now = time.monotonic()
        for r in list(self.running.values()):
            if now - r.started > r.stage.timeout:
                r.timed_out = True
                self._kill([r])
                self._finish(r)
        for stage_id, when in list(self.elsewhere.items()):
            if now >= when:
                self._look_elsewhere(self.plan.stages[stage_id])
        self.view.refresh()

    def _read_progress(self, r: _Running) -> None:
        try:
            piece = os.read(r.pipe.fileno(), 65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            r.pipe.close()
            return
        *lines, r.pending = (r.pending + piece).split(b"\n")
        latest = None
        for line in lines:
            message = json.loads(line)
            if isinstance(message, str):
                r.reported_error = message
            else:
                latest = message
        if latest is not None:
            self.view.progress(r.stage, *latest)

    def _finish(self, r: _Running) -> None:
        """Handles a child that has ended; it succeeded only if stage.json is valid."""
        r.process.join(GRACE)
        code = r.process.exitcode
        with contextlib.suppress(OSError):  # end what the stage may have left running
            os.killpg(r.process.pid, signal.SIGKILL)
        if not r.pipe.closed:
            self._read_progress(r)
            r.pipe.close()
        del self.running[r.stage.id]
        self.free_cpus += self._cpus_of(r.stage)
        self.free_gpus.extend(r.gpus)
        if code == worker.BUSY:
            self.todo.add(r.stage.id)
            self._postpone(r.stage)
            return
        record, fault = state.finished(r.stage, self.work)
        if record is not None and not r.timed_out and code == worker.DONE:
            self._succeed(r.stage, record)
        else:
            self._fail(r, code, fault)

    def _succeed(self, stage: Stage, record: dict[str, Any]) -> None:
        ran_here = record.get("run") == self.run_token
        (self.outcome.ran if ran_here else self.outcome.elsewhere).append(stage.id)
        self.todo.discard(stage.id)
        self.done.add(stage.id)
        for consumer in self.consumers[stage.id]:
            if consumer in self.waits:
                self.waits[consumer].discard(stage.id)
        self._learn(stage, record)
        self.view.finished(stage, record, len(self.todo) + len(self.running))

    def _learn(self, stage: Stage, record: dict[str, Any]) -> None:
        """Updates the estimates of the stages that are still to run."""
        self.costs.learn(record)
        unfinished = self.todo | set(self.running)
        similar = (self.plan.stages[i] for i in unfinished)
        if stage.kind not in ("prepare", "views"):  # their outputs determine the work of all others
            similar = (s for s in similar if s.kind == stage.kind)
        estimates = self.costs.estimates(similar)
        if any(abs(cost - self.cost[i]) > 0.05 * self.cost[i] for i, cost in estimates.items()):
            self.cost.update(estimates)
            self.chain = chain_costs(self.plan, unfinished, self.cost)

    def _fail(self, r: _Running, code: int | None, fault: str | None) -> None:
        stage = r.stage
        out = state.folder(self.work, stage)
        failure = state.failure(out)
        reported: str | None = r.reported_error or (failure["error"] if failure else None)
        sentence = reported if reported and not r.timed_out else self._cause(r, code, fault)
        if self.signal:  # it was stopped and did not fail
            self.todo.add(stage.id)
            return
        if not failure or failure["error"] != sentence:
            stage_process.note_failure(out, sentence, stage)
        self.tries[stage.id] = self.tries.get(stage.id, 0) + 1
        if self.tries[stage.id] <= self.options.retry:
            self.todo.add(stage.id)
            self.view.retrying(stage, sentence, self.tries[stage.id], self.options.retry)
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

    def _cause(self, r: _Running, code: int | None, fault: str | None) -> str:
        subject, log = "the stage", f"read its {state.LOG}"
        if r.timed_out:
            return str(
                KdepError(
                    f"{subject} was stopped after its time limit of {r.stage.timeout:g} s",
                    fix=f"{log}; if it was not stuck, raise runtime.timeout['{r.stage.kind}']",
                )
            )
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            hint = (
                "if the machine ran out of memory, run fewer stages at once (--jobs)"
                if -code == signal.SIGKILL
                else log
            )
            return str(KdepError(f"{subject} was killed by {name}", fix=hint))
        if code == worker.STOPPED:
            return str(
                KdepError(f"{subject} was stopped by a SIGTERM from another process", fix=log)
            )
        if fault:
            return str(KdepError(f"{subject} ended, but {fault}", fix=log))
        return str(KdepError(f"{subject} ended with exit code {code} and no result", fix=log))

    def _look_elsewhere(self, stage: Stage) -> None:
        """Takes the result of a stage that another process ran, once its lock is free."""
        if self.watch.held(stage.id):
            self.elsewhere[stage.id] = time.monotonic() + _ELSEWHERE_POLL
            return
        del self.elsewhere[stage.id]
        self.forced.discard(stage.id)
        record, _ = state.finished(stage, self.work)
        if record is not None:
            self._succeed(stage, record)

    # --- stopping ---

    def _kill(self, processes: list[_Running]) -> None:
        """Sends SIGTERM to the process groups, and SIGKILL after GRACE seconds."""
        for r in processes:
            _signal_group(r.process.pid, signal.SIGTERM)
        end = time.monotonic() + GRACE
        for r in processes:
            r.process.join(max(0.0, end - time.monotonic()))
            _signal_group(r.process.pid, signal.SIGKILL)
            r.process.join(GRACE)

    def _stop_all(self) -> None:
        running = list(self.running.values())
        if running:
            self.view.note(f"stopping {len(running)} running stage(s)")
        self._kill(running)
        for r in running:
            record, _ = state.finished(r.stage, self.work)
            r.pipe.close()
            del self.running[r.stage.id]
            if record is not None:  # it finished meanwhile
                self._succeed(r.stage, record)
            else:
                self.todo.add(r.stage.id)


def _signal_group(pid: int | None, number: int) -> None:
    if pid is None:
        return
    # Before its setsid the child is still in the fork server's group: signal the process alone.
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def run_plan(
    plan: Plan,
    work: Path,
    known: Mapping[str, state.Status],
    options: PoolOptions | None = None,
    view: View | None = None,
) -> Outcome:
    """Runs the stages that must run according to `known` (from `state.statuses`); see `Pool`."""
    return Pool(plan, work, known, options, view).run()


__all__ = ["Outcome", "Pool", "PoolOptions", "run_plan", "select_stages"]
