"""A batch that is split into micro-batches or processes gives the training of one process.

The global batch is the batch of all processes (ranks) together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import PreActivationTap, build_backbone
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.pretrain import checkpoint, stage
from kdep_bench.pretrain.compiled import compiled
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.pretrain.hooks import WeightAverage
from kdep_bench.pretrain.parallel import _shared_norm, check_split, micro_batches
from tests.pretrain.conftest import BUDGET, STUDENT, WIDTH, silent
from tests.pretrain.test_pretrain import KDEP, SCRATCH, pretrain, spec

REPO = Path(__file__).parents[2]
# The student without BatchNorm, whose statistics depend on the size of the batch.
WITHOUT_BATCH_NORM: dict[str, Any] = {
    **STUDENT,
    "backbone": STUDENT["backbone"] | dict(norm_cfg=dict(type="GN", num_groups=2)),
}
# A small learning rate, so that training does not amplify differences in rounding.
SHORT = BUDGET | dict(epochs=4 / 3, optimizer=BUDGET["optimizer"] | dict(lr=0.005))


def test_micro_batches_are_equal_parts_of_all_tensors_of_a_nested_batch():
    batch = {"a": torch.arange(6), "b": {"c": torch.arange(12).view(6, 2)}}
    parts = list(micro_batches(batch, 3))
    assert [p["a"].tolist() for p in parts] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(torch.cat([p["b"]["c"] for p in parts]), batch["b"]["c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((512, 3, 1, False), "3 processes x 1 micro-batches"),
        ((512, 2, 3, False), "a multiple of 6"),
        ((512, 1, 2, True), "compares the samples of a batch"),
        ((512, 2, 1, True), "compares the samples of a batch"),
    ],
)
def test_a_batch_that_must_not_be_split_is_refused(arguments: Any, message: str):
    """Arguments: batch, processes, micro-batches, whether the loss compares samples."""
    with pytest.raises(KdepError, match=message):
        check_split(*arguments)
    check_split(512, 2, 4, False)
    check_split(512, 1, 1, True)


def curve(outputs: dict[str, Any]) -> np.ndarray:
    """[steps, 2]: step number and loss."""
    return np.array(outputs["curves"]["pretrain_loss"])


def test_without_batch_norm_accumulated_gradients_equal_those_of_the_complete_batch(
    stages: dict[str, Path], tmp_path: Path
):
    student = WITHOUT_BATCH_NORM
    one_batch, weights = pretrain(tmp_path / "1", stages, KDEP, student=student, budget=SHORT)
    split = SHORT | dict(accumulate=4)
    parts, split_weights = pretrain(tmp_path / "4", stages, KDEP, student=student, budget=split)
    assert one_batch["steps"] == parts["steps"] == 4  # a step is an update, not a micro-batch
    np.testing.assert_allclose(curve(parts), curve(one_batch), rtol=1e-4)
    for key, value in weights.items():
        torch.testing.assert_close(split_weights[key], value, rtol=1e-3, atol=1e-5)


def test_batch_norm_uses_the_statistics_of_each_micro_batch(
    stages: dict[str, Path], tmp_path: Path
):
    one_batch, _ = pretrain(tmp_path / "1", stages, KDEP, budget=SHORT)
    parts, _ = pretrain(tmp_path / "2", stages, KDEP, budget=SHORT | dict(accumulate=2))
    assert not np.allclose(curve(parts), curve(one_batch), rtol=1e-4)
    np.testing.assert_allclose(curve(parts), curve(one_batch), rtol=0.5)


@pytest.mark.parametrize("local_batch", [3, 0])
def test_shared_statistics_weigh_ranks_by_their_number_of_values(
    local_batch: int, monkeypatch: Any
):
    """In detection, ranks have images of different sizes and different numbers of RoIs.

    Expected: BatchNorm of the values of both ranks together. The sums of the other rank are added
    in place of `all_reduce`.
    """
    torch.manual_seed(0)
    local, remote = torch.randn(local_batch, 2, 4, 4) + 1, 3 * torch.randn(5, 2, 2, 3)
    combined = torch.cat([x.transpose(0, 1).flatten(1) for x in (local, remote)], 1)  # [C, values]
    centred = remote - combined.mean(1).view(1, 2, 1, 1)
    count = torch.tensor([float(remote.numel() / 2)])
    # First the sums and the number of values per channel, then the sums of squares.
    remote_sums = iter([torch.cat([remote.sum((0, 2, 3)), count]), centred.square().sum((0, 2, 3))])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x.add_(next(remote_sums)))
    shared = nn.BatchNorm2d(2)
    nn.init.normal_(shared.weight)
    output = _shared_norm(shared, local)
    of_both = nn.BatchNorm1d(2)
    of_both.load_state_dict(shared.state_dict() | {"num_batches_tracked": torch.tensor(0)})
    of_both.running_mean, of_both.running_var = torch.zeros(2), torch.ones(2)
    expected = of_both(combined.T)[: local_batch * 16].T  # [C, values of this rank]
    torch.testing.assert_close(output.transpose(0, 1).flatten(1), expected)
    torch.testing.assert_close(shared.running_mean, of_both.running_mean)
    torch.testing.assert_close(shared.running_var, of_both.running_var)


class FakeRunner:
    """The part of mmengine's runner that the hook reads: a model with a backbone."""

    def __init__(self, net: nn.Module) -> None:
        self.model = nn.Module()
        self.model.backbone = net


