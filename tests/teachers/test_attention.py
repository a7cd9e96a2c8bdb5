"""Queries, keys and values that are recorded give the attention that the network computed."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

from kdep_bench.errors import KdepError
from kdep_bench.networks.attention import BlockRecorder
from kdep_bench.networks.taps import capture_modules
from kdep_bench.teachers.timm_models import Timm
from tests.teachers.conftest import random_images, randomised
from tests.teachers.test_up_to import PX, WIDTH, Wrapped, mmpretrain_vit

# (network, path of its block 1, path of the attention in this block, path of its last norm)
Paths = tuple[nn.Module, str, str, str]


def timm_vit() -> Paths:
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=PX, embed_dim=WIDTH, depth=3, num_heads=2, num_classes=0
    )
    return net, "blocks.1", "blocks.1.attn", "norm"


def timm_vit_with_norms_and_registers() -> Paths:
    net = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=PX,
        embed_dim=WIDTH,
        depth=3,
        num_heads=2,
        qk_norm=True,
        reg_tokens=2,
        num_classes=0,
    )
    return net, "blocks.1", "blocks.1.attn", "norm"


def torchvision_vit() -> Paths:
    net = VisionTransformer(PX, 16, 3, 2, WIDTH, 32, num_classes=4)
    block = "encoder.layers.encoder_layer_1"
    return net, block, f"{block}.self_attention", "encoder.ln"


def mmpretrain_block() -> Paths:
    return mmpretrain_vit()[0], "layers.1", "layers.1.attn", "ln1"


@pytest.mark.parametrize(
    "make", [timm_vit, timm_vit_with_norms_and_registers, torchvision_vit, mmpretrain_block]
)
def test_softmax_of_the_scores_times_values_is_the_output_of_the_attention(make: Any):
    net, block, attention, norm = make()
    randomised(net)
    teacher = Wrapped(net)
    points: Any = {"z": (block, "out"), "a": (attention, "out"), "n": (norm, "out")}
    points["first"] = (block.replace("1", "0"), "in")
    x = random_images(PX)
    with torch.no_grad(), capture_modules(net, points) as recorded:
        out = teacher.with_attention(x, [1]).attention
    assert out is not None
    prefix = out.final.shape[1] - 16  # class token and registers, before 16 patches
    assert out.prefix == prefix == (3 if "registers" in make.__name__ else 1)
    assert out.sizes() == {"width": WIDTH, "heads": 2, "patches": 16}
    assert list(out.blocks) == [1]
    recorded_block = out.blocks[1]
    torch.testing.assert_close(recorded_block.hidden, recorded["z"])
    torch.testing.assert_close(out.final, recorded["n"])
    torch.testing.assert_close(out.embedding, recorded["first"])
    module: Any = net.get_submodule(attention)
    project = module.proj if hasattr(module, "proj") else module.out_proj
    values = recorded_block.scores.softmax(3) @ recorded_block.values
    with torch.no_grad():
        expected = project(values.transpose(1, 2).flatten(2))
    output = recorded["a"][0] if isinstance(recorded["a"], tuple) else recorded["a"]
    torch.testing.assert_close(expected, output, rtol=1e-4, atol=1e-5)
    # The order of the heads matters.
    assert not expected.allclose(project(values.flip(1).transpose(1, 2).flatten(2)))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert sum(hooks) == 0  # removed


def test_a_network_whose_attention_or_block_cannot_be_read_is_refused():
    for model in ("test_convnext", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"):
        net = timm.create_model(model, num_classes=0)
        with pytest.raises(KdepError, match=r"cannot be read|attention can be read"):
            BlockRecorder(net, [0], "the network")
    net = timm_vit()[0]
    with pytest.raises(KdepError, match="has 3 blocks, but the method's objective reads block 3"):
        BlockRecorder(net, [3], "the network")
    with pytest.raises(KdepError, match="has 3 blocks, but the method's objective reads 6 blocks"):
        BlockRecorder(net, [2], "the network", depth=6)


def test_a_teacher_without_attention_names_itself_in_the_error():
    teacher = Timm("conv", "test_convnext", 64, weights="random", has_logits=False)
    with pytest.raises(KdepError, match="the teacher conv has no transformer blocks"):
        teacher.with_attention(random_images(64), [0])
