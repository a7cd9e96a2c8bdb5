"""Check: ratios of step times, and time spent waiting for data, at 64 and 224 px.

The measurement is the same as in tools/benchmark.py. A warm cache is a teacher cache that is
already filled.
"""

from __future__ import annotations

from kdep_bench.gpu_check.base import Check, Measurements, Setting

BOUND = 1.05  # of (time of a KDEP step with a warm cache) / (time of a step of the student alone)


def _run(setting: Setting, measurements: Measurements) -> None:
    from kdep_bench.benchmark import steps

    for px in (64,) if setting.quick else (64, 224):
        folder = setting.folder / str(px)
        folder.mkdir()
        if setting.quick:
            measured = steps.measure(folder, images=320, rounds=1, each=1, px=64)
        else:
            # None: the inputs of the configs, 64 px for the student and 128 px for the teacher.
            measured = steps.measure(folder, images=512, rounds=10, px=None if px == 64 else px)
        for ratio_name, value in measured["ratios"].items():
            measurements.figure(f"{px} px: {ratio_name}", value, "ratio")
        ratio = measured["ratios"]["warm-cache step / student-only step"]
        if not setting.quick:
            label = f"{px} px: warm-cache step / student-only step"
            measurements.claim(label, ratio <= BOUND, ratio, f"<= {BOUND:g}")
        for trainer in ("student", "kdep", "live"):
            rate = measured["batch"] / (measured["wait_s"][trainer] + measured["step_s"][trainer])
            measurements.figure(f"{px} px: {trainer}, including data loading", rate, "images/s")


CHECK = Check("step ratios and data wait", order=70, seconds=90, min_seconds=20, run=_run)
