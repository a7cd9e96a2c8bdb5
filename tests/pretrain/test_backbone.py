"""Students: the tap reads the feature before the last activation; EfficientNet-Lite's options.

The tap (`PreActivationTap`) gives the pooled feature before and after the last activation.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import PreActivationTap, build_backbone
from kdep_bench.students.efficientnet_lite import EfficientNetLite, imagenet_weights

RESNET: dict[str, Any] = dict(
    backbone=dict(
        type="mmpretrain.ResNet",
        depth=18,
        base_channels=16,
        stem_channels=16,
        zero_init_residual=False,
    ),
)
MOBILENET: dict[str, Any] = dict(backbone=dict(type="mmpretrain.MobileNetV2", widen_factor=0.5))
LITE: dict[str, Any] = dict(backbone=dict(type=f"{EfficientNetLite.__module__}.EfficientNetLite"))


@pytest.mark.parametrize(
    ("student", "width"),
    [(RESNET, 128), (MOBILENET, 1280), (LITE, 1280)],
    ids=["r18", "mnv2", "l0"],
)
def test_the_tap_gives_the_feature_before_the_last_activation(student: dict[str, Any], width: int):
    net = build_backbone(student)
    names = list(net.state_dict())
    tap = PreActivationTap(net)
    tap.verify(width, 64)
    before, after = tap.eval()(torch.randn(2, 3, 64, 64))
    assert bool((before < 0).any())
    assert not torch.equal(before, after)
    assert list(net.state_dict()) == names  # the tap adds no tensor


def test_the_tap_of_a_resnet_equals_a_forward_pass_layer_by_layer():
    net: Any = build_backbone(RESNET)
    net.eval()
    tap, x = PreActivationTap(net), torch.randn(2, 3, 64, 64)
    before, _ = tap.eval()(x)
    hidden = net.maxpool(net.relu(net.norm1(net.conv1(x))))
    for name in ("layer1", "layer2", "layer3"):
        hidden = getattr(net, name)(hidden)
    first, last = net.layer4
    hidden = first(hidden)
    expected = hidden + last.norm2(last.conv2(last.norm1(last.conv1(hidden)).relu()))
    torch.testing.assert_close(before, expected)


def test_gradient_reaches_the_student_through_the_tap():
    net = build_backbone(RESNET)
    before, _ = PreActivationTap(net)(torch.randn(2, 3, 32, 32))
    before.mean().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert bool(net.conv1.weight.grad.abs().sum() > 0)  # type: ignore[union-attr]


def test_a_wrong_width_is_refused():
    with pytest.raises(KdepError, match="128 channels"):
        PreActivationTap(build_backbone(RESNET)).verify(256, 64)


def test_a_tap_inside_the_network_is_refused():
    # With zero_init_residual the last block adds 0 to its input. A tap inside it then has the
    # output of the right tap, so comparing outputs would not show the error.
    student = {"backbone": {**RESNET["backbone"], "zero_init_residual": True}}
    tap = PreActivationTap(build_backbone(student), "layer4.0.relu")
    with pytest.raises(KdepError, match="is not the input of its last activation"):
        tap.verify(128, 64)


def test_an_unknown_tap_path_is_refused():
    with pytest.raises(KdepError, match="no module 'nowhere'"):
        PreActivationTap(build_backbone(RESNET), "nowhere")


def test_lite0_with_its_imagenet_weights_equals_the_features_of_timm():
    """timm normalises by 127.5, the student by ImageNet's mean and standard deviation."""
    import timm

    from kdep_bench.teachers.efficientnet_lite import timm_state

    net = EfficientNetLite(0).eval()
    imagenet_weights(net)
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict(timm_state(0))
    pixels = torch.rand(2, 3, 64, 64) * 255
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    features = net((pixels - mean) / std)[-1]
    expected = reference.forward_features((pixels - 127.5) / 127.5)  # type: ignore[operator]
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def test_the_levels_of_lite0_have_the_strides_4_to_32_or_an_output_stride_of_8():
    net = EfficientNetLite(0, out_indices=(0, 1, 2, 3)).eval()
    shapes = [tuple(o.shape[1:]) for o in net(torch.randn(1, 3, 64, 64))]
    assert shapes == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    dense = EfficientNetLite(0, out_indices=(3,), output_stride=8).eval()
    assert dense(torch.randn(1, 3, 64, 64))[0].shape == (1, 320, 8, 8)


def test_lite0_without_its_last_convolution_has_320_channels():
    """That convolution (conv_head) and its BatchNorm (bn2) map 320 channels to 1280."""
    trunk = EfficientNetLite(0, out_indices=(3,), head=False).eval()
    with_head = EfficientNetLite(0, out_indices=(3,)).eval()
    imagenet_weights(trunk)
    imagenet_weights(with_head)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(trunk(x)[0], with_head(x)[0])
    removed = set(with_head.state_dict()) - set(trunk.state_dict())
    assert removed == {k for k in with_head.state_dict() if k.startswith(("conv_head.", "bn2."))}
    assert sum(p.numel() for p in trunk.parameters()) == pytest.approx(3.0e6, rel=0.02)
    assert with_head.conv_head.weight.shape == (1280, 320, 1, 1)  # type: ignore[union-attr]
    with pytest.raises(KdepError, match="head=False"):
        EfficientNetLite(0, out_indices=(4,), head=False)


@pytest.mark.parametrize(
    ("frozen", "expected_fraction"), [(-1, 0.0), (0, 0.0), (2, 0.01), (4, 1.0)]
)
def test_frozen_stages_of_lite0_are_not_trained(frozen: int, expected_fraction: float):
    """-1: none; 0: the first convolution; 2: also two stages; 4: everything."""
    net = EfficientNetLite(0, out_indices=(3, 4), frozen_stages=frozen)
    net.train()
    frozen_parameters = [p for p in net.parameters() if not p.requires_grad]
    sizes = [p.numel() for p in net.parameters()]
    fraction = sum(p.numel() for p in frozen_parameters) / sum(sizes)
    assert fraction == pytest.approx(expected_fraction, abs=0.01)
    assert (len(frozen_parameters) == len(sizes)) == (frozen == 4)
    assert (len(frozen_parameters) == 0) == (frozen == -1)
    assert net.bn1.training == (frozen == -1)
    initial = {k: v.clone() for k, v in net.state_dict().items()}
    net(torch.randn(2, 3, 64, 64))
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, initial[k])]
    assert bool(changed) == (frozen < 4)  # a frozen stage keeps its BatchNorm statistics
    # With norm_eval, BatchNorm stays in evaluation mode and all weights are trained.
    norm_eval = EfficientNetLite(0, norm_eval=True)
    norm_eval.train()
    assert not any(m.training for m in norm_eval.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert all(p.requires_grad for p in norm_eval.parameters())


def test_weights_of_another_variant_of_efficientnet_lite_are_refused():
    from kdep_bench.teachers.efficientnet_lite import timm_state, weights_file

    with pytest.raises(KdepError, match="tensors"):
        timm_state(2, weights_file(0))


def test_a_missing_weights_file_raises_kdep_error():
    from kdep_bench.teachers.efficientnet_lite import timm_state

    with pytest.raises(KdepError, match="does not exist"):
        timm_state(0, "nowhere.pth")
