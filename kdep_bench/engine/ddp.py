"""One stage as several processes (DDP): torchrun, under srun where it spans several nodes.

A stage that has the toolkits in memory, as those of the local pool have, starts torchrun's agent
and the ranks as forks of itself: none imports anything again.

The stage's own process holds its lock, launches, and alone writes stage.json; every rank calls the
stage function with the same spec, inputs and directory, and the outputs are rank 0's. What the two
sides tell each other lies in `<stage>/.ddp/` and is gone when they are done.

`python -m kdep_bench.engine.ddp node DIR` is what srun starts on each node, `... rank DIR` what
torchrun as a command starts for each process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kdep_bench.allocator import keep_freed_memory
from kdep_bench.devices import check_gpus
from kdep_bench.engine import environment, stage_process
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, write_json
from kdep_bench.paths import ROOT
from kdep_bench.suite.graph import Stage
from kdep_bench.suite.kinds import KINDS
from kdep_bench.suite.schema import Suite

DDP_DIR = ".ddp"
_REQUEST, _OUTPUTS, _FAULT, _PROGRESS = "order.json", "outputs.json", "fault.json", "progress.json"
# Seconds the launcher may outlive a rank's fault. srun waits for the tasks of a lost node: longer
# than Slurm's default SlurmdTimeout (300), so that Slurm finds the loss and requeues the job.
_LINGER = 600.0
# Outside Linux's ephemeral range (32768 on) and what services commonly use: torchrun's default
# 29500 collides as soon as two jobs share a node.
_PORTS = range(20000, 32000)
# What torchrun tells its processes (torch.distributed.run), beside TORCHELASTIC_*.
_TORCHRUN = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE"),
        *("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    )
)


def leave_launcher() -> tuple[int, int]:
    """(rank, processes a node) of the torchrun that started this process; (0, 1) without one.

    Takes torchrun's variables out of the environment. A stage that inherited them would wait for a
    rank that runs another stage, or, worse, train together with it.

    Raises:
        KdepError: a torchrun over several nodes.
    """
    variables = {
        k: v for k, v in os.environ.items() if k in _TORCHRUN or k.startswith("TORCHELASTIC_")
    }
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return 0, 1
    if int(variables.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise KdepError(
            f"this command was started by torchrun on {variables['GROUP_WORLD_SIZE']} nodes",
            fix="start it without torchrun, with --executor slurm; set runtime.nodes in the suite "
            "for stages on several nodes",
        )
    for key in variables:
        del os.environ[key]
    return int(variables["RANK"]), int(variables.get("LOCAL_WORLD_SIZE", variables["WORLD_SIZE"]))


def spread(suite: Suite, processes: int) -> Suite:
    """The suite with so many processes, and GPUs where there are any, for each stage that can.

    What the suite itself says of a kind of stage stands.
    """
    if processes == 1:
        return suite
    kinds = [name for name, kind in KINDS.items() if kind.ddp]
    changes = {}
    for setting in ("processes", "gpus"):
        explicit = getattr(suite.runtime, setting)
        changes[setting] = {k: processes for k in kinds if k not in suite.runtime.gpus} | explicit
    parts = [spread(v, processes) for v in suite.variants]
    runtime = suite.runtime.model_copy(update=changes)
    return suite.model_copy(update={"runtime": runtime, "variants": parts})


def shape(stage: Stage) -> tuple[int, int]:
    """(nodes, processes a node) the stage runs as here: several nodes only in a Slurm job."""
    return (stage.nodes if "SLURM_JOB_ID" in os.environ else 1), stage.processes


def launch(
    request: stage_process.StageRequest,
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs the stage function in all ranks.

    Returns:
        The outputs of rank 0, and what each rank used: {device, cpu_s, peak_rss in bytes;
        peak_gpu in bytes where it used a GPU}.

    Raises:
        KdepError: a rank failed (the first one's sentence), vanished or was stopped.
    """
    nodes, processes = shape(request.stage)
    ddp_dir = out / DDP_DIR
    shutil.rmtree(ddp_dir, ignore_errors=True)
    ddp_dir.mkdir()
    stage = asdict(request.stage) | {
        "nodes": nodes,
        "source_paths": list(request.stage.source_paths),
    }
    paths = {role: str(path) for role, path in inputs.items()}
    request_file = {"stage": stage, "inputs": paths, "out": str(out), "sys_path": sys.path}
    write_json(ddp_dir / _REQUEST, request_file)
    if nodes == 1 and "torch" in sys.modules:
        code = _watch(lambda: _Fork(_agent, ddp_dir, processes), ddp_dir, progress)
    else:
        command = _command(ddp_dir, nodes, processes, request.stage.cpus)
        code = _watch(lambda: _popen(command), ddp_dir, progress)
    fault, ranks = _read(ddp_dir / _FAULT), sorted(ddp_dir.glob("rank-*.json"))
    if code or fault or len(ranks) != nodes * processes:
        reason = fault["error"] if fault else f"a process ended with exit code {code}"
        raise KdepError(
            f"only {len(ranks)} of the stage's {nodes * processes} processes finished: {reason}",
            fix="read its stage.log",
        )
    results = read_strict(ddp_dir / _OUTPUTS), [read_strict(r) for r in ranks]
    shutil.rmtree(ddp_dir)
    return results


def _command(ddp_dir: Path, nodes: int, processes: int, cpus: int) -> list[str]:
    module_command = [sys.executable, "-m", "kdep_bench.engine.ddp"]
    if nodes == 1:
        return _torchrun(ddp_dir, processes, "--standalone")
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cpus * processes}",
        "--kill-on-bad-exit=1",
        *module_command,
        "node",
        str(ddp_dir),
    ]


