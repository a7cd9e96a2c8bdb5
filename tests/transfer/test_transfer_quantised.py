"""Quantised transfer and GHOST: formulas in float64, costs, and the stages of two task families.

Both train a network whose weights and activations have k bits. GHOST chooses the bits of each layer
(hybrid quantisation), and a teacher of the same network gives maps to learn (self-teaching), at the
levels that a learned switch opens. The formulas are in kdep_bench/transfer/quantisers.py and
kdep_bench/transfer/methods/ghost.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from kdep_bench.errors import KdepError
from kdep_bench.flops import forward_flops
from kdep_bench.transfer import stage
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL, TransferContext
from kdep_bench.transfer.methods.ghost import Ghost, Switch, attention_distance, gumbel
from kdep_bench.transfer.methods.quantised import Quantised, quantisable
from kdep_bench.transfer.quantisers import (
    SAMPLE,
    ActivationRange,
    cluster_distance,
    dorefa_weight,
    hybrid_bits,
)
from tests.transfer.conftest import config, quiet

GHOST = "kdep_bench.transfer.methods.ghost.Ghost"
QUANTISED = "kdep_bench.transfer.methods.quantised.Quantised"
MAPS = {
    "s4": {"channels": 4, "stride": 4, "side": 4},
    "s8": {"channels": 6, "stride": 8, "side": 2},
}


def random_tensor(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """A random float64 tensor that depends only on the seed."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


class Net(nn.Module):
    """A backbone with two levels, and a layer that no forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, 4)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 2, 2, bias=False)
        self.unused = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The maps of the levels s4 and s8."""
        x = self.norm(self.first(x)).relu()
        return x, self.second(x)


class Model(nn.Module):
    """A task's model with a backbone and a head; every instance has the same weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = Net(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The class scores [B, 2]."""
        return self.head(self.backbone(x)[1].mean((2, 3)))


def context(
    student: dict[str, Tensor], teacher: dict[str, Tensor], step: int = 0
) -> TransferContext:
    """The context that a method's losses get, for these maps {level: [B, C, H, W]}."""
    count = len(next(iter(student.values())))
    return TransferContext(torch.zeros(count, 3, 16, 16), [], student, teacher, step)


# ---- weights and activations ----


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_dorefa_weights_equal_the_formula_and_have_at_most_two_to_the_k_values(bits):
    weight = random_tensor(40, 50)
    steps, squashed = 2**bits - 1, np.tanh(weight.numpy())
    largest = np.abs(squashed).max()
    expected = largest * (2 * np.round((squashed / (2 * largest) + 0.5) * steps) / steps - 1)
    np.testing.assert_allclose(dorefa_weight(weight, bits).numpy(), expected, atol=1e-12)
    assert len(np.unique(expected.round(9))) <= 2**bits


def test_32_bits_change_nothing_and_8_bits_change_weights_by_at_most_half_a_step():
    weight = random_tensor(1000, scale=0.05)
    assert dorefa_weight(weight, 32) is weight
    squashed = torch.tanh(weight)
    step = 2 * squashed.abs().max() / 255  # 2^8 - 1 steps from the lowest to the highest value
    error = (dorefa_weight(weight, 8) - squashed).abs().max()
    assert 0 < error <= step / 2 + 1e-12


def test_the_gradient_of_quantised_weights_is_that_of_tanh_without_the_rounding():
    weight = random_tensor(30).requires_grad_()
    upstream = random_tensor(30, seed=1)
    (gradient,) = torch.autograd.grad((dorefa_weight(weight, 3) * upstream).sum(), weight)
    derivative = 1 - torch.tanh(weight.detach()) ** 2
    np.testing.assert_allclose(gradient, upstream * derivative, atol=1e-12)


def test_quantised_weights_of_zero_are_finite():
    assert torch.isfinite(dorefa_weight(torch.zeros(3, 3), 4)).all()