def test_the_weight_average_is_the_exponential_moving_average_and_is_saved():
    net = nn.BatchNorm1d(2)
    hook, runner = WeightAverage(0.9), FakeRunner(net)
    hook.before_train(runner)
    expected = net.weight.detach().clone()
    for value in (2.0, 5.0, -1.0):
        nn.init.constant_(net.weight, value)
        assert net.num_batches_tracked is not None
        net.num_batches_tracked += 1
        hook.after_train_iter(runner, 0)
        expected = 0.9 * expected + 0.1 * value
    torch.testing.assert_close(hook.average["weight"], expected)
    assert int(hook.average["num_batches_tracked"]) == 3
    saved: dict[str, Any] = {}
    hook.before_save_checkpoint(runner, saved)
    restored = WeightAverage(0.9)
    restored.after_load_checkpoint(runner, saved)
    restored.before_train(runner)
    assert torch.equal(restored.average["weight"], hook.average["weight"])


def test_a_run_with_ema_saves_other_weights_than_one_without(
    stages: dict[str, Path], tmp_path: Path
):
    _, plain = pretrain(tmp_path / "p", stages, KDEP, budget=SHORT)
    _, average = pretrain(tmp_path / "a", stages, KDEP, budget=SHORT | dict(ema=0.5))
    key = "backbone.layer4.1.conv2.weight"
    assert plain.keys() == average.keys()
    assert not torch.equal(plain[key], average[key])