def _torchrun(ddp_dir: Path, processes: int, *rendezvous: str) -> list[str]:
    # No restarts: what broke is told at once, and a rerun resumes where the function can.
    return [
        *(sys.executable, "-m", "torch.distributed.run", *rendezvous, "--max-restarts=0"),
        *(f"--nproc-per-node={processes}", "-m", "kdep_bench.engine.ddp", "rank", str(ddp_dir)),
    ]


class _Fork:
    """`body(*args)` in a fork of this process, with what `_watch` asks of a Popen."""

    def __init__(self, body: Callable[..., None], *args: Any) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=body, args=args)
        # Arriving before the fork has left this process's stack, a signal would unwind its copy.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _popen(command: list[str]) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        command,
        env=_environment(),
        # Ranks without the process that holds the lock would write beside its successor's.
        preexec_fn=lambda: libc.prctl(stage_process.PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def _environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path}


def _watch(
    start: Callable[[], _Fork | subprocess.Popen[bytes]],
    ddp_dir: Path,
    progress: Callable[..., None],
) -> int:
    child = start()
    latest, fault = None, float("inf")
    try:
        while time.monotonic() < fault + _LINGER:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.5)
            if (ddp_dir / _FAULT).exists():
                fault = min(fault, time.monotonic())
            message = _read(ddp_dir / _PROGRESS)
            if message is not None and message != latest:
                latest = message
                progress(*message)
        return stage_process.FAULT
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(stage_process.ORPHAN_GRACE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _read(path: Path) -> Any:
    return read_strict(path) if path.exists() else None


def node(ddp_dir: Path) -> None:
    """One torchrun agent; the rendezvous is known here, in the srun task, and nowhere before."""
    request = read_strict(ddp_dir / _REQUEST)
    hosts = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    )
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])
    port = _PORTS[(job * 31 + step) % len(_PORTS)]
    command = _torchrun(
        ddp_dir,
        request["stage"]["processes"],
        f"--nnodes={os.environ['SLURM_STEP_NUM_NODES']}",
        f"--node-rank={os.environ['SLURM_NODEID']}",
        f"--master-addr={hosts.stdout.split()[0]}",
        f"--master-port={port}",
    )
    os.execv(command[0], command)


def _agent(ddp_dir: Path, processes: int) -> None:
    """torchrun's agent of a single node, its ranks forked from here."""
    _end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Where NVML is absent the stage has asked the CUDA driver for GPUs, which no fork can use then.
    if sys.modules["torch"].cuda._is_in_bad_fork():
        command = _torchrun(ddp_dir, processes, "--standalone")
        os.execve(command[0], command, _environment())
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        # As --standalone: a store of its own on a free port.
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
        signals_to_handle="SIGTERM",
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    try:
        elastic_launch(config, rank)(ddp_dir)
    except ChildFailedError as e:
        print(e, file=sys.stderr)
        sys.exit(stage_process.FAULT)


def _end_with_parent() -> None:
    """Lets this process die with the one that started it, and of SIGTERM."""
    ctypes.CDLL(None).prctl(stage_process.PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it was gone before the line above
        os._exit(stage_process.FAULT)
    # At once: a handler would not run while a rank waits in a collective.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def rank(ddp_dir: Path) -> None:
    """One process of the stage."""
    _end_with_parent()
    request = read_strict(ddp_dir / _REQUEST)
    # A fork server's environment is that of its start: what this stage can import, its ranks can.
    sys.path.extend(p for p in request["sys_path"] if p not in sys.path)
    stage, rank_number = request["stage"], int(os.environ["RANK"])
    try:
        stage_process.set_threads(stage["cpus"])
        keep_freed_memory()
        function = stage_process.locate(stage["function"])
        check_gpus([g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g])
        inputs = {role: Path(path) for role, path in request["inputs"].items()}
        progress = _ProgressFile(ddp_dir / _PROGRESS) if rank_number == 0 else _quiet
        outputs = function(stage["spec"], inputs, Path(request["out"]), progress)
        if rank_number == 0:
            stage_process.check_outputs(Stage(**stage), outputs)
            write_json(ddp_dir / _OUTPUTS, outputs)
    except BaseException as e:
        _write_fault(ddp_dir, f"rank {rank_number}: {stage_process.sentence_of(e)}")
        traceback.print_exc()
        sys.exit(stage_process.FAULT)
    used = resource.getrusage(resource.RUSAGE_SELF)
    write_json(
        ddp_dir / f"rank-{rank_number:05d}.json",
        {
            "device": environment.device(),
            "cpu_s": used.ru_utime + used.ru_stime,
            "peak_rss": used.ru_maxrss * 1024,
            **environment.peak_gpu(),
        },
    )


class _ProgressFile:
    """`progress` of rank 0, at most every second."""

    def __init__(self, path: Path) -> None:
        self.path, self._next = path, 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1
            write_json(self.path, [int(done), int(total), str(note)[:200]])


def _quiet(done: int, total: int, note: str = "") -> None:
    pass


def _write_fault(ddp_dir: Path, sentence: str) -> None:
    """The first rank's word counts: what the others say is mostly that they lost the first."""
    with contextlib.suppress(FileExistsError, FileNotFoundError), open(ddp_dir / _FAULT, "x") as f:
        f.write(json.dumps({"error": sentence}))


if __name__ == "__main__":
    {"node": node, "rank": rank}[sys.argv[1]](Path(sys.argv[2]))
