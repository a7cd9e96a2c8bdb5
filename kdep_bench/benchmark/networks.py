"""Counts the FLOPs and sizes of a suite's networks, or measures their speed on this machine.

`python -m kdep_bench.benchmark.networks SUITE... --out FILE` writes the counts that
`kdep_bench.forecast.work` reads, by `network_id`; with `--measure-throughput` it writes images per
second instead. Weights are random, because FLOPs and sizes do not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from kdep_bench import openmmlab
from kdep_bench.devices import compute_device, synchronise
from kdep_bench.engine.environment import device
from kdep_bench.errors import KdepError
from kdep_bench.features.cache_check import exact_float32
from kdep_bench.files import read_strict, write_json
from kdep_bench.flops import forward_flops
from kdep_bench.forecast.work import network_id, networks
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.registry import build
from kdep_bench.suite.config import load_suite
from kdep_bench.suite.plan import build_plan
from kdep_bench.suite.schema import Json
from kdep_bench.teachers.base import Teacher, build_teacher

TIMED_SECONDS = 4.0  # seconds of measured steps per network, after one warm-up step
TIMED_BATCH = 32  # images per measured step


def count(network: Json) -> Json:
    """Counts of a network; `network` is a description from `kdep_bench.forecast.work`.

    Returns:
        `flops` of the forward pass of one image, and for a student: `parameters`, and `bytes` of
        its state dict; for a teacher: `width`, and `outputs`, the number of values per image of
        each output that a cache can store; for the network of a task: `size`, the [height, width]
        of a training image.

    Raises:
        KdepError: the network cannot be built on this machine.
    """
    kind = network["kind"]
    if kind == "student":
        net, px = build_backbone(network["student"]), network["student"]["input_px"]
        return {
            "flops": forward_flops(net, torch.zeros(1, 3, px, px)),
            "parameters": sum(p.numel() for p in net.parameters()),
            "bytes": sum(t.numel() * t.element_size() for t in net.state_dict().values()),
        }
    if kind == "teacher":
        teacher = _teacher(network)
        px = teacher.input_px
        teacher_output = teacher(torch.zeros(1, 3, px, px, dtype=torch.uint8))
        tensors = {"logits": teacher_output.logits, "tokens": teacher_output.tokens}
        tensors |= {f"maps.{name}": tensor for name, tensor in teacher_output.maps.items()}
        sizes = {
            name: math.prod(tensor.shape[1:])
            for name, tensor in tensors.items()
            if tensor is not None
        }
        return {
            "flops": forward_flops(teacher, torch.zeros(1, 3, px, px, dtype=torch.uint8)),
            "width": teacher.width,
            "outputs": sizes,
        }
    net, (height, width) = _task_network(network)
    return {
        "flops": forward_flops(net, torch.zeros(1, 3, height, width)),
        "size": [height, width],
    }


def _teacher(network: Json) -> Teacher:
    """The teacher, with random weights if its class supports them."""
    try:
        return build_teacher({**network["teacher"], "weights": "random"})
    except KdepError:
        return build_teacher(network["teacher"])


# ---- the networks of detection and segmentation ----


class Detector(nn.Module):
    """Training forward pass of a two-stage mmdet detector: all levels and the sampled RoIs."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.rois = int(net.roi_head.train_cfg.sampler.num)

    def forward(self, x_B3HW: Tensor) -> None:
        from mmengine.structures import InstanceData

        height, width = x_B3HW.shape[-2:]
        random = torch.rand(len(x_B3HW), self.rois, 4, device=x_B3HW.device)
        # Corners in the first and the last quarter of the image, so that boxes are not empty.
        top_left, bottom_right = random[..., :2] * 0.5, 0.5 + random[..., 2:] * 0.5
        scale = torch.tensor([width, height, width, height], device=x_B3HW.device)
        boxes = torch.cat([top_left, bottom_right], -1) * scale
        proposals = [InstanceData(bboxes=image_boxes) for image_boxes in boxes]
        levels = self.net.extract_feat(x_B3HW)
        self.net.rpn_head(levels)
        self.net.roi_head(levels, proposals)


