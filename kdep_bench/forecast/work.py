"""Resources of the stages of a plan: images, FLOPs, disk space and GPU-hours.

The numbers of images come from the specs, the official data sets and finished stages. The FLOPs of
networks come from networks.json, written by `kdep_bench.benchmark.networks`; its keys are hashes of
the networks' configs, so a changed network is unknown until it is counted again. An unknown number
is None, with a reason; nothing is guessed.

Not included: data loading, evaluation on test splits, classifiers of fine-tuned students, extra
layers and decoders of objectives, alignments, logs. The table states the main ones.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdep_bench.files import canonical_json, read_strict, text_hash
from kdep_bench.flops import FORWARD_AND_BACKWARD
from kdep_bench.forecast.costs import takes_steps
from kdep_bench.signatures import argument_value, class_value, resolve_alias
from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.methods import EXPORTED_TEACHER
from kdep_bench.suite.schema import Json

# Counts of the networks of the suites `paper_r18`, `paper_mnv2` and `mine`.
NETWORKS_FILE = Path(__file__).with_name("networks.json")
WORK_DIR_COUNTS = "networks.json"  # file in the work dir: networks of other suites
GPU_KINDS = ("cache", "pretrain", "transfer")  # stage kinds whose GPU-hours are estimated
_OFFICIAL = "kdep_bench.data.official.stage:prepare"
_FLOAT16_BYTES = 2  # bytes per number in a teacher cache
# Keys of a teacher config and of a task's recipe that do not change the network.
_WEIGHTS_KEYS = {"name", "weights", "sha256", "download", "prefix", "drop", "key", "content"}
_TRAINING_KEYS = {
    *("iters", "epochs", "step_epochs", "batch", "test_batch", "lr", "head_lr_mult", "momentum"),
    *("weight_decay", "clip_norm", "warmup", "steps", "poly_power", "workers", "frozen_stages"),
    *("norm_eval", "sync_bn", "test_scale", "domain", "scored_on"),
}


# ---- networks ----


def student_network(student: Json) -> Json:
    """Description of the network of a student at its input size: kind, name, config."""
    fields = {"backbone": student["backbone"], "input_px": student["input_px"]}
    return {"kind": "student", "name": student["name"], "student": fields}


def teacher_network(teacher: Json) -> Json:
    """Description of the network of a teacher; an intermediate teacher is a student's network."""
    if str(teacher.get("type")) == EXPORTED_TEACHER:
        return student_network(teacher["student"])
    return {"kind": "teacher", "name": teacher["name"], "teacher": teacher}


def live_teachers(spec: Json) -> list[Json]:
    """Configs of the teachers that run in the training steps; `spec`: spec of a pre-training."""
    return [spec["teacher"]] if "teacher" in spec else list(spec.get("teachers", {}).values())


def trained_peers(spec: Json) -> list[Json]:
    """Student configs of the networks that an objective trains together with the student.

    `spec`: spec of a pre-training. See `Objective.trained_peers`; the argument `peers` of an
    objective is their number, `peer` the config of another network.
    """
    peers: list[Json] = []
    for objective in _objectives(spec):
        default = _class_number(objective, "trained_peers")
        count = int(objective.get("peers", default)) if default else 0
        peers += [objective.get("peer") or spec["student"]] * count
    return peers


def _objectives(spec: Json) -> list[Json]:
    """The objective of a pre-training and all its parts (of a WeightedSum)."""
    objective = spec["method"].get("objective")
    out = [] if objective is None else [objective]
    for config in out:  # `out` grows: parts may have parts
        out += [part["objective"] for part in config.get("parts", {}).values()]
    return out


def _sum_over_objectives(spec: Json, name: str) -> int:
    """The sum of a class attribute over the objective of a pre-training and its parts.

    `spec`: spec of the pre-training.
    """
    return sum(_class_number(objective, name) for objective in _objectives(spec))


def _class_number(config: Json, name: str) -> int:
    """A class attribute of a config's `type`, a number; 0 without it."""
    return int(class_value(resolve_alias(config["type"]), name) or 0)


def task_network(task: Json, student: Json) -> Json:
    """Description of the network that detection or segmentation trains, with the student in it."""
    name = f"{task['name']}.{student['name']}"
    return {"kind": "task", "name": name, "task": task, "student": student}


