"""Injects faults into a running suite; a rerun must give the results of an undisturbed run.

    python tests/engine/engine_faults.py --out results/faults.md   # the smoke suite: `make faults`
    python tests/engine/engine_faults.py --toy                       # the same on stages of 0.2 s

Every fault uses a separate work dir: empty, or a copy of the undisturbed run's without the stages
that are to run. Afterwards the suite is rerun until all stages are done. Then every stage's
outputs, every checkpoint and every record are compared with the undisturbed run's: everything
except times must be equal to the last digit. With `--home`, an interrupted run resumes at the same
fault.
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
from kdep_bench.errors import KdepError
from kdep_bench.files import write_json
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.kinds import StageKind
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Suite

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
SMOKE = REPO / "configs" / "suites" / "smoke.py"
# One arm and one task of it: stages and ids are smoke's own.
CUT = "\nsuite.update(methods=['kdep'], tasks=['smoke_probe'])\n"
RANKS = "suite.update(runtime=dict({}=dict(pretrain=2)))\n"  # processes on this machine, or nodes
PRETRAIN = "pretrain-resnet18_w32.kdep"
LIMIT = 3600.0  # seconds until a run hangs: other work may have the cores
MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")  # version 1; version 2 has memory.max
_TIMES = ("_s", "created", "git", "packages", "cost", "notes")

# --- the toy suite: the true graph of a small suite, stages of a fifth of a second ---------------


def toy_stage(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """As `fakes.pretend`, in ten steps; what it writes depends on all that it reads."""
    folders = [inputs[role] for role in sorted(inputs)]  # a written plan sorts them
    read = [p.read_text() for folder in folders for p in sorted(folder.glob("*.bin"))]
    steps = out / "steps.txt"
    done = len(steps.read_text().splitlines()) if steps.exists() else 0
    for k in range(done, 10):
        time.sleep(0.01)
        hold = bytearray(8 << 20)  # what a limit on memory meets
        with open(steps, "a") as f:
            f.write(f"{k}\n")
        progress(k, 10)
        del hold
    steps.unlink()
    name = out.name.rpartition(".try-")[0]
    (out / "state.bin").write_text(f"{name} {len(read)} {hash_of(read)}" * 3000)
    outputs = fakes.pretend(spec, inputs, out, progress)
    outputs["read"] = hash_of(read)
    return outputs


def hash_of(texts: list[str]) -> str:
    from kdep_bench.files import text_hash

    return text_hash("\n".join(texts))


def toy_suite() -> tuple[Suite, Plan]:
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
    """What tools/run_suite.py does, for the toy suite."""
    from kdep_bench.cli import run_suite_output
    from kdep_bench.engine import local_pool
    from kdep_bench.engine.collect import collect
    from kdep_bench.engine.progress import view_for

    suite, plan = toy_suite()
    known = state.statuses(plan, work)
    options = local_pool.PoolOptions(jobs=1, retry=retry, preload="kdep_bench.engine.worker")
    outcome = local_pool.run_plan(plan, work, known, options, view_for(sys.stdout, plain=True))
    code = run_suite_output.summarise(plan, known, outcome, "")
    try:
        collect(suite, plan, work, results, outcome.failed)
    except OSError as e:
        print(run_suite_output.disk_fault(e))
        return 1
    return code


# --- worlds and cases ----------------------------------------------------------------------------


class World:
    """One suite with its undisturbed run."""

    def __init__(
        self, home: Path, toy: bool, reference: Path | None = None, suite: Path | None = None
    ) -> None:
        self.home, self.toy, self._cases = home, toy, 0
        for left in home.glob("case*"):
            shutil.rmtree(left)
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
        """The first stage id with `part` in it."""
        return next(i for i in self.plan.stages if part in i)

    def fresh(self) -> Case:
        self._cases += 1
        return Case(self, self.home / f"case{self._cases:03d}")

    def copy(self, *without: str, at: Path | None = None) -> Case:
        """A copy of the undisturbed run less these stages and all that follows them."""
        self._cases += 1
        case = Case(self, at or self.home / f"case{self._cases:03d}")
        gone = self.plan.downstream(without)
        for i in self.plan.stages:
            source, target = self.reference.work / i, case.work / i
            target.parent.mkdir(parents=True, exist_ok=True)
            if i in gone:
                continue
            # What prepares data leaves much, and it is read alone: no second copy of it.
            same = os.stat(self.home).st_dev == os.stat(target.parent).st_dev
            copy = os.link if same and i.startswith("prepare-") else shutil.copy2
            shutil.copytree(source, target, symlinks=True, copy_function=copy)
        return case


@dataclass
class Case:
    """A work dir and results folder with a runner."""

    world: World
    home: Path
    env: dict[str, str] = field(default_factory=dict)
    file: Path | None = None  # another page of the suite: other runtime, same stages

    @property
    def work(self) -> Path:
        return self.home / "work"

    @property
    def results(self) -> Path:
        return self.home / "results"

    def start(self, *more: str, results: Path | None = None) -> subprocess.Popen:
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
            [sys.executable, *command, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), **self.env},
            start_new_session=True,
        )

    def run(self, *more: str, results: Path | None = None) -> subprocess.CompletedProcess[str]:
        process = self.start(*more, results=results)
        output, _ = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(process.args, process.returncode, output, "")

    def settle(self, runs: int = 4) -> int:
        """Runs until all is done; returns how many runs that took."""
        output = ""
        for k in range(1, runs + 1):
            done = self.run()
            if done.returncode == 0:
                return k
            output = done.stdout
        raise AssertionError(f"not done after {attempts} runs: {output[-3000:]}")

    # --- looking ---

    def running(self) -> list[tuple[str, int]]:
        """(stage id, pid) of every stage that some process runs now, by the locks."""
        out = []
        with contextlib.suppress(FileNotFoundError):
            for path in (self.work / LOCKS).iterdir():
                with contextlib.suppress(ValueError, KeyError, OSError):
                    content = json.loads(path.read_text())
                    if process_start(content["pid"]) == content["started"] != 0:
                        out.append((path.name, content["pid"]))
        return out

    def wait_running(self, one: str | None = None, runner: Any = None) -> tuple[str, int]:
        """Waits until the stage `one` (default: any) runs."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            for found in self.running():
                if one in (None, found[0]):
                    return found
            assert runner is None or runner.poll() is None, runner.communicate()[0][-2000:]
            time.sleep(0.005)
        raise AssertionError(f"{one} never ran")

    def lost(self, stage_id: str, pid: int) -> float:
        """Seconds of work that go if the process is killed now: since its last saved state."""
        begun = process_start(pid) / os.sysconf("SC_CLK_TCK")
        spent = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - begun)
        if not self.world.plan.stages[stage_id].resumable:
            return spent
        out = attempts.current_dir(self.work, stage_id)
        saved = [*out.glob("run/*.pth.sha256"), *out.glob("features-*.json"), out / "steps.txt"]
        ages = [time.time() - p.stat().st_mtime for p in saved if p.exists()]
        return max(0.0, min([spent, *ages]))

    def wrong(self) -> int:
        """Stages and records that are not what the undisturbed run made of them."""
        count, ours, theirs = 0, self.work, self.world.reference.work
        for i, stage in self.world.plan.stages.items():
            record, _ = state.finished(stage, ours, verify=True)
            other, _ = state.finished(stage, theirs)
            assert other is not None
            same = record is not None and timeless(record["outputs"]) == timeless(other["outputs"])
            for name, (_, digest) in other["files"].items():
                if Path(name).suffix in (".npy", ".bin"):
                    same = same and record is not None and record["files"][name][1] == digest
                # Not byte by byte: the archive inside is named after a temporary file.
                elif name.endswith(".pth") and stage.kind in ("pretrain", "export"):
                    same = same and same_tensors(ours / i / name, theirs / i / name)
            if not same:
                print(f"WRONG: {i}", file=sys.stderr)
                count += 1
        paths = {p.name for p in (self.results / "records").glob("*.json")}
        for run in self.world.plan.runs:
            path = self.world.reference.results / "records" / f"{run.id}.json"
            mine = self.results / "records" / path.name
            if path.name not in paths or timeless(json.loads(mine.read_text())) != timeless(
                json.loads(path.read_text())
            ):
                print(f"WRONG: record {path.name}", file=sys.stderr)
                count += 1
        return count

    def close(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)


