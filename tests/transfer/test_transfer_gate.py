"""The load gate: each kind of failure to load a backbone is refused with a separate message.

The gate compares a backbone with its checkpoint after loading. Its coverage is the fraction of the
backbone's values (elements of parameters and buffers) that equal the file's.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule
from torch import nn

from kdep_bench.errors import KdepError
from kdep_bench.transfer.gate import LoadGate, check, compare, read_tensors


class Backbone(BaseModule):
    """A small OpenMMLab backbone: convolution and BatchNorm, loaded through `init_cfg`."""

    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)


class SkipsLoading(Backbone):
    """Loads nothing and reports nothing, as some backbones of the toolkits do."""

    def init_weights(self) -> None:
        """Does nothing."""


class Model(nn.Module):
    """A network with a backbone, as OpenMMLab's models have."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


class FakeRunner:
    """The one attribute of mmengine's runner that the hook reads."""

    def __init__(self, backbone: nn.Module) -> None:
        self.model = Model(backbone)


@pytest.fixture
def tensors() -> OrderedDict[str, torch.Tensor]:
    """The weights of a random backbone."""
    torch.manual_seed(1)
    source = Backbone()
    nn.init.normal_(source.bn.weight)
    return OrderedDict((k, v.clone()) for k, v in source.state_dict().items())


def save(tensors: dict, path: Path) -> Path:
    """Saves the tensors; returns the path."""
    torch.save(tensors, path)
    return path


def loaded(path: Path, kind: type[Backbone] = Backbone) -> Backbone:
    """A backbone of class `kind`, loaded from the file by OpenMMLab's own initialisation."""
    backbone = kind(init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    backbone.init_weights()
    return backbone


def test_a_loaded_backbone_passes_the_gate(tensors, tmp_path):
    path = save(tensors, tmp_path / "b.pth")
    gate = check(loaded(path), path)
    assert gate["coverage"] == 1.0
    # Weight and bias of the convolution, four tensors of the BatchNorm and its counter.
    assert gate["matched"] == len(tensors) == 7
    assert gate["missing"] == gate["unexpected"] == gate["mismatched"] == gate["waived"] == []


def test_the_hook_stores_the_gate_s_result(tensors, tmp_path):
    path = save(tensors, tmp_path / "b.pth")
    hook = LoadGate(str(path))
    hook.before_train(FakeRunner(loaded(path)))
    assert hook.gate is not None
    assert hook.gate["coverage"] == 1.0


def test_the_error_for_tensors_with_another_prefix_names_the_prefix(tensors, tmp_path):
    path = save({f"student.{k}": v for k, v in tensors.items()}, tmp_path / "b.pth")
    with pytest.raises(KdepError, match=r"remove the prefix 'student\.'") as error:
        check(loaded(path), path)
    assert "0.0%" in str(error.value)  # the coverage
    assert "7 missing from the file" in str(error.value)


def test_a_transposed_tensor_is_refused(tensors, tmp_path):
    tensors["conv.weight"] = tensors["conv.weight"].transpose(0, 1).contiguous()
    path = save(tensors, tmp_path / "b.pth")
    with pytest.raises(KdepError, match=r"shape \[4, 3, 3, 3\] in the model, \[3, 4, 3, 3\]"):
        check(loaded(path), path)


def test_a_tensor_of_another_dtype_is_refused(tensors, tmp_path):
    tensors["conv.weight"] = tensors["conv.weight"].half()
    path = save(tensors, tmp_path / "b.pth")
    with pytest.raises(KdepError, match=r"torch\.float16 in the file"):
        check(loaded(path), path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"no checkpoint", "is a text"),
        (None, "does not exist"),
    ],
)
def test_an_empty_a_text_and_a_missing_file_are_refused(content, problem, tmp_path):
    path = tmp_path / "b.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KdepError, match=problem):
        read_tensors(path)


def test_a_truncated_file_is_refused(tensors, tmp_path):
    path = save(tensors, tmp_path / "b.pth")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(KdepError, match="is damaged or truncated"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "contains no tensor"),
        ({"state_dict": {}}, "contains no tensor"),
        ({"epoch": 3, "w": torch.zeros(1)}, r"not tensors \(epoch\)"),
        ([torch.zeros(1)], "contains a list"),
        ({"w": torch.tensor([1.0, float("nan")])}, r"NaN or infinity in 1 tensors \(w\)"),
    ],
)
def test_a_file_without_usable_tensors_is_refused(content, problem, tmp_path):
    with pytest.raises(KdepError, match=problem):
        read_tensors(save(content, tmp_path / "b.pth"))


def test_a_pickled_object_is_refused(tmp_path):
    path = save({"w": Path("x")}, tmp_path / "b.pth")
    with pytest.raises(KdepError, match=r"needs pathlib\.PosixPath"):
        read_tensors(path)


def test_a_single_value_that_differs_after_loading_is_refused(tensors, tmp_path):
    path = save(tensors, tmp_path / "b.pth")
    backbone = loaded(path)
    with torch.no_grad():
        backbone.conv.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(KdepError, match=r"conv\.weight: 1 of 108 values differ"):  # 4 * 3 * 3 * 3
        check(backbone, path)


def test_a_buffer_that_differs_after_loading_is_refused(tensors, tmp_path):
    path = save(tensors, tmp_path / "b.pth")
    backbone = loaded(path)
    assert isinstance(backbone.bn.running_mean, torch.Tensor)
    backbone.bn.running_mean += 1
    with pytest.raises(KdepError, match=r"bn\.running_mean: 4 of 4 values differ"):
        check(backbone, path)


def test_a_backbone_whose_init_weights_loads_nothing_is_refused(tensors, tmp_path):
    path = save(tensors, tmp_path / "b.pth")
    hook = LoadGate(str(path))
    with pytest.raises(KdepError, match="initialises the backbone again"):
        hook.before_train(FakeRunner(loaded(path, SkipsLoading)))


def test_a_surplus_tensor_in_the_file_is_refused(tensors, tmp_path):
    tensors["layer5.weight"] = torch.zeros(2)
    path = save(tensors, tmp_path / "b.pth")
    with pytest.raises(KdepError, match=r"1 in the file only \(layer5\.weight\)") as error:
        check(loaded(path), path)
    assert "(100.0% of its weights are equal)" in str(error.value)


def test_a_missing_tensor_is_accepted_only_if_a_pattern_matches_its_full_name(tensors, tmp_path):
    del tensors["bn.bias"]
    path = save(tensors, tmp_path / "b.pth")
    backbone = loaded(path)
    with pytest.raises(KdepError, match=r"bn\.bias"):
        check(backbone, path, ["bn"])  # matches a part of the name only
    gate = check(backbone, path, [r"bn\.bias"])
    assert gate["waived"] == ["bn.bias"]
    # 4 of 129 values: convolution 3 * 4 * 9 + 4, BatchNorm 4 * 4, its counter 1.
    assert gate["coverage"] == pytest.approx(1 - 4 / 129)


def test_coverage_counts_values_not_tensors(tensors):
    backbone = Backbone()
    backbone.load_state_dict(tensors)
    del tensors["conv.weight"]
    total = 108 + 4 + 4 * 4 + 1  # convolution, its bias, four tensors of the norm, its counter
    assert compare(backbone, tensors)["coverage"] == pytest.approx(1 - 108 / total)
