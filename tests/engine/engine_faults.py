"""Injects faults into a running suite; a rerun must give the results of an undisturbed run.

    python tests/engine/engine_faults.py --out results/faults.md   # the smoke suite: `make faults`
    python tests/engine/engine_faults.py --toy                     # the same on stages of 0.2 s

Every fault uses a separate work dir: empty, or a copy of the undisturbed run's without the stages
that the fault hits. Afterwards the suite is rerun until all stages are done. Then every stage's
outputs, every checkpoint and every record are compared with the undisturbed run's: everything
except times must be equal to the last digit. With `--home`, an interrupted run of this script
resumes at the same fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "suite"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))

import engine_fakes as fakes
import engine_faults_cli as cli
import slurm

from kdep_bench.engine import attempts, state
from kdep_bench.engine.cluster import find_snakemake
from kdep_bench.engine.lock import LOCKS, process_start
from kdep_bench.engine.stage import write_plan
from kdep_bench.errors import KdepError, file_fault
from kdep_bench.files import write_json
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.kinds import StageKind
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Suite

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
SMOKE = REPO / "configs" / "suites" / "smoke.py"
# Lines appended to the smoke suite: one method and one task. Its stage ids stay the same.
ONE_METHOD = "\nsuite.update(methods=['kdep'], tasks=['smoke_probe'])\n"
RANKS = "suite.update(runtime=dict({}=dict(pretrain=2)))\n"  # {}: 'processes' or 'nodes'
PRETRAIN = "pretrain-resnet18_w32.kdep"
LIMIT = 3600.0  # seconds after which a run counts as hung; the machine may be busy
MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")  # version 1; version 2 has memory.max
# Endings of the names of outputs and record fields that may differ between two equal runs.
TIME_FIELDS = ("_s", "created", "git", "packages", "cost", "notes")

# --- the toy suite: the graph of a small suite with stages of 0.2 s ------------------------------


def toy_stage(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Like `fakes.pretend`, in ten resumable steps; its outputs depend on all its inputs."""
    folders = [inputs[role] for role in sorted(inputs)]  # plan files sort them, too
    input_texts = [p.read_text() for folder in folders for p in sorted(folder.glob("*.bin"))]
    steps_file = out / "steps.txt"
    steps_done = len(steps_file.read_text().splitlines()) if steps_file.exists() else 0
    for k in range(steps_done, 10):
        time.sleep(0.01)
        allocated = bytearray(8 << 20)  # 8 MiB, so that a memory limit takes effect
        with open(steps_file, "a") as file:
            file.write(f"{k}\n")
        progress(k, 10)
        del allocated
    steps_file.unlink()
    name = out.name.rpartition(".try-")[0]  # the stage's id, without the suffix of the attempt
    (out / "state.bin").write_text(f"{name} {len(input_texts)} {hash_of(input_texts)}" * 3000)
    outputs = fakes.pretend(spec, inputs, out, progress)
    outputs["read"] = hash_of(input_texts)
    return outputs


def hash_of(texts: list[str]) -> str:
    """A hash of texts."""
    from kdep_bench.files import text_hash

    return text_hash("\n".join(texts))


def toy_suite() -> tuple[Suite, Plan]:
    """The toy suite and its plan; KDEP_TOY_TIMEOUT sets the time limit of its stages in seconds."""
    from test_suite_config import build

    suite = build()
    limit = float(os.environ.get("KDEP_TOY_TIMEOUT", "600"))
    kinds = {
        kind: StageKind(
            "engine_faults:toy_stage", cost=0.2, timeout=limit, resumable=kind == "pretrain"
        )
        for kind in fakes.REAL_KINDS
    }
    return suite, build_plan(suite, kinds)


def toy_main(work: Path, results: Path, retry: int) -> int:
    """Does what tools/run_suite.py does, for the toy suite; returns the exit code."""
    from kdep_bench.cli import run_suite_output
    from kdep_bench.engine import local_pool
    from kdep_bench.engine.collect import collect
    from kdep_bench.engine.progress import view_for

    suite, plan = toy_suite()
    statuses = state.statuses(plan, work)
    options = local_pool.PoolOptions(jobs=1, retry=retry, preload="kdep_bench.engine.worker")
    outcome = local_pool.run_plan(plan, work, statuses, options, view_for(sys.stdout, plain=True))
    code = run_suite_output.summarise(plan, statuses, outcome, "")
    try:
        collect(suite, plan, work, results, outcome.failed)
    except OSError as e:
        print(file_fault(e))
        return 1
    return code


# --- a suite with its undisturbed run, and copies of it to damage --------------------------------


