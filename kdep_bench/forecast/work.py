"""Resources of the stages of a plan: images, FLOPs, disk, and GPU-hours.

Numbers come from the specs, the counts of official data sets, finished stages, and the counts of
`kdep_bench.benchmark.networks` in networks.json, by the content of a network's config: a changed
network is unknown until it is counted again. What is unknown is None, with the reason; nothing is
guessed.

Not included, because small: evaluation on test splits, classifiers of fine-tuned students, extra
layers of objectives, alignments, logs.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdep_bench.files import canonical_json, read_strict, text_hash
from kdep_bench.flops import FORWARD_AND_BACKWARD
from kdep_bench.forecast.costs import takes_steps
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.methods import EXPORTED
from kdep_bench.suite.schema import Json

COUNTED = Path(__file__).with_name("networks.json")  # counts of the suites in configs/
WORK_DIR_COUNTS = "networks.json"  # in the work dir: counts of other suites
GPU_KINDS = ("cache", "pretrain", "transfer")
_OFFICIAL = "kdep_bench.data.official.stage:prepare"
_HALF = 2  # bytes per number in a cache
# Keys of a teacher and of a recipe that do not change the network.
_WEIGHTS = {"name", "weights", "sha256", "download", "prefix", "drop", "key", "content"}
_TRAINING = {
    *("iters", "epochs", "step_epochs", "batch", "test_batch", "lr", "head_lr_mult", "momentum"),
    *("weight_decay", "clip_norm", "warmup", "steps", "poly_power", "workers", "frozen_stages"),
    *("norm_eval", "sync_bn", "test_scale"),
}


# ---- networks ----


def student_network(student: Json) -> Json:
    """The network of a student at its input size."""
    fields = {"backbone": student["backbone"], "input_px": student["input_px"]}
    return {"kind": "student", "name": student["name"], "student": fields}


def teacher_network(teacher: Json) -> Json:
    """The network of a teacher; for an intermediate teacher, that of its student."""
    if str(teacher.get("type")) == EXPORTED:
        return student_network(teacher["student"])
    return {"kind": "teacher", "name": teacher["name"], "teacher": teacher}


def live_teachers(spec: Json) -> list[Json]:
    """Configs of the teachers that run in the steps of a pre-training."""
    return [spec["teacher"]] if "teacher" in spec else list(spec.get("teachers", {}).values())


def task_network(task: Json, student: Json) -> Json:
    """The network that a dense task trains on a student."""
    name = f"{task['name']}.{student['name']}"
    return {"kind": "task", "name": name, "task": task, "student": student}


def network_id(network: Json) -> str:
    """Hash of the network's architecture and input size, without names, weights and schedules."""
    content: Any
    if network["kind"] == "student":
        content = network["student"]
    elif network["kind"] == "teacher":
        content = {k: v for k, v in network["teacher"].items() if k not in _WEIGHTS | {"card"}}
    else:
        task, student = network["task"], network["student"]
        recipe = {k: v for k, v in task["recipe"].items() if k not in _TRAINING}
        parts = {k: student.get(k) for k in ("backbone", "pyramid", "dilated")}
        content = [task["type"], recipe, parts]
    return text_hash(canonical_json([network["kind"], content]))


def networks(plan: Plan) -> list[Json]:
    """The networks that the stages of the plan run, each once."""
    unique: dict[str, Json] = {}
    for stage in plan.stages.values():
        for network in _networks_of(stage):
            unique.setdefault(network_id(network), network)
    return list(unique.values())


def _networks_of(stage: Stage) -> list[Json]:
    spec = stage.spec
    if stage.kind == "cache":
        return [teacher_network(spec["teacher"])]
    if stage.kind == "pretrain":
        live = [teacher_network(teacher) for teacher in live_teachers(spec)]
        return [student_network(spec["student"]), *live]
    if stage.kind == "transfer" and _dense(spec["task"]):
        students = [spec["student"], *([spec["teacher"]] if "teacher" in spec else [])]
        return [task_network(spec["task"], student) for student in students]
    return []


