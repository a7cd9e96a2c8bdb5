"""Writes the benchmark's results as JSON and as a table with targets. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kdep_bench.files import read_strict, write_atomic, write_json

# Key in the JSON -> (measure as shown, sign, target).
TARGETS = {
    "warm-cache step / student-only step": (
        "KDEP step with a filled cache / step of the student alone",
        "<=",
        1.05,
    ),
    "live step / (student step + teacher forward)": (
        "step with a live teacher / (student step + teacher forward pass)",
        "<=",
        1.05,
    ),
    "data wait, share of a warm-cache step": (
        "waiting for data, fraction of a KDEP step",
        "<",
        0.05,
    ),
    "data wait with 2 workers, share of a warm-cache step": (
        "the same with two loader workers",
        "<",
        0.05,
    ),
    "cache read, share of a student step": (
        "reading the cache, fraction of a student step",
        "<",
        0.05,
    ),
    "throughput against the paper's live loop": (
        "throughput / that of a live-teacher loop with fresh crops, as in the paper",
        ">=",
        2.0,
    ),
    "step of KDEP on maps / KDEP step": (
        "step of `kdep_maps` with a filled cache / KDEP step",
        "<=",
        1.1,
    ),
    "step of KDEP on int8 maps / KDEP step": ("the same with maps stored as int8", "<=", 1.1),
}
# Kinds of steps in the order in which the report lists them.
STEPS = ("student", "kdep", "kdep_maps", "kdep_maps_int8", "live", "paper", "teacher")
STEP_NAMES = (
    "student: the student alone; kdep: KDEP with a filled cache; kdep_maps, kdep_maps_int8: KDEP "
    "on feature maps, stored as float16 or int8; live: KDEP with a live teacher; paper: the same "
    "with fresh crops; teacher: its forward pass alone."
)
FLOORS = {  # key of the minimum work of a step in the JSON -> text
    "student_step_flops": "student step FLOPs",
    "teacher_forward_flops": "teacher forward pass FLOPs",
    "target_flops": "target projection FLOPs",
    "picture_bytes": "image bytes",
    "feature_bytes": "feature bytes",
}
SETTING = (
    "Comparison with lightly-train: the same teacher (EfficientNet-Lite0 at 128 px), student "
    "(ResNet-18 of half width at 64 px), images, epochs, batch of 64, float32, threads and "
    "allocator. lightly-train uses its default distillation method with its losses, mixup, "
    "augmentation, optimiser and schedule, with teacher and student as custom models and fresh "
    "crops at 128 px, which are averaged to 64 px for the student. kdep_bench uses two stored "
    "views, SGD and the schedule of the pocket suite. `scratch` is the untrained student."
)
SVD_BYTES = 300e6  # target for the extra memory of the SVD, in bytes
MIN_SPEEDUP = 1.5  # target for the throughput divided by that of lightly-train
NOT_MEASURED = "not measured"


class TargetRow(NamedTuple):
    """A row of the table.

    Attributes:
        measure: what is measured.
        target: the target as text; "" without one.
        measured: the measured value as text.
        met: whether the target is met; None without a target or a measurement.
    """

    measure: str
    target: str
    measured: str = NOT_MEASURED
    met: bool | None = None

    def __str__(self) -> str:
        met = "" if self.met is None else "yes" if self.met else "no"
        return f"| {self.measure} | {self.target} | {self.measured} | {met} |"


def meets_target(value: float, sign: str, target: float) -> bool:
    """Whether `value` meets the target; `sign`: '<=', '<' or '>='."""
    if sign == ">=":
        return value >= target
    return value <= target if sign == "<=" else value < target


def rows(measured: dict[str, Any]) -> Iterator[TargetRow]:
    """All rows of the table, including those without a measurement."""
    ratios = measured.get("steps", {}).get("ratios", {})
    for key, (measure, sign, target) in TARGETS.items():
        if key in ratios:
            met = meets_target(ratios[key], sign, target)
            yield TargetRow(measure, f"{sign} {target:g}", f"{ratios[key]:.3f}", met)
        else:
            yield TargetRow(measure, f"{sign} {target:g}")
    yield from _forwards(measured.get("forwards"))
    yield from _lightly(measured.get("rival"))
    yield from _memory(measured.get("memory"))


def _forwards(counts: dict[str, Any] | None) -> Iterator[TargetRow]:
    if counts is None:
        yield TargetRow("teacher forward passes of a suite", "one per (image, view)")
        return
    yield TargetRow(
        f"teacher forward passes of `{counts['suite']}` ({counts['records']} records, "
        f"{counts['pretrainings']} pre-trainings with the teacher), counted by its cache",
        f"{counts['rows']}, one per (image, view)",
        f"{counts['forwards']} (a live teacher would need {counts['samples']})",
        counts["forwards"] == counts["rows"],
    )


def _lightly(comparison: dict[str, Any] | None) -> Iterator[TargetRow]:
    if comparison is None:
        yield TargetRow("throughput / that of lightly-train's distillation", f">= {MIN_SPEEDUP:g}")
        return
    name = f"{comparison['rival']} {comparison['version']}"
    ratio = comparison["other"]["seconds"] / comparison["ours"]["seconds"]
    cpu_ratio = comparison["other"]["cpu_s"] / comparison["ours"]["cpu_s"]
    yield TargetRow(
        f"throughput / that of {name}'s distillation, including kdep_bench's views and cache "
        f"({comparison['images']} images, {comparison['epochs']} epochs)",
        f">= {MIN_SPEEDUP:g}",
        f"{ratio:.2f} ({cpu_ratio:.2f} in CPU time)",
        meets_target(ratio, ">=", MIN_SPEEDUP),
    )
    yield TargetRow(
        "the same, only training steps",
        "",
        f"{comparison['other']['seconds'] / comparison['ours']['train_s']:.2f}",
    )
    scores = ", ".join(f"{n} {100 * v:.1f}" for n, v in comparison["scores"].items())
    yield TargetRow(
        f"top-1 x100 of {comparison['task']}, mean of {comparison['seeds']} seeds", "", scores
    )


def _memory(memory: dict[str, Any] | None) -> Iterator[TargetRow]:
    if memory is None:
        yield TargetRow("streaming SVD: extra memory", "< 300 MB")
        return
    largest = max(s["extra_bytes"] for s in memory["svd"])
    first, last = memory["svd"][0], memory["svd"][-1]
    time_ratio = (last["pass_s"] / first["pass_s"]) / (last["rows"] / first["rows"])
    small, large = memory["reads"]
    yield TargetRow(
        f"streaming SVD: extra memory at width {memory['svd_width']}, N={last['rows']} samples",
        "< 300 MB",
        f"{largest / 1e6:.0f} MB",
        largest < SVD_BYTES,
    )
    measure = f"streaming SVD: time at N={last['rows']} / time at N={first['rows']}"
    yield TargetRow(f"{measure}, divided by the ratio of N", "about 1", f"{time_ratio:.2f}")
    yield TargetRow(
        "streaming SVD: smallest cosine of its directions to those of the full SVD",
        "1",
        f"{memory['svd_agreement']:.9f}",
    )
    yield TargetRow(
        f"memory growth by random reads from caches of {small['rows']} and {large['rows']} rows",
        "equal",
        f"{small['grown_bytes'] / 1e6:.1f} and {large['grown_bytes'] / 1e6:.1f} MB",
    )


def table(measured: dict[str, Any]) -> str:
    """The report in Markdown: measures with targets and results, and the minimum work."""
    lines = [
        f"# Benchmark of pre-training ({measured['device']}, {measured['threads']} threads)",
        "",
    ]
    if measured["quick"]:
        lines += [
            "A `--quick` run: it only tests that all parts run; its figures mean nothing.",
            "",
        ]
    for part in sorted(measured.get("busy", {})):
        cores = measured["busy"][part]
        lines += [f"Not valid, because other work used {cores:.1f} cores: {part}.", ""]
    lines += ["| measure | target | measured | met |", "|---|---|---|---|"]
    lines += [str(row) for row in rows(measured)]
    steps, comparison = measured.get("steps"), measured.get("rival")
    if steps is not None:
        lines += ["", _seconds(steps), "", _floors(steps)]
    lines += [
        "",
        "The student's images are stored decoded and cropped in one memory-mapped array, the "
        "teacher's features in another, so a batch is two memory reads and needs no loader worker "
        "(none is used in the first row of waiting for data). Step times exclude filling the "
        "cache. The number of teacher forward passes excludes the eight images that are recomputed "
        "before each pre-training.",
    ]
    if comparison is not None:
        lines += ["", SETTING]
    return "\n".join([*lines, ""])


def _seconds(steps: dict[str, Any]) -> str:
    """Sentence with the seconds per batch of each kind of step."""
    times = ", ".join(
        f"{n} {steps['step_s'][n]:.3f} (+ {steps['wait_s'][n]:.4f} waiting)"
        for n in STEPS
        if n in steps["step_s"]
    )
    text = (
        f"Seconds per batch of {steps['batch']}, medians of {steps['rounds']} interleaved rounds: "
    )
    cpu = steps.get("cpu_s")
    if cpu is None:
        return f"{text}{times}. {STEP_NAMES}"
    ratio = cpu["live"] / (cpu["student"] + cpu["teacher"])
    return (
        f"{text}{times}. {STEP_NAMES} In CPU time the step with a live teacher takes {ratio:.3f} "
        "times as long as the student step and the teacher's forward pass together."
    )


def _floors(steps: dict[str, Any]) -> str:
    """Sentences with the minimum work per step, and the measured time compared with it."""
    floors, flops_per_s = steps["floors"], steps.get("flops_per_s")
    names = sorted(floors, key=lambda name: list(FLOORS).index(name))
    bounds = ", ".join(f"{FLOORS[name]} {floors[name]:.3g}" for name in names)
    if flops_per_s is None:
        return f"Minimum work per step: {bounds}."
    student, teacher = floors["student_step_flops"], floors["teacher_forward_flops"]
    min_flops = {"student": student, "kdep": student + floors["target_flops"], "teacher": teacher}
    ratios = ", ".join(
        f"{name} {steps['step_s'][name] / (flops / flops_per_s):.2f}"
        for name, flops in min_flops.items()
    )
    return (
        f"Minimum work per step: {bounds}. Measured time / time of these FLOPs at the throughput "
        f"of a large matrix product here ({flops_per_s / 1e9:.0f} GFLOP/s): {ratios}."
    )


def write(measured: dict[str, Any], out: Path) -> None:
    """Writes `benchmark.json` and `benchmark.md` in `out`.

    Results of parts that only an earlier run measured are kept, unless one of the two runs is a
    `--quick` run.
    """
    path = out / "benchmark.json"
    if not measured["quick"] and path.exists():
        old = read_strict(path)
        if not old["quick"]:
            busy = {k: v for k, v in old.get("busy", {}).items() if k not in measured}
            measured = {**old, **measured, "busy": busy | measured.get("busy", {})}
    write_json(path, measured)
    write_atomic(out / "benchmark.md", table(measured))
