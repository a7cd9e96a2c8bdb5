"""Two teachers of different width and input size, in the real stages on tiny data.

A role is the name by which a method refers to one of its teachers, here "small" and "large".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.data.fractions import labels_file, read_labels
from kdep_bench.data.views import open_views, subset
from kdep_bench.errors import KdepError
from kdep_bench.features import align, cache, cache_check
from kdep_bench.objectives.base import Context, Objective
from kdep_bench.objectives.held_out import is_held_out
from kdep_bench.objectives.weighting import Weighting
from kdep_bench.pretrain import stage
from kdep_bench.suite.config import load_config
from kdep_bench.teachers.base import Teacher, TeacherOutput, build_teacher, freeze
from kdep_bench.transfer.export import strip
from tests.pretrain.conftest import BUDGET, IMAGES, STUDENT, VIEWS, WIDTH, silent
from tests.pretrain.test_pretrain import pretrain, spec

ROLES = ["small", "large"]
SUM = "kdep_bench.objectives.weighted_sum.WeightedSum"
R18: dict[str, Any] = {  # student config with the feature maps s16 and s32
    **STUDENT,
    "pyramid": dict(out_indices=(2, 3), channels=(16, 32), strides=(16, 32)),
}


class TinyTeacher(Teacher):
    """A strided convolution and a classifier for the pool's three classes."""

    has_logits, tap = True, "after the activation"
    map_names = tails = ("s16",)

    def __init__(self, name: str, width: int, input_px: int, seed: int) -> None:
        super().__init__((128.0,) * 3, (60.0,) * 3)
        self.name, self.width, self.input_px = name, width, input_px
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv, self.classifier = nn.Conv2d(3, width, 16, 16), nn.Linear(width, 3)
        freeze(self)

    @property
    def logit_head(self) -> nn.Module:
        """The layer from the pooled feature to the logits."""
        return self.classifier

    def tail(self, level: str) -> nn.Module:
        """New layers from the map to logits."""
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.width, 3, device="cpu")
        )

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """Pooled feature, logits and the map s16."""
        last = self.conv(x_B3HW).relu()
        pooled = last.mean((2, 3))
        return TeacherOutput(pooled, self.classifier(pooled), {"s16": last})


TEACHERS: dict[str, dict[str, Any]] = dict(
    small=dict(type=f"{__name__}.TinyTeacher", name="small", width=36, input_px=32, seed=1),
    large=dict(type=f"{__name__}.TinyTeacher", name="large", width=44, input_px=48, seed=2),
)


