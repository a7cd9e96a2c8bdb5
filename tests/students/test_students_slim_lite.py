"""EfficientNet-Lite with fewer channels or blocks: its size, and which weights are copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import PreActivationTap, build_backbone
from kdep_bench.results.board.ablation import EQUAL_PARAMETERS
from kdep_bench.signatures import check_arguments
from kdep_bench.students.efficientnet_lite import EfficientNetLite
from kdep_bench.students.slim_lite import SlimLite, copied_state
from kdep_bench.suite.config import load_suite
from kdep_bench.teachers.efficientnet_lite import timm_state


def slim(**arguments: Any) -> SlimLite:
    """A SlimLite with initialised weights, in evaluation mode."""
    net = SlimLite(out_indices=(0, 1, 2, 3), head=False, **arguments)
    net.init_weights()
    return net.eval()


def test_a_complete_copy_equals_the_supervised_imagenet_network():
    copy, full = slim(copied=True), timm_state(0)
    assert all(torch.equal(v, full[k]) for k, v in copy.state_dict().items())


def test_blocks_are_copied_evenly_with_the_first_and_the_last():
    full = timm_state(0)
    state = slim(depth_multiplier=0.66, copied=True).state_dict()
    # Stage 5 has 3 of 4 blocks: 0, round(1.5) = 2 and 3. Stage 3 has 2 of 3: 0 and 2.
    for block, source in (("5.0", "5.0"), ("5.1", "5.2"), ("5.2", "5.3"), ("3.1", "3.2")):
        name = f"blocks.{block}.conv_dw.weight"
        assert torch.equal(state[name], full[f"blocks.{source}.conv_dw.weight"])
    shortest = slim(depth_multiplier=0.25, copied=True).state_dict()
    assert not any(k.startswith("blocks.5.1.") for k in shortest)
    assert torch.equal(shortest["blocks.5.0.bn1.running_var"], full["blocks.5.0.bn1.running_var"])


def test_a_narrow_student_has_the_leading_channels():
    full, state = timm_state(0), slim(channel_multiplier=0.68, copied=True).state_dict()
    weight = state["blocks.5.3.conv_pwl.weight"]
    assert weight.shape[:2] == (128, 768)
    assert torch.equal(weight, full["blocks.5.3.conv_pwl.weight"][:128, :768])
    assert torch.equal(state["bn1.weight"], full["bn1.weight"])


def test_without_copying_the_weights_are_random_and_differ_by_seed():
    torch.manual_seed(0)
    first = slim(depth_multiplier=0.33)
    torch.manual_seed(1)
    second = slim(depth_multiplier=0.33)
    name = "blocks.5.0.conv_dw.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])


@pytest.mark.parametrize("variant", [1, 2])
def test_multipliers_of_1_give_the_complete_network_of_a_variant(variant: int):
    full = EfficientNetLite(variant=variant)
    shapes = {name: value.shape for name, value in full.state_dict().items()}
    complete = SlimLite(variant=variant)
    assert {name: value.shape for name, value in complete.state_dict().items()} == shapes


def test_the_stem_and_the_last_convolution_keep_their_channels():
    narrow = SlimLite(channel_multiplier=0.5)
    channels = (narrow.conv_stem.out_channels, narrow.conv_head.out_channels)
    assert channels == (32, 1280)


@pytest.mark.parametrize("variant", [3, [1], "1", True, 1.0])
def test_an_unknown_variant_is_refused_also_by_the_plan(variant: Any):
    with pytest.raises(KdepError, match="unknown variant of SlimLite"):
        SlimLite(variant=variant)
    for name in ("SlimLite", "EfficientNetLite"):
        path = f"kdep_bench.students.{'slim' if name == 'SlimLite' else 'efficientnet'}_lite.{name}"
        with pytest.raises(KdepError, match="variant = "):
            check_arguments(dict(type=path, variant=variant), "the student")


@pytest.mark.parametrize("change", [dict(channel_multiplier=1.2), dict(depth_multiplier=0.0)])
def test_multipliers_out_of_range_are_refused(change):
    with pytest.raises(KdepError, match="above 0 and at most 1"):
        SlimLite(**change)


def test_a_tensor_that_the_complete_network_does_not_have_is_not_copied():
    with pytest.raises(KdepError, match=r"blocks\.9\.0\.x .* set copied=False"):
        copied_state({"blocks.9.0.x": torch.zeros(1)}, timm_state(0))


def test_the_students_of_the_ablation_have_equal_parameters_and_the_stated_maps():
    counts = {}
    for student in load_suite("ablation_pocket").students:
        indices = tuple(student["pyramid"]["out_indices"])
        net = build_backbone(student, out_indices=indices).eval()
        counts[student["name"]] = sum(p.numel() for p in net.parameters())
        shapes = [m.shape[1:] for m in net(torch.zeros(1, 3, 64, 64))]
        assert [s[0] for s in shapes] == list(student["pyramid"]["channels"])
        assert [64 // s[1] for s in shapes] == list(student["pyramid"]["strides"])
        PreActivationTap(build_backbone(student), student["tap"]).verify(student["width"], 64)
    assert len(counts) == 4
    assert max(counts.values()) / min(counts.values()) < EQUAL_PARAMETERS
