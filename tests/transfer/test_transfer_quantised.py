"""Quantised transfer and GHOST: formulas in float64, costs, and the stages of two task families."""

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


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
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
        x = self.norm(self.first(x)).relu()
        return x, self.second(x)


class Model(nn.Module):
    """A task's model with a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = Net(), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[1].mean((2, 3)))


def context(
    student: dict[str, Tensor], teacher: dict[str, Tensor], step: int = 0
) -> TransferContext:
    """The context that a method's losses get."""
    count = len(next(iter(student.values())))
    return TransferContext(torch.zeros(count, 3, 16, 16), [], student, teacher, step)


# ---- weights and activations ----


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_dorefa_weights_equal_the_formula_and_have_at_most_two_to_the_k_values(bits):
    w = drawn(40, 50)
    steps, squashed = 2**bits - 1, np.tanh(w.numpy())
    largest = np.abs(squashed).max()
    expected = largest * (2 * np.round((squashed / (2 * largest) + 0.5) * steps) / steps - 1)
    np.testing.assert_allclose(dorefa_weight(w, bits).numpy(), expected, atol=1e-12)
    assert len(np.unique(expected.round(9))) <= 2**bits


def test_32_bits_change_nothing_and_8_bits_change_small_weights_by_less_than_a_step():
    w = drawn(1000, scale=0.05)
    assert dorefa_weight(w, 32) is w
    error = (dorefa_weight(w, 8) - torch.tanh(w)).abs().max()
    assert 0 < error <= torch.tanh(w).abs().max() / 255 + 1e-12


def test_the_gradient_passes_the_rounding_and_is_that_of_tanh():
    w = drawn(30).requires_grad_()
    upstream = drawn(30, seed=1)
    (grad,) = torch.autograd.grad((dorefa_weight(w, 3) * upstream).sum(), w)
    np.testing.assert_allclose(grad, upstream * (1 - torch.tanh(w.detach()) ** 2), atol=1e-12)


def test_weights_of_zero_stay_finite():
    assert torch.isfinite(dorefa_weight(torch.zeros(3, 3), 4)).all()


def test_activations_have_two_to_the_k_values_and_no_gradient_outside_the_range():
    quantiser = ActivationRange(3)
    x = torch.linspace(-1, 6, 500).requires_grad_()
    out = quantiser(x)
    scale = 7 / 7  # of the range -1..6, in 2^3 - 1 steps
    expected = (np.round(x.detach().numpy() / scale) * scale).clip(-1, 6)
    np.testing.assert_allclose(out.detach(), expected, atol=1e-5)
    assert len(out.detach().unique()) <= 8
    quantiser.eval()
    (grad,) = torch.autograd.grad(quantiser(x * 2).sum(), x)
    outside = (x * 2 > 6.5) | (x * 2 < -1.5)
    assert set(grad[~outside].tolist()) == {2.0}
    assert set(grad[outside].tolist()) == {0.0}


def test_the_range_of_activations_moves_in_training_and_is_fixed_in_evaluation():
    quantiser = ActivationRange(8, averaging=0.5)
    for high in (1.0, 3.0):
        quantiser(torch.tensor([0.0, high]))
    assert quantiser.scale_and_zero() == (pytest.approx(2 / 255), 0)
    quantiser.eval()
    assert quantiser(torch.tensor([9.0])).item() == pytest.approx(2.0)
    assert quantiser.scale_and_zero() == (pytest.approx(2 / 255), 0)


# ---- hybrid bits ----


def test_the_cluster_distance_is_zero_for_as_many_values_as_clusters():
    assert cluster_distance(torch.tensor([1.0, 2.0, 5.0, 9.0] * 8), 2) == pytest.approx(
        0, abs=1e-12
    )
    by_hand = cluster_distance(torch.tensor([0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0]), 2)
    assert by_hand == pytest.approx(0.25)  # four pairs, each value 0.5 from its centre