class World:
    """A suite with its undisturbed run, with which runs after a fault are compared.

    Attributes:
        home: folder of the undisturbed run and of all cases.
        toy: whether it is the toy suite.
        file: the suite's config file.
        plan: the suite's plan.
        reference: work dir and results of the undisturbed run.
        wall: wall seconds of each stage in the undisturbed run.
    """

    def __init__(
        self, home: Path, toy: bool, reference: Path | None = None, suite: Path | None = None
    ) -> None:
        self.home, self.toy, self._cases = home, toy, 0
        for leftover in home.glob("case*"):
            shutil.rmtree(leftover)
        self.file = suite or SMOKE
        self.plan = toy_suite()[1] if toy else build_plan(load_suite(self.file))
        self.reference = Case(self, reference or home / "undisturbed")
        if not (self.reference.results / "leaderboard.md").exists():
            done = self.reference.run()
            assert done.returncode == 0, done.stdout + done.stderr
        self.wall = {
            i: json.loads((self.reference.work / i / state.STAGE).read_text())["wall_s"]
            for i in self.plan.stages
        }

    def id_of(self, part: str) -> str:
        """The first stage id that contains `part`."""
        return next(i for i in self.plan.stages if part in i)

    def fresh(self) -> Case:
        """A case with an empty work dir."""
        self._cases += 1
        return Case(self, self.home / f"case{self._cases:03d}")

    def copy(self, *without: str, at: Path | None = None) -> Case:
        """A copy of the undisturbed run, without the stages `without` and those that need them."""
        self._cases += 1
        case = Case(self, at or self.home / f"case{self._cases:03d}")
        removed = self.plan.downstream(without)
        for stage_id in self.plan.stages:
            source, target = self.reference.work / stage_id, case.work / stage_id
            target.parent.mkdir(parents=True, exist_ok=True)
            if stage_id in removed:
                continue
            # Prepared data are large and only read, so they are linked.
            same_disk = os.stat(self.home).st_dev == os.stat(target.parent).st_dev
            copy = os.link if same_disk and stage_id.startswith("prepare-") else shutil.copy2
            shutil.copytree(source, target, symlinks=True, copy_function=copy)
        return case


@dataclass
class Case:
    """A work dir and a results folder, and the command that runs the suite in them."""

    world: World
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    file: Path | None = None  # another suite config: different runtime, same stages

    @property
    def work(self) -> Path:
        return self.home / "work"

    @property
    def results(self) -> Path:
        return self.home / "results"

    def start(self, *arguments: str, results: Path | None = None) -> subprocess.Popen:
        """Starts the suite's command; its output goes to a pipe."""
        results = results or self.results
        if self.world.toy:
            command = [str(HERE / "engine_faults.py"), "--toy-run", str(self.work), str(results)]
        else:
            command = [
                *(
                    str(REPO / "tools" / "run_suite.py"),
                    str(self.file or self.world.file),
                    "--plain",
                ),
                *("--jobs", "1"),
                *("--work-dir", str(self.work), "--results-dir", str(results)),
            ]
        self.home.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, *command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), **self.env},
            start_new_session=True,
        )

    def run(self, *arguments: str, results: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the suite's command to its end."""
        process = self.start(*arguments, results=results)
        output, _ = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    def settle(self, runs: int = 4) -> int:
        """Repeats the command, at most `runs` times, until it succeeds; returns how often."""
        output = ""
        for k in range(1, runs + 1):
            done = self.run()
            if done.returncode == 0:
                return k
            output = done.stdout
        raise AssertionError(f"not done after {runs} runs: {output[-3000:]}")

    # --- inspecting ---

    def running(self) -> list[tuple[str, int]]:
        """(stage id, process id) of every running stage, according to the lock files."""
        running = []
        with contextlib.suppress(FileNotFoundError):
            for path in (self.work / LOCKS).iterdir():
                with contextlib.suppress(ValueError, KeyError, OSError):
                    content = json.loads(path.read_text())
                    if process_start(content["pid"]) == content["started"] != 0:
                        running.append((path.name, content["pid"]))
        return running

    def wait_running(self, stage_id: str | None = None, runner: Any = None) -> tuple[str, int]:
        """Waits until a stage (default: any) runs; returns its id and pid."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            for running in self.running():
                if stage_id in (None, running[0]):
                    return running
            assert runner is None or runner.poll() is None, runner.communicate()[0][-2000:]
            time.sleep(0.005)
        raise AssertionError(f"{stage_id} never ran")

    def lost(self, stage_id: str, pid: int) -> float:
        """Seconds of work that a kill would lose now: the time since the last saved state."""
        start_time = process_start(pid) / os.sysconf("SC_CLK_TCK")
        running_time = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start_time)
        if not self.world.plan.stages[stage_id].resumable:
            return running_time
        out = attempts.current_dir(self.work, stage_id)
        saved = [
            *out.glob("run/*.pth.sha256"),
            *out.glob("features-*.json"),
            out / "steps.txt",
        ]
        ages = [time.time() - p.stat().st_mtime for p in saved if p.exists()]
        return max(0.0, min([running_time, *ages]))

    def wrong(self) -> int:
        """The number of stages and records that differ from those of the undisturbed run."""
        count, work, reference_work = 0, self.work, self.world.reference.work
        for stage_id, stage in self.world.plan.stages.items():
            record, _ = state.finished(stage, work, verify=True)
            expected, _ = state.finished(stage, reference_work)
            assert expected is not None
            same = record is not None and timeless(record["outputs"]) == timeless(
                expected["outputs"]
            )
            for name, (_, digest) in expected["files"].items():
                if Path(name).suffix in (".npy", ".bin"):
                    same = same and record is not None and record["files"][name][1] == digest
                # A .pth file contains the name of a temporary file, so its bytes may differ.
                elif name.endswith(".pth") and stage.kind in ("pretrain", "export"):
                    same = same and same_tensors(
                        work / stage_id / name, reference_work / stage_id / name
                    )
            if not same:
                print(f"WRONG: {stage_id}", file=sys.stderr)
                count += 1
        names = {p.name for p in (self.results / "records").glob("*.json")}
        for run in self.world.plan.runs:
            expected_path = self.world.reference.results / "records" / f"{run.id}.json"
            path = self.results / "records" / expected_path.name
            if path.name not in names or timeless(json.loads(path.read_text())) != timeless(
                json.loads(expected_path.read_text())
            ):
                print(f"WRONG: record {path.name}", file=sys.stderr)
                count += 1
        return count

    def close(self) -> None:
        """Deletes the work dir and the results."""
        shutil.rmtree(self.home, ignore_errors=True)


def same_tensors(a: Path, b: Path) -> bool:
    """Whether two checkpoints have the same keys and bitwise equal tensors."""
    import torch

    first, second = (torch.load(p, map_location="cpu", weights_only=True) for p in (a, b))
    first, second = first.get("state_dict", first), second.get("state_dict", second)
    return first.keys() == second.keys() and all(
        x.dtype == second[k].dtype and torch.equal(x, second[k]) for k, x in first.items()
    )


def timeless(value: Any) -> Any:
    """`value` without the fields that may differ between equal runs (TIME_FIELDS)."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.endswith(TIME_FIELDS)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def flip_bit(path: Path, rng: random.Random) -> None:
    """Flips one random bit of a file."""
    raw = bytearray(path.read_bytes())
    position = rng.randrange(len(raw))
    raw[position] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def truncate(path: Path, rng: random.Random) -> None:
    """Shortens a file to a random length."""
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.randrange(len(raw))])


