"""The smoke suite, with real training, gives the same results on a real Slurm as locally."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import engine_faults as faults
import pytest
from slurm import QUICK, Slurm

from kdep_bench.engine import cluster, state
from kdep_bench.files import read_json

# --gpus "": the GPUs of the test cluster are not real.
SLURM_OPTIONS = ("--executor", "slurm", "--jobs", "3", "--gpus", "", "--snakemake", " ".join(QUICK))
# One epoch with a small learning rate: training must not amplify differences in rounding.
SMALL = """
suite["budget"].update(epochs=1, optimizer=dict(type="SGD", lr=0.0005, momentum=0.9))
"""


@pytest.fixture(scope="module")
def world(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> faults.World:
    """The smoke suite with the results of a local run (`World.reference`)."""
    return faults.World(tmp_path_factory.mktemp("smoke"), toy=False)


def jobs(slurm: Slurm, case: faults.Case) -> Counter[str]:
    """Stage id -> number of its Slurm jobs, in the case's work dir."""
    counts = Counter()
    for line in slurm.run("scontrol", "show", "job", "-o").splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        if fields["JobName"].startswith(cluster.job_name_prefix(case.work)):
            assert fields["JobState"] == "COMPLETED", line
            counts[fields["Comment"].partition("_wildcards_")[2]] += 1
    return counts


def runs(case: faults.Case) -> Counter[str]:
    """Stage id -> how often it was started."""
    counts = Counter()
    for stage_id in case.world.plan.stages:
        log = (case.work / stage_id / state.LOG).read_text()
        counts[stage_id] = log.count(f"--- {stage_id} at ")
    return counts


def test_a_complete_suite_on_slurm_equals_a_local_run(slurm: Slurm, world: faults.World):
    case = world.fresh()
    done = case.run(*SLURM_OPTIONS)
    assert done.returncode == 0, done.stdout[-3000:]
    assert jobs(slurm, case) == Counter(list(world.plan.stages))  # one job per stage
    assert case.wrong() == 0  # outputs, checkpoints, features and records, to the last digit
    board = (case.results / "leaderboard.md").read_text()
    assert all(t in board for t in ("smoke_probe", "smoke_det", "smoke_seg"))
    second = case.run(*SLURM_OPTIONS)
    assert second.returncode == 0, second.stdout
    assert "0 finished in this run" in second.stdout
    case.close()


def test_a_suite_begun_locally_is_finished_on_slurm(slurm: Slurm, world: faults.World):
    case = world.copy(world.id_of(faults.PRETRAIN))
    stages = world.plan.downstream([world.id_of(faults.PRETRAIN)])
    on_slurm = {i for i in stages if i.startswith("transfer-") and "smoke_probe" not in i}
    local = case.run("--only", "smoke_probe")
    assert local.returncode == 0, local.stdout[-3000:]
    assert f"{len(stages) - len(on_slurm)} finished in this run" in local.stdout
    done = case.run(*SLURM_OPTIONS)
    assert done.returncode == 0, done.stdout[-3000:]
    assert jobs(slurm, case) == Counter(on_slurm)
    assert case.wrong() == 0
    assert set(runs(case).values()) == {1}
    assert "0 finished in this run" in case.run().stdout  # the local pool has nothing to do
    case.close()


def test_pre_training_on_two_nodes_gives_the_weights_of_one_process(
    slurm: Slurm, world: faults.World, tmp_path: Path
):
    """One process per node (gloo, torchrun under srun); both runs have the same global batch."""
    import torch

    suite_text = faults.SMOKE.read_text() + faults.ONE_METHOD + SMALL
    files = {1: tmp_path / "one.py", 2: tmp_path / "two.py"}
    files[1].write_text(suite_text)
    files[2].write_text(suite_text + faults.RANKS.format("nodes"))
    runs_by_nodes = {}
    for nodes, file in files.items():
        case = world.copy(world.id_of(faults.PRETRAIN))
        case.file = file
        done = case.run("--only", "pretrain", *(SLURM_OPTIONS if nodes > 1 else ()))
        assert done.returncode == 0, done.stdout[-3000:]
        (out,) = (p.parent for p in case.work.glob("pretrain-*.kdep.*/stage.json"))
        content = read_json(out / state.STAGE)
        assert content["outputs"]["processes"] == nodes
        assert content["environment"].get("processes", 1) == nodes
        weights = torch.load(out / "student.pth", weights_only=True)
        runs_by_nodes[nodes] = content["id"], content["outputs"]["curves"]["pretrain_loss"], weights
        if nodes > 1:
            (job,) = (
                j for j in slurm.jobs("completed") if out.name in slurm.job(j).get("Comment", "")
            )
            assert slurm.job(job)["NumNodes"] == "2"
        case.close()
    # For one and for two nodes: stage id, loss curve, weights.
    (id1, curve1, w1), (id2, curve2, w2) = runs_by_nodes[1], runs_by_nodes[2]
    assert id1 == id2  # the number of nodes does not enter the stage id
    assert len(curve1) == len(curve2) > 10
    for (step1, loss1), (step2, loss2) in zip(curve1, curve2, strict=True):
        assert (step1, loss1) == (step2, pytest.approx(loss2, rel=1e-4))
    scratch = world.reference.work / world.id_of("pretrain-resnet18_w32.scratch")
    w0 = torch.load(scratch / "student.pth", weights_only=True)  # the initial weights of both
    assert w1.keys() == w2.keys() > w0.keys()
    trained = [k for k, v in w0.items() if v.is_floating_point() and "running_" not in k]

    def distance(a: dict, b: dict) -> float:
        """Euclidean distance of the trained weights."""
        return sum(float((a[k].double() - b[k].double()).square().sum()) for k in trained) ** 0.5

    # With gradients that are not averaged, or batch statistics of half the batch, the two runs
    # would differ from each other about as much as from the initial weights.
    assert 0 < distance(w1, w2) < 0.02 * distance(w1, w0)
    for key in w0:
        if "running_" in key:
            torch.testing.assert_close(w2[key], w1[key], rtol=1e-3, atol=1e-4)
