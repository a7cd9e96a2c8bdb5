"""Auxiliary modules, modules with a separate optimiser, in the real pre-training stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.pretrain import checkpoint
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.transfer import export
from tests.pretrain.conftest import BUDGET, STUDENT
from tests.pretrain.test_pretrain import pretrain


class Opponent(Objective):
    """An adversary classifies features as the teacher's or the student's.

    The student learns features that the adversary takes for the teacher's.
    """

    needs = frozenset({"pooled"})
    stage_arguments = frozenset({"width", "teacher_width"})
    has_auxiliary_modules = True

    def __init__(self, width: int, teacher_width: int) -> None:
        super().__init__()
        self.projector = nn.Linear(width, teacher_width)
        self.adversary = nn.Linear(teacher_width, 1)

    def auxiliary_modules(self) -> dict[str, AuxiliaryModule]:
        """The adversary, with Adam."""
        return {"adversary": AuxiliaryModule(self.adversary, dict(type="Adam", lr=0.01))}

    def update_auxiliary(self, ctx: Context, auxiliary: AuxiliaryModules) -> None:
        """Two steps of the adversary, before the student's."""
        assert ctx.teacher is not None
        for _ in range(2):
            real = F.softplus(-self.adversary(ctx.teacher.pooled)).mean()
            fake = F.softplus(self.adversary(self.projector(ctx.pre_activation))).mean()
            auxiliary.minimise("adversary", real + fake)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """The student's loss, -log of the adversary's probability for the teacher."""
        return {"deceive": F.softplus(-self.adversary(self.projector(ctx.pre_activation)))[:, 0]}


METHOD: dict[str, Any] = dict(
    name="opponent",
    labels_used=False,
    objective=dict(type=f"{__name__}.Opponent"),
    transform=None,
)


def test_a_killed_and_resumed_run_with_an_auxiliary_module_equals_an_uninterrupted_run(
    stages: dict[str, Path], tmp_path: Path
):
    outputs, weights = pretrain(tmp_path / "uninterrupted", stages, METHOD)
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    # A program that runs the stage and kills itself in step 8.
    code = (
        "import os, signal, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from tests.pretrain.test_pretrain import spec, stage\n"
        "from tests.pretrain.test_pretrain_auxiliary import METHOD\n"
        f"stages = { ({k: str(p) for k, p in stages.items()})!r}\n"
        "def kill(done, total, note=''):\n"
        "    if done == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "stage.run(spec(METHOD), {k: Path(p) for k, p in stages.items()}, "
        f"Path({str(interrupted)!r}), kill)"
    )
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ}, check=False
    )
    assert process.returncode == -signal.SIGKILL
    assert list((interrupted / "run").glob("*.pth"))
    assert not (interrupted / checkpoint.CHECKPOINT).exists()
    resumed_outputs, resumed = pretrain(interrupted, stages, METHOD)
    assert resumed_outputs["curves"] == outputs["curves"]
    assert all(torch.equal(v, resumed[k]) for k, v in weights.items())
    # The adversary's parameters are counted and saved, and not exported.
    projector, adversary = 32 * 1280 + 1280, 1280 + 1  # weights and biases
    assert outputs["extra_parameters"] == projector + adversary
    assert "objective.adversary.weight" in weights
    kept, dropped = export.strip(weights)
    assert dropped == ["objective"]
    assert not any("adversary" in k for k in kept)


def test_the_state_of_an_auxiliary_module_s_optimiser_is_saved():
    """Without Adam's state, a resumed run would differ from an uninterrupted one."""
    auxiliary = AuxiliaryModules({"a": AuxiliaryModule(nn.Linear(2, 1), dict(type="Adam", lr=0.1))})
    for gradient in (1.0, 5.0):
        auxiliary.apply("a", [torch.full((1, 2), gradient), torch.zeros(1)])
    state = auxiliary.state_dict()
    restored = AuxiliaryModules({"a": AuxiliaryModule(nn.Linear(2, 1), dict(type="Adam", lr=0.1))})
    restored.load_state_dict(state)
    assert restored.state_dict()["a"]["state"][0]["step"] == 2
    # The saved learning rate is without the schedule's factor.
    assert state["a"]["param_groups"][0]["lr"] == 0.1


def test_auxiliary_modules_are_refused_if_a_batch_is_split_into_micro_batches(
    stages: dict[str, Path], tmp_path: Path
):
    with pytest.raises(KdepError, match="in each of 2 micro-batches"):
        pretrain(tmp_path, stages, METHOD, budget=BUDGET | {"accumulate": 2})


class Undeclared(Opponent):
    """An opponent whose adversary would never be updated, because it is not declared."""

    has_auxiliary_modules = False


def test_auxiliary_modules_that_the_class_does_not_declare_are_refused():
    config = {"type": f"{__name__}.Undeclared", "width": 32, "teacher_width": 5}
    with pytest.raises(KdepError, match="set has_auxiliary_modules = True in this class"):
        Distiller(STUDENT, config, teacher={})


def test_the_student_s_loss_does_not_train_an_auxiliary_module():
    config = METHOD["objective"] | {"width": 32, "teacher_width": 5}
    model = Distiller(STUDENT, config, teacher={}).train()
    objective = model.objective
    assert isinstance(objective, Opponent)
    initial = objective.adversary.weight.detach().clone()
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    update_auxiliary, objective.update_auxiliary = objective.update_auxiliary, lambda *_: None  # type: ignore[method-assign]
    loss = model(images=images, teacher=torch.randn(4, 5))["loss_deceive"]
    loss.backward()
    assert objective.adversary.weight.grad is None
    assert torch.equal(initial, objective.adversary.weight)
    objective.update_auxiliary = update_auxiliary  # type: ignore[method-assign]
    model(images=images, teacher=torch.randn(4, 5))
    assert not torch.equal(initial, objective.adversary.weight)
