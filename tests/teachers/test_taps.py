"""Every kind of teacher returns the feature of the right layer (its tap).

The reference never uses the code under test: it is another implementation of the architecture with
the same weights, whose layers are called one by one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import Teacher, build_teacher
from kdep_bench.teachers.checkpoint import Checkpoint
from kdep_bench.teachers.mmpretrain_models import MMPretrain
from kdep_bench.teachers.timm_models import Timm
from kdep_bench.teachers.torchvision_models import Torchvision
from tests.teachers.conftest import assert_close, normalised, output_of, random_images, randomised

TINY_VIT: dict[str, Any] = dict(
    img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5
)
TINY_SWIN: dict[str, Any] = dict(
    img_size=64, window_size=2, embed_dim=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 3)
)


def by_order(target: nn.Module, source: nn.Module) -> dict[str, Tensor]:
    """The tensors of `source` under the names of `target`; order, shapes and endings agree."""
    named, values = target.state_dict(), source.state_dict()
    for (name, x), (source_name, y) in zip(named.items(), values.items(), strict=True):
        assert x.shape == y.shape
        assert name.split(".")[-1] == source_name.split(".")[-1]
    return dict(zip(named, values.values(), strict=True))


def saved(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    """Saves the tensors; returns the file."""
    torch.save(tensors, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


# -- ResNet -------------------------------------------------------------------------------------


def resnet_by_hand(net: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(last map before its ReLU, logits, third stage) of torchvision's ResNet-18."""
    h = net.maxpool(torch.relu(net.bn1(net.conv1(x))))
    h = third = net.layer3(net.layer2(net.layer1(h)))
    first, last = net.layer4
    h = first(h)
    before = h + last.bn2(last.conv2(torch.relu(last.bn1(last.conv1(h)))))
    return before, net.fc(torch.relu(before).mean((2, 3))), third


def test_four_kinds_of_resnet_teacher_give_torchvision_s_map_before_its_last_relu(tmp_path: Path):
    reference = randomised(torchvision.models.resnet18(num_classes=7))
    state = dict(reference.state_dict())
    plain = saved(tmp_path, state)
    prefixed = tmp_path / "own.pth"
    torch.save({"epoch": 3, "model": {f"module.net.{k}": v for k, v in state.items()}}, prefixed)
    mm_file = tmp_path / "mm.pth"
    torch.save(
        {("head." if k.startswith("fc.") else "backbone.") + k: v for k, v in state.items()},
        mm_file,
    )
    trunk_file = tmp_path / "trunk.pth"
    torch.save({k: v for k, v in state.items() if not k.startswith("fc.")}, trunk_file)
    classes: dict[str, Any] = dict(args=dict(num_classes=7))
    teachers: list[Teacher] = [
        Torchvision("tv", "resnet18", 64, weights=plain, maps={"s3": "layer3"}, **classes),
        Timm("timm", "resnet18", 64, weights=plain, maps={"s3": "layer3"}, **classes),
        MMPretrain(
            "mm",
            "resnet18_8xb32_in1k",
            64,
            weights=mm_file,
            maps={"s3": "backbone.layer3"},
            args=dict(head=dict(num_classes=7)),
        ),
        Checkpoint(
            "own",
            "torchvision/resnet18",
            64,
            weights=prefixed,
            prefix="module.net.",
            maps={"s3": "layer3"},
            **classes,
        ),
        Checkpoint("trunk", dict(type="mmpretrain.ResNet", depth=18), 64, weights=trunk_file),
    ]
    images = random_images(64)
    for teacher in teachers:
        out = output_of(teacher, images)
        before, logits, third = resnet_by_hand(reference, normalised(teacher, images))
        assert bool((out.pooled < 0).any())
        assert_close(out.pooled, before.mean((2, 3)))
        assert_close(out.maps["last"], before)
        assert teacher.tap.startswith("before ")
        if "s3" in out.maps:
            assert_close(out.maps["s3"], third)
        if teacher.has_logits:
            assert_close(out.logits, logits)
    assert [t.has_logits for t in teachers] == [True, True, True, False, False]
    after_relu = Torchvision("read", "resnet18", 64, weights=plain, tap="read", **classes)
    before, _, _ = resnet_by_hand(reference, normalised(after_relu, images))
    assert_close(output_of(after_relu, images).pooled, before.relu().mean((2, 3)))


# -- MobileNetV2, EfficientNet ------------------------------------------------------------------