# --- the faults ----------------------------------------------------------------------------------


@dataclass
class Row:
    """A row of the table.

    Attributes:
        fault: description of the fault.
        times: how often the fault was injected.
        lost: seconds of work lost.
        wrong: number of wrong results afterwards.
        note: text of the last column.
        on: the suite or command that the fault was injected into.
        took: seconds for injecting the fault, rerunning and comparing.
        load: load average of the machine.
    """

    fault: str
    times: int
    lost: float
    wrong: int
    note: str = ""
    on: str = ""
    took: float = 0.0
    load: float = 0.0


Random = random.Random


def kill_stages(world: World, rng: Random, times: int) -> Row:
    """Kills stages with SIGKILL at random moments; the same runner retries them."""
    kills, lost, wrong = 0, 0.0, 0
    while kills < times:
        case = world.fresh()
        runner = case.start("--retry", "99")
        # No stage is killed much more often than the others.
        per_stage = -(-times // len(world.plan.stages))
        kills_left = dict.fromkeys(world.plan.stages, per_stage + 1)
        seen_pids: set[int] = set()
        while runner.poll() is None:
            new = [r for r in case.running() if r[1] not in seen_pids]
            if not new or kills >= times:
                time.sleep(0.01)
                continue
            stage_id, pid = new[0]
            seen_pids.add(pid)
            if not kills_left[stage_id]:
                continue
            end = time.monotonic() + rng.uniform(0, world.wall[stage_id] + 0.1)
            while time.monotonic() < end and (stage_id, pid) in case.running():
                time.sleep(0.002)
            if (stage_id, pid) in case.running():
                lost += case.lost(stage_id, pid)
                os.kill(pid, signal.SIGKILL)
                kills_left[stage_id] -= 1
                kills += 1
        output = runner.communicate()[0]
        assert runner.returncode == 0, output[-3000:]
        case.settle(1)
        wrong += case.wrong()
        case.close()
    return Row("kill -9 of a stage", kills, lost, wrong)


def kill_runner(world: World, rng: Random, times: int) -> Row:
    """Kills the runner with SIGKILL, repeatedly on the same work dir."""
    kills, lost, wrong = 0, 0.0, 0
    total = sum(world.wall.values())
    while kills < times:
        case = world.fresh()
        while kills < times:
            runner = case.start()
            try:
                case.wait_running(runner=runner)
            except AssertionError:
                break  # nothing was left to run
            with contextlib.suppress(subprocess.TimeoutExpired):
                runner.wait(rng.uniform(0, 2.5 * total / times))
                break
            lost += sum(case.lost(*r) for r in case.running())
            runner.kill()
            runner.communicate()
            kills += 1
            end = time.monotonic() + 120
            while case.running() and time.monotonic() < end:
                time.sleep(0.05)
            assert not case.running(), "a stage outlived its runner"
        case.settle(2)
        wrong += case.wrong()
        case.close()
    return Row("kill -9 of the runner", kills, lost, wrong)


# --- several processes, several nodes ------------------------------------------------------------


def ranks_world(world: World) -> World:
    """`world` with its pre-training in two processes: same stage ids, other rounding errors."""
    home = world.home / "ranks"
    file = home / "smoke_ranks.py"
    if not file.exists():
        world.copy(world.id_of(PRETRAIN), at=home / "undisturbed")
        file.write_text(world.file.read_text() + RANKS.format("processes"))
    return World(home, False, home / "undisturbed", file)


def wait_saved(case: Case, stage_id: str, runner: subprocess.Popen) -> int:
    """Waits until the running stage has a checkpoint to resume from; returns its pid."""
    end = time.monotonic() + LIMIT
    while not list(attempts.current_dir(case.work, stage_id).glob("run/*.pth.sha256")):
        assert runner.poll() is None, runner.communicate()[0][-2000:]
        assert time.monotonic() < end, f"{stage_id} saved nothing"
        time.sleep(0.02)
    return dict(case.running())[stage_id]


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                pids.append(int(stat.parent.name))
    return sorted(pids)


def rank_pids(pid: int) -> list[int]:
    """Process ids that torchrun's agent, the child of the stage's process, has started."""
    return [rank for agent in children(pid) for rank in children(agent)]


def kill_ranks(world: World, rng: Random, times: int) -> Row:
    """Kills one of two pre-training processes: the other ends, the stage fails and then resumes."""
    two_process_world = ranks_world(world)
    stage_id = two_process_world.id_of(PRETRAIN)
    lost, wrong = 0.0, 0
    for k in range(times):
        case = two_process_world.copy(stage_id)
        runner = case.start()
        pid = wait_saved(case, stage_id, runner)
        ranks = rank_pids(pid)
        assert len(ranks) == 2, ranks
        lost += case.lost(stage_id, pid)
        os.kill(ranks[k % 2], signal.SIGKILL)
        output = runner.communicate(timeout=LIMIT)[0]
        assert runner.returncode == 1, output[-3000:]
        assert "of the stage's 2 processes finished" in output, output[-3000:]
        assert not [r for r in ranks if Path(f"/proc/{r}").exists()], "a rank outlived the other"
        case.settle(1)
        wrong += case.wrong()
        case.close()
    return Row("kill -9 of a DDP rank", times, lost, wrong, "two processes (gloo)")


def lost_node(world: World, rng: Random, nodes: int, fault: str) -> Row:
    """A node of a real Slurm fails with its slurmd while a stage runs; the job is requeued."""
    if nodes > 1:  # one process per node gives the same result as two processes on one machine
        world = ranks_world(world)
    stage_id = world.id_of(PRETRAIN)
    case = world.copy(stage_id)
    if nodes > 1:
        case.file = world.home / "smoke_nodes.py"
        case.file.write_text(SMOKE.read_text() + ONE_METHOD + RANKS.format("nodes"))
    with slurm.Slurm() as cluster:
        # --gpus "": the GPUs of the test cluster are not real.
        slurm_options = ("--executor", "slurm", "--gpus", "", "--snakemake", " ".join(slurm.QUICK))
        runner = case.start(*slurm_options)
        pid = wait_saved(case, stage_id, runner)
        (job,) = cluster.jobs("running")
        node_names = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"])
        assert len(node_names.split()) == nodes, node_names
        lost = case.lost(stage_id, pid)
        cluster.node_down(node_names.split()[-1])
        output = runner.communicate(timeout=LIMIT)[0]
        assert runner.returncode == 0, output[-3000:]
        assert cluster.job(job)["Restarts"] == "1"
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(fault, 1, lost, wrong, "requeued by Slurm, same command")


def why_no_cluster() -> str:
    """Why no Slurm can be started here; '' if one can be started."""
    try:
        find_snakemake()
    except KdepError as e:
        return e.problem
    slurm.sweep()
    return slurm.missing_requirement()


def terminate(world: World, rng: Random, times: int) -> Row:
    """SIGTERM to the runner: it stops its stages within the grace period; a rerun resumes."""
    lost, wrong, slowest = 0.0, 0, 0.0
    for _ in range(times):
        case = world.copy(world.id_of(PRETRAIN))
        runner = case.start()
        stage_id, _ = case.wait_running(runner=runner)
        time.sleep(rng.uniform(0, world.wall[stage_id]))
        lost += sum(case.lost(*r) for r in case.running())
        start = time.monotonic()
        runner.send_signal(signal.SIGTERM)
        output = runner.communicate(timeout=LIMIT)[0]
        slowest = max(slowest, time.monotonic() - start)
        assert runner.returncode == 128 + signal.SIGTERM, output[-2000:]
        assert not case.running()
        assert case.settle(2) == 1
        wrong += case.wrong()
        case.close()
    return Row("SIGTERM to the runner", times, lost, wrong, f"it ended within {slowest:.1f} s")


def two_runners(world: World, rng: Random, times: int) -> Row:
    """Two runners started at once on one work dir: each stage runs once, both exit with 0."""
    # counted: stages that the runners report as finished by them, minus the stages to run.
    wrong, extra_runs, counted = 0, 0, 0
    for _ in range(times):
        stage_id = world.id_of(PRETRAIN)
        case = world.copy(stage_id)
        todo = world.plan.downstream([stage_id])
        runners = [case.start(results=case.home / name) for name in ("results", "second_results")]
        for runner in runners:
            output = runner.communicate(timeout=LIMIT)[0]
            assert runner.returncode == 0, output[-3000:]
            assert f"{len(world.plan.stages)} of {len(world.plan.stages)} stages are done" in output
            counted += int(re.findall(r": (\d+) finished in this run, ", output)[-1])
        counted -= len(todo)
        for downstream_id in todo:
            headers = (
                (case.work / downstream_id / state.LOG)
                .read_text()
                .count(f"--- {downstream_id} at ")
            )
            extra_runs += headers - 1
        wrong += case.wrong()
        case.close()
    note = f"{extra_runs} stages done twice, {counted} counted twice"
    return Row("two runners at once", times, 0.0, wrong + extra_runs + abs(counted), note)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mounts a file system of this size at a folder; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Writes until the disk has no free byte."""
    with open(disk / "filler", "ab", buffering=0) as file:
        for piece in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * piece):
                    pass


def full_disk(world: World, rng: Random, id_part: str, fault: str) -> Row:
    """The disk is kept full from the start of the stage until the stage has failed."""
    stage_id = world.id_of(id_part)
    lost = 0.0
    with small_disk(world.home / "disk", 8 if world.toy else 400) as disk:
        case = world.copy(stage_id, at=disk / "case")
        runner = case.start()
        _, pid = case.wait_running(stage_id, runner)
        start = time.monotonic()
        while (stage_id, pid) in case.running():
            fill(disk)
            time.sleep(0.005)
        lost += time.monotonic() - start
        fill(disk)
        output = runner.communicate(timeout=LIMIT)[0]
        assert runner.returncode == 1, output[-3000:]
        assert not (case.work / stage_id / state.STAGE).exists()
        assert "disk space" in output or "No space left" in output, output[-3000:]
        (disk / "filler").unlink()
        case.settle(2)
        wrong = case.wrong()
    return Row(fault, 1, lost, wrong)


def full_results(world: World, rng: Random, fault: str = "disk full") -> Row:
    """The results folder's disk is full when records are written."""
    with small_disk(world.home / "disk", 4) as disk:
        case = world.copy()
        results = disk / "results"
        shutil.copytree(world.reference.results, results, ignore=shutil.ignore_patterns("t*.json"))
        fill(disk)
        done = case.run(results=results)
        assert done.returncode not in (0, None), done.stdout[-2000:]
        assert "Traceback" not in done.stdout, done.stdout[-2000:]
        half = [p for p in (results / "records").glob("*.json") if p.stat().st_size == 0]
        assert not half
        (disk / "filler").unlink()
        assert case.run(results=results).returncode == 0
        shutil.copytree(results, case.results)
        wrong = case.wrong()
        case.close()
    return Row(fault, 1, 0.0, wrong)


DAMAGE = {"truncated": truncate, "with a flipped bit": flip_bit}


def damage(world: World, rng: Random, kind: str, part: str, pattern: str, file_kind: str) -> Row:
    """A file of a finished stage is damaged; the stage and all stages that read it run again.

    Args:
        kind: key of DAMAGE.
        part: part of the stage's id.
        pattern: glob pattern of the file.
        file_kind: the file's name in the table.
    """
    stage_id = world.id_of(part)
    case = world.copy()
    for user in world.plan.consumers()[stage_id]:
        for i in world.plan.downstream([user]):
            shutil.rmtree(case.work / i, ignore_errors=True)
    path = next((case.work / stage_id).glob(pattern))
    DAMAGE[kind](path, rng)
    case.settle()
    lost, wrong = world.wall[stage_id], case.wrong()
    case.close()
    return Row(f"{file_kind} {kind}", 1, lost, wrong)


def damaged_record(world: World, rng: Random, kind: str) -> Row:
    """Records in the results folder are damaged: they are written again."""
    case = world.copy()
    shutil.copytree(world.reference.results, case.results)
    paths = sorted((case.results / "records").glob("*.json"))
    for path in paths:
        DAMAGE[kind](path, rng)
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(f"record {kind}", len(paths), 0.0, wrong)


def damaged_resume(world: World, rng: Random, kind: str) -> Row:
    """The checkpoint of a killed pre-training is damaged: training does not resume from it."""
    stage_id = world.id_of(PRETRAIN)
    case = world.copy(stage_id)
    runner = case.start()
    _, pid = case.wait_running(stage_id, runner)
    while not list((out := attempts.current_dir(case.work, stage_id)).glob("run/*.pth.sha256")):
        assert (stage_id, pid) in case.running()
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    runner.communicate()
    lost = world.wall[stage_id]
    for path in out.glob("run/*.pth"):
        DAMAGE[kind](path, rng)
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(f"resume checkpoint {kind}", 1, lost, wrong)


def out_of_memory(world: World, rng: Random, cause: str) -> Row:
    """A running stage gets no more memory; `cause`: "rlimit" (malloc fails), "cgroup" (SIGKILL)."""
    stage_id = world.id_of("transfer-smoke_probe.resnet18_w32.kdep")
    case = world.copy(stage_id)
    runner = case.start()
    _, pid = case.wait_running(stage_id, runner)
    start = time.monotonic()
    virtual_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    size = virtual_pages * os.sysconf("SC_PAGE_SIZE")
    group = MEMORY_CGROUP / f"kdep_faults_{os.getpid()}"
    if cause == "rlimit":
        limit = size + (6 << 20)  # 6 MiB more than now; a step of the toy stage needs 8 MiB
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
    else:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(4 << 20))  # bytes allocated from now on
        (group / "cgroup.procs").write_text(str(pid))
    output = runner.communicate(timeout=LIMIT)[0]
    if group.exists():
        group.rmdir()
    assert runner.returncode == 1, output[-3000:]
    # failed.json always has the reason; the runner prints it only in a terminal.
    error = (state.failure(state.folder(case.work, stage_id)) or {}).get("error", "")
    assert any(w in error for w in ("memory", "killed by", "no result")), (error, output[-3000:])
    lost = time.monotonic() - start
    assert not (case.work / stage_id / state.STAGE).exists()
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(f"out of memory ({cause})", 1, lost, wrong)