def test_activations_have_two_to_the_k_values_and_no_gradient_outside_the_range():
    quantiser = ActivationRange(3)
    x = torch.linspace(-1, 6, 500).requires_grad_()
    out = quantiser(x)
    scale = 7 / 7  # the range from -1 to 6, divided by 2^3 - 1 steps
    expected = (np.round(x.detach().numpy() / scale) * scale).clip(-1, 6)
    np.testing.assert_allclose(out.detach(), expected, atol=1e-5)
    assert len(out.detach().unique()) <= 8
    quantiser.eval()
    (gradient,) = torch.autograd.grad(quantiser(x * 2).sum(), x)
    # Values up to half a step outside of the range are rounded into it.
    is_outside = (x * 2 > 6.5) | (x * 2 < -1.5)
    assert set(gradient[~is_outside].tolist()) == {2.0}
    assert set(gradient[is_outside].tolist()) == {0.0}


def test_the_range_of_activations_is_a_moving_average_in_training_and_fixed_in_evaluation():
    quantiser = ActivationRange(8, averaging=0.5)
    for high in (1.0, 3.0):
        quantiser(torch.tensor([0.0, high]))
    # The maximum is 0.5 * 1 + 0.5 * 3 = 2.
    assert quantiser.scale_and_zero() == (pytest.approx(2 / 255), 0)
    quantiser.eval()
    assert quantiser(torch.tensor([9.0])).item() == pytest.approx(2.0)
    assert quantiser.scale_and_zero() == (pytest.approx(2 / 255), 0)


# ---- hybrid bits ----


def test_the_cluster_distance_is_zero_for_as_many_values_as_clusters():
    """2 bits are four clusters."""
    four_values = torch.tensor([1.0, 2.0, 5.0, 9.0] * 8)
    assert cluster_distance(four_values, 2) == pytest.approx(0, abs=1e-12)
    four_pairs = torch.tensor([0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0])
    assert cluster_distance(four_pairs, 2) == pytest.approx(0.5**2)  # each 0.5 from its centre


def test_the_cluster_distance_of_a_sample_is_nearly_that_of_all_weights(monkeypatch):
    weight = random_tensor(3 * SAMPLE)
    of_sample = cluster_distance(weight, 4)
    monkeypatch.setattr("kdep_bench.transfer.quantisers.SAMPLE", 10**9)
    assert of_sample == pytest.approx(cluster_distance(weight, 4), rel=0.05)


def test_bits_rise_as_the_threshold_falls_and_stay_in_their_limits():
    weight = random_tensor(3000, scale=0.02)
    bits = [hybrid_bits(weight, threshold, 2, 8) for threshold in (100, 10, 1, 0.1, 1e-6)]
    assert bits == sorted(bits)
    assert bits[0] < bits[-2] <= bits[-1] == 8
    assert hybrid_bits(weight, 1e-6, 2, 5) == 5
    assert hybrid_bits(weight, 100, 4, 8) == 4


# ---- the methods ----


def test_the_saved_network_has_the_quantised_weights_that_were_evaluated():
    """`finish` removes the method from the model: the outputs of the model stay the same."""
    model, x = Model(), random_tensor(2, 3, 16, 16).float()
    names = list(model.state_dict())
    of_float32 = model.eval()(x)
    method = Quantised(bits=3)
    method.attach(model, None)
    model.train()(x)
    method.losses(context({"s4": x}, {}))
    model.eval()
    method.eval()
    evaluated = model(x)
    outputs = method.finish(model)
    assert torch.equal(model(x), evaluated)
    assert not torch.allclose(evaluated, of_float32, atol=1e-3)
    assert list(model.state_dict()) == names
    for layer, bits in ((model.backbone.first, 3), (model.backbone.second, 3)):
        assert 1 < len(layer.weight.detach().unique()) <= 2**bits
    for layer in (model.backbone.unused, model.head):  # not quantised
        assert len(layer.weight.detach().unique()) > 8
    layers = outputs["quantised"]["layers"]
    # The images, which are the input of the first layer, are not quantised.
    assert [(e["layer"], e["bits"], e["activation_bits"]) for e in layers] == [
        ("backbone.first", 3, 32),
        ("backbone.second", 3, 3),
    ]


