"""Counted networks: against arithmetic, and against what the repository keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from kdep_bench.forecast.work import COUNTED, network_id, student_network, task_network
from kdep_bench.suite.config import resolve
from tests.transfer.conftest import in_subprocess  # noqa: F401  (a fixture)

ROIS = 64


def counted(network: dict[str, Any]) -> dict[str, Any]:
    from kdep_bench.benchmark.networks import count

    return count(network)


def plain(page: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in page.items() if k != "about"}


def test_the_published_flops_of_the_papers_student_are_those_torch_counts(
    in_subprocess: Callable[..., Any],  # noqa: F811
) -> None:
    network = student_network(plain(resolve("student", "resnet18")))
    kept = json.loads(COUNTED.read_text())[network_id(network)]
    assert in_subprocess(counted, network) == {
        k: v for k, v in kept.items() if k not in ("kind", "name")
    }
    # He et al. 2016, table 1: 1.8 G multiply-adds; 11.7 M parameters with the classifier's 0.5 M.
    assert math.isclose(kept["flops"], 2 * 1.8e9, rel_tol=0.02)
    assert math.isclose(kept["parameters"], 11.7e6 - 513_000, rel_tol=0.01)


def test_a_detector_costs_its_regions_and_a_segmenter_its_crop(
    in_subprocess: Callable[..., Any],  # noqa: F811
) -> None:
    student = plain(resolve("student", "resnet18_w32"))
    task = resolve("task", "pocket_det")
    whole = in_subprocess(counted, task_network(task, student))
    assert whole["size"] == [128, 160]
    task["recipe"]["model"]["train_cfg"]["rcnn"]["sampler"]["num"] = ROIS // 2
    half = in_subprocess(counted, task_network(task, student))
    # A region: 7 x 7 x 64 to 256, to 256, to 81 classes and one box.
    region = 2 * (7 * 7 * 64 * 256 + 256 * 256 + 256 * (81 + 4))
    assert whole["flops"] - half["flops"] == ROIS // 2 * region
    task = resolve("task", "pocket_seg")
    crop = in_subprocess(counted, task_network(task, student))
    height, width = task["recipe"]["crop"]
    task["recipe"]["crop"] = [2 * height, width]
    ratio = in_subprocess(counted, task_network(task, student))["flops"] / crop["flops"]
    assert math.isclose(ratio, 2, rel_tol=0.01)  # but for pooled maps


def probed(network: dict[str, Any]) -> dict[str, Any]:
    from kdep_bench.benchmark import networks

    networks.PROBE_S = 0.0  # one step after the first
    return networks.probe(network, "bfloat16")


def test_a_probe_takes_steps_of_the_network(in_subprocess: Callable[..., Any]) -> None:  # noqa: F811
    student = plain(resolve("student", "resnet18_w32"))
    small = student_network({**student, "input_px": 32})
    assert in_subprocess(probed, small)["images_per_s"] > 0
    assert in_subprocess(probed, task_network(resolve("task", "pocket_det"), student)) == {
        "images_per_s": 0.0
    }