def test_clusters_of_a_sample_have_the_distance_of_all_weights(monkeypatch):
    w = drawn(3 * SAMPLE)
    sampled = cluster_distance(w, 4)
    monkeypatch.setattr("kdep_bench.transfer.quantisers.SAMPLE", 10**9)
    assert sampled == pytest.approx(cluster_distance(w, 4), rel=0.05)


def test_bits_rise_as_the_threshold_falls_and_stay_in_their_limits():
    w = drawn(3000, scale=0.02)
    bits = [hybrid_bits(w, threshold, 2, 8) for threshold in (100, 10, 1, 0.1, 1e-6)]
    assert bits == sorted(bits)
    assert bits[0] < bits[-2] <= bits[-1] == 8
    assert hybrid_bits(w, 1e-6, 2, 5) == 5
    assert hybrid_bits(w, 100, 4, 8) == 4


# ---- the methods ----


def test_a_network_is_quantised_in_training_and_the_same_after_the_method_is_removed():
    """A score of the network before or after its quantisation would be of another network."""
    model, x = Model(), drawn(2, 3, 16, 16).float()
    names = list(model.state_dict())
    plain = model.eval()(x)
    method = Quantised(bits=3)
    method.attach(model, None)
    model.train()(x)
    method.losses(context({"s4": x}, {}))
    model.eval()
    method.eval()
    before = model(x)
    outputs = method.finish(model)
    assert torch.equal(model(x), before)
    assert not torch.allclose(before, plain, atol=1e-3)
    assert list(model.state_dict()) == names
    for layer, bits in ((model.backbone.first, 3), (model.backbone.second, 3)):
        assert 1 < len(layer.weight.detach().unique()) <= 2**bits
    assert len(model.backbone.unused.weight.detach().unique()) > 8
    assert len(model.head.weight.detach().unique()) > 8
    layers = outputs["quantised"]["layers"]
    assert [(e["layer"], e["bits"], e["activation_bits"]) for e in layers] == [
        ("backbone.first", 3, 32),
        ("backbone.second", 3, 3),
    ]


def test_megabytes_and_bit_operations_are_those_counted_by_hand():
    model, x = Model(), drawn(2, 3, 16, 16).float()
    flops = forward_flops(model.backbone, x)
    method = Quantised(bits=4)
    method.attach(model, None)
    model(x)
    method.losses(context({"s4": x}, {}))
    model(x)  # steps after the first are not counted
    outputs = method.finish(model)
    first, second = 4 * 4 * (4 * 3 * 4 * 4), 2 * 2 * (6 * 4 * 2 * 2)  # positions * weights
    assert 2 * (first + second) == flops
    assert outputs["bit_operations"] == first * 4 * 32 + second * 4 * 4
    assert outputs["bit_operations_float32"] == (first + second) * 1024
    weights, float32 = 192 + 96, 4 + 4 * 4 + 36 + 6  # bias, BatchNorm, the unused layer
    assert outputs["megabytes"] == pytest.approx((weights / 2 + 8 + 4 * float32) / 1e6)
    assert outputs["megabytes_float32"] == pytest.approx(4 * (weights + float32) / 1e6)
    assert outputs["bits"] == 4
    assert outputs["quantised"]["image"] == [16, 16]


def test_gradients_reach_the_weights_and_the_parameters_stay_unquantised_in_training():
    model, x = Model(), drawn(2, 3, 16, 16).float()
    before = model.backbone.first.weight.detach().clone()
    method = Quantised(bits=2)
    method.attach(model, None)
    model(x).square().sum().backward()
    assert torch.equal(model.backbone.first.weight, before)
    for layer in (model.backbone.first, model.backbone.second):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().sum() > 0


def test_parts_without_layers_are_refused_with_the_names_of_the_parts():
    with pytest.raises(KdepError, match="no convolution and no linear layer in neck") as error:
        quantisable(Model(), ["neck"])
    assert "backbone, head" in str(error.value)
    assert list(quantisable(Model(), ["head"])) == ["head"]


