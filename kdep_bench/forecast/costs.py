"""Estimates the seconds of a stage from similar finished stages, or by the default of its kind.

The work of a stage is what its time depends on: images seen (`pretrain`), samples (`views`,
`cache`, `align`; one sample is one view of an image), iterations or epochs (`transfer`), the data
fraction (a `prepare` stage that generates images), or 1 (other stages). Finished stages of the same
student, teacher or task are similar. Of these, the stages with the nearest amount of work are used.
The estimate is the median of their seconds per unit of work, times the work of the stage. A stage
without a similar finished stage has the default of its kind.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.schema import Json

_MAX_MEASURED = 32  # most recent finished stages of a group that are used
_SIMILAR = 0.1  # difference of |log(work ratio)| up to which two stages are equally near
_MIN_SECONDS = 0.01  # smallest estimate, in seconds

# Kind -> output with the seconds of all attempts. The wall time of an interrupted stage is that of
# its last attempt, so the larger number is used.
_SECONDS_KEYS = {"cache": "fill_s", "pretrain": "train_s"}


class Costs:
    """Estimated seconds of the stages of one plan.

    Args:
        plan: the plan.
        records: stage.json of finished stages; `learn` adds more.
    """

    def __init__(self, plan: Plan, records: Iterable[Json] = ()) -> None:
        self.plan = plan
        self._outputs: dict[str, Json] = {}
        # Group -> (work, seconds) of its finished stages.
        self._measured: dict[tuple[str, ...], deque[tuple[float, float]]] = {}
        for record in records:
            self.learn(record)

    def learn(self, record: Json) -> None:
        """Adds the stage.json of a finished stage; ignores it if an older version wrote it."""
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            self._add(record)

    def _add(self, record: Json) -> None:
        kind, outputs = record["kind"], record["outputs"]
        if kind in ("prepare", "views"):
            self._outputs[record["id"]] = outputs
        seconds = max(record.get("wall_s") or 0.0, outputs.get(_SECONDS_KEYS.get(kind, "")) or 0.0)
        work = _work_done(kind, record["spec"], outputs)
        if seconds > 0 and work:
            for group in groups(kind, record["name"], record["spec"]):
                measured = self._measured.setdefault(group, deque(maxlen=_MAX_MEASURED))
                measured.append((work, seconds))

    def seconds(self, stage: Stage) -> float:
        """The estimate for one stage, in seconds."""
        estimate = self.measured(stage)
        return stage.cost if estimate is None else estimate

    def measured(self, stage: Stage) -> float | None:
        """The estimate in seconds from similar finished stages; None if there are none."""
        work = self._work(stage)
        if not work:
            return None
        for group in groups(stage.kind, stage.name, stage.spec):
            if group in self._measured:
                return max(_MIN_SECONDS, work * _seconds_per_unit(self._measured[group], work))
        return None

    def estimates(self, stages: Iterable[Stage]) -> dict[str, float]:
        """Estimates in seconds by stage id; computed once for stages with the same estimate."""
        cached: dict[Any, float] = {}
        out = {}
        for stage in stages:
            key = (groups(stage.kind, stage.name, stage.spec), self._work(stage), stage.cost)
            if key not in cached:
                cached[key] = self.seconds(stage)
            out[stage.id] = cached[key]
        return out

    def _work(self, stage: Stage) -> float | None:
        """Work of a planned stage; None if the number of images is still unknown."""
        spec = stage.spec
        if stage.kind == "transfer":
            return _iterations(spec)
        if "synthesis" in spec:
            return float(spec["share"])  # the data fraction
        if stage.kind not in ("views", "cache", "align", "pretrain") or not takes_steps(spec):
            return 1.0
        images, views = self._images(stage)
        if images is None:
            return None
        if stage.kind == "pretrain":
            # An epoch is all images of the pool, or those of the data fraction.
            over_pool = spec["budget"].get("epochs_over") == "pool"
            return images * (1.0 if over_pool else spec["share"]) * spec["budget"]["epochs"]
        return images * views * spec.get("share", 1.0)

    def _images(self, stage: Stage) -> tuple[float | None, float]:
        """(images of the pool, views per image), from the outputs of `views` or `prepare`."""
        spec, needs = stage.spec, stage.needs
        if stage.kind != "views":
            if "views" not in needs or needs["views"] not in self.plan.stages:
                return None, 1.0
            outputs = self._outputs.get(needs["views"], {})
            if outputs.get("images"):
                return outputs["images"], outputs.get("views", 1)
            upstream = self.plan.stages[needs["views"]]
            spec, needs = upstream.spec, upstream.needs
        counts = self._outputs.get(needs.get("prepare", ""), {}).get("counts", {})
        return counts.get("images", {}).get("pool"), spec.get("views", 1)


def groups(kind: str, name: str, spec: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Keys of the groups of similar stages to which a stage belongs, most similar group first."""
    first_part = name.partition(".")[0]  # of the data, the teacher or the task
    if kind == "pretrain":
        if not takes_steps(spec):
            return ((kind, "no step"),)
        group = (kind, spec["student"]["name"], spec["budget"].get("precision", ""))
        return ((*group, spec["method"]["name"]), group)
    if kind == "transfer":
        return ((kind, spec["task"]["name"], spec["student"]["name"]), (kind, spec["task"]["name"]))
    if kind in ("views", "export"):
        return ((kind,),)
    if "synthesis" in spec:  # a `prepare` stage that trains a network
        return (("synthesis", first_part),)
    if kind in ("prepare", "cache", "align"):
        return ((kind, first_part),)
    return ((kind, first_part), (kind,))


def takes_steps(spec: Mapping[str, Any]) -> bool:
    """Whether a pre-training takes training steps (scratch and given weights do not)."""
    return "method" not in spec or "budget" in spec


def _work_done(kind: str, spec: Json, outputs: Json) -> float | None:
    """Work of a finished stage, in the units of `Costs._work`; None if unknown."""
    if kind == "pretrain":
        return outputs.get("images_seen") if takes_steps(spec) else 1.0
    if "synthesis" in spec:
        return float(spec["share"])
    if kind in ("views", "cache", "align"):
        return outputs.get("rows")
    if kind == "transfer":
        return _iterations(spec)
    return 1.0


def _iterations(spec: Json) -> float:
    """Iterations or epochs of a transfer; 1 if its recipe has no such entry."""
    recipe = spec["task"].get("recipe", {})
    length = recipe.get("iters") or recipe.get("epochs")
    return float(length) if isinstance(length, int | float) and length > 0 else 1.0


def _seconds_per_unit(measured: Iterable[tuple[float, float]], work: float) -> float:
    """Seconds per unit of work: the median over the finished stages with the most similar work.

    `measured`: (work, seconds) of the finished stages.
    """
    # (distance in work, seconds per unit) of each finished stage.
    rates = [
        (abs(math.log(stage_work / work)), seconds / stage_work) for stage_work, seconds in measured
    ]
    smallest_distance = min(distance for distance, _ in rates)
    nearest = sorted(rate for distance, rate in rates if distance <= smallest_distance + _SIMILAR)
    return nearest[len(nearest) // 2]