@pytest.fixture(scope="module")
def two_teachers(
    stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Inputs of a pre-training with two teachers, {"small.cache": folder, ...}.

    The cache of `large` also stores its map.
    """
    root = tmp_path_factory.mktemp("both")
    folders = {k: stages[k] for k in ("prepare", "views")}
    for role, teacher in TEACHERS.items():
        outputs = ["maps.s16"] if role == "large" else []
        for kind, function, stage_spec in (
            ("cache", cache.run, dict(teacher=teacher, outputs=outputs)),
            ("align", align.run, dict(width=WIDTH, share=1.0, share_seed=0, align={"type": "svd"})),
        ):
            out = root / role / kind
            out.mkdir(parents=True)
            # The folders that both teachers share and those of this one; "small.cache" -> "cache".
            inputs = {
                k.rpartition(".")[2]: v for k, v in folders.items() if k in stages or role in k
            }
            function(stage_spec, inputs, out, silent)
            folders[f"{role}.{kind}"] = out
    return folders


class Recorder(Objective):
    """Records its construction arguments and every batch."""

    needs = frozenset({"pooled", "logits"})
    stage_arguments = frozenset({"teacher_width", "teacher_classes", "teacher_maps"})
    every_teacher = True
    seen: ClassVar[list[Context]] = []
    arguments: ClassVar[dict[str, Any]] = {}

    def __init__(self, teachers: Mapping[str, Any]) -> None:
        super().__init__()
        self.arguments.update(teachers)

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        """Records the batch; a term that reads only the student."""
        self.seen.append(ctx)
        return {"a": ctx.pre_activation.square().mean(1)}


class LearnedWeight(Weighting):
    """Weight = trained number^2 + steps / 10, so it has a parameter and a state."""

    needs = frozenset({"logits"})
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros(()))

    def weigh(self, ctx: Context, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same weight for all terms and samples."""
        weight = self.scale.square() + self.count / 10
        return {name: weight * torch.ones_like(term) for name, term in terms.items()}

    def after_step(self) -> None:
        """Counts a step."""
        self.count += 1


# A method that reads a KDEP target of the small teacher and logits of the large one, and has a
# weighting with state.
MIXED: dict[str, Any] = dict(
    name="mixed",
    labels_used=False,
    objective=dict(
        type=SUM,
        parts=dict(
            feature=dict(
                objective=dict(type="kdep_bench.objectives.feature_regression.FeatureRegression")
            ),
            logits=dict(
                objective=dict(type="kdep_bench.objectives.logit_kd.LogitKD"), teacher="large"
            ),
        ),
        weighting=dict(type=f"{__name__}.LearnedWeight"),
    ),
    transform=dict(type="kdep_bench.features.transform.PowerTemperature"),
)


def method(name: str) -> dict[str, Any]:
    """The entries of a method's config that the stage reads."""
    config = load_config("method", name)
    return {k: config[k] for k in ("name", "labels_used", "objective", "transform")}


def test_every_teacher_s_output_reaches_the_objective_cached_and_live(
    two_teachers: dict[str, Path], tmp_path: Path
):
    """Of each teacher: its outputs for the views at its input size, cached or computed."""
    method = dict(
        name="read", labels_used=False, objective=dict(type=f"{__name__}.Recorder"), transform=None
    )
    opened = open_views(two_teachers["views"], two_teachers["prepare"])
    live_inputs = {"views": two_teachers["views"], "images": two_teachers["prepare"]}
    mixed_inputs = {**live_inputs, "small.cache": two_teachers["small.cache"]}
    one_step = BUDGET | dict(epochs=1 / 3)
    for name, inputs, live in (  # live: the teachers that are not cached
        ("cached", two_teachers, {}),
        ("live", live_inputs, TEACHERS),
        ("mixed", mixed_inputs, {"large": TEACHERS["large"]}),
    ):
        Recorder.seen.clear()
        options = {"teachers": live} if live else {}
        outputs, _ = pretrain(
            tmp_path / name, inputs, method, roles=ROLES, budget=one_step, **options
        )
        ctx = Recorder.seen[0]
        assert list(ctx.teachers) == ROLES
        assert ctx.teacher is ctx.teachers["small"]
        assert ctx.rows is not None
        for role, out in ctx.teachers.items():
            teacher = build_teacher(TEACHERS[role])
            pixels = cache_check.render_rows(opened, ctx.rows.numpy(), teacher.input_px)
            expected = teacher(pixels)
            assert expected.logits is not None
            for output, reference in ((out.pooled, expected.pooled), (out.logits, expected.logits)):
                scale = float(reference.abs().max())  # cached values are float16
                torch.testing.assert_close(output, reference, atol=2.0**-8 * scale, rtol=0)
        widths = {role: t["teacher_width"] for role, t in Recorder.arguments.items()}
        assert widths == dict(small=36, large=44)
        assert {t["teacher_classes"] for t in Recorder.arguments.values()} == {3}
        assert outputs["extra_forwards"] == len(live) * outputs["images_seen"]
        source = {"cached": "cache", "live": "live", "mixed": "cache and live"}[name]
        assert outputs["teacher_source"] == source
        assert set(outputs["teachers"]) == set(ROLES)


@pytest.mark.parametrize("name", ["multi_teacher_kd", "ebkd", "aekd", "ca_mkd"])
def test_a_method_with_several_teachers_learns_and_exports_only_the_backbone(
    name: str, two_teachers: dict[str, Path], tmp_path: Path
):
    config = method(name)
    caches = [f"{role}.cache" for role in ROLES]
    inputs = {k: v for k, v in two_teachers.items() if k in ("views", *caches)}
    if config["labels_used"]:
        inputs["prepare"] = two_teachers["prepare"]
    budget = BUDGET | dict(epochs=8, optimizer=BUDGET["optimizer"] | dict(lr=0.1))
    outputs, state = pretrain(tmp_path, inputs, config, roles=ROLES, budget=budget)
    terms = outputs["terms"]
    kl_terms = [k for k in terms if k.rpartition(".")[2] in ("kl_small", "kl_large")]
    assert len(kl_terms) == 2
    assert all(terms[k] > 0 for k in terms)
    if name == "ca_mkd":
        assert {"features.small", "features.large", "logits.cross_entropy"} < set(terms)
    else:  # the loss of CA-MKD has a term that begins later in the training
        curve = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
        assert sum(curve[-4:]) < 0.97 * sum(curve[:4])
    assert outputs["extra_forwards"] == 0  # the caches count those of the teachers
    assert outputs["extra_parameters"] == sum(
        v.numel() for k, v in state.items() if k.startswith("objective.")
    )
    kept, dropped = strip(state)
    assert set(dropped) == {"objective"}
    assert not any("classifier" in k for k in kept)


def test_parts_with_different_teachers_and_a_weighting_with_state_resume_bit_for_bit(
    two_teachers: dict[str, Path], tmp_path: Path
):
    """The resumed run has the same weights as the uninterrupted one."""
    inputs = {k: two_teachers[k] for k in ("views", "small.cache", "small.align", "large.cache")}
    uninterrupted, weights = pretrain(tmp_path / "uninterrupted", inputs, MIXED, roles=ROLES)
    assert set(uninterrupted["terms"]) == {"feature", "logits"}
    assert uninterrupted["targets"]["small"]["target_mean_square"] > 0
    assert set(uninterrupted["targets"]) == {"small"}
    assert weights["objective.weighting.count"] == uninterrupted["steps"]
    assert weights["objective.weighting.scale"] != 1  # trained
    assert "objective.members.logits.head.weight" in weights

    class Stop(Exception):
        """Interrupts the run."""

    def stop(done: int, total: int, note: str = "") -> None:
        """A progress function that interrupts the run in step 8."""
        if done == 8:
            raise Stop

    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    with pytest.raises(Stop):
        stage.run(spec(MIXED, roles=ROLES), inputs, interrupted, stop)
    assert list((interrupted / "run").glob("*.pth"))
    outputs, resumed = pretrain(interrupted, inputs, MIXED, roles=ROLES)
    assert outputs["curves"] == uninterrupted["curves"]
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(v, resumed[k]) for k, v in weights.items())


