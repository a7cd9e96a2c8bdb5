"""Check: one method of a small pocket suite end to end, compared with CPU scores.

Runs the suite `gpu_check` with tools/run_suite.py. The scores of n runs on CPUs are in
results/gpu_check_reference. The score on this machine should be inside their 95 % prediction
interval, mean +- t * s * sqrt(1 + 1/n) with Student's t for n - 1 degrees of freedom.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from kdep_bench.errors import KdepError
from kdep_bench.files import read_json
from kdep_bench.gpu_check.base import Check, Measurements, Setting

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "results/gpu_check_reference"
PACKED = ROOT / "packed_work"  # work dir in a folder that `pack` wrote
SUITE = "gpu_check"


def prediction_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Interval that contains the next value of a normal distribution with probability `level`.

    `values`: a sample of that distribution.

    Raises:
        KdepError: there are fewer than two values, or all are equal.
    """
    from scipy import stats

    n = len(values)
    if n < 2 or stdev(values) == 0:
        raise KdepError(
            f"the reference has the values {values}",
            expected="two or more different values",
            fix="run the suite gpu_check_reference with more seeds",
        )
    t = float(stats.t.ppf(0.5 + level / 2, n - 1))
    half_width = t * stdev(values) * math.sqrt(1 + 1 / n)
    return mean(values) - half_width, mean(values) + half_width


def scores(results: Path) -> dict[tuple[str, str], list[float]]:
    """(method, task) -> scores of the finished records of a results folder."""
    values: dict[tuple[str, str], list[float]] = {}
    for path in sorted((results / "records").glob("*.json")):
        record = read_json(path)
        if record["status"] == "ok":
            key = record["arm"]["method"], record["task"]["name"]
            values.setdefault(key, []).append(record["value"])
    return values


def _run(setting: Setting, measurements: Measurements) -> None:
    work, results = _work_dir(setting), setting.folder / "results"
    is_packed = work == PACKED
    # A pack does not contain the photographs that the suite `smoke` uses.
    suite = "smoke" if setting.quick and not is_packed else SUITE
    command = [sys.executable, str(ROOT / "tools/run_suite.py"), suite, "--plain"]
    command += ["--work-dir", str(work), "--results-dir", str(results)]
    command += ["--gpus", ",".join(setting.gpus[:1]) if setting.device == "cuda" else ""]
    if setting.quick:
        stages = "prepare" if is_packed else "transfer-smoke_probe*scratch*"
        command += ["--only", stages, "--verify"]
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if setting.quick and is_packed:
        measurements.claim("the packed data are complete", code == 0, code, "0")
        return
    measured, reference = scores(results), scores(REFERENCE)
    if code or not measured:
        raise KdepError(
            f"the suite {suite} ended with exit code {code} and {len(measured)} scores",
            expected="exit code 0 and a score per task",
            fix="read the log of this check",
        )
    for (method, task), values in sorted(measured.items()):
        if setting.quick:
            measurements.claim(f"{method} on {task} has a score", True, values[0], "any")
            continue
        cpu_scores = reference.get((method, task), [])
        if len(cpu_scores) < 2:
            raise KdepError(
                f"{REFERENCE} has {len(cpu_scores)} scores of {method} on {task}",
                expected="two or more",
                fix="run: kdep-bench run gpu_check_reference on a CPU",
            )
        low, high = prediction_interval(cpu_scores)
        measurements.claim(
            f"{method} on {task}, compared with {len(cpu_scores)} CPU runs",
            low <= values[0] <= high,
            values[0],
            f"{low:.3f} to {high:.3f}",
        )


def _work_dir(setting: Setting) -> Path:
    """The work dir for the suite: PACKED, which has a finished `prepare` stage, or a new folder."""
    return PACKED if PACKED.is_dir() else setting.folder / "work"


CHECK = Check("a small pocket suite end to end", order=25, seconds=150, min_seconds=60, run=_run)
