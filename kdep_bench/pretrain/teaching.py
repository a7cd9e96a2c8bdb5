"""Teacher outputs of a pre-training run: read from a cache, or computed by the live teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from kdep_bench.objectives.levels import levels_of, teacher_blocks, teacher_layer, top_classes
from kdep_bench.objectives.roles import FROM_TEACHER
from kdep_bench.pretrain.by_role import restrict_to_role, words_of_role
from kdep_bench.teachers.base import TeacherOutput, build_teacher


class TeacherReader:
    """Computes a TeacherOutput from the teacher inputs of a batch.

    It is not an nn.Module, so that the teacher is not trained, checkpointed, averaged or exported.

    Args:
        live: config of a live teacher, which is run in every training step on the student's crops.
        head: folder of a cache from whose pooled features the logits are computed (`open_head`).
        top: number k of the largest class probabilities that the objective reads.
        classes: number of the teacher's classes, for cached probabilities.
        classifier: whether the objective applies the teacher's classifier.
        layer: name of the last layer that the live teacher runs; only the output of this layer is
            then returned.
        blocks: blocks of the live teacher whose hidden states and attention are also returned.
    """

    def __init__(
        self,
        live: Mapping[str, Any] | None = None,
        head: str | None = None,
        top: int | None = None,
        classes: int | None = None,
        classifier: bool = False,
        layer: str | None = None,
        blocks: Sequence[int] = (),
    ) -> None:
        # Keeps the random generator unchanged, so that every method has the same initial student.
        with torch.random.fork_rng(devices=[]):
            self.live = None if live is None else build_teacher(live)
            self.head = None if head is None else open_head(Path(head))
        self.classifier, self.layer, self.blocks = classifier, layer, list(blocks)
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
        """The teacher's output for a batch, float32 without gradient; None if there is no input.

        Args:
            pooled: [B, Dt] float16, the cached pooled feature.
            outputs: the other cached outputs by name; see Cache.extras.
            images: [B, 3, px, px] uint8, for a live teacher.
            extra: tensors that the augmentation added; for `layer` it has "visible" and "hidden".
        """
        if self.live is not None:
            assert images is not None
            with torch.autocast(images.device.type, enabled=False), exact_float32():
                if self.layer is not None:
                    live = self.live.to(images.device)
                    layer = live.up_to(images, self.layer, extra["visible"], extra["hidden"])
                    return TeacherOutput(layer.new_empty((len(images), 0)), None, layer=layer)
                live = self.live.to(images.device)
                out = live.with_attention(images, self.blocks) if self.blocks else live(images)
                out = self._with_top(out)
            return replace(out, classifier=self.live.logit_head) if self.classifier else out
        if pooled is None and not outputs:
            return None
        if pooled is None:  # the cache does not store it
            some_output = next(iter(outputs.values()))
            feature = some_output.new_empty((len(some_output), 0)).float()
        else:
            feature = pooled.float()
        head = None if self.head is None else self.head.to(feature.device)
        logits = outputs.get("logits")
        if logits is None and head is not None:
            logits = head(feature)
        tokens = outputs.get("tokens")
        return TeacherOutput(
            feature,
            None if logits is None else logits.float(),
            {
                k.removeprefix("maps."): v.float()
                for k, v in outputs.items()
                if k.startswith("maps.")
            },
            None if tokens is None else tokens.float(),
            probabilities=self._stored_top(outputs),
            classifier=head if self.classifier else None,
        )

    def _with_top(self, out: TeacherOutput) -> TeacherOutput:
        """Adds the `top` largest class probabilities to a live teacher's output."""
        if self.top is None or out.logits is None or self.live is None:
            return out
        values, index = sparse.largest(out.logits, self.top, self.live.name)
        dense = sparse.dense(values, index, out.logits.shape[1])
        return replace(out, probabilities=dense)

    def _stored_top(self, outputs: Mapping[str, Tensor]) -> Tensor | None:
        """Class probabilities [B, classes] from the `top` largest ones in the cache."""
        if self.top is None or self.classes is None:
            return None
        values, index = (outputs[name] for name in sparse.names(self.top))
        return sparse.dense(values, index, self.classes)

    def check_frozen(self) -> None:
        """Raises KdepError if the weights of the live teacher have changed; moves it to the CPU."""
        if self.live is not None and self.live.cpu().checksum() != self.checksum:
            raise KdepError(
                f"the weights of teacher {self.live.name} changed during training; they must stay "
                "frozen",
                fix="correct the teacher's class, so that forward() changes no parameter or buffer",
            )