def same_tensors(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same names and, to the last bit, the same tensors."""
    import torch

    one, two = (torch.load(p, map_location="cpu", weights_only=True) for p in (a, b))
    one, two = one.get("state_dict", one), two.get("state_dict", two)
    return one.keys() == two.keys() and all(
        x.dtype == two[k].dtype and torch.equal(x, two[k]) for k, x in one.items()
    )


def timeless(value: Any) -> Any:
    """`value` without what tells times, costs or the revision of the source."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.endswith(_TIMES)}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def flip(path: Path, dice: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    at = dice.randrange(len(raw))
    raw[at] ^= 1 << dice.randrange(8)
    path.write_bytes(raw)


def cut(path: Path, dice: random.Random) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: dice.randrange(len(raw))])


# --- the faults ----------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table: seconds of work lost, and results that were wrong afterwards."""

    fault: str
    times: int
    lost: float
    wrong: int
    note: str = ""
    on: str = ""
    took: float = 0.0
    load: float = 0.0


Dice = random.Random


def kill_stages(world: World, dice: Dice, times: int) -> Row:
    """kill -9 of stages at random moments of their lives, each retried by the same runner."""
    done, lost, wrong = 0, 0.0, 0
    while done < times:
        case = world.fresh()
        runner = case.start("--retry", "99")
        each = -(-times // len(world.plan.stages))
        left = dict.fromkeys(world.plan.stages, each + 1)
        seen: set[int] = set()
        while runner.poll() is None:
            now = [r for r in case.running() if r[1] not in seen]
            if not now or done >= times:
                time.sleep(0.01)
                continue
            stage_id, pid = now[0]
            seen.add(pid)
            if not left[stage_id]:
                continue
            end = time.monotonic() + dice.uniform(0, world.wall[stage_id] + 0.1)
            while time.monotonic() < end and (stage_id, pid) in case.running():
                time.sleep(0.002)
            if (stage_id, pid) in case.running():
                lost += case.lost(stage_id, pid)
                os.kill(pid, signal.SIGKILL)
                left[stage_id] -= 1
                done += 1
        output = runner.communicate()[0]
        assert runner.returncode == 0, output[-3000:]
        case.settle(1)
        wrong += case.wrong()
        case.close()
    return Row("kill -9 of a stage", done, lost, wrong)


def kill_runner(world: World, dice: Dice, times: int) -> Row:
    """kill -9 of the runner, again and again on one work dir until `times` is reached."""
    done, lost, wrong = 0, 0.0, 0
    total = sum(world.wall.values())
    while done < times:
        case = world.fresh()
        while done < times:
            runner = case.start()
            try:
                case.wait_running(runner=runner)
            except AssertionError:
                break  # nothing was left to run
            with contextlib.suppress(subprocess.TimeoutExpired):
                runner.wait(dice.uniform(0, 2.5 * total / times))
                break
            lost += sum(case.lost(*r) for r in case.running())
            runner.kill()
            runner.communicate()
            done += 1
            end = time.monotonic() + 120
            while case.running() and time.monotonic() < end:
                time.sleep(0.05)
            assert not case.running(), "a stage outlived its runner"
        case.settle(2)
        wrong += case.wrong()
        case.close()
    return Row("kill -9 of the runner", done, lost, wrong)


# --- several processes, several nodes ------------------------------------------------------------


def ranks_world(world: World) -> World:
    """`world` with its pre-training in two processes: the same stages, rounded otherwise."""
    home = world.home / "ranks"
    file = home / "smoke_ranks.py"
    if not file.exists():
        world.copy(world.id_of(PRETRAIN), at=home / "undisturbed")
        file.write_text(world.file.read_text() + RANKS.format("processes"))
    return World(home, False, home / "undisturbed", file)


def wait_saved(case: Case, stage_id: str, runner: subprocess.Popen) -> int:
    """Waits until the running stage has a checkpoint to resume from; returns its process."""
    end = time.monotonic() + LIMIT
    while not list(attempts.current_dir(case.work, stage_id).glob("run/*.pth.sha256")):
        assert runner.poll() is None, runner.communicate()[0][-2000:]
        assert time.monotonic() < end, f"{stage_id} saved nothing"
        time.sleep(0.02)
    return dict(case.running())[stage_id]


def children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def rank_pids(pid: int) -> list[int]:
    """The processes that torchrun's agent, the child of the stage's process, has started."""
    return [rank for agent in children(pid) for rank in children(agent)]


def kill_ranks(world: World, dice: Dice, times: int) -> Row:
    """kill -9 of one of the two processes of a pre-training: the stage fails whole, and resumes."""
    pair = ranks_world(world)
    one = pair.id_of(PRETRAIN)
    lost, wrong = 0.0, 0
    for k in range(times):
        case = pair.copy(one)
        runner = case.start()
        pid = wait_saved(case, one, runner)
        ranks = rank_pids(pid)
        assert len(ranks) == 2, ranks
        lost += case.lost(one, pid)
        os.kill(ranks[k % 2], signal.SIGKILL)
        output = runner.communicate(timeout=LIMIT)[0]
        assert runner.returncode == 1, output[-3000:]
        assert "of the stage's 2 processes finished" in output, output[-3000:]
        assert not [r for r in ranks if Path(f"/proc/{r}").exists()], "a rank outlived the other"
        case.settle(1)
        wrong += case.wrong()
        case.close()
    return Row("kill -9 of a DDP rank", times, lost, wrong, "two gloo processes")


def lost_node(world: World, dice: Dice, nodes: int, fault: str) -> Row:
    """A node of a real Slurm dies, slurmd and all, while its stage runs; the job is requeued."""
    if nodes > 1:  # stage_id process a node: what two processes of stage_id machine make
        world = ranks_world(world)
    stage_id = world.id_of(PRETRAIN)
    case = world.copy(stage_id)
    if nodes > 1:
        case.file = world.home / "smoke_nodes.py"
        case.file.write_text(SMOKE.read_text() + CUT + RANKS.format("nodes"))
    with slurm.Slurm() as cluster:
        # The test cluster's GPUs are none.
        through = ("--executor", "slurm", "--gpus", "", "--snakemake", " ".join(slurm.QUICK))
        runner = case.start(*through)
        pid = wait_saved(case, stage_id, runner)
        (job,) = cluster.jobs("running")
        doomed = cluster.ask("scontrol", "show", "hostnames", cluster.job(job)["NodeList"])
        assert len(doomed.split()) == nodes, doomed
        lost = case.lost(stage_id, pid)
        cluster.node_down(doomed.split()[-1])
        output = runner.communicate(timeout=LIMIT)[0]
        assert runner.returncode == 0, output[-3000:]
        assert cluster.job(job)["Restarts"] == "1"
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(fault, 1, lost, wrong, "requeued by Slurm, same command")


def no_cluster() -> str:
    """Why no Slurm can be tried here; '' when it can."""
    try:
        find_snakemake()
    except KdepError as e:
        return e.problem
    slurm.sweep()
    return slurm.why_not()


def terminate(world: World, dice: Dice, times: int) -> Row:
    """SIGTERM to the runner: it ends its stages within the grace period and says how to go on."""
    lost, wrong, slowest = 0.0, 0, 0.0
    for _ in range(times):
        case = world.copy(world.id_of(PRETRAIN))
        runner = case.start()
        stage_id, _ = case.wait_running(runner=runner)
        time.sleep(dice.uniform(0, world.wall[stage_id]))
        lost += sum(case.lost(*r) for r in case.running())
        begun = time.monotonic()
        runner.send_signal(signal.SIGTERM)
        output = runner.communicate(timeout=LIMIT)[0]
        slowest = max(slowest, time.monotonic() - begun)
        assert runner.returncode == 128 + signal.SIGTERM, output[-2000:]
        assert not case.running()
        assert case.settle(2) == 1
        wrong += case.wrong()
        case.close()
    return Row("SIGTERM to the runner", times, lost, wrong, f"it ended within {slowest:.1f} s")


def two_runners(world: World, dice: Dice, times: int) -> Row:
    """Two runners started at once on one work dir: each stage runs once, both end well."""
    wrong, twice, counted = 0, 0, 0
    for _ in range(times):
        part = world.id_of(PRETRAIN)
        case = world.copy(part)
        todo = world.plan.downstream([part])
        runners = [
            case.start(results=case.home / name) for name in ("results", "results_of_the_other")
        ]
        for runner in runners:
            output = runner.communicate(timeout=LIMIT)[0]
            assert runner.returncode == 0, output[-3000:]
            assert f"{len(world.plan.stages)} of {len(world.plan.stages)} stages are done" in output
            counted += int(re.findall(r": (\d+) finished in this run, ", output)[-1])
        counted -= len(todo)
        for one in todo:
            headers = (case.work / one / state.LOG).read_text().count(f"--- {one} at ")
            twice += headers - 1
        wrong += case.wrong()
        case.close()
    note = f"{twice} stages done twice, {counted} counted twice"
    return Row("two runners at once", times, 0.0, wrong + twice + abs(counted), note)


@contextlib.contextmanager
def small_disk(at: Path, megabytes: int) -> Iterator[Path]:
    at.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(at)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(disk: Path) -> None:
    """Takes the last byte of it, and whatever was freed since."""
    with open(disk / "filler", "ab", buffering=0) as f:
        for piece in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while f.write(b"\0" * piece):
                    pass


def full_disk(world: World, dice: Dice, part: str, fault: str) -> Row:
    """The disk is full from the moment the stage begins until it has failed."""
    stage_id = world.id_of(part)
    lost = 0.0
    with small_disk(world.home / "disk", 8 if world.toy else 400) as disk:
        case = world.copy(stage_id, at=disk / "case")
        runner = case.start()
        _, pid = case.wait_running(stage_id, runner)
        begun = time.monotonic()
        while (stage_id, pid) in case.running():
            fill(disk)
            time.sleep(0.005)
        lost += time.monotonic() - begun
        fill(disk)
        output = runner.communicate(timeout=LIMIT)[0]
        assert runner.returncode == 1, output[-3000:]
        assert not (case.work / stage_id / state.STAGE).exists()
        assert "disk space" in output or "No space left" in output, output[-3000:]
        (disk / "filler").unlink()
        case.settle(2)
        wrong = case.wrong()
    return Row(fault, 1, lost, wrong)


def full_results(world: World, dice: Dice, fault: str = "disk full") -> Row:
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


DAMAGE = {"truncated": cut, "with a flipped bit": flip}


def damage(world: World, dice: Dice, how: str, part: str, pattern: str, what: str) -> Row:
    """A file of a done stage is damaged; all that reads it runs again."""
    stage_id = world.id_of(part)
    case = world.copy()
    for user in world.plan.consumers()[stage_id]:
        for i in world.plan.downstream([user]):
            shutil.rmtree(case.work / i, ignore_errors=True)
    path = next((case.work / stage_id).glob(pattern))
    DAMAGE[how](path, dice)
    case.settle()
    lost, wrong = world.wall[stage_id], case.wrong()
    case.close()
    return Row(f"{what} {how}", 1, lost, wrong)


def damaged_record(world: World, dice: Dice, how: str) -> Row:
    """Records in the results folder are damaged: they are written anew."""
    case = world.copy()
    shutil.copytree(world.reference.results, case.results)
    paths = sorted((case.results / "records").glob("*.json"))
    for path in paths:
        DAMAGE[how](path, dice)
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(f"record {how}", len(paths), 0.0, wrong)


def damaged_resume(world: World, dice: Dice, how: str) -> Row:
    """The checkpoint of a killed pre-training is damaged: it is not resumed from."""
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
        DAMAGE[how](path, dice)
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(f"resume checkpoint {how}", 1, lost, wrong)


def out_of_memory(world: World, dice: Dice, way: str) -> Row:
    """A running stage gets no more memory: an rlimit (malloc fails) or a cgroup (SIGKILL)."""
    stage_id = world.id_of("transfer-smoke_probe.resnet18_w32.kdep")
    case = world.copy(stage_id)
    runner = case.start()
    _, pid = case.wait_running(stage_id, runner)
    begun = time.monotonic()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0 if way == "rlimit" else 1])
    size = pages * os.sysconf("SC_PAGE_SIZE")
    group = MEMORY_CGROUP / f"kdep_faults_{os.getpid()}"
    if way == "rlimit":
        resource.prlimit(pid, resource.RLIMIT_AS, (size + (6 << 20), size + (6 << 20)))
    else:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(4 << 20))  # what it takes from now on
        (group / "cgroup.procs").write_text(str(pid))
    output = runner.communicate(timeout=LIMIT)[0]
    if group.exists():
        group.rmdir()
    assert runner.returncode == 1, output[-3000:]
    # The runner's own lines say why where a person follows it; the stage's note says it always.
    why = (state.failure(state.folder(case.work, stage_id)) or {}).get("error", "")
    assert any(w in why for w in ("memory", "killed by", "no result")), (why, output[-3000:])
    lost = time.monotonic() - begun
    assert not (case.work / stage_id / state.STAGE).exists()
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row(f"out of memory ({way})", 1, lost, wrong)


