"""The smoke suite, with its real stages, on a real Slurm; what it must equal was run on this
machine, with the same seeds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import engine_faults as faults
import pytest
from slurm import QUICK, Slurm

from kdep_bench.engine import cluster, state
from kdep_bench.files import read_json

# The test cluster's GPUs are none.
THROUGH = ("--executor", "slurm", "--jobs", "3", "--gpus", "", "--snakemake", " ".join(QUICK))
# One epoch of small steps, so that training does not amplify what differs: rounding.
SMALL = """
suite["budget"].update(epochs=1, optimizer=dict(type="SGD", lr=0.0005, momentum=0.9))
"""


@pytest.fixture(scope="module")
def world(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> faults.World:
    """The suite as it ends by the local pool."""
    return faults.World(tmp_path_factory.mktemp("smoke"), toy=False)


def jobs(slurm: Slurm, case: faults.Case) -> Counter[str]:
    """Stage id -> how many of Slurm's jobs were for it, in the case's work dir."""
    found = Counter()
    for line in slurm.ask("scontrol", "show", "job", "-o").splitlines():
        said = dict(re.findall(r"(\w+)=(\S+)", line))
        if said["JobName"].startswith(cluster.prefix(case.work)):
            assert said["JobState"] == "COMPLETED", line
            found[said["Comment"].partition("_wildcards_")[2]] += 1
    return found


def runs(case: faults.Case) -> Counter[str]:
    """How often each stage was begun."""
    return Counter(
        {i: (case.work / i / state.LOG).read_text().count(f"--- {i} at ")
         for i in case.world.plan.stages}
    )  # fmt: skip


def test_a_complete_suite_on_slurm_equals_a_local_run(slurm: Slurm, world: faults.World):
    case = world.fresh()
    done = case.run(*THROUGH)
    assert done.returncode == 0, done.stdout[-3000:]
    assert jobs(slurm, case) == Counter(list(world.plan.stages))  # a job each
    assert case.wrong() == 0  # outputs, checkpoints, features and records, to the last digit
    board = (case.results / "leaderboard.md").read_text()
    assert all(t in board for t in ("smoke_probe", "smoke_det", "smoke_seg"))
    again = case.run(*THROUGH)
    assert (again.returncode, "0 finished in this run" in again.stdout) == (0, True), again.stdout
    case.close()


def test_a_stage_started_locally_resumes_on_slurm(slurm: Slurm, world: faults.World):
    case = world.copy(world.id_of(faults.PRETRAIN))
    cells = world.plan.downstream([world.id_of(faults.PRETRAIN)])
    there = {i for i in cells if i.startswith("transfer-") and "smoke_probe" not in i}
    here = case.run("--only", "smoke_probe")
    assert here.returncode == 0, here.stdout[-3000:]
    assert f"{len(cells) - len(there)} finished in this run" in here.stdout
    done = case.run(*THROUGH)
    assert done.returncode == 0, done.stdout[-3000:]
    assert jobs(slurm, case) == Counter(there)
    assert case.wrong() == 0
    assert set(runs(case).values()) == {1}
    assert (
        case.run().stdout.count("0 finished in this run") == 1
    )  # nor has the pool anything left to do
    case.close()


def test_the_pre_trainer_over_two_nodes_equals_one_process(
    slurm: Slurm, world: faults.World, tmp_path: Path
):
    """One process a node, gloo, torchrun under srun; the batch is the global one."""
    import torch

    small = faults.SMOKE.read_text() + faults.CUT + SMALL
    files = {1: tmp_path / "one.py", 2: tmp_path / "two.py"}
    files[1].write_text(small)
    files[2].write_text(small + faults.RANKS.format("nodes"))
    made = {}
    for nodes, file in files.items():
        case = world.copy(world.id_of(faults.PRETRAIN))
        case.file = file
        done = case.run("--only", "pretrain", *(THROUGH if nodes > 1 else ()))
        assert done.returncode == 0, done.stdout[-3000:]
        (out,) = (p.parent for p in case.work.glob("pretrain-*.kdep.*/stage.json"))
        content = read_json(out / state.STAGE)
        assert content["outputs"]["processes"] == nodes
        assert content["environment"].get("processes", 1) == nodes
        weights = torch.load(out / "student.pth", weights_only=True)
        made[nodes] = content["id"], content["outputs"]["curves"]["pretrain_loss"], weights
        if nodes > 1:
            (job,) = (
                j for j in slurm.jobs("completed") if out.name in slurm.job(j).get("Comment", "")
            )
            assert slurm.job(job)["NumNodes"] == "2"
        case.close()
    (one, curve, w1), (other, curve2, w2) = made[1], made[2]
    assert one == other  # how it ran is no part of what it is
    assert len(curve) == len(curve2) > 10
    for (step, loss), (step2, loss2) in zip(curve, curve2, strict=True):
        assert (step, loss) == (step2, pytest.approx(loss2, rel=1e-4))
    scratch = world.reference.work / world.id_of("pretrain-resnet18_w32.scratch")
    w0 = torch.load(scratch / "student.pth", weights_only=True)  # what both began with
    assert w1.keys() == w2.keys() > w0.keys()
    trained = [k for k, v in w0.items() if v.is_floating_point() and "running_" not in k]

    def apart(a: dict, b: dict) -> float:
        return sum(float((a[k].double() - b[k].double()).square().sum()) for k in trained) ** 0.5

    # Gradients that are not averaged, or batch statistics of one half, would make these alike.
    assert 0 < apart(w1, w2) < 0.02 * apart(w1, w0)
    for key in w0:
        if "running_" in key:
            torch.testing.assert_close(w2[key], w1[key], rtol=1e-3, atol=1e-4)
