"""FLOPs and sizes of a plan's networks, or their throughput on this machine.

`python -m kdep_bench.benchmark.networks SUITE... --out FILE` writes, per `network_id`, the counts
that `kdep_bench.forecast.work` reads; with `--measure-throughput`, the throughput measured here.
Weights are random: they change neither FLOPs nor sizes.
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

PROBE_S = 4.0  # seconds of measured steps per network, after one warm-up step
PROBE_BATCH = 32


def count(network: Json) -> Json:
    """FLOPs of the forward pass of one image, and sizes.

    A student: `flops`, `parameters`, `bytes` of its state dict. A teacher: `flops`, `width`, and
    `outputs`, the number of values per image of each extra output that a cache may store. A task's
    network: `flops` of a training image of `size` [height, width].

    Raises:
        KdepError: a network that cannot be built here.
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
        outputs = {"logits": teacher_output.logits, "tokens": teacher_output.tokens}
        outputs |= {f"maps.{name}": m for name, m in teacher_output.maps.items()}
        return {
            "flops": forward_flops(teacher, torch.zeros(1, 3, px, px, dtype=torch.uint8)),
            "width": teacher.width,
            "outputs": {n: math.prod(t.shape[1:]) for n, t in outputs.items() if t is not None},
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


# ---- the networks of dense tasks ----


class Detector(nn.Module):
    """Training forward pass of a two-stage mm detector: all levels and the sampled RoIs."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net
        self.rois = int(net.roi_head.train_cfg.sampler.num)

    def forward(self, x_B3HW: Tensor) -> None:
        from mmengine.structures import InstanceData

        height, width = x_B3HW.shape[-2:]
        boxes = torch.rand(len(x_B3HW), self.rois, 4, device=x_B3HW.device)
        corner, far = boxes[..., :2] * 0.5, 0.5 + boxes[..., 2:] * 0.5
        scale = torch.tensor([width, height, width, height], device=x_B3HW.device)
        proposals = [InstanceData(bboxes=b) for b in torch.cat([corner, far], -1) * scale]
        levels = self.net.extract_feat(x_B3HW)
        self.net.rpn_head(levels)
        self.net.roi_head(levels, proposals)


class Segmenter(nn.Module):
    """Training forward pass of an mm segmenter: backbone, head and auxiliary head."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_B3HW: Tensor) -> None:
        levels = self.net.extract_feat(x_B3HW)
        self.net.decode_head(levels)
        if self.net.with_auxiliary_head:
            self.net.auxiliary_head(levels)


def _task_network(network: Json) -> tuple[nn.Module, tuple[int, int]]:
    task: Any = build(network["task"])
    openmmlab.setup(task.scope, switch=True)  # no Runner is built in this process
    try:
        model = ConfigDict(task.training_model(network["student"]))
        size = task.training_size()
    except AttributeError:
        raise KdepError(
            f"the class of task {task.name} does not define what is trained",
            expected="`training_model` and `training_size`, as in kdep_bench/transfer/detection.py",
            fix="define them in that class",
        ) from None
    if task.scope == "mmdet":
        from mmdet.registry import MODELS

        return Detector(MODELS.build(model)), size
    from mmseg.registry import MODELS

    return Segmenter(MODELS.build(model)), size


# ---- the probe ----


def probe(network: Json, precision: str = "float32") -> Json:
    """Images per second on this machine: training steps of a student, forward passes of a teacher.

    A student takes complete SGD steps on a squared output, under autocast unless `precision` is
    float32; a teacher runs in exact float32, as in its cache stage. Takes about PROBE_S seconds.
    """
    where, rate = compute_device(), 0.0
    if network["kind"] == "student":
        student = network["student"]
        x = torch.rand(PROBE_BATCH, 3, student["input_px"], student["input_px"], device=where)
        rate = _rate(_training_step(build_backbone(student).to(where), x, precision))
    elif network["kind"] == "teacher":
        teacher = _teacher(network).to(where)
        size = (PROBE_BATCH, 3, teacher.input_px, teacher.input_px)
        x = torch.zeros(size, dtype=torch.uint8, device=where)
        with exact_float32():
            rate = _rate(lambda: teacher(x))
    return {"images_per_s": rate}


def _training_step(net: nn.Module, x_B3HW: Tensor, precision: str) -> Callable[[], Any]:
    net.train()
    sgd = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    low = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)

    def step() -> None:
        sgd.zero_grad()
        with torch.autocast(x_B3HW.device.type, low) if low else contextlib.nullcontext():
            out = net(x_B3HW)
        last = out[-1] if isinstance(out, (tuple, list)) else out
        last.float().square().mean().backward()
        sgd.step()

    return step


def _rate(step: Callable[[], Any]) -> float:
    def timed() -> float:
        synchronise()
        begun = time.perf_counter()
        step()
        synchronise()
        return time.perf_counter() - begun

    timed()
    spent: list[float] = []
    while not spent or sum(spent) < PROBE_S:
        spent.append(timed())
    return PROBE_BATCH * len(spent) / sum(spent)


# ---- the command ----


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 1 where a network could not be counted, 2 for a bad call."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("suites", nargs="+", help="suite configs, or their names in configs/suites/")
    p.add_argument(
        "--out", type=Path, required=True, help="JSON file; networks already in it are kept"
    )
    p.add_argument(
        "--measure-throughput", action="store_true", help="measure images/s here; replaces the file"
    )
    hidden = argparse.SUPPRESS  # the flag's former name
    p.add_argument("--probe", dest="measure_throughput", action="store_true", help=hidden)
    p.add_argument(
        "--rehearse", action="store_true", help="use the rehearsal version of the suites"
    )
    p.add_argument("--known", type=Path, help="JSON file of networks to skip")
    args = p.parse_args(argv)
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
    failed = 0
    for identity, (network, precision) in networks_by_id.items():
        if identity in results or (identity in known and not measure):
            continue
        if measure and network["kind"] == "task":
            continue
        try:
            measured = probe(network, precision) if measure else count(network)
        except KdepError as e:
            print(f"networks: {network['name']}: {e}", file=sys.stderr)
            failed = 1
            continue
        results[identity] = {"kind": network["kind"], "name": network["name"], **measured}
        print(f"{network['kind']} {network['name']}: {measured}", flush=True)
        write_json(args.out, results)
    write_json(args.out, {"device": device(), **results} if measure else results)
    return failed


if __name__ == "__main__":
    sys.exit(main())
