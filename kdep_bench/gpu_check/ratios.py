"""The benchmark's step ratios and data wait, at 64 px and at 224 px (tools/benchmark.py)."""

from __future__ import annotations

from kdep_bench.gpu_check.base import Check, Outcome, Setting

BOUND = 1.05  # a warm-cache step over the student's alone


def _run(setting: Setting, outcome: Outcome) -> None:
    from kdep_bench.benchmark import steps

    for px in (64,) if setting.quick else (64, 224):
        folder = setting.folder / str(px)
        folder.mkdir()
        sizes = dict(images=320, rounds=1, each=1) if setting.quick else dict(images=512, rounds=10)
        found = steps.measure(folder, px=64 if setting.quick else None if px == 64 else px, **sizes)
        for what, value in found["ratios"].items():
            outcome.figure(f"{px} px: {what}", value, "ratio")
        ratio = found["ratios"]["warm-cache step / student-only step"]
        if not setting.quick:
            outcome.claim(f"{px} px: a warm-cache step over the student's alone", ratio <= BOUND,
                          ratio, f"<= {BOUND:g}")  # fmt: skip
        for arm in ("student", "kdep", "live"):
            rate = found["batch"] / (found["wait_s"][arm] + found["step_s"][arm])
            outcome.figure(f"{px} px: {arm}, data included", rate, "images/s")


CHECK = Check("step ratios and data wait", 70, 90, 20, _run)
