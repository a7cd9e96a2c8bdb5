"""Teacher outputs of a pre-training run: read from a cache, or computed by the live teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdep_bench.augments.base import Batch, Draw, build_augment
from kdep_bench.data.views import Views
from kdep_bench.errors import KdepError
from kdep_bench.features import sparse
from kdep_bench.features.cache_check import (
    exact_float32,
    load_teacher_config,
    open_head,
    verify_cache,
)
from kdep_bench.features.cache_read import MANIFEST, open_cache
from kdep_bench.files import read_strict
from kdep_bench.objectives.levels import levels_of, teacher_layer, top_classes
from kdep_bench.objectives.roles import FROM_TEACHER
from kdep_bench.pretrain.by_role import of_role, words_of_role
from kdep_bench.teachers.base import TeacherOutput, build_teacher


class TeacherSide:
    """Turns what a batch carries into a TeacherOutput. It is no Module: nothing of it is trained,
    checkpointed, averaged or exported.

    Args:
        live: config of a teacher that runs in the step, on the crops the student sees.
        head: folder of a cache whose pooled features give the logits (`open_head`).
        top: k of the class probabilities that the objective reads; computed from a live teacher's
            logits as from the stored ones.
        classes: number of the teacher's classes, for stored probabilities.
        classifier: whether the objective applies the teacher's classifier itself.
        layer: name of the layer after which the live teacher stops.
    """

    def __init__(
        self,
        live: Mapping[str, Any] | None = None,
        head: str | None = None,
        top: int | None = None,
        classes: int | None = None,
        classifier: bool = False,
        layer: str | None = None,
    ) -> None:
        # The student is initialised from the same generator: methods must start from one student.
        with torch.random.fork_rng(devices=[]):
            self.live = None if live is None else build_teacher(live)
            self.head = None if head is None else open_head(Path(head))
        self.classifier, self.layer = classifier, layer
        self.checksum = None if self.live is None else self.live.checksum()
        self.top, self.classes = top, classes

    @torch.no_grad()
    def __call__(
        self,
        pooled: Tensor | None,
        outputs: Mapping[str, Tensor],
        images: Tensor | None,
        extra: Mapping[str, Tensor],
    ) -> TeacherOutput | None:
        """`pooled` [B, Dt] and `outputs` (see Cache.extras) float16, or `images` uint8.

        `extra`: what the augmentation added; with `layer`, `visible` and `hidden`.
        """
        if self.live is not None:
            assert images is not None
            with torch.autocast(images.device.type, enabled=False), exact_float32():
                if self.layer is not None:
                    live = self.live.to(images.device)
                    read = live.up_to(images, self.layer, extra["visible"], extra["hidden"])
                    return TeacherOutput(read.new_empty((len(images), 0)), None, layer=read)
                out = self._with_top(self.live.to(images.device)(images))
            return replace(out, classifier=self.live.logit_head) if self.classifier else out
        if pooled is None and not outputs:
            return None
        first = next(iter(outputs.values())) if pooled is None else pooled
        feature = first.new_empty((len(first), 0)).float() if pooled is None else pooled.float()
        head = None if self.head is None else self.head.to(feature.device)
        logits = outputs.get("logits")
        if logits is None and head is not None:
            logits = head(feature)
        tokens = outputs.get("tokens")
        return TeacherOutput(
            feature,
            None if logits is None else logits.float(),
            {k[5:]: v.float() for k, v in outputs.items() if k.startswith("maps.")},
            None if tokens is None else tokens.float(),
            probabilities=self._stored_top(outputs),
            classifier=head if self.classifier else None,
        )

    def _with_top(self, out: TeacherOutput) -> TeacherOutput:
        if self.top is None or out.logits is None or self.live is None:
            return out
        values, index = sparse.largest(out.logits, self.top, self.live.name)
        dense = sparse.dense(values, index, out.logits.shape[1])
        return replace(out, probabilities=dense)

    def _stored_top(self, outputs: Mapping[str, Tensor]) -> Tensor | None:
        if self.top is None or self.classes is None:
            return None
        values, index = (outputs[name] for name in sparse.names(self.top))
        return sparse.dense(values, index, self.classes)

    def still_frozen(self) -> None:
        """KdepError when the live teacher is not what it was at the start."""
        if self.live is not None and self.live.cpu().checksum() != self.checksum:
            raise KdepError(
                f"the weights of teacher {self.live.name} changed during training; they must stay "
                "frozen",
                fix="correct the teacher's class, so that forward() changes no parameter or buffer",
            )


@dataclass(frozen=True)
class Teaching:
    """The source of a run's teacher outputs: a cache, or the teacher itself in every step.

    Attributes:
        stream: arguments of ViewStream.
        model: arguments of TeacherSide.
        facts: functions that return teacher_width, teacher_classes, teacher_maps, layer_width.
        outputs: entries of the stage's outputs about the teacher.
        by_role: a Teaching per teacher, for a method with several. `stream` and `model` are then by
            role as well, and `facts` is empty.
    """

    stream: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Callable[[], Any]] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    by_role: dict[str, Teaching] = field(default_factory=dict)

    @property
    def live(self) -> int:
        """Number of teachers that run in the step."""
        models = [teaching_of_role.model for teaching_of_role in self.by_role.values()] or [
            self.model
        ]
        return sum("live" in model for model in models)


def teaching(
    needs: frozenset[str], spec: Mapping[str, Any], inputs: Mapping[str, Path], views: Views
) -> Teaching:
    """The teaching of a run, its cache or live teacher checked.

    Raises KdepError for a need that neither serves, and what `verify_cache` raises.
    """
    if spec.get("roles"):
        return teaching_by_role(spec, inputs, views)
    required = needs & FROM_TEACHER
    if not required:
        return Teaching()
    objective = spec["method"]["objective"]
    top = top_classes(objective) if "probabilities" in required else None
    if "layer" in required:
        return layer_teaching(required, spec, inputs)
    if spec.get("teacher") is not None:
        return live_teaching(required, spec["teacher"], inputs, top)
    if "cache" not in inputs:
        raise KdepError(
            f"the objective of method {spec['method']['name']} reads {', '.join(sorted(required))} "
            "of the teacher, but the method has no `needs`",
            fix="list them as needs=[...] in the method's config",
        )
    return cached_teaching(required, levels_of(objective), inputs["cache"], views, top)


def teaching_by_role(spec: Mapping[str, Any], inputs: Mapping[str, Path], views: Views) -> Teaching:
    """The teaching of a run with several teachers, each as if it were the only one."""
    by_role: dict[str, Teaching] = {}
    for role in spec["roles"]:
        needs = frozenset(words_of_role(role, spec, "needs"))
        by_role[role] = teaching(needs, *of_role(role, spec, inputs), views)
    sources = {part.outputs.get("teacher_source") for part in by_role.values()}
    return Teaching(
        {"teachers": {role: part.stream for role, part in by_role.items()}},
        {role: part.model for role, part in by_role.items()},
        {},
        {
            "teacher_source": sources.pop() if len(sources) == 1 else "cache and live",
            "teachers": {role: part.outputs for role, part in by_role.items()},
        },
        by_role,
    )


def cached_teaching(
    required: frozenset[str], levels: set[str], folder: Path, views: Views, top: int | None = None
) -> Teaching:
    """From the cache in `folder`; of its maps only `levels`, all where none is named.

    `top`: k of the class probabilities that the objective reads; None where it reads none.
    """
    checked = verify_cache(folder, views)
    cache, px = open_cache(folder), read_strict(folder / MANIFEST)["px"]
    names = cache.extra_names(required)
    if levels:  # methods share a cache of maps, and each reads its own levels
        names = [n for n in names if n.partition(".")[0] != "maps" or n[5:] in levels]
    for need in sorted(required & {"maps", "tokens"}):
        if not any(n.partition(".")[0] == need for n in names):
            raise KdepError(
                f"the cache of teacher {cache.teacher['name']} has no {need}",
                fix=f"add {need!r} to the method's `needs`",
            )
    if top is not None and sparse.stored_top(names) != top:
        raise KdepError(
            f"the cache of teacher {cache.teacher['name']} does not have the {top} largest class "
            "probabilities",
            fix="add 'probabilities' to the method's `needs`",
        )
    applies_classifier = "classifier" in required
    from_head = applies_classifier or ("logits" in required and "logits" not in names)
    head = open_head(folder) if from_head else None

    def classes() -> int:
        if cache.classes is not None:
            return cache.classes
        if head is None:
            return int(cache.extras["logits"][0].shape[1])
        return int(head(torch.zeros(1, cache.width)).shape[1])

    return Teaching(
        {"cache": str(folder), "outputs": names},
        {
            **({"head": str(folder)} if from_head else {}),
            **({} if top is None else {"top": top, "classes": cache.classes}),
            **({"classifier": True} if applies_classifier else {}),
        },
        {
            "teacher_width": lambda: cache.width,
            "teacher_config": lambda: load_teacher_config(folder),
            "teacher_classes": classes,
            "teacher_maps": lambda: {
                n[5:]: {"channels": int(c), "stride": px // int(h)}
                for n in names
                if n.startswith("maps.")
                for c, h in [cache.extras[n][0].shape[1:3]]
            },
        },
        {"teacher_source": "cache", "cache_check": checked},
    )


def live_teaching(
    required: frozenset[str],
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    top: int | None = None,
) -> Teaching:
    teacher = build_teacher(config)
    px = teacher.input_px
    teacher_output = teacher(torch.zeros(1, 3, px, px, dtype=torch.uint8))
    has = {"logits": teacher_output.logits is not None, "maps": bool(teacher_output.maps)}
    has["tokens"] = teacher_output.tokens is not None
    has["probabilities"] = teacher_output.logits is not None
    has["classifier"] = teacher.logit_head is not None
    for need, there in has.items():
        if need in required and not there:
            raise KdepError(
                f"the method reads {need} of the teacher, but {teacher.name} returns none",
                fix="choose another teacher or method",
            )
    if top is not None and teacher_output.logits is not None:
        sparse.largest(teacher_output.logits, top, teacher.name)  # refuses more than it has
    return Teaching(
        {"pool": str(inputs["images"]), "teacher_px": px},
        {
            "live": dict(config),
            **({} if top is None else {"top": top}),
            **({"classifier": True} if "classifier" in required else {}),
        },
        {
            "teacher_width": lambda: teacher.width,
            "teacher_config": lambda: dict(config),
            "teacher_classes": lambda: (
                None if teacher_output.logits is None else teacher_output.logits.shape[1]
            ),
            "teacher_maps": lambda: {
                k: {"channels": m.shape[1], "stride": px // m.shape[2]}
                for k, m in teacher_output.maps.items()
            },
        },
        {"teacher_source": "live", "teacher_checksum": teacher.checksum()},
    )


def layer_teaching(
    required: frozenset[str], spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> Teaching:
    """From a live teacher that sees a part of the patches and stops after a layer.

    Raises KdepError for a teacher that is not live, an augmentation that hides no patches, a
    further output of the teacher, and what `Teacher.up_to` raises for such images.
    """
    method, layer = spec["method"], teacher_layer(spec["method"]["objective"])
    problems = {
        "the teacher does not run in the training step": spec.get("teacher") is None,
        "the method has no `augment`": method.get("augment") is None,
        f"it also reads {', '.join(sorted(required - {'layer'}))}": required != {"layer"},
    }
    for problem, present in problems.items():
        if present:
            raise KdepError(
                f"the objective of method {method['name']} stops its teacher after the layer "
                f"{layer!r}, but {problem}",
                expected="a live teacher, masked patches, and no other output of that teacher",
                fix="correct `teacher_source`, `augment` or `objective` in the method",
            )
    teacher, px = build_teacher(spec["teacher"]), int(spec["student"]["input_px"])
    blank = Batch(torch.zeros(1, 3, px, px))
    masks = build_augment(method["augment"]).change(blank, Draw(0, 0, 1)).extra
    images = torch.zeros(1, 3, teacher.input_px, teacher.input_px, dtype=torch.uint8)
    width = teacher.up_to(images, layer, masks["visible"], masks["hidden"]).shape[2]
    return Teaching(
        {"pool": str(inputs["images"]), "teacher_px": teacher.input_px},
        {"live": dict(spec["teacher"]), "layer": layer},
        {
            "teacher_width": lambda: teacher.width,
            "teacher_config": lambda: dict(spec["teacher"]),
            "layer_width": lambda: width,
        },
        {"teacher_source": "live", "teacher_checksum": teacher.checksum()},
    )