@dataclass(frozen=True)
class TeacherSource:
    """Where a run's teacher outputs come from: a cache, or a live teacher run in every step.

    Attributes:
        stream: arguments of ViewStream.
        model: arguments of TeacherReader.
        build_args: {argument of the objective: function that returns its value}, for arguments such
            as teacher_width, teacher_classes, teacher_maps, layer_width.
        outputs: values about the teacher that become outputs of the stage.
        by_role: {role: TeacherSource of that teacher}, for a method with several teachers. `stream`
            and `model` are then by role as well, and `build_args` is empty.
    """

    stream: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    build_args: dict[str, Callable[[], Any]] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    by_role: dict[str, TeacherSource] = field(default_factory=dict)

    @property
    def n_live(self) -> int:
        """Number of live teachers."""
        models = [source.model for source in self.by_role.values()] or [self.model]
        return sum("live" in model for model in models)


def open_teacher_source(
    needs: frozenset[str], spec: Mapping[str, Any], inputs: Mapping[str, Path], views: Views
) -> TeacherSource:
    """The TeacherSource of a run, after a check of its cache or live teacher.

    Args:
        needs: the objective's `needs`.
        spec: spec of the pre-training stage.
        inputs: inputs of that stage.
        views: the views that are trained on.

    Raises:
        KdepError: the cache or teacher lacks an output in `needs`, or an error of `verify_cache`.
    """
    if spec.get("roles"):
        return open_sources_by_role(spec, inputs, views)
    required = needs & FROM_TEACHER
    if not required:
        return TeacherSource()
    objective = spec["method"]["objective"]
    top = top_classes(objective) if "probabilities" in required else None
    if "layer" in required:
        return layer_source(required, spec, inputs)
    blocks = teacher_blocks(objective) if "attention" in required else []
    if spec.get("teacher") is not None:
        return live_source(required, spec["teacher"], inputs, top, blocks)
    if blocks:
        raise KdepError(
            f"the objective of method {spec['method']['name']} reads the attention of its teacher, "
            "which is not in a cache",
            fix="set teacher_source='live' in the method",
        )
    if "cache" not in inputs:
        raise KdepError(
            f"the objective of method {spec['method']['name']} reads {', '.join(sorted(required))} "
            "of the teacher, but the method has no `needs`",
            fix="list them as needs=[...] in the method's config",
        )
    pool = inputs["images"] if "teacher_images" in required else None
    return cached_source(required, levels_of(objective), inputs["cache"], views, top, pool)


def open_sources_by_role(
    spec: Mapping[str, Any], inputs: Mapping[str, Path], views: Views
) -> TeacherSource:
    """The TeacherSource of a run with several teachers; see `open_teacher_source`."""
    by_role: dict[str, TeacherSource] = {}
    for role in spec["roles"]:
        needs = frozenset(words_of_role(role, spec, "needs"))
        role_spec, role_inputs = restrict_to_role(role, spec, inputs)
        by_role[role] = open_teacher_source(needs, role_spec, role_inputs, views)
    kinds = {source.outputs.get("teacher_source") for source in by_role.values()}
    return TeacherSource(
        stream={"teachers": {role: source.stream for role, source in by_role.items()}},
        model={role: source.model for role, source in by_role.items()},
        outputs={
            "teacher_source": kinds.pop() if len(kinds) == 1 else "cache and live",
            "teachers": {role: source.outputs for role, source in by_role.items()},
        },
        by_role=by_role,
    )


