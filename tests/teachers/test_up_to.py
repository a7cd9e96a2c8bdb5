"""A teacher gets only some patches and runs only up to a layer; tested for three libraries."""

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
from tests.teachers.conftest import random_images, randomised

PX, SIDE, WIDTH = 64, 4, 16


class Wrapped(Teacher):
    """A teacher made of any network; its layers are the network's modules.

    `call` runs the network on images, if that is not `net(images)`.
    """

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
    """(network, how to call it, path of its second block)."""
    net = VisionTransformer(PX, 16, 3, 2, WIDTH, 32, num_classes=4)
    return net, net, "encoder.layers.encoder_layer_1"


def mmpretrain_vit() -> tuple[nn.Module, Any, str]:
    """(network, how to call it, path of its second block)."""
    if openmmlab.current_scope() is None:
        openmmlab.setup("mmpretrain")
    from mmpretrain.models import VisionTransformer as MMVisionTransformer

    arch: Any = dict(embed_dims=WIDTH, num_layers=3, num_heads=2, feedforward_channels=32)
    net = MMVisionTransformer(arch, img_size=PX, patch_size=16)
    return net, net, "layers.1"


def huggingface_vit() -> tuple[nn.Module, Any, str]:
    """(network, how to call it, path of its second block)."""
    library = pytest.importorskip("transformers")
    sizes = dict(image_size=PX, patch_size=16, hidden_size=WIDTH, num_hidden_layers=3)
    config = library.CLIPVisionConfig(**sizes, num_attention_heads=2, intermediate_size=32)
    net = library.CLIPVisionModel(config)
    path = next(p for p, _ in net.named_modules() if p.endswith("encoder.layers.1"))
    return net, lambda x: net(pixel_values=x), path


@pytest.mark.parametrize("make", [torchvision_vit, mmpretrain_vit, huggingface_vit])
def test_only_visible_patches_are_computed_and_only_up_to_the_layer(make: Any):
    net, call, layer = make()
    randomised(net)
    teacher = Wrapped(net, call)
    source = token_source(teacher)
    assert source is not None
    assert source.prefix == 1
    later = teacher.layer_module(layer[:-1] + "2")  # the next block
    runs_of_later_block: list[int] = []
    later.register_forward_hook(lambda *_: runs_of_later_block.append(1))
    x = random_images(PX)
    nothing_hidden = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    all_patches = torch.arange(SIDE**2).repeat(2, 1)
    with torch.no_grad(), capture_modules(teacher.net, {"z": (layer, "out")}) as recorded:
        teacher(x)
    expected = recorded["z"][0] if isinstance(recorded["z"], tuple) else recorded["z"]
    assert runs_of_later_block == [1]
    torch.testing.assert_close(teacher.up_to(x, layer, all_patches, nothing_hidden), expected)
    order = torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    # Nothing is hidden, so only the order of the tokens differs.
    reordered = teacher.up_to(x, layer, order, nothing_hidden)
    torch.testing.assert_close(reordered[:, 1:], expected[:, 1:][:, order[0]], rtol=1e-4, atol=1e-4)
    visible = torch.tensor([[3, 5], [0, 9]])
    hidden = torch.ones(2, SIDE**2, dtype=torch.bool).scatter(1, visible, False)
    hidden = hidden.unflatten(1, (SIDE, SIDE))
    output = teacher.up_to(x, layer, visible, hidden)
    assert output.shape == (2, 3, WIDTH)  # the class token and two patches
    inside = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand_as(x)
    changed = torch.where(inside, 255 - x, x)
    torch.testing.assert_close(teacher.up_to(changed, layer, visible, hidden), output)
    assert runs_of_later_block == [1]
    teacher(x)  # the hooks have been removed
    assert runs_of_later_block == [1, 1]


class NoHiding(nn.Module):
    """A network without a way to leave out some of its input tokens."""

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
        Wrapped(NoHiding()).up_to(random_images(PX), "block", visible, hidden)
    vit, call, _ = torchvision_vit()  # a layer before the patches become tokens
    with pytest.raises(KdepError, match=r"cannot be hidden from the teacher wrapped.*'conv_proj'"):
        Wrapped(vit, call).up_to(random_images(PX), "conv_proj", visible, hidden)


def test_the_base_class_has_no_layers():
    class Bare(Wrapped):
        """A teacher with the base class's own method."""

        layer_module = Teacher.layer_module

    with pytest.raises(KdepError, match="unknown layer 'block' in the teacher wrapped"):
        Bare(NoHiding()).layer_module("block")
