"""Runs one stage as several processes (DDP) with torchrun, and with srun on several nodes.

The stage process holds the lock, launches the ranks, and is the only process that writes
stage.json. Every rank calls the stage function with the same spec, inputs and directory; the
outputs of rank 0 are those of the stage. The processes exchange files in `<stage>/.ddp/`, which is
removed at the end.

Without Slurm, the stage process has already imported the toolkits. It forks torchrun's agent and
the ranks, which therefore need not import them again. Otherwise torchrun is started as a command,
which runs `python -m kdep_bench.engine.ddp rank DIR` for each process; on several nodes srun first
runs `python -m kdep_bench.engine.ddp node DIR` on each node.
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
# Files in DDP_DIR.
_REQUEST, _OUTPUTS = "request.json", "outputs.json"
_FAULT, _PROGRESS = "fault.json", "progress.json"
# Seconds that the launcher may continue after a rank failed. Longer than Slurm's default
# SlurmdTimeout (300 s): if a node is lost, srun waits until Slurm notices and requeues the job.
_LINGER = 600.0
# Ports outside Linux's ephemeral range (from 32768) and the common service ports. With torchrun's
# default 29500 for all, two jobs on one node would collide.
_PORTS = range(20000, 32000)
# Variables that torchrun sets for its processes (torch.distributed.run), with TORCHELASTIC_*.
_TORCHRUN = frozenset(
    (
        *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE"),
        *("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    )
)


def leave_launcher() -> tuple[int, int]:
    """Removes torchrun's variables from the environment, so that stages do not inherit them.

    torchrun started each of its processes for other stages. A stage with its variables would take
    all these processes for its own ranks.

    Returns:
        (rank, processes per node) of the torchrun that started this process; (0, 1) if none did.

    Raises:
        KdepError: torchrun started this program on several nodes.
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
    """The suite with `processes` processes and GPUs per stage, for stage kinds that support DDP.

    Values that the suite sets itself are not changed. If it sets the number of GPUs of a stage
    kind, the number of processes of this kind is not changed either.
    """
    if processes == 1:
        return suite
    kinds = [name for name, kind in KINDS.items() if kind.ddp]
    changes = {}
    for setting in ("processes", "gpus"):
        explicit = getattr(suite.runtime, setting)
        changes[setting] = {k: processes for k in kinds if k not in suite.runtime.gpus} | explicit
    variants = [spread(v, processes) for v in suite.variants]
    runtime = suite.runtime.model_copy(update=changes)
    return suite.model_copy(update={"runtime": runtime, "variants": variants})


def shape(stage: Stage) -> tuple[int, int]:
    """(nodes, processes per node) of the stage; outside a Slurm job there is one node."""
    return (stage.nodes if "SLURM_JOB_ID" in os.environ else 1), stage.processes


def launch(
    request: stage_process.StageRequest,
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs the stage function in all ranks.

    Args:
        request: the stage and its resources.
        inputs: role -> directory of the upstream stage.
        out: the stage's directory.
        progress: receives the progress of rank 0.

    Returns:
        the outputs of rank 0, and the usage of each rank: {device, cpu_s, peak_rss in bytes;
        peak_gpu in bytes if it used a GPU}.

    Raises:
        KdepError: a rank failed (with the error of the first one), disappeared or was stopped.
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
            fix="read the log of the stage, stage.log",
        )
    results = read_strict(ddp_dir / _OUTPUTS), [read_strict(r) for r in ranks]
    shutil.rmtree(ddp_dir)
    return results


def _command(ddp_dir: Path, nodes: int, processes: int, cpus: int) -> list[str]:
    """Command that starts all ranks: torchrun, or srun on several nodes."""
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
    # No restarts by torchrun: a failure is reported at once, and a rerun of the suite resumes.
    return [
        *(sys.executable, "-m", "torch.distributed.run", *rendezvous, "--max-restarts=0"),
        *(f"--nproc-per-node={processes}", "-m", "kdep_bench.engine.ddp", "rank", str(ddp_dir)),
    ]


