"""Every student's tap, width and pyramid; timm networks as mm backbones; configs from names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from kdep_bench.cli import make_student
from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import PreActivationTap, build_backbone
from kdep_bench.students.discover import check_student, discover
from kdep_bench.students.timm_backbone import TimmBackbone
from kdep_bench.suite.config import load_config, names, resolve
from kdep_bench.suite.pairs import check_task
from kdep_bench.transfer import mm_config

TIMM: dict[str, Any] = dict(type="kdep_bench.students.timm_backbone.TimmBackbone")
SWIN: dict[str, Any] = dict(
    embed_dim=12,
    depths=(1, 1, 1, 1),
    num_heads=(1, 2, 3, 3),
    strict_img_size=False,
    always_partition=True,
)


def noise(px: int = 64, width: int | None = None) -> Tensor:
    """A batch of two random images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, px, width or px, generator=generator)


# -- the configs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("student"))
def test_a_config_s_tap_width_and_pyramid_match_its_network(name: str):
    student = resolve("student", name)
    check_student({**student, "input_px": 64})
    assert bool(student.get("pyramid")) == (name != "vit_t")


DILATED = sorted(n for n in names("student") if load_config("student", n).get("dilated"))
LARGE = ("resnet34", "resnet50")  # left out to save time; they have the same class as resnet18


@pytest.mark.parametrize("name", [n for n in DILATED if n not in LARGE])
def test_a_dilated_student_keeps_stride_8_and_its_parameters(name: str):
    student = resolve("student", name)
    net = build_backbone(student, out_indices=student["pyramid"]["out_indices"])
    dilated = build_backbone(
        student, out_indices=student["pyramid"]["out_indices"], **student["dilated"]
    )
    assert list(dilated.state_dict()) == list(net.state_dict())
    last = dilated(noise())[-1]
    assert tuple(last.shape[1:]) == (student["pyramid"]["channels"][-1], 8, 8)


def test_a_wrong_pyramid_or_tap_is_refused():
    student = resolve("student", "resnet18_w32")
    wrong_channels = {**student, "pyramid": {**student["pyramid"], "channels": [32, 64, 128, 512]}}
    with pytest.raises(KdepError, match=r"\(512, 2, 3\)\], as in its `pyramid`"):
        check_student(wrong_channels)
    wrong_strides = {**student, "pyramid": {**student["pyramid"], "strides": [2, 4, 8, 16]}}
    with pytest.raises(KdepError, match="as in its `pyramid`"):
        check_student(wrong_strides)
    with pytest.raises(KdepError, match=r"ends in the activation layer4\.1\.relu") as error:
        check_student({**student, "tap": "output"})
    assert error.value.fix == "set tap='layer4.1.relu' in the student config"
    check_student({**student, "tap": "layer4.1.relu"})


def test_a_pyramid_of_the_swin_of_mmpretrain_is_refused_because_it_adds_parameters():
    arch = dict(embed_dims=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 3, 3])
    swin: dict[str, Any] = dict(
        name="swin",
        backbone=dict(type="mmpretrain.SwinTransformer", arch=arch, pad_small_map=True),
        width=96,
        input_px=64,
        tap="output",
    )
    check_student(swin)
    levels = dict(out_indices=(0, 1, 2, 3), channels=(12, 24, 48, 96), strides=(4, 8, 16, 32))
    with pytest.raises(KdepError, match="different parameters"):
        check_student({**swin, "pyramid": levels})


def test_plan_and_task_refuse_a_vit_for_detection_and_segmentation():
    vit = resolve("student", "vit_t")
    for task in ("smoke_det", "smoke_seg"):
        with pytest.raises(KdepError, match="has no `pyramid`"):
            check_task(vit, resolve("task", task))
        with pytest.raises(KdepError, match="has no `pyramid`"):
            mm_config.pyramid(vit, task)
    check_task(vit, resolve("task", "smoke_finetune"))
    check_task(resolve("student", "swin_t"), resolve("task", "smoke_det"))
    with pytest.raises(KdepError, match="it has no pyramid"):
        build_backbone(vit, out_indices=(0, 1, 2, 3))