def network_id(network: Json) -> str:
    """Hash of the network's architecture and input size, without names, weights and schedules."""
    content: Any
    if network["kind"] == "student":
        content = network["student"]
    elif network["kind"] == "teacher":
        content = {k: v for k, v in network["teacher"].items() if k not in _WEIGHTS_KEYS | {"card"}}
    else:
        task, student = network["task"], network["student"]
        recipe = {k: v for k, v in task["recipe"].items() if k not in _TRAINING_KEYS}
        parts = {k: student.get(k) for k in ("backbone", "pyramid", "dilated")}
        content = [class_value(task["type"], "counted_as") or task["type"], recipe, parts]
    return text_hash(canonical_json([network["kind"], content]))


def networks(plan: Plan) -> list[Json]:
    """Descriptions of the networks that the stages of the plan run, each once."""
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
        peers = [student_network(peer) for peer in trained_peers(spec)]
        return [student_network(spec["student"]), *peers, *live]
    if stage.kind == "transfer" and _is_dense(spec["task"]):
        return [task_network(spec["task"], student) for student in _transfer_students(spec)]
    if stage.kind == "transfer" and "set" in spec["task"]["recipe"]:
        return [student_network(student) for student in _transfer_students(spec)]
    return []


def _transfer_students(spec: Json) -> list[Json]:
    """The student of a transfer and, if it has one, the student of its tuned teacher."""
    return [spec["student"], *([spec["teacher"]] if "teacher" in spec else [])]


def _is_dense(task: Json) -> bool:
    return task["family"] in ("detection", "segmentation")


def read_counts(work: Path) -> dict[str, Json]:
    """`network_id` -> {"flops" of a forward pass, "bytes" of the weights, ...}.

    Reads NETWORKS_FILE and, if it exists, the file WORK_DIR_COUNTS of the work dir.
    """
    counts: dict[str, Json] = json.loads(NETWORKS_FILE.read_text())
    if (work / WORK_DIR_COUNTS).exists():
        counts |= read_strict(work / WORK_DIR_COUNTS, follow=False)
    return counts


# ---- resources of a stage ----


@dataclass(frozen=True)
class ResourceEstimate:
    """Estimated resources of one stage; an unknown number is None.

    Attributes:
        images: images that its networks process; repeated images count each time.
        flops: floating-point operations of the whole stage.
        disk: bytes of its outputs.
        why: why a number is None; '' if none is.
    """

    images: float | None = 0.0
    flops: float | None = 0.0
    disk: float | None = 0.0
    why: str = ""


