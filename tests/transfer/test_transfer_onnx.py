"""ONNX files give the network's outputs at any batch size; a file with other outputs is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.transfer.onnx_file import (
    WithPreprocessing,
    check_onnx,
    latencies,
    open_session,
    write_onnx,
)

PX = 16  # side of the images in pixels


def backbone(seed: int = 0) -> nn.Module:
    """A small random network; its output is its last feature map."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The ONNX file of the network."""
    path = tmp_path_factory.mktemp("onnx") / "backbone.onnx"
    write_onnx(backbone(), PX, path)
    return path


def test_the_file_normalises_pixels_and_accepts_batches_of_any_size(file):
    """The file was exported with a batch of 2; here it gets 5 images."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, PX, PX)).astype(np.float32)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    normalised = torch.from_numpy((pixels - mean) / std)
    with torch.inference_mode():
        expected = backbone().eval()(normalised).numpy()
    feature, last_map = open_session(file).run(None, {"images": pixels})
    np.testing.assert_allclose(last_map, expected, atol=1e-5)
    np.testing.assert_allclose(feature, expected.mean((2, 3)), atol=1e-5)


def test_a_file_with_other_weights_is_refused(file):
    with pytest.raises(KdepError, match="the output feature of the ONNX file"):
        check_onnx(WithPreprocessing(backbone(seed=1)).eval(), file, (PX, PX), ("feature", "map"))


def test_latencies_are_measured_for_each_batch_size(file):
    table = latencies(backbone(), file, PX, batches=(1, 2))
    assert [row["batch"] for row in table] == [1, 2]
    assert all(row["torch_ms"] > 0 and row["onnxruntime_ms"] > 0 for row in table)


def test_a_file_that_fails_its_check_is_deleted_and_replaces_no_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "backbone.onnx"
    path.write_text("earlier")
    monkeypatch.setattr("kdep_bench.transfer.onnx_file.TOLERANCE", -1.0)  # the check fails
    with pytest.raises(KdepError, match="the output feature of the ONNX file"):
        write_onnx(backbone(), PX, path)
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.onnx"]
    assert path.read_text() == "earlier"


def test_the_error_names_a_file_that_is_not_onnx(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"abc")
    with pytest.raises(KdepError, match=r"onnxruntime cannot read the ONNX file .*bad\.onnx"):
        open_session(tmp_path / "bad.onnx")