def test_a_part_of_a_sum_reads_the_map_of_its_teacher(
    two_teachers: dict[str, Path], tmp_path: Path
):
    """Hints from the large teacher's map (44 channels, 3 x 3) and logits of the small one."""
    objective = dict(
        type=SUM,
        parts=dict(
            logits=dict(objective=dict(type="kdep_bench.objectives.logit_kd.LogitKD")),
            maps=dict(
                objective=dict(type="kdep_bench.objectives.hints.Hints", levels=dict(s32="s16")),
                teacher="large",
            ),
        ),
    )
    config = dict(name="maps", labels_used=False, objective=objective, transform=None)
    inputs = {k: two_teachers[k] for k in ("views", "small.cache", "large.cache")}
    budget = BUDGET | dict(epochs=1)
    outputs, state = pretrain(tmp_path, inputs, config, roles=ROLES, student=R18, budget=budget)
    assert set(outputs["terms"]) == {"logits", "maps"}
    projectors = [v for k, v in state.items() if "members.maps" in k and v.ndim == 4]
    assert [tuple(v.shape[:2]) for v in projectors] == [(44, 32)]
    assert outputs["steps"] == IMAGES // BUDGET["batch"]
    assert VIEWS["views"] == outputs["views"]


@pytest.mark.parametrize("live", [False, True], ids=["cached", "live"])
def test_the_bridge_of_sokd_is_trained_and_not_exported(
    live: bool, two_teachers: dict[str, Path], tmp_path: Path
):
    """SOKD (semi-online distillation) reads map and logits of one teacher.

    The bridge is a copy of the teacher's last layers, with new weights that are trained.
    """
    config = method("sokd")
    config["objective"] = {**config["objective"], "levels": {"s16": "s16"}}
    inputs = {"views": two_teachers["views"], "cache": two_teachers["large.cache"]}
    if live:
        inputs = {"views": two_teachers["views"], "images": two_teachers["prepare"]}
    options = {"teacher": TEACHERS["large"]} if live else {}
    budget = BUDGET | dict(epochs=8, optimizer=BUDGET["optimizer"] | dict(lr=0.1))
    outputs, state = pretrain(tmp_path, inputs, config, student=R18, budget=budget, **options)
    assert set(outputs["terms"]) == {"student", "bridge_teacher", "bridge_student"}
    curve = [loss for _, loss in outputs["curves"]["pretrain_loss"]]
    assert sum(curve[-4:]) < sum(curve[:4])
    bridge = {k for k in state if k.startswith("objective.bridge.")}
    assert bridge
    exported, _ = strip(state)
    assert not set(exported) & bridge