def test_a_timm_network_with_padding_of_its_own_is_quantised():
    """EfficientNet-Lite's strided convolutions are a subclass of Conv2d with another forward."""
    from kdep_bench.students.efficientnet_lite import EfficientNetLite

    model = nn.Module()
    model.backbone = EfficientNetLite(out_indices=(3,), head=False)
    x = drawn(2, 3, 64, 64).float()
    plain = model.backbone.eval()(x)[0]
    method = Quantised(bits=8)
    method.attach(model, None)
    model.train()
    model.backbone.eval()  # BatchNorm as before; the ranges of activations are measured
    quantised = model.backbone(x)[0]
    assert {e.path for e in method.layers if not e.is_used} == set()
    assert quantised.shape == plain.shape
    assert not torch.equal(quantised, plain)
    assert torch.isfinite(quantised).all()


def ghost(**options: Any) -> tuple[Ghost, Model]:
    """GHOST, attached to a model with a teacher of equal weights."""
    model, teacher = Model(), Model()
    method = Ghost(MAPS, width=5, **options)
    method.attach(model, teacher)
    return method, model


def test_the_attention_distance_equals_the_formula():
    s, t = drawn(3, 4, 5, 6), drawn(3, 4, 5, 6, seed=1)
    expected = []
    for b in range(3):
        first, second = ((x[b].numpy() ** 2).mean(0).ravel() for x in (s, t))
        gap = first / np.sqrt((first**2).sum()) - second / np.sqrt((second**2).sum())
        expected.append((gap**2).mean())
    np.testing.assert_allclose(attention_distance(s, t), expected, atol=1e-14)
    assert attention_distance(s, 3 * s).abs().max() < 1e-14
    x = drawn(2, 3, 2, 2).requires_grad_()
    assert gradcheck(lambda x: attention_distance(x, t[:2, :3, :2, :2]), x)


def test_the_switch_equals_the_formula_and_has_the_gradient_of_the_sigmoid():
    torch.manual_seed(0)
    switch = Switch({"s4": 4}, 5).double()
    s, t = drawn(6, 4, 3, 3).requires_grad_(), drawn(6, 4, 3, 3, seed=1)
    noise = drawn(6, seed=2)

    def projected(projection: Any, x: Tensor) -> Tensor:
        out = x.mean((2, 3)) @ projection[0].weight.T + projection[0].bias
        return (out - out.mean(0)) / (out.var(0, unbiased=False) + 1e-5).sqrt()

    keys, queries = (cast(Any, m)["s4"] for m in (switch.keys, switch.queries))
    logit = (projected(keys, s).relu() * projected(queries, t)).sum(1) / math.sqrt(5) + noise
    out = switch("s4", s, t, noise)
    assert out.tolist() == (torch.sigmoid(logit) > 0.5).double().tolist()
    assert 0 < out.sum() < 6
    (grad,) = torch.autograd.grad(out.sum(), s, retain_graph=True)
    (expected,) = torch.autograd.grad(torch.sigmoid(logit).sum(), s)
    torch.testing.assert_close(grad, expected)
    assert switch("s4", s[:1], t[:1], noise[:1]).shape == (1,)  # BatchNorm has no variance


def test_self_teaching_is_the_weighted_sum_over_open_levels():
    method, _ = ghost(weight=7.0)
    student = {"s4": drawn(8, 4, 4, 4).float(), "s8": drawn(8, 6, 2, 2).float()}
    teacher = {k: v + drawn(*v.shape, seed=3).float() for k, v in student.items()}
    expected = torch.zeros(8)
    for i, (level, s) in enumerate(student.items()):
        is_open = method.switch(level, s, teacher[level], gumbel(8, 2, i))
        expected = expected + 7.0 * is_open * attention_distance(s, teacher[level])
    (loss,) = method.losses(context(student, teacher, step=2)).values()
    torch.testing.assert_close(loss, expected)
    again = method.losses(context(student, teacher, step=2))["self_teaching"]
    assert torch.equal(again, loss)