def hang(world: World, dice: Dice) -> Row:
    """A stage stands still (SIGSTOP: it does not even heed SIGTERM) until its time is over."""
    stage_id = world.id_of("transfer-smoke_probe.resnet18_w32.kdep")
    case = world.copy(stage_id)
    runner = start_with_timeout(case, 2.0 if world.toy else 12.0)
    _, pid = case.wait_running(stage_id, runner)
    begun = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    output = runner.communicate(timeout=LIMIT)[0]
    lost = time.monotonic() - begun
    assert runner.returncode == 1, output[-3000:]
    assert "was stopped after" in output, output[-3000:]
    assert not case.running()
    case.settle(1)
    wrong = case.wrong()
    case.close()
    return Row("hung stage (timeout)", 1, lost, wrong)


def start_with_timeout(case: Case, seconds: float) -> subprocess.Popen:
    """The runner with a time limit, which is no part of any stage's identity."""
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


def clock_backwards(world: World, dice: Dice, times: int) -> Row:
    """The wall clock jumps back while a suite runs, a kill and a resume between (clock_shim.c)."""
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
            step = clock.with_suffix(".next")
            step.write_text(str(3600 * jumps))
            step.replace(clock)
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
    return Row("clock going backwards, by an hour each", jumps, lost, wrong)


