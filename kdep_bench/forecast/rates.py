"""GPU-hours of stages: from a given speed, a measured speed, or the times of finished stages."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import read_strict
from kdep_bench.flops import FORWARD_AND_BACKWARD
from kdep_bench.forecast.costs import Costs
from kdep_bench.forecast.work import (
    GPU_KINDS,
    NETWORKS_FILE,
    WORK_DIR_COUNTS,
    Forecast,
    Hours,
    student_network,
    teacher_network,
)
from kdep_bench.paths import ROOT
from kdep_bench.suite.config import find_config
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.schema import Json


@dataclass(frozen=True)
class FlopRate:
    """Speed of a GPU in floating-point operations per second (FLOP/s).

    Attributes:
        source: where the numbers come from, for tables.
        default: FLOP/s for networks that are not in `networks`; None: unknown.
        networks: network id -> measured FLOP/s.
    """

    source: str
    default: float | None = None
    networks: Mapping[str, float] = field(default_factory=dict)


# Peak TFLOP/s without sparsity. Sources: "NVIDIA A100 Tensor Core GPU" datasheet (SXM and PCIe);
# "NVIDIA H100 Tensor Core GPU Architecture" white paper (SXM5; the H200 has the same peaks).
DEVICES: Mapping[str, Mapping[str, float]] = {
    "a100": {"float32": 19.5, "tf32": 156.0, "bfloat16": 312.0},
    "h100": {"float32": 66.9, "tf32": 494.7, "bfloat16": 989.4},
}


def stated_rate(text: str) -> FlopRate:
    """The speed that the option `--device-rate` states.

    `text` is the TFLOP/s that training reaches ('12.5'), or a fraction of a device's peak
    ('a100.tf32:0.3').

    Raises:
        KdepError: the device or number format is unknown, or the fraction of the peak is missing.
    """
    name, colon, fraction_text = text.partition(":")
    device, dot, number_format = name.partition(".")
    expected = "the TFLOP/s reached, or DEVICE.FORMAT:FRACTION of the peak, e.g. a100.tf32:0.3"
    if device.lower() in DEVICES:
        peaks = DEVICES[device.lower()]
        if dot and number_format not in peaks:
            place = f"--device-rate {text}"
            raise unknown_name("number format", number_format, peaks, place=place)
        if not dot or not colon:
            missing = [] if dot else ["number format"]
            missing += [] if colon else ["fraction of the peak, which training never reaches"]
            raise KdepError(
                f"--device-rate {text} lacks the {' and the '.join(missing)}",
                expected=expected,
                fix="add the number format and the fraction of the peak you expect (convolutions "
                "run in tf32 by default, a teacher's cache in float32)",
            )
        peak = peaks[number_format]
        origin = f"{device.lower()}'s datasheet, {number_format}: {peak:g} TFLOP/s"
    else:
        try:
            peak, origin = float(name), f"{float(name):g} TFLOP/s"
        except ValueError:
            problem = f"--device-rate is {text!r}"
            if dot:
                problem = f"unknown device {device!r} in --device-rate {text}"
            raise KdepError(
                problem,
                expected=f"{expected} (devices: {', '.join(DEVICES)})",
                fix="correct --device-rate",
            ) from None
    try:
        fraction = float(fraction_text) if colon else 1.0
    except ValueError:
        fraction = float("nan")
    if not (0 < fraction <= 1 and 0 < peak < float("inf")):
        raise KdepError(
            f"--device-rate is {text!r}",
            expected=expected + ", with numbers above 0 and FRACTION at most 1",
            fix="correct --device-rate",
        )
    source = f"from --device-rate ({origin}" + (f", {fraction:g} of it reached)" if colon else ")")
    return FlopRate(source, peak * fraction * 1e12)


def measured_rate(throughputs: Json, counts: Mapping[str, Json]) -> FlopRate:
    """The measured speed of each network; other networks get the speed of the slowest student.

    Args:
        throughputs: network id -> {"kind", "images_per_s"}, and "device"; see `measure_networks`.
        counts: network id -> {"flops", ...}; see `work.read_counts`.

    Raises:
        KdepError: no student was measured.
    """
    rates, student_rates = dict[str, float](), []
    for network, measured in throughputs.items():
        if network != "device" and network in counts:
            passes = FORWARD_AND_BACKWARD if measured["kind"] == "student" else 1
            rates[network] = measured["images_per_s"] * passes * counts[network]["flops"]
            if measured["kind"] == "student":
                student_rates.append(rates[network])
    if not student_rates:
        raise KdepError(
            "the images per second of the suite's students could not be measured",
            fix="read the messages above",
        )
    source = f"measured here ({throughputs['device']}; dense tasks at the student's training rate)"
    return FlopRate(source, min(student_rates), rates)


def at_rate(plan: Plan, forecast: Forecast, rate: FlopRate, ids: Iterable[str]) -> Hours:
    """GPU-hours of the stages `ids` at a speed; 0 for kinds that use no GPU, None if unknown."""
    hours: dict[str, float | None] = {}
    for stage_id in ids:
        stage = plan.stages[stage_id]
        flops = forecast.estimate(stage).flops if stage.kind in GPU_KINDS else 0.0
        speed = rate.default
        if flops and rate.networks:
            config = stage.spec["teacher" if stage.kind == "cache" else "student"]
            network = (teacher_network if stage.kind == "cache" else student_network)(config)
            speed = rate.networks.get(forecast.network(config, network)[0], rate.default)
        hours[stage_id] = None if flops is None or not speed else flops / speed / 3600
    return Hours(rate.source, hours)


def from_finished(plan: Plan, costs: Costs, ids: Iterable[str]) -> Hours:
    """GPU-hours from similar finished stages; None for a stage without a similar one."""
    hours: dict[str, float | None] = {}
    for stage_id in ids:
        stage = plan.stages[stage_id]
        seconds = costs.measured(stage) if stage.kind in GPU_KINDS else 0.0
        hours[stage_id] = None if seconds is None else seconds / 3600
    return Hours("measured here (finished stages of similar work)", hours)


# ---- measurements in a separate process, because they import torch ----


def count_networks(suite: str, work: Path, rehearse: bool) -> None:
    """Writes WORK_DIR_COUNTS: FLOPs of the suite's networks that are not in NETWORKS_FILE."""
    work.mkdir(parents=True, exist_ok=True)
    _networks(suite, work / WORK_DIR_COUNTS, rehearse, "--known", str(NETWORKS_FILE))


def measure_networks(suite: str, rehearse: bool) -> Json:
    """Measures the images per second of the suite's networks on this machine.

    Returns:
        network id -> {"kind", "images_per_s"}, and "device"; see kdep_bench/benchmark/networks.py.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "throughputs.json"
        _networks(suite, out, rehearse, "--measure-throughput")
        return read_strict(out)


def _networks(suite: str, out: Path, rehearse: bool, *extra_arguments: str) -> None:
    """Runs kdep_bench/benchmark/networks.py, which writes the file `out`."""
    command = [sys.executable, "-m", "kdep_bench.benchmark.networks"]
    command += [str(find_config("suite", suite).absolute()), "--out", str(out), *extra_arguments]
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    if rehearse:
        command.append("--rehearse")
    finished = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    if not out.exists():
        raise KdepError(
            f"the FLOPs and speed of the networks of the suite {suite} could not be measured (exit "
            f"code {finished.returncode})",
            fix="read the messages above; torch and the OpenMMLab packages must be installed",
        )