def hang(world: World, rng: Random) -> Row:
    """A stage is stopped by SIGSTOP, so it does not react to SIGTERM at its time limit."""
    stage_id = world.id_of("transfer-smoke_probe.resnet18_w32.kdep")
    case = world.copy(stage_id)
    runner = start_with_timeout(case, 2.0 if world.toy else 12.0)
    _, pid = case.wait_running(stage_id, runner)
    start = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    output = runner.communicate(timeout=LIMIT)[0]
    lost = time.monotonic() - start
    assert runner.returncode == 1, output[-3000:]
    assert "was stopped after" in output, output[-3000:]
    assert not case.running()
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row("hung stage (timeout)", 1, lost, wrong)


def start_with_timeout(case: Case, seconds: float) -> subprocess.Popen:
    """Starts the runner with a time limit per stage, which does not change stage ids."""
    if case.world.toy:
        case.env["KDEP_TOY_TIMEOUT"] = str(seconds)
        runner = case.start()
        del case.env["KDEP_TOY_TIMEOUT"]
        return runner
    text = case.world.file.read_text()
    path = case.home / "smoke_timeout.py"
    path.write_text(f"{text}\nsuite.update(runtime=dict(timeout=dict(transfer={seconds})))\n")
    command = [
        *(sys.executable, str(REPO / "tools" / "run_suite.py"), str(path), "--plain"),
        *("--work-dir", str(case.work), "--results-dir", str(case.results), "--jobs", "1"),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )


def clock_backwards(world: World, rng: Random, times: int) -> Row:
    """The wall clock jumps back during a suite; a stage is killed and resumes (clock_shim.c)."""
    case = world.copy(world.id_of(PRETRAIN))
    clock, shim = case.home / "clock", case.home / "clock_shim.so"
    source = str(HERE / "clock_shim.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(shim), source, "-ldl"], check=True)
    clock.write_text("0")
    case.env = {"LD_PRELOAD": str(shim), "KDEP_CLOCK": str(clock)}
    runner = case.start("--retry", "1")
    lost, jumps = 0.0, 0
    stage_id, pid = case.wait_running(runner=runner)
    while runner.poll() is None:
        if jumps < times:
            jumps += 1
            next_clock = clock.with_suffix(".next")
            next_clock.write_text(str(3600 * jumps))
            next_clock.replace(clock)
        if jumps == times // 2 and (stage_id, pid) in case.running():
            lost += case.lost(stage_id, pid)
            os.kill(pid, signal.SIGKILL)
            pid = 0
        time.sleep(0.3 if world.toy else 1.0)
    output = runner.communicate()[0]
    assert runner.returncode == 0, output[-3000:]
    case.env = {}
    assert case.settle(1) == 1
    wrong = case.wrong()
    case.close()
    return Row("clock going backwards by an hour", jumps, lost, wrong)


# --- links and FIFOs in place of the engine's files; processes that continue late ----------------


def planted(world: World, rng: Random, what: str) -> Row:
    """One of the engine's files is replaced by a link to a user's folder, or by a FIFO.

    The run must fail or detect the damage, and must not change the link's target.
    Once the link or FIFO is removed, a rerun must give the right results.
    `what`: one of PLANTED.
    """
    stage_id = world.id_of("transfer-smoke_probe.resnet18_w32.kdep")
    case = world.copy(stage_id)
    photos = case.home / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("a photo")
    replaced, _, kind = what.partition(" that is a ")  # e.g. "lock that is a FIFO"
    path = {
        "stage directory": case.work / stage_id,
        "lock": case.work / LOCKS / stage_id,
        "log": case.work / stage_id / state.LOG,
        "result": case.work / stage_id / state.STAGE,
    }[replaced]
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(photos if replaced == "stage directory" else photos / "a.jpg")
    start = time.monotonic()
    done = case.run()
    assert "Traceback" not in done.stdout, done.stdout[-3000:]
    if replaced != "result":
        assert done.returncode == 1, done.stdout[-3000:]
        assert f"{path} is a" in done.stdout, done.stdout[-3000:]
    lost = time.monotonic() - start
    touched = [p.name for p in photos.iterdir()] != ["a.jpg"]
    touched = touched or (photos / "a.jpg").read_text() != "a photo"
    if path.is_symlink() or path.is_fifo():
        path.unlink()
    case.settle(1)
    wrong = case.wrong() + touched
    case.close()
    # A run of under a minute is the start of a runner, which the table excludes; a longer one hung.
    return Row(what, 1, lost if lost > 60 else 0.0, wrong, "the error names the file")


OTHER_MACHINE_CODE = """
import sys
from pathlib import Path
from kdep_bench.engine import attempts, lock, stage
lock.boot_id = attempts.boot_id = lambda: sys.argv[1]  # another machine
lock._flock = lambda fd, how=0: True  # on a file system without locks
sys.exit(stage.main(sys.argv[2:]))
"""


def woken_owner(world: World, rng: Random, times: int) -> Row:
    """A process is stopped, another machine finishes its stage, then the process continues."""
    stage_id = world.id_of(PRETRAIN)
    lost, wrong = 0.0, 0
    for _ in range(times):
        case = world.copy(stage_id)
        write_plan(case.home / "plan.json", "p", world.plan.stages.values())
        arguments = ["--plan", str(case.home / "plan.json"), "--stage", stage_id]
        arguments += ["--work-dir", str(case.work)]

        def start_machine(name: str, arguments: list[str] = arguments) -> subprocess.Popen:
            """Starts the stage command as if on another machine."""
            path = os.pathsep.join((str(REPO), str(HERE)))
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            command = [sys.executable, "-c", OTHER_MACHINE_CODE, name, *arguments]
            return subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
            )

        first = start_machine("one")
        end = time.monotonic() + LIMIT
        while attempts.current_dir(case.work, stage_id) == case.work / stage_id:
            assert time.monotonic() < end, "the stage never began"
            assert first.poll() is None, first.returncode
            time.sleep(0.005)
        time.sleep(rng.uniform(0, world.wall[stage_id]))
        ended = first.poll() is not None
        first.send_signal(signal.SIGSTOP)
        lost += 0.0 if ended else case.lost(stage_id, first.pid)
        # Another machine does this when it has seen no heartbeat for two minutes.
        os.truncate(case.work / LOCKS / stage_id, 0)
        assert start_machine("two").wait(LIMIT) == 0
        before = {p: p.stat().st_mtime_ns for p in (case.work / stage_id).rglob("*")}
        first.send_signal(signal.SIGCONT)
        first.wait(LIMIT)
        wrong += before != {p: p.stat().st_mtime_ns for p in (case.work / stage_id).rglob("*")}
        case.settle(1)
        wrong += case.wrong()
        case.close()
    return Row(
        "stopped process continues after another machine took over its stage",
        times,
        lost,
        wrong,
        "on a file system without locks",
    )