# --- what others plant, and what wakes late -----------------------------------------------------


def planted(world: World, dice: Dice, what: str) -> Row:
    """A link or FIFO lies where the engine keeps a file of its own; a user's folder is behind it.

    The run fails with a sentence, or the damage is noticed, and nothing behind the link is touched.
    With the plant removed, a rerun gives what it should.
    """
    stage_id = world.id_of("transfer-smoke_probe.resnet18_w32.kdep")
    case = world.copy(stage_id)
    photos = case.home / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("a photo")
    place = {
        "stage directory": case.work / stage_id,
        "lock": case.work / LOCKS / stage_id,
        "log": case.work / stage_id / state.LOG,
        "result": case.work / stage_id / state.STAGE,
    }[what.split()[0] if what != "stage directory that is a link" else "stage directory"]
    place.parent.mkdir(parents=True, exist_ok=True)
    if "FIFO" in what:
        os.mkfifo(place)
    else:
        place.symlink_to(photos if "directory" in what else photos / "a.jpg")
    begun = time.monotonic()
    done = case.run()
    assert "Traceback" not in done.stdout, done.stdout[-3000:]
    if not what.startswith("result"):
        assert done.returncode == 1, done.stdout[-3000:]
        assert f"{place} is a" in done.stdout, done.stdout[-3000:]
    lost = time.monotonic() - begun
    touched = [p.name for p in photos.iterdir()] != ["a.jpg"]
    touched = touched or (photos / "a.jpg").read_text() != "a photo"
    if place.is_symlink() or place.is_fifo():
        place.unlink()
    case.settle(1)
    wrong = case.wrong() + touched
    case.close()
    return Row(what, 1, lost if lost > 60 else 0.0, wrong, "refused by name")


