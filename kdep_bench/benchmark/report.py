"""The benchmark's figures as JSON and as a table against the bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdep_bench.files import write_atomic, write_json

BARS = {
    "warm-cache step / student-only step": ("<=", 1.05),
    "live step / (student step + teacher forward)": ("<=", 1.05),
    "data wait, share of a warm-cache step": ("<", 0.05),
    "cache read, share of a student step": ("<", 0.05),
    "throughput against the paper's live loop": (">=", 2.0),
}
SVD_BYTES = 300e6


def table(found: dict[str, Any]) -> str:
    """A markdown page: each measure, its bar, what was measured, and the floors."""
    steps, memory = found["steps"], found["memory"]
    lines = [
        f"# Benchmark of the pre-trainer ({found['device']}, {found['threads']} threads)",
        "",
        *(
            ["A `--quick` run: it shows that all parts run; its figures mean nothing.", ""]
            if found["quick"]
            else []
        ),
        "| measure | bar | measured | met |",
        "|---|---|---|---|",
    ]
    for name, (sign, bar) in BARS.items():
        got = steps["ratios"][name]
        met = got >= bar if sign == ">=" else got <= bar if sign == "<=" else got < bar
        lines.append(f"| {name} | {sign} {bar:g} | {got:.3f} | {'yes' if met else 'no'} |")
    most = max(s["extra_bytes"] for s in memory["svd"])
    a, b = memory["svd"][0], memory["svd"][-1]
    slope = (b["pass_s"] / a["pass_s"]) / (b["rows"] / a["rows"])
    small, large = memory["reads"]
    grown = f"{small['grown_bytes'] / 1e6:.1f} and {large['grown_bytes'] / 1e6:.1f} MB"
    lines += [
        f"| streaming SVD, extra memory at Dt={memory['svd_width']}, N={b['rows']} | < 300 MB | "
        f"{most / 1e6:.0f} MB | {'yes' if most < SVD_BYTES else 'no'} |",
        f"| its time, N={b['rows']} against N={a['rows']}, over the ratio of N | about 1 | "
        f"{slope:.2f} | |",
        f"| its directions against the full SVD, smallest cosine | 1 | "
        f"{memory['svd_agreement']:.9f} | |",
        f"| memory grown by random reads, {small['rows']} and {large['rows']} rows | flat | "
        f"{grown} | |",
        "",
        f"Seconds a batch of {steps['batch']}, medians of {steps['rounds']} interleaved rounds: "
        + ", ".join(
            f"{n} {steps['step_s'][n]:.3f} (+ {steps['wait_s'][n]:.4f} waiting)"
            for n in steps["step_s"]
        )
        + ".",
        "",
        "Floors of a step: "
        + ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in steps["floors"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def write(found: dict[str, Any], out: Path) -> None:
    """`benchmark.json` and `benchmark.md` in `out`."""
    write_json(out / "benchmark.json", found)
    write_atomic(out / "benchmark.md", table(found))
