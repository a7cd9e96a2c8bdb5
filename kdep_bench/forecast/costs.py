"""How long a stage will take: from measured stages of like work, else its kind's own guess.

Work is counted in what the time of a kind grows with: images seen (`pretrain`), rows (`views`,
`cache`, `align`), iterations (`transfer`), and 1 where nothing is known to matter. A stage is
compared with measured ones of the same student, teacher or task; of those the ones whose work is
nearest give the seconds a unit of work. What no measured stage resembles keeps its kind's guess: a
median over unlike stages (the scratch arm takes no step at all) would say less than that.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from kdep_bench.suite.graph import Plan, Stage
from kdep_bench.suite.schema import Json

_MAX_MEASURED = 32  # measured stages a group
_SIMILAR = 0.1  # works whose logarithms differ by less are as near as each other
_MIN_SECONDS = 0.01  # seconds

# What a stage took: its wall time, or what it says all its tries took where that is more.
_SECONDS_KEYS = {"cache": "fill_s", "pretrain": "train_s"}


class Costs:
    """Estimates for the stages of one plan; `learn` feeds it, also while the plan runs."""

    def __init__(self, plan: Plan, records: Iterable[Json] = ()) -> None:
        self.plan = plan
        self._outputs: dict[str, Json] = {}
        self._seen: dict[tuple[str, ...], deque[tuple[float, float]]] = {}
        for record in records:
            self.learn(record)

    def learn(self, record: Json) -> None:
        """Takes in a finished stage.json; one whose spec is of an older form teaches nothing."""
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            self._learn(record)

    def _learn(self, record: Json) -> None:
        kind, outputs = record["kind"], record["outputs"]
        if kind in ("prepare", "views"):
            self._outputs[record["id"]] = outputs
        seconds = max(record.get("wall_s") or 0.0, outputs.get(_SECONDS_KEYS.get(kind, "")) or 0.0)
        work = _work_done(kind, record["spec"], outputs)
        if seconds > 0 and work:
            for group in groups(kind, record["name"], record["spec"]):
                self._seen.setdefault(group, deque(maxlen=_MAX_MEASURED)).append((work, seconds))

    def seconds(self, stage: Stage) -> float:
        """The estimate for one stage, in seconds."""
        estimate = self.measured(stage)
        return stage.cost if estimate is None else estimate

    def measured(self, stage: Stage) -> float | None:
        """The estimate from measured stages of like work; None where there is none."""
        work = self._work(stage)
        if not work:
            return None
        for group in groups(stage.kind, stage.name, stage.spec):
            if group in self._seen:
                return max(_MIN_SECONDS, work * _seconds_per_unit(self._seen[group], work))
        return None

    def estimates(self, stages: Iterable[Stage]) -> dict[str, float]:
        """Estimates by stage id; stages that look alike are looked up once."""
        cached: dict[Any, float] = {}
        out = {}
        for stage in stages:
            key = (groups(stage.kind, stage.name, stage.spec), self._work(stage), stage.cost)
            if key not in cached:
                cached[key] = self.seconds(stage)
            out[stage.id] = cached[key]
        return out

    def _work(self, stage: Stage) -> float | None:
        """Work of a planned stage; None where it depends on images nobody has counted yet."""
        spec = stage.spec
        if stage.kind == "transfer":
            return _iterations(spec)
        if stage.kind not in ("views", "cache", "align", "pretrain") or not takes_steps(spec):
            return 1.0
        images, views = self._images(stage)
        if images is None:
            return None
        if stage.kind == "pretrain":
            over_pool = spec["budget"].get("epochs_over") == "pool"
            return images * (1.0 if over_pool else spec["share"]) * spec["budget"]["epochs"]
        return images * views * spec.get("share", 1.0)

    def _images(self, stage: Stage) -> tuple[float | None, float]:
        """(images of the pool, views an image), from what `views` or `prepare` have told."""
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
    """Whom a stage is compared with, closest first."""
    first = name.partition(".")[0]
    if kind == "pretrain":
        if not takes_steps(spec):
            return ((kind, "no step"),)
        group = (kind, spec["student"]["name"], spec["budget"].get("precision", ""))
        return ((*group, spec["method"]["name"]), group)
    if kind == "transfer":
        return ((kind, spec["task"]["name"], spec["student"]["name"]), (kind, spec["task"]["name"]))
    if kind in ("views", "export"):
        return ((kind,),)
    if kind in ("prepare", "cache", "align"):
        return ((kind, first),)
    return ((kind, first), (kind,))


def takes_steps(spec: Mapping[str, Any]) -> bool:
    """False for a pretrain spec of an arm that takes no step (scratch, given weights)."""
    return "method" not in spec or "budget" in spec


def _work_done(kind: str, spec: Json, outputs: Json) -> float | None:
    """Work of a finished stage, in the units of `Costs._work`; None where it does not say."""
    if kind == "pretrain":
        return outputs.get("images_seen") if takes_steps(spec) else 1.0
    if kind in ("views", "cache", "align"):
        return outputs.get("rows")
    if kind == "transfer":
        return _iterations(spec)
    return 1.0


def _iterations(spec: Json) -> float:
    recipe = spec["task"].get("recipe", {})
    length = recipe.get("iters") or recipe.get("epochs")
    return float(length) if isinstance(length, int | float) and length > 0 else 1.0


def _seconds_per_unit(seen: Iterable[tuple[float, float]], work: float) -> float:
    """Seconds a unit of work: the median over the measured stages of nearest work."""
    far = [(abs(math.log(w / work)), s / w) for w, s in seen]
    nearest = min(f for f, _ in far)
    rates = sorted(rate for f, rate in far if f <= nearest + _SIMILAR)
    return rates[len(rates) // 2]