def mobilenet_by_hand(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(last map before ReLU6, logits) of torchvision's MobileNetV2."""
    h = net.features[:-1](x)
    conv, norm, _ = net.features[-1]
    before = norm(conv(h))
    return before, net.classifier[1](before.clamp(0, 6).mean((2, 3)))


def efficientnet_by_hand(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(last map before SiLU, logits) of torchvision's EfficientNet."""
    h = net.features[:-1](x)
    conv, norm, _ = net.features[-1]
    before = norm(conv(h))
    return before, net.classifier[1]((before * before.sigmoid()).mean((2, 3)))


@pytest.mark.parametrize(
    ("torchvision_name", "timm_name", "by_hand", "args"),
    [
        ("mobilenet_v2", "mobilenetv2_100", mobilenet_by_hand, {}),
        ("efficientnet_b0", "efficientnet_b0", efficientnet_by_hand, {}),
    ],
)
def test_mobilenet_and_efficientnet_equal_those_of_torchvision_before_the_last_activation(
    tmp_path: Path, torchvision_name: str, timm_name: str, by_hand: Any, args: dict[str, Any]
):
    reference = randomised(torchvision.models.get_model(torchvision_name, num_classes=3))
    timm_net = timm.create_model(timm_name, num_classes=3, **args)
    path = saved(tmp_path, by_order(timm_net, reference))
    torch.save(reference.state_dict(), tmp_path / "tv.pth")
    images = random_images(64)
    for teacher in (
        Timm("timm", timm_name, 64, weights=path, args=dict(num_classes=3)),
        Torchvision(
            "tv", torchvision_name, 64, weights=tmp_path / "tv.pth", args=dict(num_classes=3)
        ),
    ):
        out = output_of(teacher, images)
        before, logits = by_hand(reference, normalised(teacher, images))
        assert_close(out.pooled, before.mean((2, 3)))
        assert_close(out.maps["last"], before)
        assert_close(out.logits, logits)
        assert teacher.width == 1280


# -- Swin, ViT, ConvNeXt: a norm is last ----------------------------------------------------------


def test_swin_gives_the_mean_of_its_normed_map():
    teacher = Timm(
        "swin",
        "swin_tiny_patch4_window7_224",
        64,
        weights="random",
        maps={"s3": "layers.2"},
        args=TINY_SWIN,
    )
    net: Any = teacher.net
    images = random_images(64)
    out = output_of(teacher, images)
    h = net.patch_embed(normalised(teacher, images))
    for layer in net.layers[:3]:
        h = layer(h)
    third = h
    h = net.layers[3](h)
    normed = torch.nn.functional.layer_norm(h, h.shape[-1:], net.norm.weight, net.norm.bias, 1e-5)
    assert_close(out.pooled, normed.mean((1, 2)))
    assert_close(out.maps["last"], normed.permute(0, 3, 1, 2))
    assert_close(out.maps["s3"], third.permute(0, 3, 1, 2))
    assert_close(out.logits, net.head.fc(normed.mean((1, 2))))
    assert "does not end in an activation" in teacher.tap


def test_the_swin_of_torchvision_gives_the_mean_of_its_normed_map():
    teacher = Torchvision("swin", "swin_t", 32, weights="random", maps={"s1": "features.1"})
    net: Any = teacher.net
    images = random_images(32, 1)
    out = output_of(teacher, images)
    x = normalised(teacher, images)
    normed = net.norm(net.features(x))
    assert_close(out.pooled, normed.mean((1, 2)))
    assert_close(out.maps["s1"], net.features[:2](x).permute(0, 3, 1, 2))
    assert_close(out.logits, net(x))


def vit_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ViT tensors under timm's names."""
    pairs = (
        ("class_token", "cls_token"),
        ("conv_proj", "patch_embed.proj"),
        ("encoder.pos_embedding", "pos_embed"),
        (r"encoder\.layers\.encoder_layer_(\d+)", r"blocks.\1"),
        ("ln_(.)", r"norm\1"),
        ("self_attention.in_proj_", "attn.qkv."),
        ("self_attention.out_proj", "attn.proj"),
        (r"mlp\.0", "mlp.fc1"),
        (r"mlp\.3", "mlp.fc2"),
        (r"encoder\.ln\.", "norm."),
        ("heads.head", "head"),
    )
    out = {}
    for name, value in state.items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        out[name] = value
    return out


def test_vit_gives_the_normed_class_token_of_the_vit_of_torchvision(tmp_path: Path):
    reference: Any = randomised(
        torchvision.models.VisionTransformer(32, 8, 2, 3, 24, 96, num_classes=5)
    )
    path = saved(tmp_path, vit_names(reference.state_dict()))
    teacher = Timm(
        "vit",
        "vit_tiny_patch16_224",
        32,
        weights=path,
        maps={"first": "blocks.0"},
        width=24,
        has_logits=True,
        args=TINY_VIT,
    )
    images = random_images(32)
    out = output_of(teacher, images)
    x = reference._process_input(normalised(teacher, images))
    x = torch.cat([reference.class_token.expand(2, -1, -1), x], 1)
    tokens = reference.encoder(x)
    assert_close(out.tokens, tokens)
    assert_close(out.pooled, tokens[:, 0])
    assert_close(out.logits, reference.heads(tokens[:, 0]))
    assert_close(out.maps["last"], tokens[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4))
    first = reference.encoder.layers[0](x + reference.encoder.pos_embedding)
    assert_close(out.maps["first"], first[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4))


def test_the_vit_of_mmpretrain_gives_the_normed_class_token(tmp_path: Path):
    teacher = MMPretrain(
        "deit",
        "deit-tiny_4xb256_in1k",
        32,
        weights="random",
        args=dict(backbone=dict(img_size=32, patch_size=8)),
    )
    net: Any = teacher.net
    images = random_images(32)
    out = output_of(teacher, images)
    x = normalised(teacher, images)
    tokens = net.backbone.patch_embed(x)[0]
    tokens = torch.cat([net.backbone.cls_token.expand(2, -1, -1), tokens], 1)
    tokens = tokens + net.backbone.pos_embed
    for layer in net.backbone.layers:
        tokens = layer(tokens)
    tokens = net.backbone.ln1(tokens)
    assert_close(out.tokens, tokens)
    assert_close(out.pooled, tokens[:, 0])
    assert_close(out.logits, net.head.layers.head(tokens[:, 0]))


def convnext_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's ConvNeXt tensors under timm's names."""
    out = {}
    for name, value in state.items():
        name = re.sub(r"^features\.0\.", "stem.", name)
        if match := re.match(r"features\.(\d)\.(\d+)\.(.*)", name):
            part, inner, rest = int(match[1]), match[2], match[3]
            if part % 2:
                rest = re.sub(r"^block\.(\d)", lambda m: BLOCK[m[1]], rest)
                rest = rest.replace("layer_scale", "gamma")
                name = f"stages.{part // 2}.blocks.{inner}.{rest}"
            else:
                name = f"stages.{part // 2}.downsample.{inner}.{rest}"
        name = name.replace("classifier.0", "head.norm").replace("classifier.2", "head.fc")
        out[name] = value.flatten() if name.endswith("gamma") else value
    return out


BLOCK = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}


def test_convnext_gives_the_norm_of_the_mean_of_the_convnext_of_torchvision(tmp_path: Path):
    dims = (8, 12, 16, 24)
    blocks = [
        CNBlockConfig(width, following, 1)
        for width, following in zip(dims, (*dims[1:], None), strict=True)
    ]
    reference: Any = randomised(torchvision.models.ConvNeXt(blocks, num_classes=5))
    path = saved(tmp_path, convnext_names(reference.state_dict()))
    teacher = Timm(
        "convnext",
        "convnext_tiny",
        64,
        weights=path,
        args=dict(depths=(1, 1, 1, 1), dims=dims, num_classes=5),
    )
    images = random_images(64)
    out = output_of(teacher, images)
    x = normalised(teacher, images)
    last = reference.features(x)
    read = reference.classifier[0](reference.avgpool(last)).flatten(1)
    assert_close(out.maps["last"], last)
    assert_close(out.pooled, read)
    assert_close(out.logits, reference.classifier[2](read))


def test_the_convnext_of_mmpretrain_gives_the_norm_of_the_mean():
    arch = dict(_delete_=True, depths=[1, 1, 1, 1], channels=[8, 12, 16, 24])
    teacher = MMPretrain(
        "convnext",
        "convnext-tiny_32xb128_in1k",
        64,
        weights="random",
        args=dict(backbone=dict(arch=arch), head=dict(in_channels=24)),
    )
    net: Any = teacher.net.backbone
    images = random_images(64)
    out = output_of(teacher, images)
    h = normalised(teacher, images)
    for down, stage in zip(net.downsample_layers, net.stages, strict=True):
        h = stage(down(h))
    assert_close(out.maps["last"], h)
    mean = h.mean((2, 3))
    norm = net.norm3
    assert_close(
        out.pooled, nn.functional.layer_norm(mean, (24,), norm.weight, norm.bias, norm.eps)
    )


# -- errors -------------------------------------------------------------------------------------


def test_a_relu_that_is_not_a_module_is_refused_and_the_error_suggests_tap_read():
    with pytest.raises(KdepError, match="tap='read'"):  # torchvision's is a function
        Torchvision("dense", "densenet121", 32, weights="random")
    teacher = Torchvision("dense", "densenet121", 32, weights="random", tap="read")
    images = random_images(32)
    out = output_of(teacher, images)
    net: Any = teacher.net
    assert_close(out.pooled, net.features(normalised(teacher, images)).relu().mean((2, 3)))
    before = Timm("dense", "densenet121", 32, weights="random")  # timm's is a module
    assert output_of(before, images).pooled.min() < 0


@pytest.mark.parametrize(
    ("kind", "model", "changes", "message"),
    [
        (Timm, "resnt18", {}, "did you mean resnet18"),
        (Torchvision, "resnet81", {}, "did you mean resnet18"),
        (MMPretrain, "resnet18_8xb3_in1k", {}, "did you mean resnet18_8xb32_in1k"),
        (MMPretrain, "nowhere.py", {}, "does not exist"),
        (MMPretrain, "mocov2_resnet50_8xb32-coslr-200e_in1k", {}, "an ImageClassifier"),
        (Checkpoint, "tim/resnet18", {}, "did you mean timm"),
        (Checkpoint, dict(type="mmpretrain.ResNt"), {}, "cannot be built"),
        (Timm, "resnet18", dict(args=dict(depht=3)), "depht"),
        (Torchvision, "resnet18", dict(args=dict(depht=3)), "depht"),
        (Timm, "resnet18", dict(width=2048), "has width=512; expected 2048"),
        (Timm, "resnet18", dict(args=dict(num_classes=0), has_logits=True), "has_logits=False"),
        (Timm, "resnet18", dict(maps={"a": "layer9"}), "layer9"),
        (Timm, "resnet18", dict(maps={"a": "fc"}), r"expected \[B, C, H, W\]"),
        (Timm, "resnet18", dict(tap="after"), "'before' or 'read'"),
        (Timm, "vit_tiny_patch16_224", dict(args=dict(depth=1)), "does not run on images of 64"),
    ],
)
def test_a_mistake_in_a_teacher_s_config_raises_kdep_error(
    kind: Any, model: Any, changes: dict[str, Any], message: str
):
    with pytest.raises(KdepError, match=message):
        kind("t", model, 64, weights="random", **changes)


def test_random_weights_are_the_same_in_every_process():
    config = dict(
        type="kdep_bench.teachers.timm_models.Timm",
        name="r",
        model="convnext_atto",
        input_px=32,
        weights="random",
        card=dict(top1=None),
    )
    torch.manual_seed(5)
    checksum = build_teacher(config).checksum()
    torch.manual_seed(6)
    assert build_teacher(config).checksum() == checksum


# -- networks with another normalisation ---------------------------------------------------------


def test_googlenet_gets_the_normalisation_that_its_published_weights_expect():
    args = dict(num_classes=3, aux_logits=False, init_weights=False)
    teacher = Torchvision("t", "googlenet", 64, weights="random", tap="read", args=args)
    reference = torchvision.models.googlenet(transform_input=True, **args)
    reference.load_state_dict(teacher.net.state_dict())
    images = random_images(64)
    expected = reference.eval()(normalised(teacher, images))
    assert_close(teacher(images).logits, expected)


def test_the_statistics_of_torchvision_s_classifiers_are_those_of_their_published_weights():
    """Except weights without a classifier; see torchvision's VGG16_Weights.IMAGENET1K_FEATURES."""
    for model in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(model):
            if weights.name == "IMAGENET1K_FEATURES":
                continue
            published = weights.transforms()
            mean, std = Torchvision.statistics(cast(Any, None), model, {}, nn.Identity())
            assert [255 * x for x in published.mean] == pytest.approx(mean), model
            assert [255 * x for x in published.std] == pytest.approx(std), model