def test_megabytes_and_bit_operations_are_those_counted_by_hand():
    model, x = Model(), random_tensor(2, 3, 16, 16).float()
    flops = forward_flops(model.backbone, x)
    method = Quantised(bits=4)
    method.attach(model, None)
    model(x)
    method.losses(context({"s4": x}, {}))
    model(x)  # steps after the first are not counted
    outputs = method.finish(model)
    # Multiply-adds of an image: positions * weights.
    first, second = 4 * 4 * (4 * 3 * 4 * 4), 2 * 2 * (6 * 4 * 2 * 2)
    assert 2 * (first + second) == flops
    assert outputs["bit_operations"] == first * 4 * 32 + second * 4 * 4
    assert outputs["bit_operations_float32"] == (first + second) * 32 * 32
    # Quantised weights; values in float32: a bias, BatchNorm, weight and bias of the unused layer.
    weights, float32 = 192 + 96, 4 + 4 * 4 + 36 + 6
    # Half a byte per weight of 4 bits, 4 bytes for the scale of each of two layers.
    assert outputs["megabytes"] == pytest.approx((weights / 2 + 8 + 4 * float32) / 1e6)
    assert outputs["megabytes_float32"] == pytest.approx(4 * (weights + float32) / 1e6)
    assert outputs["bits"] == 4
    assert outputs["quantised"]["image"] == [16, 16]


def test_in_training_the_parameters_stay_float32_and_get_gradients():
    model, x = Model(), random_tensor(2, 3, 16, 16).float()
    initial = model.backbone.first.weight.detach().clone()
    method = Quantised(bits=2)
    method.attach(model, None)
    model(x).square().sum().backward()
    assert torch.equal(model.backbone.first.weight, initial)
    for layer in (model.backbone.first, model.backbone.second):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


def test_a_part_without_layers_is_refused_and_the_error_names_the_model_s_parts():
    with pytest.raises(KdepError, match="no convolution and no linear layer in neck") as error:
        quantisable(Model(), ["neck"])
    assert "backbone, head" in str(error.value)
    assert list(quantisable(Model(), ["head"])) == ["head"]


def test_convolutions_with_another_forward_method_are_quantised():
    """EfficientNet-Lite's strided convolutions are a subclass of Conv2d with another forward."""
    from kdep_bench.students.efficientnet_lite import EfficientNetLite

    model = nn.Module()
    model.backbone = EfficientNetLite(out_indices=(3,), head=False)
    x = random_tensor(2, 3, 64, 64).float()
    of_float32 = model.backbone.eval()(x)[0]
    method = Quantised(bits=8)
    method.attach(model, None)
    model.train()
    model.backbone.eval()  # BatchNorm as before; the ranges of activations are measured
    quantised = model.backbone(x)[0]
    assert all(layer.is_used for layer in method.layers)
    assert quantised.shape == of_float32.shape
    assert not torch.equal(quantised, of_float32)
    assert torch.isfinite(quantised).all()


def ghost(**options: Any) -> tuple[Ghost, Model]:
    """GHOST, attached to a model with a teacher of equal weights."""
    model, teacher = Model(), Model()
    method = Ghost(MAPS, width=5, **options)
    method.attach(model, teacher)
    return method, model


def test_the_attention_distance_equals_the_formula():
    """Mean squared difference of the squares averaged over channels, each with length 1."""
    student, teacher = random_tensor(3, 4, 5, 6), random_tensor(3, 4, 5, 6, seed=1)
    expected = []
    for b in range(3):
        of_student, of_teacher = ((x[b].numpy() ** 2).mean(0).ravel() for x in (student, teacher))
        difference = of_student / np.linalg.norm(of_student) - of_teacher / np.linalg.norm(
            of_teacher
        )
        expected.append((difference**2).mean())
    np.testing.assert_allclose(attention_distance(student, teacher), expected, atol=1e-14)
    assert attention_distance(student, 3 * student).abs().max() < 1e-14
    x = random_tensor(2, 3, 2, 2).requires_grad_()
    assert gradcheck(lambda x: attention_distance(x, teacher[:2, :3, :2, :2]), x)