APART = """
import sys
from pathlib import Path
from kdep_bench.engine import attempts, lock, stage
lock.boot_id = attempts.boot_id = lambda: sys.argv[1]  # another machine
lock._flock = lambda fd, how=0: True  # on a disk whose file system has no locks
sys.exit(stage.main(sys.argv[2:]))
"""


def woken_owner(world: World, dice: Dice, times: int) -> Row:
    """A process is stopped, its stage is made by another machine, and then it wakes."""
    stage_id = world.id_of(PRETRAIN)
    lost, wrong = 0.0, 0
    for _ in range(times):
        case = world.copy(stage_id)
        write_plan(case.home / "plan.json", "p", world.plan.stages.values())
        more = ["--plan", str(case.home / "plan.json"), "--stage", stage_id]
        more += ["--work-dir", str(case.work)]

        def machine(name: str, more: list[str] = more) -> subprocess.Popen:
            path = os.pathsep.join((str(REPO), str(HERE)))
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
            command = [sys.executable, "-c", APART, name, *more]
            return subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
            )

        first = machine("one")
        end = time.monotonic() + LIMIT
        while attempts.current_dir(case.work, stage_id) == case.work / stage_id:
            assert time.monotonic() < end, "it never began"
            assert first.poll() is None, first.returncode
            time.sleep(0.005)
        time.sleep(dice.uniform(0, world.wall[stage_id]))
        ended = first.poll() is not None
        first.send_signal(signal.SIGSTOP)
        lost += 0.0 if ended else case.lost(stage_id, first.pid)
        os.truncate(
            case.work / LOCKS / stage_id, 0
        )  # as whoever saw it stand still for two minutes
        assert machine("two").wait(LIMIT) == 0
        before = {p: p.stat().st_mtime_ns for p in (case.work / stage_id).rglob("*")}
        first.send_signal(signal.SIGCONT)
        first.wait(LIMIT)
        wrong += before != {p: p.stat().st_mtime_ns for p in (case.work / stage_id).rglob("*")}
        case.settle(1)
        wrong += case.wrong()
        case.close()
    return Row("stopped owner wakes after a takeover", times, lost, wrong, "no locks between them")