def cached_source(
    required: frozenset[str],
    levels: set[str],
    folder: Path,
    views: Views,
    top: int | None = None,
    pool: Path | None = None,
) -> TeacherSource:
    """A TeacherSource that reads the cache in `folder`.

    Args:
        required: outputs that the objective reads, words of FROM_TEACHER.
        levels: names of the maps to read; empty for all.
        folder: folder of the `cache` stage.
        views: the views that are trained on.
        top: number k of class probabilities that the objective reads, or None.
        pool: folder of the `prepare` stage, for an objective that reads the teacher's images.

    Raises:
        KdepError: the cache lacks an output, or an error of `verify_cache` or `open_head`.
    """
    checked = verify_cache(folder, views)
    cache, px = open_cache(folder), read_strict(folder / MANIFEST)["px"]
    names = cache.extra_names(required)
    if levels:  # a shared cache may contain the maps of other methods as well
        names = [n for n in names if not n.startswith("maps.") or n.removeprefix("maps.") in levels]
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

    def teacher_maps() -> dict[str, dict[str, int]]:
        maps: dict[str, dict[str, int]] = {}
        for name in names:
            if name.startswith("maps."):
                channels, height = cache.extras[name][0].shape[1:3]
                described = {"channels": int(channels), "stride": px // int(height)}
                maps[name.removeprefix("maps.")] = described
        return maps

    return TeacherSource(
        stream={
            "cache": str(folder),
            "outputs": names,
            **({} if pool is None else {"pool": str(pool), "teacher_px": px}),
        },
        model={
            **({"head": str(folder)} if from_head else {}),
            **({} if top is None else {"top": top, "classes": cache.classes}),
            **({"classifier": True} if applies_classifier else {}),
        },
        build_args={
            "teacher_width": lambda: cache.width,
            "teacher_px": lambda: px,
            "teacher_config": lambda: load_teacher_config(folder),
            "teacher_classes": classes,
            "teacher_maps": teacher_maps,
        },
        outputs={"teacher_source": "cache", "cache_check": checked},
    )


def live_source(
    required: frozenset[str],
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    top: int | None = None,
    blocks: Sequence[int] = (),
) -> TeacherSource:
    """A TeacherSource with a live teacher, which is run on a black image to learn its outputs.

    Args:
        required: outputs that the objective reads, words of FROM_TEACHER.
        config: config of the teacher.
        inputs: inputs of the stage; `images` is read.
        top: number k of class probabilities that the objective reads, or None.
        blocks: blocks of a transformer whose attention the objective reads.

    Raises:
        KdepError: the teacher lacks an output, or has fewer than `top` classes.
    """
    teacher = build_teacher(config)
    px = teacher.input_px
    black = torch.zeros(1, 3, px, px, dtype=torch.uint8)
    teacher_output = teacher.with_attention(black, blocks) if blocks else teacher(black)
    attention = teacher_output.attention
    is_available = {
        "logits": teacher_output.logits is not None,
        "maps": bool(teacher_output.maps),
        "tokens": teacher_output.tokens is not None,
        "probabilities": teacher_output.logits is not None,
        "classifier": teacher.logit_head is not None,
    }
    for need, available in is_available.items():
        if need in required and not available:
            raise KdepError(
                f"the method reads {need} of the teacher, but {teacher.name} returns none",
                fix="choose another teacher or method",
            )
    if top is not None and teacher_output.logits is not None:
        sparse.largest(teacher_output.logits, top, teacher.name)  # raises if `top` is too large
    return TeacherSource(
        stream={"pool": str(inputs["images"]), "teacher_px": px},
        model={
            "live": dict(config),
            **({} if top is None else {"top": top}),
            **({"classifier": True} if "classifier" in required else {}),
            **({"blocks": list(blocks)} if blocks else {}),
        },
        build_args={
            **({} if attention is None else {"teacher_attention": attention.sizes}),
            "teacher_width": lambda: teacher.width,
            "teacher_px": lambda: px,
            "teacher_config": lambda: dict(config),
            "teacher_classes": lambda: (
                None if teacher_output.logits is None else teacher_output.logits.shape[1]
            ),
            "teacher_maps": lambda: {
                k: {"channels": m.shape[1], "stride": px // m.shape[2]}
                for k, m in teacher_output.maps.items()
            },
        },
        outputs={"teacher_source": "live", "teacher_checksum": teacher.checksum()},
    )


def layer_source(
    required: frozenset[str], spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> TeacherSource:
    """A TeacherSource with a live teacher that runs up to one layer, on the visible patches.

    Args:
        required: outputs that the objective reads; only "layer" is permitted.
        spec: spec of the pre-training stage.
        inputs: inputs of that stage; `images` is read.

    Raises:
        KdepError: the teacher is not live, the method has no augmentation that masks patches, the
            objective reads another output as well, or an error of `Teacher.up_to`.
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
    return TeacherSource(
        stream={"pool": str(inputs["images"]), "teacher_px": teacher.input_px},
        model={"live": dict(spec["teacher"]), "layer": layer},
        build_args={
            "teacher_width": lambda: teacher.width,
            "teacher_config": lambda: dict(spec["teacher"]),
            "layer_width": lambda: width,
        },
        outputs={"teacher_source": "live", "teacher_checksum": teacher.checksum()},
    )