class _Fork:
    """A fork of this process that runs `body(*args)`, with the methods of Popen that `_watch` uses.

    `poll` and `wait` return the exit code.
    """

    def __init__(self, body: Callable[..., None], *args: Any) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=body, args=args)
        # SIGTERM is blocked until `body` runs: before that, the child has a copy of this process's
        # handler, which would raise an exception in the child.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)

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
        # If the process with the lock dies, its ranks must not write while another process reruns
        # the stage.
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
    """Starts the launcher and passes on the progress of rank 0; returns the exit code.

    The launcher is stopped if it still runs _LINGER seconds after a rank has failed.
    """
    child = start()
    latest, failed_at = None, float("inf")
    try:
        while time.monotonic() < failed_at + _LINGER:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.5)
            if (ddp_dir / _FAULT).exists():
                failed_at = min(failed_at, time.monotonic())
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
    """Runs torchrun on this node; srun calls it once per node. The first node is the master."""
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
    """Runs torchrun's agent for a single node; its ranks are forks of this process."""
    _end_with_parent()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Without NVML, `torch.cuda.is_available()` initialises the CUDA driver, here in the stage
    # process. A fork cannot use that driver, so torchrun starts new processes.
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
        # As torchrun --standalone: a separate rendezvous store on a free port.
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
    """Ends this process when its parent ends, and on SIGTERM."""
    ctypes.CDLL(None).prctl(stage_process.PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # the parent ended before the line above
        os._exit(stage_process.FAULT)
    # The default action ends the process at once; a Python handler would not run while the rank
    # waits in a collective operation.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def rank(ddp_dir: Path) -> None:
    """Runs the stage function as one rank, and writes its usage; rank 0 writes the outputs."""
    _end_with_parent()
    request = read_strict(ddp_dir / _REQUEST)
    # Ranks must be able to import what the stage process can.
    sys.path.extend(p for p in request["sys_path"] if p not in sys.path)
    stage, rank_number = request["stage"], int(os.environ["RANK"])
    try:
        stage_process.set_threads(stage["cpus"])
        keep_freed_memory()
        function = stage_process.locate(stage["function"])
        check_gpus([g for g in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if g])
        inputs = {role: Path(path) for role, path in request["inputs"].items()}
        progress = _ProgressFile(ddp_dir / _PROGRESS) if rank_number == 0 else _ignore_progress
        outputs = function(stage["spec"], inputs, Path(request["out"]), progress)
        if rank_number == 0:
            stage_process.check_outputs(Stage(**stage), outputs)
            write_json(ddp_dir / _OUTPUTS, outputs)
    except BaseException as e:
        _write_fault(ddp_dir, f"rank {rank_number}: {stage_process.error_text(e)}")
        traceback.print_exc()
        sys.exit(stage_process.FAULT)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    write_json(
        ddp_dir / f"rank-{rank_number:05d}.json",
        {
            "device": environment.device(),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_rss": usage.ru_maxrss * 1024,  # Linux counts in KiB
            **environment.peak_gpu(),
        },
    )


class _ProgressFile:
    """The `progress` function of rank 0: writes a file, at most once per second."""

    def __init__(self, path: Path) -> None:
        self.path, self._next = path, 0.0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1
            write_json(self.path, [int(done), int(total), str(note)[:200]])


def _ignore_progress(done: int, total: int, note: str = "") -> None:
    pass


def _write_fault(ddp_dir: Path, sentence: str) -> None:
    """Writes the error of the first rank that fails.

    The other ranks fail after it, mostly because they lost the connection to it.
    """
    with contextlib.suppress(FileExistsError, FileNotFoundError), open(ddp_dir / _FAULT, "x") as f:
        f.write(json.dumps({"error": sentence}))


if __name__ == "__main__":
    {"node": node, "rank": rank}[sys.argv[1]](Path(sys.argv[2]))