def no_sum(world: World, dice: Dice) -> Row:
    """A stage.json that was changed, and whose checksum was taken out, is not believed."""
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


def pruned(world: World, dice: Dice) -> Row:
    """Pruning while the records that cite the stages lie elsewhere."""
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
    return Row("pruning, with the records elsewhere", 1, 0.0, wrong)


def left(world: World, dice: Dice) -> Row:
    """A suite config that calls sys.exit(0) is an error, not a run that went well."""
    case = world.copy()
    case.file = case.home / "leaves.py"
    case.file.write_text(world.file.read_text() + "\nimport sys\nsys.exit(0)\n")
    done = case.run()
    assert "Traceback" not in done.stdout, done.stdout[-2000:]
    case.close()
    return Row("a config that calls sys.exit(0)", 1, 0.0, int(done.returncode == 0))


def cut_export(world: World, dice: Dice) -> Row:
    """An export is cut by one byte: `publish` names it, and does not end with 0."""
    case = world.copy()
    one = world.id_of("export-resnet18_w32.kdep")
    path = next((case.work / one).glob("*.pth"))
    os.truncate(path, path.stat().st_size - 1)
    tool = [sys.executable, str(REPO / "tools" / "publish.py"), str(world.file)]
    tool += ["--work-dir", str(case.work), "--out", str(case.home / "published")]
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(tool, env=env, capture_output=True, text=True, check=False)
    wrong = int(done.returncode == 0 or one not in done.stderr)
    case.settle(2)
    wrong += case.wrong()
    case.close()
    return Row("export cut by one byte, then published", 1, world.wall[one], wrong)


