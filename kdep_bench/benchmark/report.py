"""The benchmark's figures as JSON and as a table against the bars. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kdep_bench.files import read_strict, write_atomic, write_json

BARS = {
    "warm-cache step / student-only step": ("<=", 1.05),
    "live step / (student step + teacher forward)": ("<=", 1.05),
    "data wait, share of a warm-cache step": ("<", 0.05),
    "data wait with 2 workers, share of a warm-cache step": ("<", 0.05),
    "cache read, share of a student step": ("<", 0.05),
    "throughput against the paper's live loop": (">=", 2.0),
}
SVD_BYTES = 300e6
RIVAL = 1.5
NOT_MEASURED = "not measured"


class Row(NamedTuple):
    """A line of the table; `met` is None where there is no bar, or nothing to hold against it."""

    measure: str
    bar: str
    measured: str = NOT_MEASURED
    met: bool | None = None

    def __str__(self) -> str:
        met = "" if self.met is None else "yes" if self.met else "no"
        return f"| {self.measure} | {self.bar} | {self.measured} | {met} |"


def reaches(value: float, sign: str, bar: float) -> bool:
    """Whether `value` keeps the bar; `sign` is one of <=, < and >=."""
    return value >= bar if sign == ">=" else value <= bar if sign == "<=" else value < bar


def rows(found: dict[str, Any]) -> Iterator[Row]:
    """Every measure of the project, also those that `found` does not have."""
    ratios = found.get("steps", {}).get("ratios", {})
    for name, (sign, bar) in BARS.items():
        if name in ratios:
            met = reaches(ratios[name], sign, bar)
            yield Row(name, f"{sign} {bar:g}", f"{ratios[name]:.3f}", met)
        else:
            yield Row(name, f"{sign} {bar:g}")
    yield from _forwards(found.get("forwards"))
    yield from _rival(found.get("rival"))
    yield from _memory(found.get("memory"))


def _forwards(said: dict[str, Any] | None) -> Iterator[Row]:
    if said is None:
        yield Row("teacher forwards of a suite", "one an (image, view)")
        return
    yield Row(
        f"teacher forwards of `{said['suite']}` ({said['records']} records, "
        f"{said['pretrainings']} pre-trainings from the teacher), by its cache's own count",
        f"{said['rows']}, one an (image, view)",
        f"{said['forwards']}; a live teacher: {said['samples']}",
        said["forwards"] == said["rows"],
    )


def _rival(said: dict[str, Any] | None) -> Iterator[Row]:
    if said is None:
        yield Row("throughput against lightly-train's distillation", f">= {RIVAL:g}")
        return
    name = f"{said['rival']} {said['version']}"
    ratio = said["other"]["seconds"] / said["ours"]["seconds"]
    yield Row(
        f"throughput against {name}, views and cache included ({said['images']} images, "
        f"{said['epochs']} epochs)",
        f">= {RIVAL:g}",
        f"{ratio:.2f} ({said['other']['cpu_s'] / said['ours']['cpu_s']:.2f} in processor time)",
        reaches(ratio, ">=", RIVAL),
    )
    yield Row(
        "the same, training steps alone",
        "",
        f"{said['other']['seconds'] / said['ours']['train_s']:.2f}",
    )
    scores = ", ".join(f"{n} {100 * v:.1f}" for n, v in said["scores"].items())
    yield Row(f"top-1 x100 of {said['task']}, mean of {said['seeds']} seeds", "", scores)


def _memory(said: dict[str, Any] | None) -> Iterator[Row]:
    if said is None:
        yield Row("streaming SVD, extra memory", "< 300 MB")
        return
    most = max(s["extra_bytes"] for s in said["svd"])
    a, b = said["svd"][0], said["svd"][-1]
    slope = (b["pass_s"] / a["pass_s"]) / (b["rows"] / a["rows"])
    small, large = said["reads"]
    yield Row(
        f"streaming SVD, extra memory at Dt={said['svd_width']}, N={b['rows']}",
        "< 300 MB",
        f"{most / 1e6:.0f} MB",
        most < SVD_BYTES,
    )
    measure = f"its time, N={b['rows']} against N={a['rows']}, over the ratio of N"
    yield Row(measure, "about 1", f"{slope:.2f}")
    yield Row(
        "its directions against the full SVD, smallest cosine", "1", f"{said['svd_agreement']:.9f}"
    )
    yield Row(
        f"memory grown by random reads, {small['rows']} and {large['rows']} rows",
        "flat",
        f"{small['grown_bytes'] / 1e6:.1f} and {large['grown_bytes'] / 1e6:.1f} MB",
    )


def table(found: dict[str, Any]) -> str:
    """A markdown page: each measure, its bar, what was measured, and the floors."""
    lines = [
        f"# Benchmark of the pre-trainer ({found['device']}, {found['threads']} threads)",
        "",
    ]
    if found["quick"]:
        lines += ["A `--quick` run: it shows that all parts run; its figures mean nothing.", ""]
    for part in sorted(found.get("busy", {})):
        cores = found["busy"][part]
        lines += [f"Taken while other work used {cores:.1f} cores, no measurement: {part}.", ""]
    lines += ["| measure | bar | measured | met |", "|---|---|---|---|"]
    lines += [str(row) for row in rows(found)]
    steps, rival = found.get("steps"), found.get("rival")
    if steps is not None:
        lines += ["", _seconds(steps), "", _floors(steps)]
    lines += [
        "",
        "The pictures that a student reads lie decoded and cropped in one memory-mapped array, and "
        "the teacher's features beside them, so that a batch is two reads of memory and no worker "
        "is needed (the first data wait has none). Filling the cache is in none of the steps; its "
        "count leaves out the eight pictures that are computed again before each pre-training.",
    ]
    if rival is not None:
        lines += ["", rival["setting"]]
    return "\n".join([*lines, ""])


def _seconds(steps: dict[str, Any]) -> str:
    arms = ", ".join(
        f"{n} {steps['step_s'][n]:.3f} (+ {steps['wait_s'][n]:.4f} waiting)"
        for n in steps["step_s"]
    )
    said = f"Seconds a batch of {steps['batch']}, medians of {steps['rounds']} interleaved rounds: "
    cpu = steps.get("cpu_s")
    if cpu is None:
        return f"{said}{arms}."
    ratio = cpu["live"] / (cpu["student"] + cpu["teacher"])
    return f"{said}{arms}. In processor time the live step's ratio is {ratio:.3f}."


def _floors(steps: dict[str, Any]) -> str:
    floors, rate = steps["floors"], steps.get("flops_per_s")
    said = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in floors.items())
    if rate is None:
        return f"Floors of a step: {said}."
    student, teacher = floors["student_step_flops"], floors["teacher_forward_flops"]
    least = {"student": student, "kdep": student + floors["target_flops"], "teacher": teacher}
    gaps = ", ".join(f"{n} {steps['step_s'][n] / (f / rate):.2f}" for n, f in least.items())
    return (
        f"Floors of a step: {said}. Times the seconds that these FLOPs take at the rate of a large "
        f"matrix product here ({rate / 1e9:.0f} GFLOP/s): {gaps}."
    )


def write(found: dict[str, Any], out: Path) -> None:
    """`benchmark.json` and `benchmark.md` in `out`.

    What an earlier run measured and this one did not is kept, unless either is a `--quick` run.
    """
    path = out / "benchmark.json"
    if not found["quick"] and path.exists():
        old = read_strict(path)
        if not old["quick"]:
            busy = {k: v for k, v in old.get("busy", {}).items() if k not in found}
            found = {**old, **found, "busy": busy | found.get("busy", {})}
    write_json(path, found)
    write_atomic(out / "benchmark.md", table(found))