def test_the_switch_equals_the_formula_and_has_the_gradient_of_the_sigmoid():
    torch.manual_seed(0)
    switch = Switch({"s4": 4}, 5).double()
    student, teacher = random_tensor(6, 4, 3, 3).requires_grad_(), random_tensor(6, 4, 3, 3, seed=1)
    noise = random_tensor(6, seed=2)

    def projected(projection: Any, x: Tensor) -> Tensor:
        """[6, 5]: a linear layer on the mean over positions, then BatchNorm."""
        out = x.mean((2, 3)) @ projection[0].weight.T + projection[0].bias
        return (out - out.mean(0)) / (out.var(0, unbiased=False) + 1e-5).sqrt()

    keys, queries = (cast(Any, m)["s4"] for m in (switch.keys, switch.queries))
    product = projected(keys, student).relu() * projected(queries, teacher)
    logit = product.sum(1) / math.sqrt(5) + noise
    is_open = switch("s4", student, teacher, noise)
    assert is_open.tolist() == (torch.sigmoid(logit) > 0.5).double().tolist()
    assert 0 < is_open.sum() < 6  # both cases occur
    (gradient,) = torch.autograd.grad(is_open.sum(), student, retain_graph=True)
    (expected,) = torch.autograd.grad(torch.sigmoid(logit).sum(), student)
    torch.testing.assert_close(gradient, expected)
    # A single image has no variance for BatchNorm.
    assert switch("s4", student[:1], teacher[:1], noise[:1]).shape == (1,)


def test_self_teaching_is_the_weighted_sum_over_open_levels():
    method, _ = ghost(weight=7.0)
    student = {"s4": random_tensor(8, 4, 4, 4).float(), "s8": random_tensor(8, 6, 2, 2).float()}
    teacher = {k: v + random_tensor(*v.shape, seed=3).float() for k, v in student.items()}
    expected = torch.zeros(8)
    for i, (level, x) in enumerate(student.items()):
        is_open = method.switch(level, x, teacher[level], gumbel(8, 2, i))
        expected = expected + 7.0 * is_open * attention_distance(x, teacher[level])
    (loss,) = method.losses(context(student, teacher, step=2)).values()
    torch.testing.assert_close(loss, expected)
    repeated = method.losses(context(student, teacher, step=2))["self_teaching"]
    assert torch.equal(repeated, loss)


def test_closed_switches_and_weight_zero_leave_only_the_loss_of_the_task(monkeypatch):
    student = {"s4": random_tensor(4, 4, 4, 4).float(), "s8": random_tensor(4, 6, 2, 2).float()}
    teacher = {k: v * random_tensor(*v.shape, seed=3).float() for k, v in student.items()}
    noise = "kdep_bench.transfer.methods.ghost.gumbel"
    monkeypatch.setattr(noise, lambda count, *_: torch.full((count,), -1e4))  # closes every switch
    method, model = ghost(weight=400.0)
    assert method.losses(context(student, teacher))["self_teaching"].tolist() == [0.0] * 4
    model(torch.zeros(2, 3, 16, 16))
    without_weight, _ = ghost(weight=0.0)
    assert without_weight.losses(context(student, teacher)) == {}
    assert not without_weight.reads_teacher_maps  # so the teacher is not run
    assert not list(without_weight.parameters())


def test_the_noise_does_not_change_the_random_numbers_of_the_task():
    """The noise of each step and level is another one. The mean of Gumbel noise is 0.5772."""
    state = torch.get_rng_state()
    noises = [
        gumbel(1000, step, level) for step, level in ((0, 0), (0, 1), (1, 0), (101, 0), (111, 0))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(noise.tolist()) for noise in noises}) == len(noises)
    assert torch.cat(noises).mean().item() == pytest.approx(0.5772, abs=0.1)


def test_bits_of_ghost_are_those_of_the_teacher_s_weights():
    model, teacher = Model(), Model()
    nn.init.normal_(teacher.backbone.first.weight, std=1e-4)
    nn.init.normal_(teacher.backbone.second.weight, std=10.0)
    method = Ghost(MAPS)
    method.attach(model, teacher)
    bits = {layer.path: layer.bits for layer in method.layers}
    assert bits["backbone.first"] == 2
    assert bits["backbone.second"] > 2
    with pytest.raises(KdepError, match="more than `largest`"):
        Ghost(MAPS, smallest=5, largest=4)


# ---- whole stages ----


def run(
    student: dict[str, Any],
    data: Path,
    export: Path,
    out: Path,
    task: str,
    changes: dict[str, Any],
    teacher: Path | None = None,
) -> dict[str, Any]:
    """The outputs of a real, short transfer stage.

    Args:
        student: config of the student.
        data, export: directories of the data tree and of the export stage.
        out: directory of the stage.
        task: name of the task.
        changes: entries of the stage's spec that are changed or added.
        teacher: directory of the tuned teacher's stage.
    """
    out.mkdir(parents=True, exist_ok=True)
    spec = {"task": config("tasks", task), "student": student, "seed": 0, "threads": 1, **changes}
    spec["task"]["recipe"].update({"iters": 3, "warmup": 1} if "det" in task else {"epochs": 1})
    inputs = {"prepare": data.parent, "export": export}
    if teacher is not None:
        inputs["teacher"] = teacher
    return stage.run(json.loads(json.dumps(spec, sort_keys=True)), inputs, out, quiet)


