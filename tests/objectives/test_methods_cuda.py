"""Every method of configs/methods on a GPU that is faked: no tensor of another device in a step, no
value that the processor would wait for. Forward and after the step; autograd wants a real GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fake_cuda import fake_cuda
from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, STEPS, TRAINED, Arm, teacher


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_stays_on_the_gpu(name: str, tmp_path: Path):
    arm = Arm(name, tmp_path)
    arm.train(1)  # some objectives look at the values of their first batch
    model = arm.model.train()
    live = [side.live for side in model.teacher_sides.values() if side.live is not None]
    data = arm.batch(tiny.batch(BATCH, 0))
    with fake_cuda(model, *live) as fake:
        data = fake(data)
        model.to("cuda")
        for model.step in (0, STEPS // 2):
            batch = model.data_preprocessor(data, True)
            loss, log = model.parse_losses(model(**batch, mode="loss"))
            with torch.no_grad():
                model.objective.after_step()
            assert {v.device.type for v in (loss, *log.values())} == {"cuda"}


def test_cached_features_are_moved_to_the_gpu(tmp_path: Path):
    arm, data = Arm("kdep", tmp_path), dict(tiny.batch(BATCH, 0))
    feature = teacher(arm.width)(data["images"]).pooled.half()
    arm.model.teacher_side.live = None
    with fake_cuda(arm.model.train()) as fake:
        batch = fake({"images": data["images"], "rows": data["rows"], "teacher": feature})
        arm.model.to("cuda")
        losses = arm.model(**arm.model.data_preprocessor(batch, True))
        assert {v.device.type for v in losses.values()} == {"cuda"}
