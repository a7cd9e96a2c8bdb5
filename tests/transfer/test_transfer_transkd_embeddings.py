"""GL-Mixer and embedding assistants of TransKD: their formulas, and how TransKD uses them.

The formulas are in the docstring of kdep_bench/transfer/methods/transkd_embeddings.py.
"""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import nn

from kdep_bench.errors import KdepError
from kdep_bench.transfer.methods.transkd import TransKD
from kdep_bench.transfer.methods.transkd_embeddings import EmbeddingAssistant, GlobalLocalMixer
from tests.suite.test_suite_transfer_methods import plan
from tests.transfer.test_transfer_methods import (
    BETAS,
    LEVELS,
    losses_on,
    maps,
    random_tensor,
    transkd,
)


def mixer(channels: int, attention: float, local: float) -> GlobalLocalMixer:
    """A mixer in float64 with these two weights."""
    torch.manual_seed(0)
    module = GlobalLocalMixer(channels).double()
    module.weights.data = torch.tensor([attention, local], dtype=torch.float64)
    return module


def test_the_local_part_gates_a_convolution_of_neighbouring_tokens():
    """One channel, four tokens in row order, worked out by hand."""
    module = mixer(1, 0.0, 2.0)
    module.values.weight.data = torch.tensor([[[1.0, 10.0, 100.0]]], dtype=torch.float64)
    module.values.get_parameter("bias").data = torch.tensor([0.5], dtype=torch.float64)
    for parameter in module.gates.parameters():
        nn.init.zeros_(parameter)  # every gate is sigmoid(0) = 0.5
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=torch.float64)
    # The token before, ten times the token, a hundred times the token after, and the bias.
    expected = [210.5, 321.5, 432.5, 43.5]
    assert module(x).flatten().tolist() == pytest.approx(expected)


def test_the_global_part_equals_self_attention_in_float64():
    module = mixer(16, 3.0, 0.0)
    x = random_tensor(2, 16, 2, 3).double()
    tokens = x.flatten(2).transpose(1, 2)
    queries, keys, values = module.qkv(tokens).chunk(3, dim=2)
    heads = []
    for k in range(8):  # heads of two channels
        q, key, v = (t[:, :, 2 * k : 2 * k + 2] for t in (queries, keys, values))
        heads.append((q @ key.transpose(1, 2) / math.sqrt(2)).softmax(2) @ v)
    expected = 3 * module.proj(torch.cat(heads, 2)).transpose(1, 2).reshape(2, 16, 2, 3)
    torch.testing.assert_close(module(x), expected)


def test_widths_that_8_does_not_divide_have_fewer_heads():
    assert [GlobalLocalMixer(c).heads for c in (256, 320, 20, 9)] == [8, 8, 4, 1]


