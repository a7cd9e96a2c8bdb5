"""Counted FLOPs and parameters of networks equal arithmetic and the repository's table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from kdep_bench.forecast.work import NETWORKS_FILE, network_id, student_network, task_network
from kdep_bench.suite.config import resolve
from tests.transfer.conftest import in_subprocess  # noqa: F401  (a fixture)

ROIS = 64  # regions per image that the detector of pocket_det samples


def count_network(network: dict[str, Any]) -> dict[str, Any]:
    """FLOPs and parameters of a network; run in a subprocess."""
    from kdep_bench.benchmark.networks import count

    return count(network)


def without_about(config: dict[str, Any]) -> dict[str, Any]:
    """A config without its description."""
    return {k: v for k, v in config.items() if k != "about"}


def test_the_published_flops_of_resnet18_equal_those_that_torch_counts(
    in_subprocess: Callable[..., Any],  # noqa: F811
) -> None:
    network = student_network(without_about(resolve("student", "resnet18")))
    published = json.loads(NETWORKS_FILE.read_text())[network_id(network)]
    assert in_subprocess(count_network, network) == {
        k: v for k, v in published.items() if k not in ("kind", "name")
    }
    # He et al. 2016, table 1: 1.8 G multiply-adds; 11.7 M parameters with the classifier's 0.5 M.
    assert math.isclose(published["flops"], 2 * 1.8e9, rel_tol=0.02)
    assert math.isclose(published["parameters"], 11.7e6 - 513_000, rel_tol=0.01)


def test_flops_of_a_detector_grow_with_regions_and_of_a_segmenter_with_the_crop(
    in_subprocess: Callable[..., Any],  # noqa: F811
) -> None:
    student = without_about(resolve("student", "resnet18_w32"))
    task = resolve("task", "pocket_det")
    all_regions = in_subprocess(count_network, task_network(task, student))
    assert all_regions["size"] == [128, 160]
    task["recipe"]["model"]["train_cfg"]["rcnn"]["sampler"]["num"] = ROIS // 2
    half_regions = in_subprocess(count_network, task_network(task, student))
    # Head per region: 7 x 7 x 64 inputs to 256, to 256, to 81 classes and 4 box coordinates.
    region = 2 * (7 * 7 * 64 * 256 + 256 * 256 + 256 * (81 + 4))
    assert all_regions["flops"] - half_regions["flops"] == ROIS // 2 * region
    task = resolve("task", "pocket_seg")
    crop = in_subprocess(count_network, task_network(task, student))
    height, width = task["recipe"]["crop"]
    task["recipe"]["crop"] = [2 * height, width]
    ratio = in_subprocess(count_network, task_network(task, student))["flops"] / crop["flops"]
    # Not exactly 2, because the pooled maps of the head do not grow.
    assert math.isclose(ratio, 2, rel_tol=0.01)


def probe_network(network: dict[str, Any]) -> dict[str, Any]:
    """Measured throughput of a network; run in a subprocess."""
    from kdep_bench.benchmark import networks

    networks.TIMED_SECONDS = 0.0  # seconds: a single step after the first
    return networks.measure_throughput(network, "bfloat16")


def test_the_throughput_is_measured_of_students_and_not_of_tasks(
    in_subprocess: Callable[..., Any],  # noqa: F811
) -> None:
    student = without_about(resolve("student", "resnet18_w32"))
    small = student_network({**student, "input_px": 32})
    assert in_subprocess(probe_network, small)["images_per_s"] > 0
    assert in_subprocess(probe_network, task_network(resolve("task", "pocket_det"), student)) == {
        "images_per_s": 0.0
    }