INODES = 60  # of the work dir's file system: it is full while the data are prepared


def answered(world: World, fault: str, check: Callable[[Path], list[str]]) -> Row:
    """A fault that the real commands meet, with a work dir of its own: see engine_faults_cli.py."""
    rows = world.home / "commands"
    rows.mkdir(parents=True, exist_ok=True)
    for interrupted in rows.iterdir():
        if interrupted.name != cli.UNDISTURBED:
            shutil.rmtree(interrupted)
    wrong = check(rows)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return Row(fault, 1, 0.0, len(wrong), on="the real command")


PLANTED = (
    *("stage directory that is a link", "lock that is a link", "lock that is a FIFO"),
    *("log that is a link", "log that is a FIFO", "result that is a FIFO"),
)

ENVIRONMENT = (
    ("tmpdir", "a TMPDIR too long for sockets", cli.long_tmpdir),
    ("closed", "closed standard streams", cli.closed_streams),
    ("devfull", "standard output is /dev/full", cli.full_output),
    ("ascii", "LANG=C", cli.ascii_locale),
    ("seeds", "2,000 x 2,000 seeds", cli.many_seeds),
)


def unless(why_not: str, fault: str, inject: Callable[[], Row]) -> Callable[[], Row]:
    """`inject`, or a line that says why it cannot be done here."""
    return (lambda: Row(fault, 0, 0.0, 0, f"not injected: {why_not}")) if why_not else inject


def faults(whole: World, world: World, seed: int) -> Iterator[tuple[str, Callable[[], Row]]]:
    """(name, injection) of every fault.

    Stages are killed over the whole suite, `whole`; the rest is done to `world`, a cut of it.
    """
    dice = Dice(seed)
    root = "" if os.geteuid() == 0 else "it needs root"
    cgroup = (MEMORY_CGROUP / "memory.limit_in_bytes").exists()
    limit = root or ("" if cgroup else f"no memory controller at {MEMORY_CGROUP}")
    compiler = "" if shutil.which("cc") else "no C compiler"

    def disk(part: str, what: str) -> Callable[[], Row]:
        fault = f"disk full while {what}"
        return unless(root, fault, partial(full_disk, world, dice, part, fault))

    yield "stage", lambda: kill_stages(whole, dice, 10 if whole.toy else 50)
    yield "runner", lambda: kill_runner(world, dice, 4)
    if not world.toy:
        yield "rank", lambda: kill_ranks(world, dice, 2)
    yield "term", lambda: terminate(world, dice, 2)
    yield "two", lambda: two_runners(world, dice, 2)
    yield "disk-check", disk(PRETRAIN, "a checkpoint is written")
    yield "disk-cache", disk("cache-", "a cache shard is written")
    yield "disk-transfer", disk("transfer-smoke_probe", "a transfer's result is written")
    fault = "disk full while records are written"
    yield "disk-results", unless(root, fault, partial(full_results, world, dice, fault))
    shard, weights = ("state.bin", "state.bin") if world.toy else ("features-*.npy", "*.pth")
    export = "export-resnet18_w32.kdep"
    for how in DAMAGE:
        yield "d-cache", lambda h=how: damage(world, dice, h, "cache-", shard, "cache shard")
        yield "d-check", lambda h=how: damage(world, dice, h, PRETRAIN, weights, "checkpoint")
        yield "d-json", lambda h=how: damage(world, dice, h, export, "stage.json", "stage.json")
        yield "d-record", lambda h=how: damaged_record(world, dice, h)
        if not world.toy:
            yield "d-resume", lambda h=how: damaged_resume(world, dice, h)
    yield "oom-rlimit", lambda: out_of_memory(world, dice, "rlimit")
    starve = partial(out_of_memory, world, dice, "cgroup")
    yield "oom-cgroup", unless(limit, "out of memory (cgroup)", starve)
    for what in PLANTED:
        yield "planted", lambda w=what: planted(world, dice, w)
    yield "woken", lambda: woken_owner(world, dice, 3)
    yield "nosum", lambda: no_sum(world, dice)
    yield "pruned", lambda: pruned(world, dice)
    if not world.toy:
        yield "left", lambda: left(world, dice)
        yield "cutexport", lambda: cut_export(world, dice)
    yield "hang", lambda: hang(world, dice)
    fault = "clock going backwards, by an hour each"
    yield "clock", unless(compiler, fault, partial(clock_backwards, world, dice, 6))
    if not world.toy:
        for nodes, what in ((1, "a slurmd node"), (2, "one of a DDP stage's two slurmd nodes")):
            fault = f"death of {what}"
            lose = partial(lost_node, world, dice, nodes, fault)
            yield f"node{nodes}", unless(no_cluster(), fault, lose)
    # At the end: the journal numbers the faults, and a `--home` of before keeps its rows.
    for what in cli.DAMAGE:
        yield (
            "tar",
            partial(answered, world, f"archive with {what}", partial(cli.archive, what=what)),
        )
    for short, fault, check in ENVIRONMENT:
        yield short, partial(answered, world, fault, check)
    fault = "no file numbers left on the disk"
    full = partial(answered, world, fault, partial(cli.no_inodes, inodes=INODES))
    yield "inodes", unless(root, fault, full)