# -- a timm network as a backbone -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "args"),
    [
        ("test_resnet", {}),
        ("mobilenetv3_small_050", {}),
        ("test_efficientnet", {}),
        ("test_convnext", {}),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("test_vit", dict(dynamic_img_size=True)),
    ],
)
def test_the_last_map_equals_the_map_that_the_classifier_of_timm_pools(
    model: str, args: dict[str, Any]
):
    torch.manual_seed(0)
    net = TimmBackbone(model, **args).eval()
    reference: Any = timm.create_model(model, num_classes=0, **args).eval()
    weights = {k.removeprefix("net."): v for k, v in net.state_dict().items()}
    _, leftover = reference.load_state_dict(weights, strict=False)
    assert leftover == []
    features = reference.forward_features(noise())
    if model.startswith("mobilenetv3"):  # pooled before its last convolution
        pooled = features.mean((2, 3))
    else:
        assert set(weights) == set(reference.state_dict())
        pooled = reference.forward_head(features, pre_logits=True)
    torch.testing.assert_close(net(noise())[-1].mean((2, 3)), pooled, rtol=1e-4, atol=1e-5)
    with_all_levels = TimmBackbone(model, out_indices=range(net.last + 1), **args).eval()
    with_all_levels.load_state_dict(net.state_dict())
    x = noise(64, 96)
    assert torch.equal(with_all_levels(x)[-1], net(x)[-1])
    expected_levels = []  # `net.last` is 0 for the vision transformer, which has the last map only
    if net.last:
        expected_levels = reference.forward_intermediates(x, norm=True, output_fmt="NCHW")[1]
    for level, i in zip(with_all_levels(x), net._stages, strict=False):
        torch.testing.assert_close(level, expected_levels[i], rtol=1e-4, atol=1e-5)


def test_a_vit_with_a_fixed_image_size_other_than_timm_s_is_built():
    net = TimmBackbone("test_vit", img_size=96)
    assert net(torch.zeros(1, 3, 96, 96))[-1].shape == (1, 64, 1, 1)


def test_the_tap_reads_before_a_last_swish_or_the_output_if_there_is_no_activation():
    net = build_backbone({"backbone": {**TIMM, "model": "test_efficientnet"}})
    tap = PreActivationTap(net, "net.bn2.act").eval()
    before, after = tap(noise())
    torch.testing.assert_close(before * before.sigmoid(), after)
    output_tap = PreActivationTap(
        build_backbone({"backbone": {**TIMM, "model": "test_convnext"}}), "output"
    )
    before, after = output_tap.eval()(noise())
    assert before is after
    assert before.shape[2:] == (1, 1)
    before.sum().backward()  # the output has a gradient


def test_frozen_stages_and_norm_eval_stay_in_force_in_training_mode():
    net = TimmBackbone("test_resnet", frozen_stages=2, norm_eval=True)
    net.train()
    trained = {n.split(".")[1] for n, p in net.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4"}
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    with_one_frozen = TimmBackbone("test_resnet", frozen_stages=1)
    with_one_frozen.train()
    assert not with_one_frozen.net.layer1[0].bn1.training
    assert with_one_frozen.net.layer2[0].bn1.training
    with_all_frozen = TimmBackbone("test_resnet", frozen_stages=4)
    assert not any(p.requires_grad for p in with_all_frozen.parameters())
    assert any(p.requires_grad for p in TimmBackbone("test_resnet").net.conv1.parameters())


def test_frozen_stages_0_of_a_linear_probe_freezes_a_network_with_the_last_level_only():
    """0 freezes all layers before level 0, the first level; here it is also the last one."""
    net = TimmBackbone("test_vit", frozen_stages=0)
    assert not any(p.requires_grad for p in net.parameters())


# -- a config from a name --------------------------------------------------------------------------


def make_student_config(*args: str) -> int:
    """Runs the command that writes a student's config; returns its exit status."""
    return make_student.main(list(args))


@pytest.mark.parametrize(
    ("name", "width", "tap", "dense"),
    [
        ("timm/test_resnet", 96, "net.layer4.0.act2", True),
        ("timm/test_vit", 64, "output", False),
        ("mmpretrain/mobilenet-v3-small-050_3rdparty_in1k", 288, "layer12.activate", True),
    ],
)
def test_a_config_is_written_from_a_name_and_used_by_a_suite(
    tmp_path: Path, name: str, width: int, tap: str, dense: bool
):
    (tmp_path / "students").mkdir()
    arguments = (name, "--px", "64", "--out", str(tmp_path / "students"))
    assert make_student_config(*arguments) == 0
    (config_file,) = (tmp_path / "students").glob("*.py")
    student = resolve("student", config_file.stem, tmp_path)
    assert (student["width"], student["tap"]) == (width, tap)
    assert bool(student.get("pyramid")) == dense
    check_student(student)
    assert ("classification only" in config_file.read_text()) != dense
    assert make_student_config(*arguments) == 2  # the file exists and is not overwritten


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnt18", "did you mean resnet18"),
        ("mmpretrain/resnet18_8xb32", "did you mean resnet18_8xb32_in1k"),
        ("tim/resnet18", "timm/MODEL"),
        ("mmpretrain/convnext-tiny_32xb128_in1k", "take the student from timm"),
    ],
)
def test_an_unknown_or_unusable_name_raises_kdep_error(name: str, message: str):
    with pytest.raises(KdepError, match=message):
        discover(name, 64)