@pytest.mark.parametrize(("level", "weights"), [(0, [0.1, 0.5]), (3, [0.4, 0.8])])
def test_an_assistant_adds_a_normalised_patch_embedding(level: int, weights: list[float]):
    module = EmbeddingAssistant(5, 7, 2, level, 4)
    embedding, finer = random_tensor(2, 7, 4, 4), random_tensor(2, 5, 8, 8, seed=1)
    new = module.conv(finer)
    assert module.conv.kernel_size == (3, 3)
    mean, variance = new.mean(1, keepdim=True), new.var(1, keepdim=True, unbiased=False)
    expected = weights[0] * embedding + weights[1] * (new - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(module(embedding, finer), expected)


def test_the_assistant_of_the_finest_level_reads_the_image_with_kernels_of_7():
    method, _, _ = transkd(4, 6, betas=BETAS, assistants=True)
    assistants = cast(Any, method.assistants)
    convs = [assistants[level].conv for level in LEVELS]
    assert [c.in_channels for c in convs] == [3, 4, 8, 16]
    assert [c.out_channels for c in convs] == [6, 12, 24, 48]
    assert [c.kernel_size[0] for c in convs] == [7, 3, 3, 3]
    assert [c.stride[0] for c in convs] == [4, 2, 2, 2]


def test_assistants_that_count_0_leave_transkd_base():
    x = random_tensor(2, 3, 64, 64)
    method, student, teacher = transkd(4, 6, betas=BETAS, assistants=True)
    for assistant in cast(Any, method.assistants).values():
        assistant.weights.data = torch.tensor([1.0, 0.0])
    losses = losses_on(method, student, teacher, x)
    expected = torch.zeros(2)
    levels = zip(LEVELS, student.backbone(x), teacher.backbone(x), strict=True)
    for level, student_map, teacher_map in levels:
        error = method.embeddings[level](student_map) - teacher_map
        expected = expected + BETAS[level] * error.square().mean((1, 2, 3))
    torch.testing.assert_close(losses["pea"], expected)


def test_the_mixer_changes_only_the_deepest_embedding():
    x = random_tensor(2, 3, 64, 64)
    method, student, teacher = transkd(4, 6, betas=BETAS, mixer=True)
    assert list(method.mixers) == ["s32"]
    losses = losses_on(method, student, teacher, x)
    expected = torch.zeros(2)
    levels = zip(LEVELS, student.backbone(x), teacher.backbone(x), strict=True)
    for level, student_map, teacher_map in levels:
        embedding = method.mixers["s32"](student_map) if level == "s32" else student_map
        error = method.embeddings[level](embedding) - teacher_map
        expected = expected + BETAS[level] * error.square().mean((1, 2, 3))
    torch.testing.assert_close(losses["pea"], expected)


def test_every_parameter_of_both_parts_has_a_gradient():
    method, student, teacher = transkd(4, 6, betas=BETAS, mixer=True, assistants=True)
    losses = losses_on(method, student, teacher, random_tensor(2, 3, 64, 64))
    torch.stack([term.mean() for term in losses.values()]).sum().backward()
    assert [n for n, p in method.named_parameters() if p.grad is None] == []


def test_no_patch_embedding_is_recorded_after_the_training():
    method, student, _ = transkd(4, 6, betas=BETAS)
    assert method.finish(student) == {}
    student.backbone(random_tensor(2, 3, 64, 64))
    assert method._taps[0].take() == {}


def test_both_parts_without_patch_embeddings_are_refused():
    level_maps = maps(s4=4, s8=8, s16=16, s32=32)
    levels = {level: level for level in LEVELS}
    options: list[dict[str, Any]] = [{"mixer": True}, {"assistants": True}]
    for option in options:
        with pytest.raises(KdepError, match="no beta is above 0"):
            TransKD(levels, level_maps, level_maps, **option)
    with pytest.raises(KdepError, match="the deepest level, s32, has the beta 0"):
        TransKD(levels, level_maps, level_maps, betas={"s4": 1.0}, mixer=True)


@pytest.mark.parametrize(
    ("base", "betas", "message"),
    [
        ("transkd_gl", {"s32": 0.0}, "the deepest level, s32, has the beta 0"),
        ("transkd_ea", dict.fromkeys(LEVELS, 0.0), "no beta is above 0"),
        ("transkd", {"_delete_": True, "s3": 1.0}, "unknown level 's3' in `betas` of TransKD"),
    ],
)
def test_betas_that_the_training_would_refuse_are_refused_by_the_plan(
    base: str, betas: dict[str, Any], message: str
):
    with pytest.raises(KdepError, match=message):
        plan(dict(base=base, transfer=dict(betas=betas)))


def test_the_configs_are_planned_with_their_own_parts():
    both = dict(base="transkd_ea", name="both", transfer=dict(mixer=True))
    runs = plan("transkd", "transkd_gl", "transkd_ea", both).runs
    options = {
        r.method["transfer"]["name"]: tuple(
            r.method["transfer"].get(name, False) for name in ("mixer", "assistants")
        )
        for r in runs
    }
    assert options == {
        "transkd": (False, False),
        "transkd_gl": (True, False),
        "transkd_ea": (False, True),
        "both": (True, True),
    }