def test_closed_switches_and_weight_zero_leave_only_the_loss_of_the_task(monkeypatch):
    student = {"s4": drawn(4, 4, 4, 4).float(), "s8": drawn(4, 6, 2, 2).float()}
    teacher = {k: v * drawn(*v.shape, seed=3).float() for k, v in student.items()}
    module = "kdep_bench.transfer.methods.ghost.gumbel"
    monkeypatch.setattr(module, lambda count, *_: torch.full((count,), -1e4))
    method, model = ghost(weight=400.0)
    assert method.losses(context(student, teacher))["self_teaching"].tolist() == [0.0] * 4
    model(torch.zeros(2, 3, 16, 16))
    off, _ = ghost(weight=0.0)
    assert off.losses(context(student, teacher)) == {}
    assert not off.reads_teacher_maps  # the teacher's forward passes would be wasted
    assert not list(off.parameters())


def test_the_noise_does_not_change_the_random_numbers_of_the_task():
    state = torch.get_rng_state()
    draws = [
        gumbel(1000, step, level) for step, level in ((0, 0), (0, 1), (1, 0), (101, 0), (111, 0))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert len({tuple(d.tolist()) for d in draws}) == len(draws)
    assert torch.cat(draws).mean().item() == pytest.approx(0.5772, abs=0.1)  # Euler's constant


def test_bits_of_ghost_are_those_of_the_teacher_s_weights():
    model, teacher = Model(), Model()
    nn.init.normal_(teacher.backbone.first.weight, std=1e-4)
    nn.init.normal_(teacher.backbone.second.weight, std=10.0)
    method = Ghost(MAPS)
    method.attach(model, teacher)
    bits = {e.path: e.bits for e in method.layers}
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
    """The outputs of a real transfer stage."""
    out.mkdir(parents=True, exist_ok=True)
    spec = {"task": config("tasks", task), "student": student, "seed": 0, "threads": 1, **changes}
    spec["task"]["recipe"].update({"iters": 3, "warmup": 1} if "det" in task else {"epochs": 1})
    inputs = {"prepare": data.parent, "export": export}
    if teacher is not None:
        inputs["teacher"] = teacher
    return stage.run(json.loads(json.dumps(spec, sort_keys=True)), inputs, out, quiet)


def values_by_layer(folder: Path, layers: list[dict[str, Any]]) -> dict[str, int]:
    """Number of distinct weights of each quantised layer in a saved model."""
    tensors = read_tensors(folder / MODEL)
    return {e["layer"]: len(tensors[f"{e['layer']}.weight"].unique()) for e in layers}


@pytest.mark.e2e
def test_ghost_on_classification_saves_k_bit_weights_and_reads_all_levels(
    data, exported, student, tmp_path, in_subprocess
):
    keep = {"keep_model": True}
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
    saved, saved_plain = (read_tensors(tmp_path / n / MODEL) for n in ("a", "t"))
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
    """Each process would otherwise score its images with another network."""
    from tests.transfer.test_transfer_parallel import run_ranks

    task = config("tasks", "smoke_finetune")
    task["recipe"].update(epochs=1, batch=16)
    args = (task, student, data.parent, exported, tmp_path / "two")
    first, second = run_ranks(2, *args, transfer={"type": QUANTISED, "bits": 4})
    layers = first["transfer"]["quantised"]["layers"]
    assert layers == second["transfer"]["quantised"]["layers"]
    assert all(e["scale"] > 0 for e in layers[1:])
    assert first["value"] == second["value"]


def test_the_onnx_file_of_a_quantised_model_is_refused():
    """It would have 32-bit activations, and so other outputs than the scored network."""
    from kdep_bench.cli.publish import _check_not_quantised

    for outputs in ({}, {"transfer": {"extra_forwards": 1}}):
        _check_not_quantised("transfer-a", outputs)
    with pytest.raises(KdepError, match="transfer-a was scored with k-bit activations"):
        _check_not_quantised("transfer-a", {"transfer": {"quantised": {"layers": []}}})