class Forecast:
    """Estimates the resources of the stages of a plan.

    Args:
        plan: the stages.
        counts: FLOPs and bytes of networks, from `read_counts`.
        records: stage.json of finished stages, whose outputs contain the numbers of images.
    """

    def __init__(
        self, plan: Plan, counts: Mapping[str, Json], records: Iterable[Json] = ()
    ) -> None:
        self.plan, self.counts = plan, counts
        self._outputs = {r["id"]: r["outputs"] for r in records if r["kind"] == "prepare"}
        self._ids: dict[int, tuple[Json, str]] = {}  # id() of a config -> (config, network id)
        self._pairs: dict[tuple[int, int], Json] = {}  # a cache, see `_pair`
        self._pools: dict[str, int | None] = {}  # id of a `prepare` stage -> images of the pool

    def estimate(self, stage: Stage) -> ResourceEstimate:
        """Estimated resources of one stage."""
        estimate_kind = {
            "prepare": self._prepare,
            "views": self._views,
            "cache": self._cache,
            "pretrain": self._pretrain,
            "export": self._export,
            "transfer": self._transfer,
        }.get(stage.kind)
        return estimate_kind(stage) if estimate_kind else ResourceEstimate()

    def network(self, config: Json, network: Json) -> tuple[str, Json]:
        """(id, counts) of a network; the counts are {} if it was never counted.

        Args:
            config: the dict that describes the network; its id is computed only once per dict.
            network: the description made from it, see `student_network`.
        """
        if id(config) not in self._ids:
            self._ids[id(config)] = config, network_id(network)
        key = self._ids[id(config)][1]
        return key, self.counts.get(key, {})

    def pool(self, views: str) -> int | None:
        """Number of images in the pool that a `views` stage renders; None if unknown."""
        prepare = self.plan.stages[self.plan.stages[views].needs["prepare"]]
        if prepare.id not in self._pools:
            self._pools[prepare.id] = self._count_pool(prepare)
        return self._pools[prepare.id]

    def _count_pool(self, prepare: Stage) -> int | None:
        """Number of pool images, from the outputs or the spec of a `prepare` stage, or None."""
        outputs, spec = self._outputs.get(prepare.id, {}), prepare.spec
        n_images = outputs.get("counts", {}).get("images", {}).get("pool")
        if n_images is not None:
            return n_images
        if "synthesis" in spec:
            fraction, made = (
                self._fraction_images(prepare),
                argument_value(spec["synthesis"], "images"),
            )
            return None if fraction is None or made is None else fraction + made
        if prepare.function == _OFFICIAL and spec.get("tiny_seed") is None:
            from kdep_bench.data.official.base import get_set

            official_set = get_set(spec["pool"])
            is_known = official_set.training_counts and spec.get("pool_folder", "train") == "train"
            return (
                sum(official_set.counts[k] for k in official_set.training_counts)
                if is_known
                else None
            )
        if "pool_composites" in spec:
            return spec["pool_composites"] + spec["pool_crops"]
        return None

    def _rows(self, stage: Stage) -> tuple[int | None, int]:
        """(images of the stage's data fraction, views per image)."""
        views = stage.id if stage.kind == "views" else stage.needs["views"]
        pool = self.pool(views)
        images = None if pool is None else round(stage.spec.get("share", 1.0) * pool)
        return images, self.plan.stages[views].spec["views"]

    def _fraction_images(self, stage: Stage) -> int | None:
        """Images of the data fraction from which a stage makes a method's images, or None."""
        pool = self._count_pool(self.plan.stages[stage.needs["prepare"]])
        return None if pool is None else round(stage.spec["share"] * pool)

    def _prepare(self, stage: Stage) -> ResourceEstimate:
        if "synthesis" not in stage.spec:
            return ResourceEstimate()
        maker = stage.spec["synthesis"]["type"].rpartition(".")[2]
        excluded = f"FLOPs and disk space of the network that generates images ({maker})"
        return ResourceEstimate(self._fraction_images(stage), None, None, excluded)

    def _views(self, stage: Stage) -> ResourceEstimate:
        images, views = self._rows(stage)
        if images is None:
            return ResourceEstimate(disk=None, why=_NO_POOL)
        return ResourceEstimate(disk=images * views * stage.spec["px"] ** 2 * 3)

    def _cache(self, stage: Stage) -> ResourceEstimate:
        images, views = self._rows(stage)
        if images is None:
            return ResourceEstimate(None, None, None, _NO_POOL)
        teacher, n_samples = stage.spec["teacher"], images * views
        network = teacher_network(teacher)
        _, counts = self.network(teacher, network)
        if not counts:
            return ResourceEstimate(n_samples, None, None, _uncounted(network))
        width = counts.get("width", teacher.get("width") or teacher.get("student", {}).get("width"))
        sizes = [_bytes(counts.get("outputs", {}), name) for name in stage.spec.get("outputs", [])]
        flops = n_samples * counts["flops"]
        if width is None or None in sizes:
            return ResourceEstimate(n_samples, flops, None, _uncounted(network))
        pooled_bytes = _FLOAT16_BYTES * int(width) if stage.spec.get("pooled", True) else 0
        sample_bytes = pooled_bytes + sum(size or 0 for size in sizes)
        return ResourceEstimate(n_samples, flops, n_samples * sample_bytes)

    def _pretrain(self, stage: Stage) -> ResourceEstimate:
        spec = stage.spec
        network = student_network(spec["student"])
        _, counts = self.network(spec["student"], network)
        disk, why = counts.get("bytes"), "" if counts else _uncounted(network)
        if not takes_steps(spec):
            return ResourceEstimate(0.0, 0.0, disk, why)
        images, _ = self._rows(stage)
        if images is None:
            return ResourceEstimate(None, None, disk, _NO_POOL)
        over_pool = spec["budget"].get("epochs_over") == "pool"
        epoch_images = self.pool(stage.needs["views"]) if over_pool else images
        images_seen = count_steps(spec["budget"], epoch_images or 0) * spec["budget"]["batch"]
        flops_per_image = FORWARD_AND_BACKWARD * counts["flops"] if counts else None
        run_with_student = [
            *((peer, student_network(peer), FORWARD_AND_BACKWARD) for peer in trained_peers(spec)),
            *((teacher, teacher_network(teacher), 1) for teacher in live_teachers(spec)),
        ]
        if passes := _sum_over_objectives(spec, "student_passes"):
            run_with_student.append((spec["student"], network, passes * FORWARD_AND_BACKWARD))
        if passes := _sum_over_objectives(spec, "copy_passes"):
            run_with_student.append((spec["student"], network, passes))
        if passes := _sum_over_objectives(spec, "teacher_passes"):
            teacher = self._first_teacher(stage)
            run_with_student.append((teacher, teacher_network(teacher), passes))
        for config, network_config, passes in run_with_student:
            _, network_counts = self.network(config, network_config)
            if flops_per_image is not None and network_counts:
                flops_per_image += passes * network_counts["flops"]
            else:
                flops_per_image = None
            why = why or ("" if network_counts else _uncounted(network_config))
        images_seen *= _copies(spec["method"])
        flops = None if flops_per_image is None else images_seen * flops_per_image
        return ResourceEstimate(images_seen, flops, disk, why)

    def _first_teacher(self, stage: Stage) -> Json:
        """Config of the first teacher of a pre-training, live or in a cache."""
        if live := live_teachers(stage.spec):
            return live[0]
        cache = next(i for role, i in stage.needs.items() if role.rpartition(".")[2] == "cache")
        return self.plan.stages[cache].spec["teacher"]

    def _export(self, stage: Stage) -> ResourceEstimate:
        network = student_network(stage.spec["student"])
        _, counts = self.network(stage.spec["student"], network)
        why = "" if counts else _uncounted(network)
        return ResourceEstimate(0.0, 0.0, counts.get("bytes"), why)

    def _transfer(self, stage: Stage) -> ResourceEstimate:
        task, student = stage.spec["task"], stage.spec["student"]
        recipe = task["recipe"]
        if _is_dense(task) and "iters" in recipe:
            images_seen = recipe["iters"] * recipe["batch"]
            key, network = self._task_network(task, student)
        elif "epochs" in recipe and "set" in recipe:
            from kdep_bench.data.official.base import get_set

            official_set = get_set(recipe["set"])
            images = sum(official_set.counts[k] for k in official_set.training_counts)
            images_seen = recipe["epochs"] * (images // recipe["batch"]) * recipe["batch"]
            key, network = self._task_network(task, student)
        else:
            return ResourceEstimate(
                None, None, 0.0, f"the cost of a run of {task['name']} is unknown"
            )
        _, counts = self.network(key, network)
        if not counts:
            return ResourceEstimate(images_seen, None, 0.0, _uncounted(network))
        disk = counts.get("bytes") if stage.spec.get("keep_model") else 0.0
        flops = images_seen * _transfer_passes(stage.spec) * counts["flops"]
        if (teacher := stage.spec.get("teacher")) is not None:
            key, tuned_network = self._task_network(task, teacher)
            _, teacher_counts = self.network(key, tuned_network)
            if not teacher_counts:
                return ResourceEstimate(images_seen, None, disk, _uncounted(tuned_network))
            # OTA with real=0 runs its teacher on generated images only.
            on_real = images_seen if argument_value(stage.spec["transfer"], "real") != 0 else 0
            teacher_passes = on_real + _generation_passes(stage.spec)
            flops += teacher_passes * teacher_counts["flops"]
        return ResourceEstimate(images_seen, flops, disk)

    def _task_network(self, task: Json, student: Json) -> tuple[Json, Json]:
        """The arguments of `network` for the network of a task; a classifier's is the student."""
        if not _is_dense(task):
            return student, student_network(student)
        return self._pair(task, student), task_network(task, student)

    def _pair(self, task: Json, student: Json) -> Json:
        """One dict per task and student, the same object in every call, as `network` needs it."""
        return self._pairs.setdefault((id(task), id(student)), {"task": task, "student": student})


def _transfer_passes(spec: Json) -> int:
    """Forward passes of the task's network per training image; a backward pass counts as two.

    `spec`: spec of a transfer stage. Its transfer method may train the network on more images, and
    run a copy of it.
    """
    config = spec.get("transfer") or {}
    if not config or argument_value(config, "generated") == 0:  # of OTA: real images only
        return FORWARD_AND_BACKWARD
    trained, forward = (
        int(class_value(config["type"], name) or 0)
        for name in ("extra_trained_images", "extra_forward_images")
    )
    return FORWARD_AND_BACKWARD * (1 + trained) + forward


def _generation_passes(spec: Json) -> int:
    """Passes of the tuned teacher, of one image each, in which a transfer method makes images.

    Each image has two guide images and is scored at the end: three forward passes. A step is a
    forward pass and the gradient of the image, which costs about as much (without the gradients of
    the weights).
    """
    config = spec.get("transfer") or {}
    if not config or not class_value(config["type"], "optimises_images"):
        return 0
    if argument_value(config, "generated") == 0:
        return 0
    return argument_value(config, "images") * (3 + 2 * argument_value(config, "steps"))


_NO_POOL = "the number of images is unknown until the data are prepared"


def _copies(method: Json) -> int:
    """Images that the augmentation of a method makes of every image; 1 without one."""
    path = resolve_alias((method.get("augment") or {}).get("type"))
    return int(class_value(path, "copies") or 1)


def _uncounted(network: Json) -> str:
    return f"the FLOPs of {network['kind']} {network['name']} are unknown: add --count-flops"


def _bytes(outputs: Mapping[str, int], output: str) -> int | None:
    """Bytes per sample that a cache stores for an extra output; None if unknown.

    For int8 maps this is an upper bound, the size of float16 maps, because the number of stored
    scales (one per channel) is not known here.

    Args:
        outputs: output -> numbers per sample, from the counts of the teacher.
        output: name of an output; 'maps' stands for all maps.
    """
    if output.startswith("probabilities."):  # each probability is stored with its class number
        return 2 * _FLOAT16_BYTES * int(output.partition(".")[2])
    float_name = output.replace("int8_maps", "maps", 1)
    sizes = [n for name, n in outputs.items() if float_name in (name, name.partition(".")[0])]
    if not sizes:
        return None
    return _FLOAT16_BYTES * sum(sizes)


def count_steps(budget: Json, images: int) -> int:
    """Optimiser steps of a budget, as in `pretrain.budgets`, but at least 1.

    `images`: images of one epoch.
    """
    return max(1, math.floor(budget["epochs"] * images / budget["batch"]))


# ---- a plan ----


@dataclass(frozen=True)
class Hours:
    """GPU-hours by stage id, None if unknown; `source` states where they come from."""

    source: str
    by_stage: Mapping[str, float | None]


def table(plan: Plan, forecast: Forecast, ids: Iterable[str], hours: Hours | None) -> list[str]:
    """Lines for --dry-run: a table of the resources per kind of stage, and what it excludes."""
    kinds: dict[str, list[Stage]] = defaultdict(list)
    for stage_id in ids:
        kinds[plan.stages[stage_id].kind].append(plan.stages[stage_id])
    rows = [["", "stages", "images seen", "FLOPs", "disk", "GPU-hours"]]
    reasons: Counter[str] = Counter()
    all_estimates: list[ResourceEstimate] = []
    all_hours: list[float | None] = []
    for kind, stages in kinds.items():
        estimates = [forecast.estimate(s) for s in stages]
        reasons.update(estimate.why for estimate in estimates if estimate.why)
        kind_hours = [hours.by_stage[s.id] for s in stages] if hours and kind in GPU_KINDS else []
        rows.append(_row(kind, estimates, kind_hours))
        all_estimates += estimates
        all_hours += kind_hours
    rows.append(_row("all", all_estimates, all_hours))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for kind, *numbers in rows:
        columns = [n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([kind.ljust(widths[0]), *columns]))
    source = hours.source if hours else "give --device-rate or --measure-throughput"
    lines.append(
        f"GPU-hours: {source}. Data loading, evaluation, alignments, and extra layers and decoders "
        "of objectives are not included."
    )
    for sentence, count in reasons.most_common():
        lines.append(f"excluded: {sentence} ({count} stage{'s' * (count > 1)})")
    return ["Planned work (shared stages counted once):", *lines]


def _row(kind: str, estimates: list[ResourceEstimate], hours: list[float | None]) -> list[str]:
    """A row of the table: the sums over stages of one kind."""
    return [
        kind,
        f"{len(estimates):,}",
        _sum_text([e.images for e in estimates], lambda v: f"{v:,.0f}"),
        _sum_text([e.flops for e in estimates], lambda v: f"{v:.3g}"),
        _sum_text([e.disk for e in estimates], size_text),
        _sum_text(hours, lambda v: f"{v:,.1f}" if v >= 1 else f"{v:.2g}"),
    ]


def _sum_text(values: list[float | None], to_text: Callable[[float], str]) -> str:
    """The sum as text: with '>= ' if a value is unknown, '-' if all are 0 or unknown."""
    known = [v for v in values if v is not None]
    if not any(known):
        return "-"
    return (">= " if len(known) < len(values) else "") + to_text(sum(known))


def size_text(count: float) -> str:
    """Bytes as text, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
