"""A teacher that sees some patches and stops after a layer: transformers of every library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError
from kdep_bench.networks.taps import capture_modules
from kdep_bench.networks.visible import token_source
from kdep_bench.teachers.base import Teacher, TeacherOutput, freeze
from tests.teachers.conftest import lively, pictures

PX, SIDE, WIDTH = 64, 4, 16


class Wrapped(Teacher):
    """Any network as a teacher whose layers are its modules."""

    has_logits, tap, layers_by_path = False, "made up", True

    def __init__(self, net: nn.Module, call: Any = None) -> None:
        super().__init__((128.0,) * 3, (60.0,) * 3)
        self.name, self.width, self.input_px = "wrapped", WIDTH, PX
        self.net, self.call = freeze(net), call or net

    def layer_module(self, layer: str) -> nn.Module:
        return self.net.get_submodule(layer)

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        self.call(x_B3HW)
        return TeacherOutput(x_B3HW.new_zeros(len(x_B3HW), WIDTH), None)


def torchvision_vit() -> tuple[nn.Module, Any, str]:
    net = VisionTransformer(PX, 16, 3, 2, WIDTH, 32, num_classes=4)
    return net, net, "encoder.layers.encoder_layer_1"


def mmpretrain_vit() -> tuple[nn.Module, Any, str]:
    if openmmlab.current_scope() is None:
        openmmlab.setup("mmpretrain")
    from mmpretrain.models import VisionTransformer as MMVisionTransformer

    arch: Any = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, feedforward_channels=32)
    net = MMVisionTransformer(arch, img_size=PX, patch_size=16)
    return net, net, "layers.1"


def huggingface_vit() -> tuple[nn.Module, Any, str]:
    library = pytest.importorskip("transformers")
    sizes = dict(image_size=PX, patch_size=16, hidden_size=WIDTH, num_hidden_layers=3)
    config = library.CLIPVisionConfig(**sizes, num_attention_heads=2, intermediate_size=32)
    net = library.CLIPVisionModel(config)
    path = next(p for p, _ in net.named_modules() if p.endswith("encoder.layers.1"))
    return net, lambda x: net(pixel_values=x), path


@pytest.mark.parametrize("make", [torchvision_vit, mmpretrain_vit, huggingface_vit])
def test_the_blocks_get_the_visible_patches_alone_and_later_ones_none(make: Any):
    net, call, layer = make()
    lively(net)
    teacher = Wrapped(net, call)
    source = token_source(teacher)
    assert source is not None
    assert source.prefix == 1
    later = teacher.layer_module(layer.replace("1", "2") if "_1" not in layer else layer[:-1] + "2")
    ran: list[int] = []
    later.register_forward_hook(lambda *_: ran.append(1))
    x = pictures(PX)
    whole = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    everything = torch.arange(SIDE**2).repeat(2, 1)
    with torch.no_grad(), capture_modules(teacher.net, {"z": (layer, "out")}) as recorded:
        teacher(x)
    want = recorded["z"][0] if isinstance(recorded["z"], tuple) else recorded["z"]
    assert ran == [1]
    torch.testing.assert_close(teacher.up_to(x, layer, everything, whole), want)
    order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    moved = teacher.up_to(x, layer, order, whole)  # without masks, the order is all that differs
    torch.testing.assert_close(moved[:, 1:], want[:, 1:][:, order[0]], rtol=1e-4, atol=1e-4)
    visible = torch.tensor([[3, 5], [0, 9]])
    hidden = torch.ones(2, SIDE**2, dtype=torch.bool).scatter(1, visible, False)
    hidden = hidden.unflatten(1, (SIDE, SIDE))
    seen = teacher.up_to(x, layer, visible, hidden)
    assert seen.shape == (2, 3, WIDTH)
    inside = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand_as(x)
    changed = torch.where(inside, 255 - x, x)
    torch.testing.assert_close(teacher.up_to(changed, layer, visible, hidden), seen)
    assert ran == [1]
    teacher(x)  # the hooks are gone
    assert ran == [1, 1]


class Tokens(nn.Module):
    """A network of tokens that hides none."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.block = nn.Conv2d(3, WIDTH, 16, 16), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.cut(x).flatten(2).transpose(1, 2))


def test_a_network_that_would_see_hidden_patches_is_refused():
    hidden = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    hidden[:, 0, 0] = False
    visible = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(KdepError, match=r"cannot be hidden from the teacher wrapped.*'block'"):
        Wrapped(Tokens()).up_to(pictures(PX), "block", visible, hidden)
    vit, call, _ = torchvision_vit()  # a layer before its tokens
    with pytest.raises(KdepError, match=r"cannot be hidden from the teacher wrapped.*'conv_proj'"):
        Wrapped(vit, call).up_to(pictures(PX), "conv_proj", visible, hidden)


def test_the_base_class_has_no_layers():
    class Bare(Wrapped):
        layer_module = Teacher.layer_module

    with pytest.raises(KdepError, match="unknown layer of the teacher wrapped 'block'"):
        Bare(Tokens()).layer_module("block")