def test_a_compiled_student_has_the_outputs_of_the_eager_one():
    torch.manual_seed(0)
    tap = PreActivationTap(build_backbone(STUDENT))
    initial = {k: v.clone() for k, v in tap.state_dict().items()}
    x = torch.randn(4, 3, 32, 32)
    compiled_tap = compiled(tap, "aot_eager", x)
    assert all(torch.equal(v, initial[k]) for k, v in tap.state_dict().items())
    for output, expected in zip(compiled_tap(x), tap(x), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(KdepError, match="back end 'no_such' fails"):
        compiled(tap, "no_such", x)


def test_a_compiled_network_with_other_outputs_is_refused(monkeypatch: pytest.MonkeyPatch):
    tap = PreActivationTap(build_backbone(STUDENT))

    def wrong_compile(module: Any, backend: str) -> Any:
        """Stands in for torch.compile; its network has outputs that are 10 % larger."""
        return lambda x: tuple(1.1 * out for out in module(x))

    monkeypatch.setattr(torch, "compile", wrong_compile)
    with pytest.raises(KdepError, match="differs from the eager one"):
        compiled(tap, "inductor", torch.randn(4, 3, 32, 32))


def test_float16_without_a_gpu_is_refused(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(KdepError, match="'float16', which needs a GPU"):
        stage.run(spec(KDEP, budget=SHORT | dict(precision="float16")), stages, tmp_path, silent)


class CoupledSamples(Objective):
    """An objective whose loss couples the samples of a batch."""

    needs = frozenset()
    couples_samples = True

    def terms(self, ctx: Context) -> dict[str, torch.Tensor]:
        """Product of each feature with the mean feature of the batch."""
        return {"a": ctx.pre_activation @ ctx.pre_activation.mean(0)}


def test_an_objective_that_couples_samples_is_refused_with_accumulation(
    stages: dict[str, Path], tmp_path: Path
):
    method = KDEP | dict(objective=dict(type=f"{__name__}.CoupledSamples"))
    with pytest.raises(KdepError, match="compares the samples"):
        stage.run(spec(method, budget=SHORT | dict(accumulate=2)), stages, tmp_path, silent)


def test_only_rank_0_writes_the_file_of_untrained_weights(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outputs = []
    for rank, files in ((1, []), (0, [checkpoint.CHECKPOINT])):
        monkeypatch.setenv("RANK", str(rank))
        outputs.append(stage.run(spec(SCRATCH), stages, tmp_path, silent))
        assert [path.name for path in tmp_path.iterdir()] == files
    assert outputs[0] == outputs[1]


@pytest.fixture
def second_of_two() -> Iterator[None]:
    """A fake process group in which this process is the second of two."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("second_of_two")
def test_two_processes_share_the_statistics_of_every_batch_norm():
    """Statistics per process would make pre-training depend on the number of processes."""
    mutual = dict(type="kdep_bench.objectives.mutual.Mutual", width=WIDTH, classes=3)
    model = Distiller(STUDENT, mutual)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 2 * 20  # ResNet-18 has 20; there are a student and a peer
    x = torch.randn(4, norms[0].num_features, 2, 2)
    for norm in norms:
        assert type(norm).__name__.startswith("Shared")
    # The fake group adds nothing, so the statistics are those of this process.
    torch.testing.assert_close(norms[0](x).mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_two_processes_train_like_one_with_the_same_global_batch(
    stages: dict[str, Path], tmp_path: Path
):
    """Runs the real stage with torchrun and gloo; BatchNorm uses the global batch."""
    budget = SHORT | dict(ema=0.8)
    single, weights = pretrain(tmp_path / "one", stages, KDEP, budget=budget)
    folder = tmp_path / "two"
    folder.mkdir()
    script = tmp_path / "rank.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import json, os, torch
            torch.set_num_threads(1)
            from pathlib import Path
            from tests.pretrain.test_pretrain import KDEP, spec, stage
            stages = { ({k: str(p) for k, p in stages.items()})!r}
            outputs = stage.run(
                spec(KDEP, budget={budget!r}),
                {{k: Path(p) for k, p in stages.items()}},
                Path({str(folder)!r}),
                lambda *_: None,
            )
            name = f"outputs-{{os.environ['RANK']}}.json"
            (Path({str(folder)!r}) / name).write_text(json.dumps(outputs))
            """
        )
    )
    process = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node=2", str(script)),
        ],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
    )
    assert process.returncode == 0, process.stdout + process.stderr
    first, second = (json.loads((folder / f"outputs-{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == 2
    assert first["curves"] == second["curves"]
    np.testing.assert_allclose(curve(first), curve(single), rtol=1e-3)
    weights_of_two = torch.load(folder / checkpoint.CHECKPOINT, weights_only=True)
    assert weights_of_two.keys() == weights.keys()
    for key, value in weights.items():
        scale = float(value.abs().max()) if value.numel() else 1.0
        tolerance = max(2e-3 * scale, 1e-6)
        torch.testing.assert_close(
            weights_of_two[key].float(), value.float(), rtol=0, atol=tolerance
        )