WEIGHTED: dict[str, Any] = dict(  # a method whose teachers are weighted on held-out images
    name="weighted",
    labels_used=True,
    objective=dict(
        type="kdep_bench.objectives.weighted_assistants.WeightedAssistantsWithLabels", held_out=0.3
    ),
    align=None,
    transform=None,
)


def test_teachers_are_weighted_on_held_out_images_and_the_outputs_state_the_weights(
    two_teachers: dict[str, Path], tmp_path: Path
):
    inputs = {k: v for k, v in two_teachers.items() if not k.endswith("align")}
    outputs, state = pretrain(tmp_path, inputs, WEIGHTED, roles=ROLES)
    report = outputs["teacher_weights"]
    held_out = is_held_out(np.arange(IMAGES), 0.3)
    assert report["images"] == held_out.sum()
    assert report["samples"] == 2 * held_out.sum()  # both views
    # `loss_single` is the cross-entropy of each teacher on the held-out images.
    views, losses = open_views(two_teachers["views"], two_teachers["prepare"]), []
    labels = read_labels(labels_file(two_teachers), views.files)
    rows = np.flatnonzero(held_out.repeat(2))
    for teacher in TEACHERS.values():
        built = build_teacher(teacher)
        logits = built(cache_check.render_rows(views, rows, built.input_px)).logits
        assert logits is not None
        losses.append(float(F.cross_entropy(logits, torch.from_numpy(labels[rows // 2]))))
    assert list(report["loss_single"].values()) == pytest.approx(losses, rel=2e-3)
    lowest = min(report["loss_equal_weights"], *report["loss_single"].values())
    assert report["loss"] <= lowest + 1e-6
    positive = [weight for weight in report["weights"].values() if weight > 0]
    torch.testing.assert_close(state["objective.weights"], torch.tensor(positive))
    assert any(report["note"] == note for note in outputs["notes"])
    # Reproducible.
    second_outputs, second_state = pretrain(tmp_path / "second", inputs, WEIGHTED, roles=ROLES)
    assert second_outputs["teacher_weights"] == report
    assert all(torch.equal(state[k], second_state[k]) for k in state)


def test_a_fraction_that_holds_out_no_image_is_refused(
    two_teachers: dict[str, Path], tmp_path: Path
):
    objective = dict(WEIGHTED["objective"], held_out=1e-12)
    images = np.arange(1, IMAGES)  # the hash of image 0 is 0
    assert not is_held_out(images, objective["held_out"]).any()
    # Half of the images, without image 0.
    seed = next(seed for seed in range(99) if 0 not in subset(IMAGES, 0.5, seed))
    share = dict(share=0.5, share_seed=seed)
    with pytest.raises(KdepError, match="none is held out"):
        pretrain(tmp_path, two_teachers, dict(WEIGHTED, objective=objective), roles=ROLES, **share)
