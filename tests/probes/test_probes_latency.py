"""The probe `latency` measures a real backbone, also without images."""

from __future__ import annotations

import pytest

from kdep_bench.networks.backbone import build_backbone
from kdep_bench.probes.base import Inputs
from kdep_bench.probes.latency import Latency
from kdep_bench.transfer import onnx_file
from tests.pretrain.conftest import PX, STUDENT


def test_images_per_second_are_the_batch_divided_by_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_file, "_RUNS", 3)
    network = build_backbone(STUDENT)
    network.eval()
    values = Latency(batches=(1, 4)).measure(Inputs(network=network, input_px=PX)).values
    assert len(values) == 2 * 2 * 2  # runtimes, batch sizes, ms and images/s
    for runtime in ("torch", "onnxruntime"):
        for n in (1, 4):
            ms = values[f"ms, {runtime}, batch {n}"]
            images = values[f"images/s, {runtime}, batch {n}"]
            assert ms.value > 0
            assert images.value == pytest.approx(1000 * n / ms.value)
            assert (ms.better, images.better) == ("smaller", "larger")
