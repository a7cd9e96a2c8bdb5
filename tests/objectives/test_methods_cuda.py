"""Every method of configs/methods on a fake GPU: all tensors of a training step are on the GPU.

The fake GPU (`tests/fake_cuda.py`) runs on the CPU. It raises an error if tensors of two devices
meet, and where a real step would have to wait until the GPU has computed a value. The tests cover
the forward pass and `after_step`, not the backward pass, which needs a real GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdep_bench.objectives.auxiliary import AuxiliaryModules
from tests.fake_cuda import fake_cuda
from tests.objectives import tiny
from tests.objectives.test_methods_train import BATCH, STEPS, TRAINED, TinyRun, teacher


@pytest.mark.parametrize("name", TRAINED)
def test_all_losses_of_a_step_are_on_the_gpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    auxiliary_losses: list[Tensor] = []
    run = TinyRun(name, tmp_path)
    run.train(1)  # some objectives read values of their first batch
    model = run.model.train()
    live_teachers = [
        reader.live for reader in model.teacher_readers.values() if reader.live is not None
    ]
    # Frozen networks of an objective, in a list so that they are neither trained nor stored.
    frozen = [net for part in model.objective.modules() for net in getattr(part, "_teacher", [])]
    data = run.batch(tiny.batch(BATCH, 0))
    # An auxiliary module has a separate optimiser, whose step contains a backward pass.
    monkeypatch.setattr(
        AuxiliaryModules, "minimise", lambda _self, _name, loss: auxiliary_losses.append(loss)
    )
    with fake_cuda(model, *live_teachers, *frozen) as make_fake:
        data = make_fake(data)
        model.to("cuda")
        for model.step in (0, STEPS // 2):
            batch = model.data_preprocessor(data, True)
            loss, logged = model.parse_losses(model(**batch, mode="loss"))
            with torch.no_grad():
                model.objective.after_step()
            values = (loss, *logged.values(), *auxiliary_losses)
            assert {v.device.type for v in values} == {"cuda"}


def test_cached_teacher_features_are_moved_to_the_gpu(tmp_path: Path):
    run, data = TinyRun("kdep", tmp_path), dict(tiny.batch(BATCH, 0))
    feature = teacher(run.width)(data["images"]).pooled.half()
    run.model.first_teacher_reader.live = None  # so the batch must hold the teacher's feature
    with fake_cuda(run.model.train()) as make_fake:
        batch = make_fake({"images": data["images"], "rows": data["rows"], "teacher": feature})
        run.model.to("cuda")
        losses = run.model(**run.model.data_preprocessor(batch, True))
        assert {v.device.type for v in losses.values()} == {"cuda"}