def values_by_layer(folder: Path, layers: list[dict[str, Any]]) -> dict[str, int]:
    """{layer: number of different weights} of the quantised layers in a saved model."""
    tensors = read_tensors(folder / MODEL)
    return {e["layer"]: len(tensors[f"{e['layer']}.weight"].unique()) for e in layers}


@pytest.mark.e2e
def test_ghost_on_classification_saves_k_bit_weights_and_reads_all_levels(
    data, exported, student, tmp_path, in_subprocess
):
    keep = {"keep_model": True}
    # The task without a transfer method is also the tuned teacher.
    plain = in_subprocess(run, student, data, exported, tmp_path / "t", "smoke_finetune", keep)
    changes = {"transfer": {"type": GHOST, "width": 8}, "teacher": student, **keep}
    call = (student, data, exported, tmp_path / "a", "smoke_finetune", changes, tmp_path / "t")
    outputs = in_subprocess(run, *call)
    json.dumps(outputs, allow_nan=False)
    assert outputs["gate"] == plain["gate"]
    assert outputs["gate"]["coverage"] == 1.0
    cost = outputs["transfer"]
    assert set(cost["switch_open"]) == {"s4", "s8", "s16", "s32"}
    assert all(0 < v < 1 for v in cost["switch_open"].values())
    assert cost["extra_forwards"] > 0
    assert cost["extra_parameters"] > 2.8e6  # of the teacher and the switch
    assert cost["megabytes"] < 0.3 * cost["megabytes_float32"]
    layers = cost["quantised"]["layers"]
    assert len(layers) == 20  # convolutions of a ResNet-18
    counts = values_by_layer(tmp_path / "a", layers)
    assert all(1 < counts[e["layer"]] <= 2 ** e["bits"] for e in layers)
    saved, saved_plain = (read_tensors(tmp_path / name / MODEL) for name in ("a", "t"))
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in saved_plain.items()}


@pytest.mark.e2e
def test_quantised_detection_trains_and_scores_the_k_bit_network(
    data, exported, student, tmp_path, in_subprocess
):
    changes = {"transfer": {"type": QUANTISED, "bits": 2}, "keep_model": True}
    outputs = in_subprocess(run, student, data, exported, tmp_path / "a", "smoke_det", changes)
    assert outputs["gate"]["coverage"] == 1.0
    layers = outputs["transfer"]["quantised"]["layers"]
    assert {e["layer"].split(".")[0] for e in layers} == {"backbone", "neck"}
    assert max(values_by_layer(tmp_path / "a", layers).values()) <= 4
    assert outputs["transfer"]["bits"] == 2
    assert outputs["transfer"]["extra_forwards"] == 0


@pytest.mark.e2e
def test_two_processes_have_the_same_range_of_every_activation(data, exported, student, tmp_path):
    """Otherwise each process would score its images with a different network."""
    from tests.transfer.test_transfer_parallel import run_ranks

    task = config("tasks", "smoke_finetune")
    task["recipe"].update(epochs=1, batch=16)
    args = (task, student, data.parent, exported, tmp_path / "two")
    first, second = run_ranks(2, *args, transfer={"type": QUANTISED, "bits": 4})
    layers = first["transfer"]["quantised"]["layers"]
    assert layers == second["transfer"]["quantised"]["layers"]
    assert all(layer["scale"] > 0 for layer in layers[1:])  # the first reads images in float32
    assert first["value"] == second["value"]


def test_the_onnx_file_of_a_quantised_model_is_refused():
    """The file would have 32-bit activations, and so other outputs than the scored network."""
    from kdep_bench.cli.publish import _check_not_quantised

    for outputs in ({}, {"transfer": {"extra_forwards": 1}}):
        _check_not_quantised("transfer-a", outputs)
    with pytest.raises(KdepError, match="transfer-a was scored with k-bit activations"):
        _check_not_quantised("transfer-a", {"transfer": {"quantised": {"layers": []}}})