def _dense(task: Json) -> bool:
    return task["family"] in ("detection", "segmentation")


def read_counts(work: Path) -> dict[str, Json]:
    """Counts of networks by `network_id`: those of the repository and of the work dir."""
    known: dict[str, Json] = json.loads(COUNTED.read_text())
    if (work / WORK_DIR_COUNTS).exists():
        known |= read_strict(work / WORK_DIR_COUNTS, follow=False)
    return known


# ---- resources of a stage ----


@dataclass(frozen=True)
class ResourceEstimate:
    """Resources of one stage; None for an unknown one.

    Attributes:
        images: images that its networks process, repeated ones counted again.
        flops: total floating-point operations of the stage.
        disk: bytes of its outputs.
        why: what is unknown, where something is None.
    """

    images: float | None = 0.0
    flops: float | None = 0.0
    disk: float | None = 0.0
    why: str = ""


class Forecast:
    """Estimates the resources of the stages of a plan.

    Args:
        plan: the stages.
        counts: counts of networks, by `network_id`.
        records: stage.json of finished stages, whose outputs have the numbers of images.
    """

    def __init__(
        self, plan: Plan, counts: Mapping[str, Json], records: Iterable[Json] = ()
    ) -> None:
        self.plan, self.counts = plan, counts
        self._outputs = {r["id"]: r["outputs"] for r in records if r["kind"] == "prepare"}
        self._ids: dict[int, tuple[Json, str]] = {}
        self._pairs: dict[tuple[int, int], Json] = {}
        self._pools: dict[str, int | None] = {}

    def estimate(self, stage: Stage) -> ResourceEstimate:
        """Resources of one stage."""
        make = {
            "views": self._views,
            "cache": self._cache,
            "pretrain": self._pretrain,
            "export": self._export,
            "transfer": self._transfer,
        }.get(stage.kind)
        return make(stage) if make else ResourceEstimate()

    def network(self, config: Json, network: Json) -> tuple[str, Json]:
        """(id, counts) of a network; the counts are empty if it was never counted.

        `config` is the dict it was made from, which serves as the key of a cache of ids.
        """
        if id(config) not in self._ids:
            self._ids[id(config)] = config, network_id(network)
        key = self._ids[id(config)][1]
        return key, self.counts.get(key, {})

    def pool(self, views: str) -> int | None:
        """Images of the pool that a `views` stage renders, or None."""
        prepare = self.plan.stages[self.plan.stages[views].needs["prepare"]]
        if prepare.id not in self._pools:
            self._pools[prepare.id] = self._count_pool(prepare)
        return self._pools[prepare.id]

    def _count_pool(self, prepare: Stage) -> int | None:
        counted = self._outputs.get(prepare.id, {}).get("counts", {}).get("images", {}).get("pool")
        spec = prepare.spec
        if counted is not None:
            return counted
        if prepare.function == _OFFICIAL and spec.get("tiny_seed") is None:
            from kdep_bench.data.official.base import get_set

            official_set = get_set(spec["pool"])
            complete = official_set.trained and spec.get("pool_folder", "train") == "train"
            return sum(official_set.counts[k] for k in official_set.trained) if complete else None
        if "pool_composites" in spec:
            return spec["pool_composites"] + spec["pool_crops"]
        return None

    def _rows(self, stage: Stage) -> tuple[int | None, int]:
        """(images of the stage's data fraction, views per image)."""
        views = stage.id if stage.kind == "views" else stage.needs["views"]
        pool = self.pool(views)
        images = None if pool is None else round(stage.spec.get("share", 1.0) * pool)
        return images, self.plan.stages[views].spec["views"]

    def _views(self, stage: Stage) -> ResourceEstimate:
        images, views = self._rows(stage)
        if images is None:
            return ResourceEstimate(disk=None, why=_NO_POOL)
        return ResourceEstimate(disk=images * views * stage.spec["px"] ** 2 * 3)

    def _cache(self, stage: Stage) -> ResourceEstimate:
        images, views = self._rows(stage)
        if images is None:
            return ResourceEstimate(None, None, None, _NO_POOL)
        teacher, rows = stage.spec["teacher"], images * views
        made = teacher_network(teacher)
        _, known = self.network(teacher, made)
        if not known:
            return ResourceEstimate(rows, None, None, _uncounted(made))
        width = known.get("width", teacher.get("width") or teacher.get("student", {}).get("width"))
        sizes = [_bytes(known.get("outputs", {}), o) for o in stage.spec.get("outputs", [])]
        unknown = width is None or None in sizes
        pooled = int(width or 0) if stage.spec.get("pooled", True) else 0
        view_bytes = _HALF * pooled + sum(size or 0 for size in sizes)
        disk = None if unknown else rows * view_bytes
        return ResourceEstimate(
            rows, rows * known["flops"], disk, _uncounted(made) if unknown else ""
        )

    def _pretrain(self, stage: Stage) -> ResourceEstimate:
        spec = stage.spec
        made = student_network(spec["student"])
        _, known = self.network(spec["student"], made)
        disk, why = known.get("bytes"), "" if known else _uncounted(made)
        if not takes_steps(spec):
            return ResourceEstimate(0.0, 0.0, disk, why)
        images, _ = self._rows(stage)
        if images is None:
            return ResourceEstimate(None, None, disk, _NO_POOL)
        over_pool = spec["budget"].get("epochs_over") == "pool"
        images_counted = self.pool(stage.needs["views"]) if over_pool else images
        seen = steps_of(spec["budget"], images_counted or 0) * spec["budget"]["batch"]
        flops_per_image = FORWARD_AND_BACKWARD * known["flops"] if known else None
        for teacher in live_teachers(spec):
            live = teacher_network(teacher)
            _, teacher_counts = self.network(teacher, live)
            flops_per_image = (
                flops_per_image + teacher_counts["flops"]
                if flops_per_image is not None and teacher_counts
                else None
            )
            why = why or ("" if teacher_counts else _uncounted(live))
        return ResourceEstimate(
            seen, None if flops_per_image is None else seen * flops_per_image, disk, why
        )

    def _export(self, stage: Stage) -> ResourceEstimate:
        made = student_network(stage.spec["student"])
        _, known = self.network(stage.spec["student"], made)
        return ResourceEstimate(0.0, 0.0, known.get("bytes"), "" if known else _uncounted(made))

    def _transfer(self, stage: Stage) -> ResourceEstimate:
        task, student = stage.spec["task"], stage.spec["student"]
        recipe = task["recipe"]
        if _dense(task) and "iters" in recipe:
            seen = recipe["iters"] * recipe["batch"]
            key, made = self._pair(task, student), task_network(task, student)
        elif "epochs" in recipe and "set" in recipe:
            from kdep_bench.data.official.base import get_set

            official_set = get_set(recipe["set"])
            images = sum(official_set.counts[k] for k in official_set.trained)
            seen = recipe["epochs"] * (images // recipe["batch"]) * recipe["batch"]
            key, made = student, student_network(student)
        else:
            return ResourceEstimate(
                None, None, 0.0, f"the cost of a run of {task['name']} is unknown"
            )
        _, known = self.network(key, made)
        if not known:
            return ResourceEstimate(seen, None, 0.0, _uncounted(made))
        disk = known.get("bytes") if stage.spec.get("keep_model") else 0.0
        each = FORWARD_AND_BACKWARD * known["flops"]
        if (teacher := stage.spec.get("teacher")) is not None:
            network = task_network(task, teacher)
            _, counted = self.network(self._pair(task, teacher), network)
            if not counted:
                return ResourceEstimate(seen, None, disk, _uncounted(network))
            each += counted["flops"]
        return ResourceEstimate(seen, seen * each, disk)

    def _pair(self, task: Json, student: Json) -> Json:
        """One dict per task and student, the cache key for `network`."""
        return self._pairs.setdefault((id(task), id(student)), {"task": task, "student": student})


_NO_POOL = "the number of images is unknown until the data are prepared"


def _uncounted(network: Json) -> str:
    return f"the FLOPs of {network['kind']} {network['name']} are unknown: add --count-flops"


def _bytes(outputs: Mapping[str, int], output: str) -> int | None:
    """Bytes per view of one extra output of a cache; 'maps' is the sum of all maps.

    For int8 maps those of float16 maps, as an upper bound: the number of channels, and with it of
    scales, is not known here.

    `outputs`: numbers per view of every output of the teacher.
    """
    if output.startswith("probabilities."):  # as many class numbers
        return 2 * _HALF * int(output.partition(".")[2])
    float_name = output.replace("int8_maps", "maps", 1)
    sizes = [n for name, n in outputs.items() if float_name in (name, name.partition(".")[0])]
    if not sizes:
        return None
    return _HALF * sum(sizes)


def steps_of(budget: Json, images: int) -> int:
    """Optimiser steps of a budget over `images` images, as in kdep_bench/pretrain/stage.py."""
    return max(1, math.floor(budget["epochs"] * images / budget["batch"]))


# ---- a plan ----


@dataclass(frozen=True)
class Hours:
    """GPU-hours by stage id, None where unknown; `source` is printed with them."""

    source: str
    by_stage: Mapping[str, float | None]


def table(plan: Plan, forecast: Forecast, ids: Iterable[str], hours: Hours | None) -> list[str]:
    """Lines of --dry-run: resources per kind of stage, and what is not included."""
    kinds: dict[str, list[Stage]] = defaultdict(list)
    for stage_id in ids:
        kinds[plan.stages[stage_id].kind].append(plan.stages[stage_id])
    rows = [["", "stages", "images seen", "FLOPs", "disk", "GPU-hours"]]
    reasons: Counter[str] = Counter()
    all_estimates: list[ResourceEstimate] = []
    all_hours: list[float | None] = []
    for kind, stages in kinds.items():
        estimates = [forecast.estimate(s) for s in stages]
        reasons.update(n.why for n in estimates if n.why)
        kind_hours = [hours.by_stage[s.id] for s in stages] if hours and kind in GPU_KINDS else []
        rows.append(_row(kind, estimates, kind_hours))
        all_estimates += estimates
        all_hours += kind_hours
    rows.append(_row("all", all_estimates, all_hours))
    widths = [max(len(r[k]) for r in rows) for k in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        columns = [c.rjust(w) for c, w in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *columns]))
    source = hours.source if hours else "give --device-rate or --measure-throughput"
    lines.append(f"GPU-hours: {source}. Data loading and evaluation are not included.")
    for sentence, count in reasons.most_common():
        lines.append(f"excluded: {sentence} ({count} stage{'s' * (count > 1)})")
    return ["Planned work (shared stages counted once):", *lines]


def _row(kind: str, estimates: list[ResourceEstimate], hours: list[float | None]) -> list[str]:
    return [
        kind,
        f"{len(estimates):,}",
        _sum([n.images for n in estimates], lambda v: f"{v:,.0f}"),
        _sum([n.flops for n in estimates], lambda v: f"{v:.3g}"),
        _sum([n.disk for n in estimates], size),
        _sum(hours, lambda v: f"{v:,.1f}" if v >= 1 else f"{v:.2g}"),
    ]


def _sum(values: list[float | None], show: Any) -> str:
    """The sum; with '>= ' where a value is unknown, '-' where all are 0 or unknown."""
    known = [v for v in values if v is not None]
    if not any(known):
        return "-"
    return (">= " if len(known) < len(values) else "") + show(sum(known))


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