class Segmenter(nn.Module):
    """Training forward pass of an mmseg segmenter: backbone, head and auxiliary head."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_B3HW: Tensor) -> None:
        levels = self.net.extract_feat(x_B3HW)
        self.net.decode_head(levels)
        if self.net.with_auxiliary_head:
            self.net.auxiliary_head(levels)


def _task_network(network: Json) -> tuple[nn.Module, tuple[int, int]]:
    """(network that a task trains, [height, width] of its training images)."""
    task: Any = build(network["task"])
    openmmlab.setup(task.scope, switch=True)  # no Runner is built in this process
    try:
        model = ConfigDict(task.training_model(network["student"]))
        size = task.training_size()
    except AttributeError:
        raise KdepError(
            f"the class of task {task.name} lacks `training_model` or `training_size`",
            expected="both methods, as in kdep_bench/transfer/detection.py",
            fix="define them in that class",
        ) from None
    if task.scope == "mmdet":
        from mmdet.registry import MODELS

        return Detector(MODELS.build(model)), size
    from mmseg.registry import MODELS

    return Segmenter(MODELS.build(model)), size


# ---- speed ----


def measure_throughput(network: Json, precision: str = "float32") -> Json:
    """Measures images per second on this machine, for about TIMED_SECONDS seconds.

    A student takes training steps with SGD on the mean square of its output, with autocast unless
    `precision` is float32. A teacher runs forward passes in exact float32, as in its cache stage.
    """
    torch_device, rate = compute_device(), 0.0
    if network["kind"] == "student":
        student, px = network["student"], network["student"]["input_px"]
        images = torch.rand(TIMED_BATCH, 3, px, px, device=torch_device)
        step = _training_step(build_backbone(student).to(torch_device), images, precision)
        rate = _images_per_second(step)
    elif network["kind"] == "teacher":
        teacher = _teacher(network).to(torch_device)
        size = (TIMED_BATCH, 3, teacher.input_px, teacher.input_px)
        images = torch.zeros(size, dtype=torch.uint8, device=torch_device)
        with exact_float32():
            rate = _images_per_second(lambda: teacher(images))
    return {"images_per_s": rate}


def _training_step(net: nn.Module, x_B3HW: Tensor, precision: str) -> Callable[[], Any]:
    """Function that takes a training step on the images."""
    net.train()
    sgd = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)

    def step() -> None:
        sgd.zero_grad()
        with torch.autocast(x_B3HW.device.type, dtype) if dtype else contextlib.nullcontext():
            out = net(x_B3HW)
        last = out[-1] if isinstance(out, (tuple, list)) else out
        last.float().square().mean().backward()
        sgd.step()

    return step


def _images_per_second(step: Callable[[], Any]) -> float:
    """Images per second of a step on TIMED_BATCH images; the first call is not measured."""

    def step_seconds() -> float:
        synchronise()
        start = time.perf_counter()
        step()
        synchronise()
        return time.perf_counter() - start

    step_seconds()
    seconds: list[float] = []
    while not seconds or sum(seconds) < TIMED_SECONDS:
        seconds.append(step_seconds())
    return TIMED_BATCH * len(seconds) / sum(seconds)


# ---- the command ----


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if a network cannot be counted, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "suites", nargs="+", help="suite configs, or their names in configs/suites/"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file; networks already in it are kept"
    )
    parser.add_argument(
        "--measure-throughput",
        action="store_true",
        help="measure images per second on this machine; replaces the file",
    )
    hidden = argparse.SUPPRESS  # a former name of the option
    parser.add_argument("--probe", dest="measure_throughput", action="store_true", help=hidden)
    parser.add_argument(
        "--rehearse", action="store_true", help="use the rehearsal version of the suites"
    )
    parser.add_argument("--known", type=Path, help="JSON file of networks to skip")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except KdepError as e:
        print(f"networks: {e}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    networks_by_id: dict[str, tuple[Json, str]] = {}
    for name in args.suites:
        suite = load_suite(name)
        if args.rehearse:
            from kdep_bench.suite.rehearse import rehearsed

            suite = rehearsed(suite)
        for network in networks(build_plan(suite)):
            networks_by_id[network_id(network)] = network, suite.budget.precision
    known = read_strict(args.known) if args.known else {}
    measure = args.measure_throughput
    results = {} if measure or not args.out.exists() else read_strict(args.out)
    exit_code = 0
    for key, (network, precision) in networks_by_id.items():
        if key in results or (key in known and not measure):
            continue
        if measure and network["kind"] == "task":
            continue
        try:
            measured = measure_throughput(network, precision) if measure else count(network)
        except KdepError as e:
            print(f"networks: {network['name']}: {e}", file=sys.stderr)
            exit_code = 1
            continue
        results[key] = {"kind": network["kind"], "name": network["name"], **measured}
        print(f"{network['kind']} {network['name']}: {measured}", flush=True)
        write_json(args.out, results)
    write_json(args.out, {"device": device(), **results} if measure else results)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