def missing_checksum(world: World, rng: Random) -> Row:
    """A changed stage.json without its checksum is not used."""
    stage_id = world.id_of("transfer-smoke_probe.resnet18_w32.kdep")
    case = world.copy()
    path = case.work / stage_id / state.STAGE
    record = json.loads(path.read_text())
    del record["sum"]
    record["outputs"]["value"] = 0.99
    path.write_text(json.dumps(record))
    case.settle(2)
    wrong = case.wrong()
    case.close()
    return Row("stage.json changed, without its checksum", 1, world.wall[stage_id], wrong)


def pruned(world: World, rng: Random) -> Row:
    """Pruning keeps stages whose records are in a folder outside the work dir."""
    case = world.copy()
    case.settle(1)
    tool = [sys.executable, str(REPO / "tools" / "work_dir.py"), "--work-dir", str(case.work)]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [*tool, "--gc", "--delete"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wrong = case.wrong()
    case.close()
    return Row("pruning, with the records outside the work dir", 1, 0.0, wrong)


def config_that_exits(world: World, rng: Random) -> Row:
    """A suite config that calls sys.exit(0) is an error, not a successful run."""
    case = world.copy()
    case.file = case.home / "leaves.py"
    case.file.write_text(world.file.read_text() + "\nimport sys\nsys.exit(0)\n")
    done = case.run()
    assert "Traceback" not in done.stdout, done.stdout[-2000:]
    case.close()
    return Row("a config that calls sys.exit(0)", 1, 0.0, int(done.returncode == 0))


def truncated_export(world: World, rng: Random) -> Row:
    """An export that lacks its last byte: `publish` names it and does not exit with 0."""
    case = world.copy()
    stage_id = world.id_of("export-resnet18_w32.kdep")
    path = next((case.work / stage_id).glob("*.pth"))
    os.truncate(path, path.stat().st_size - 1)
    tool = [sys.executable, str(REPO / "tools" / "publish.py"), str(world.file)]
    tool += ["--work-dir", str(case.work), "--out", str(case.home / "published")]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(tool, env=env, capture_output=True, text=True, check=False)
    wrong = int(done.returncode == 0 or stage_id not in done.stderr)
    case.settle(2)
    wrong += case.wrong()
    case.close()
    return Row("export cut by one byte, then published", 1, world.wall[stage_id], wrong)


INODES = 60  # of the work dir's file system: too few for the prepared data


def command_fault(world: World, fault: str, check: Callable[[Path], list[str]]) -> Row:
    """A fault of the real commands (engine_faults_cli.py) in a separate work dir.

    `check` takes that folder and returns one string per error.
    """
    folder = world.home / "commands"
    folder.mkdir(parents=True, exist_ok=True)
    for interrupted in folder.iterdir():
        if interrupted.name != cli.UNDISTURBED:
            shutil.rmtree(interrupted)
    wrong = check(folder)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return Row(fault, 1, 0.0, len(wrong), on="the commands")


PLANTED = (
    "stage directory that is a link",
    "lock that is a link",
    "lock that is a FIFO",
    "log that is a link",
    "log that is a FIFO",
    "result that is a FIFO",
)

ENVIRONMENT = (  # (name for --only, name in the table, function)
    ("tmpdir", "a TMPDIR too long for sockets", cli.long_tmpdir),
    ("closed", "closed standard streams", cli.closed_streams),
    ("devfull", "standard output is /dev/full", cli.full_output),
    ("ascii", "LANG=C", cli.ascii_locale),
    ("seeds", "2,000 x 2,000 seeds", cli.many_seeds),
)


def unless(reason: str, fault: str, inject: Callable[[], Row]) -> Callable[[], Row]:
    """`inject`, or a function that returns a row with the reason why it is impossible here."""
    return (lambda: Row(fault, 0, 0.0, 0, f"not injected: {reason}")) if reason else inject


def faults(complete: World, world: World, seed: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """(name for --only, function that injects the fault and returns its row) of every fault.

    Stages of the suite `complete` are killed. The other faults are injected into `world`,
    which has one method and one task of that suite.
    """
    rng = Random(seed)
    # Why a fault is impossible here; '' if it is possible.
    root = "" if os.geteuid() == 0 else "it needs root"
    cgroup = (MEMORY_CGROUP / "memory.limit_in_bytes").exists()
    no_limit = root or ("" if cgroup else f"no memory controller at {MEMORY_CGROUP}")
    compiler = "" if shutil.which("cc") else "no C compiler"

    def disk(part: str, what: str) -> Callable[[], Row]:
        fault = f"disk full while {what}"
        return unless(root, fault, partial(full_disk, world, rng, part, fault))

    yield "stage", lambda: kill_stages(complete, rng, 10 if complete.toy else 50)
    yield "runner", lambda: kill_runner(world, rng, 4)
    if not world.toy:
        yield "rank", lambda: kill_ranks(world, rng, 2)
    yield "term", lambda: terminate(world, rng, 2)
    yield "two", lambda: two_runners(world, rng, 2)
    yield "disk-check", disk(PRETRAIN, "a checkpoint is written")
    yield "disk-cache", disk("cache-", "a cache shard is written")
    yield "disk-transfer", disk("transfer-smoke_probe", "a transfer's result is written")
    fault = "disk full while records are written"
    yield "disk-results", unless(root, fault, partial(full_results, world, rng, fault))
    shard, weights = ("state.bin", "state.bin") if world.toy else ("features-*.npy", "*.pth")
    export = "export-resnet18_w32.kdep"
    for kind in DAMAGE:
        yield "d-cache", lambda h=kind: damage(world, rng, h, "cache-", shard, "cache shard")
        yield "d-check", lambda h=kind: damage(world, rng, h, PRETRAIN, weights, "checkpoint")
        yield "d-json", lambda h=kind: damage(world, rng, h, export, "stage.json", "stage.json")
        yield "d-record", lambda h=kind: damaged_record(world, rng, h)
        if not world.toy:
            yield "d-resume", lambda h=kind: damaged_resume(world, rng, h)
    yield "oom-rlimit", lambda: out_of_memory(world, rng, "rlimit")
    exhaust = partial(out_of_memory, world, rng, "cgroup")
    yield "oom-cgroup", unless(no_limit, "out of memory (cgroup)", exhaust)
    for what in PLANTED:
        yield "planted", lambda w=what: planted(world, rng, w)
    yield "woken", lambda: woken_owner(world, rng, 3)
    yield "nosum", lambda: missing_checksum(world, rng)
    yield "pruned", lambda: pruned(world, rng)
    if not world.toy:
        yield "left", lambda: config_that_exits(world, rng)
        yield "cutexport", lambda: truncated_export(world, rng)
    yield "hang", lambda: hang(world, rng)
    fault = "clock going backwards by an hour"
    yield "clock", unless(compiler, fault, partial(clock_backwards, world, rng, 6))
    if not world.toy:
        for nodes, what in ((1, "a slurmd node"), (2, "one of a DDP stage's two slurmd nodes")):
            fault = f"death of {what}"
            lose_node = partial(lost_node, world, rng, nodes, fault)
            yield f"node{nodes}", unless(why_no_cluster(), fault, lose_node)
    # New faults go to the end: the journal in `--home` refers to the faults by number.
    for what in cli.DAMAGE:
        yield (
            "tar",
            partial(command_fault, world, f"archive with {what}", partial(cli.archive, what=what)),
        )
    for short, fault, check in ENVIRONMENT:
        yield short, partial(command_fault, world, fault, check)
    fault = "no inodes left on the disk"
    exhaust_inodes = partial(command_fault, world, fault, partial(cli.no_inodes, inodes=INODES))
    yield "inodes", unless(root, fault, exhaust_inodes)


# --- the table -----------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| fault | injected into | times injected | lost work (s) | wrong results | note |",
        "|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r.fault} | {r.on} | {r.times} | {r.lost:.1f} | {r.wrong} | {r.note} |" for r in rows
    ]
    return "\n".join(lines)


def processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def report(world: World, rows: list[Row], command: str) -> str:
    """The text of results/faults.md."""
    minutes, loads = sum(r.took for r in rows) / 60, [r.load for r in rows]
    stages, records = len(world.plan.stages), len(world.plan.runs)
    return f"""# Faults injected into the smoke suite

`{command}` on {len(os.sched_getaffinity(0))} cores of {processor()}, one thread
per stage, one stage at a time: {minutes:.0f} minutes, with the machine's load between \
{min(loads):.0f} and {max(loads):.0f}. The
suite `smoke` has {stages} stages and {records} records; an undisturbed run takes \
{sum(world.wall.values()):.0f} s. Stages were
killed in the complete suite; the other faults were injected into a part of it, `kdep` with one
task (smoke, only kdep), or into single commands. A runner is the process that runs a suite and
starts its stages.

{table(rows)}

*Lost work* is the time of repeated computation: since a killed stage began or last saved its state;
until a stage without memory, disk space or progress was stopped; or, for a damaged file, the time
to compute it in the undisturbed run. The start of a runner (about 5 s of imports) is excluded.

*Wrong results* counts, after a rerun that finished: stages whose outputs, checkpoints or cache
shards differ from the undisturbed run's in any digit, files that do not match their checksums,
records that differ in anything except times and costs, and stages run twice by two runners. Runs of
two processes are compared with an undisturbed run of two processes.

*Slurm*: a Slurm of three nodes on this machine.
"""


def main() -> int:
    """Injects the faults and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--toy", action="store_true", help="use stages of 0.2 s, not the smoke suite"
    )
    parser.add_argument("--toy-run", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--retry", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument(
        "--only", default="", help="only faults whose short name contains one of these (A,B)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills")
    parser.add_argument("--home", type=Path, help="folder for the work dirs (default: temporary)")
    parser.add_argument(
        "--reference", type=Path, help="folder with work/, results/ of an undisturbed run"
    )
    parser.add_argument("--out", type=Path, help="write the report to this file")
    args = parser.parse_args()
    if args.toy_run:
        work, results = args.toy_run
        return toy_main(work, results, args.retry)
    home = (args.home or Path(tempfile.mkdtemp(prefix="kdep-faults-"))).absolute()
    rows = []
    world = complete = World(home, args.toy, args.reference)
    if not args.toy:
        part = home / "smoke_cut.py"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(SMOKE.read_text() + ONE_METHOD)
        world = World(home / "cut", False, complete.reference.home, part)
    journal = home / "rows.json"
    rows_by_key = json.loads(journal.read_text()) if journal.exists() else {}
    for k, (name, inject) in enumerate(faults(complete, world, args.seed)):
        if not any(part in name for part in args.only.split(",")):
            continue
        key = f"{k} {name}"
        if key not in rows_by_key:
            start = time.monotonic()
            try:
                row = inject()
            except Exception:  # so that the other faults are still injected
                traceback.print_exc()
                row = Row(name, 1, 0.0, 1, "did not end as it must; see the log")
            suite = (
                "the toy suite" if args.toy else "smoke" if name == "stage" else "smoke, only kdep"
            )
            row.on = row.on or suite
            row.took, row.load = time.monotonic() - start, os.getloadavg()[0]
            rows_by_key[key] = asdict(row)
            write_json(journal, rows_by_key)
        row = Row(**rows_by_key[key])
        rows.append(row)
        print(
            f"{row.fault}: {row.times} x, {row.lost:.1f} s lost, {row.wrong} wrong. {row.note}",
            flush=True,
        )
    print(table(rows))
    if args.out:
        args.out.write_text(report(complete, rows, "make faults"))
    if args.home is None:
        shutil.rmtree(home, ignore_errors=True)
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    sys.exit(main())