# --- the table -----------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    lines = [
        "| fault | injected into | times injected | lost work (s) | wrong results |  |",
        "|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r.fault} | {r.on} | {r.times} | {r.lost:.1f} | {r.wrong} | {r.note} |" for r in rows
    ]
    return "\n".join(lines)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def report(world: World, rows: list[Row], command: str) -> str:
    minutes, loads = sum(r.took for r in rows) / 60, [r.load for r in rows]
    stages, cells = len(world.plan.stages), len(world.plan.runs)
    return f"""# Faults injected into the smoke suite

`{command}` on {len(os.sched_getaffinity(0))} cores of {processor()}, one thread
per stage, one stage at a time: {minutes:.0f} minutes, with the machine's load between \
{min(loads):.0f} and {max(loads):.0f}. The
suite has {stages} stages and {cells} records; an undisturbed run takes \
{sum(world.wall.values()):.0f} s. Stages were killed in
the complete suite; the other faults were injected into a part of it, `kdep` with one task.

{table(rows)}

*Lost work* is the time of repeated computation: since a killed stage began or last saved its state,
until a starved or hung stage was stopped, or for a damaged file the time to compute it in the
undisturbed run; the start of a runner (about 5 s of imports) is excluded. *Wrong results* counts,
after a rerun that finished, stages whose outputs, checkpoints or cache shards differ from the
undisturbed run's in any digit, files that do not match their checksums, records that differ in
anything except times and costs, and stages run twice by two runners. Runs of two processes are
compared with an undisturbed run of two processes. *Slurm*: a Slurm of three nodes on this machine.
"""


def main() -> int:
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
    world = whole = World(home, args.toy, args.reference)
    if not args.toy:
        part = home / "smoke_cut.py"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(SMOKE.read_text() + CUT)
        world = World(home / "cut", False, whole.reference.home, part)
    journal = home / "rows.json"
    known = json.loads(journal.read_text()) if journal.exists() else {}
    for k, (name, inject) in enumerate(faults(whole, world, args.seed)):
        if not any(part in name for part in args.only.split(",")):
            continue
        key = f"{k} {name}"
        if key not in known:
            begun = time.monotonic()
            try:
                r = inject()
            except Exception:  # the other faults are still to be tried
                traceback.print_exc()
                r = Row(name, 1, 0.0, 1, "did not end as it must; see the log")
            suite = "the toy suite" if args.toy else "smoke" if name == "stage" else "its kdep arm"
            r.on = r.on or suite
            r.took, r.load = time.monotonic() - begun, os.getloadavg()[0]
            known[key] = asdict(r)
            write_json(journal, known)
        r = Row(**known[key])
        rows.append(r)
        print(f"{r.fault}: {r.times} x, {r.lost:.1f} s lost, {r.wrong} wrong. {r.note}", flush=True)
    print(table(rows))
    if args.out:
        args.out.write_text(report(whole, rows, "make faults"))
    if args.home is None:
        shutil.rmtree(home, ignore_errors=True)
    return int(any(r.wrong for r in rows))


if __name__ == "__main__":
    sys.exit(main())
