"""Every method of configs/methods, trained on tiny pictures: five detectors of a stub.

A new method is tested here as soon as its config exists. What it asks for that no other one did
must be answered in `facts`; an argument whose other value cannot be guessed goes to OTHERS.
"""

from __future__ import annotations

import atexit
import copy
import inspect
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdep_bench.features.align import build_aligner
from kdep_bench.features.map_moments import write_moments
from kdep_bench.features.target import build_target
from kdep_bench.features.transform import Moments
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.networks.resize import resize_map
from kdep_bench.objectives.base import TEACHER_ARGUMENTS, Demands, demands
from kdep_bench.objectives.entropy_weights import EntropyWeights
from kdep_bench.pretrain.distiller import Distiller, NewNetwork
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.registry import locate
from kdep_bench.suite.config import names, resolve
from kdep_bench.suite.schema import Json
from kdep_bench.transfer.export import strip
from tests.objectives import tiny

# Methods for a transformer student are tested by themselves.
TRAINED = [
    n
    for n in names("method")
    if resolve("method", n).get("objective") is not None
    and not locate(resolve("method", n)["objective"]["type"]).transformer
]
STEPS, BATCH, EPOCHS = 40, 32, 20.0
# NewNetwork value of an argument that is neither a number nor a schedule.
OTHERS: dict[str, Any] = {
    "distance": "l1",
    "hidden": 6,
    "init": None,
    "vertices": 2,
    "form": "attention",
    "cosine": True,
    "levels": {"s8": "s16"},
    "weight": 3.0,
    "norm": None,
    "bias": False,
    "tap": "after",
    "teacher_layer": "s4",
    "student_level": "s8",
    "unit_length": False,
    "align": {"type": "kdep_bench.features.aligners.RandomBasis", "seed": 3},
}
# The same of one class, where the value above would not do.
OTHERS_OF: dict[str, Any] = {
    "levels of Pursuhint": {"s8": "s16", "s16": "s8"},
    "tap of MapRegression": "before",
    "levels of SemiOnline": {"s16": "s8"},
}
# Arguments that change no loss, and why.
SILENT = {
    "entropy_floor": "says when to warn",
    "tau of InstanceGraph": "tested by itself",
    # its weights change in every tenth step after a warm-up: tested by themselves
    **{f"{name} of Amal": "" for name in ("every", "warmup", "repeats", "virtual_lr", "optimizer")},
    "shares of MapRegression": "tested by itself: one level is left here",
    "sign of MapRegression": "tested by itself: the tiny teacher's map is too narrow for others",
}
# The same of one method: a target whose root mean square is 1 by construction has no other unit.
SILENT_IN = {("phis", "unit"), ("whiten", "unit")}


@cache
def teacher(width: int) -> tiny.TinyTeacher:
    return tiny.TinyTeacher("t", width)


@cache
def fitted(width: int) -> tuple[Moments, Tensor]:
    """Moments and features of the teacher on the pictures the alignments are fitted to."""
    teacher_output = teacher(width)(tiny.batch(512, 1000)["images"]).pooled
    moments = Moments(width)
    moments.add(teacher_output)
    return moments, teacher_output


def facts(target: dict[str, Any] | None, width: int, logits: int = tiny.LOGITS) -> dict[str, Any]:
    """What the pre-training stage would tell an objective."""
    feature = fitted(width)[1]
    energy = None if target is None else float(build_target(**target)(feature).square().mean())
    teacher_output = teacher(width)(tiny.batch(2, 0)["images"])
    return {
        "width": tiny.DS,
        "classes": tiny.CLASSES,
        "epochs": EPOCHS,
        "views": tiny.VIEWS,
        "pool_images": 4000,
        "target_mean_square": energy,
        "teacher_mean_variance": float(feature.square().mean()),
        "teacher_width": width,
        "teacher_config": {**tiny.TEACHER, "width": width},
        "teacher_classes": logits,
        "student_maps": describe(tiny.STUDENT),
        "layer_width": teacher_output.maps["s16"].shape[1],
        "layer_distances": distances(width),
        "map_moments": moments_of_maps(width),
        "teacher_maps": {
            k: {"channels": m.shape[1], "stride": tiny.PX // m.shape[2]}
            for k, m in teacher_output.maps.items()
        },
    }


def distances(width: int) -> dict[str, dict[str, float]]:
    """1 - CKA of the averaged maps, as `features.layers.layer_distances` of a cache."""
    kept, tiny.TinyTeacher.shuffled = tiny.TinyTeacher.shuffled, None
    teacher_output = teacher(width)(tiny.batch(64, 0)["images"])
    tiny.TinyTeacher.shuffled = kept  # without a draw from it
    means = {k: m.mean((2, 3)) for k, m in teacher_output.maps.items()}
    return {a: {b: 1 - cka(means[a], means[b]) for b in means} for a in means}


@cache
def moments_of_maps(width: int) -> str:
    """Folder of the moments of the teacher's maps, as the pre-training stage saves them."""
    folder = Path(tempfile.mkdtemp(prefix="moments-"))
    atexit.register(shutil.rmtree, folder, True)
    kept, tiny.TinyTeacher.shuffled = tiny.TinyTeacher.shuffled, None
    maps = teacher(width)(tiny.batch(256, 1000)["images"]).maps
    tiny.TinyTeacher.shuffled = kept
    for name, x in maps.items():
        for side in {1, *(level["side"] for level in describe(tiny.STUDENT).values())}:
            moments = Moments(x.shape[1])
            moments.add(resize_map(x, (side, side)).permute(0, 2, 3, 1).flatten(0, 2))
            write_moments(moments, folder, name, side)
    return str(folder)


class Arm:
    """A method set up as the pre-training stage would, with a live tiny teacher."""

    def __init__(self, name: str, folder: Path, objective: Json | None = None) -> None:
        method = resolve("method", name)
        config = copy.deepcopy(objective or method["objective"])
        if "levels" in config:  # the tiny networks end at stride 16
            config["levels"] = {k: v for k, v in config["levels"].items() if k != "s32"}
        if config.get("student_level") == "s32":
            config["student_level"] = "s16"
        augment = copy.deepcopy(method["augment"]) if "teacher_layer" in config else None
        if augment:  # tiny pictures have small patches, and few steps half of them
            augment |= {"patch": 8, "ratio": 0.5}
        top = {}
        if "top_classes" in config:  # the tiny teacher has few classes
            config["top_classes"] = 3 if objective is None else min(config["top_classes"], 4)
            top = {"top": config["top_classes"]}
        if "teacher_layer" in config:
            top = {"layer": config["teacher_layer"]}
        self.wanted: Demands = demands(config)
        # Labels that are looked up among the teacher's classes: as many of these as of labels.
        self.logits = tiny.CLASSES if "classes" in self.wanted.needs else tiny.LOGITS
        equal = "Identity" in str(method.get("align"))
        self.width, target = tiny.DS if equal else tiny.DT, None
        if "target" in self.wanted.needs:
            basis = build_aligner(method["align"]).fit(fitted(self.width)[0], tiny.DS)
            basis.save(folder)
            target = {"align_dir": folder, "transform": method["transform"]}
        self.roles = list(method.get("teachers") or [])
        told = facts(target, self.width, self.logits)
        own = self.wanted.requires - (TEACHER_ARGUMENTS if self.roles else set())
        config |= {a: told[a] for a in own - set(config)}
        if self.roles:
            each = {a: told[a] for a in self.wanted.requires & TEACHER_ARGUMENTS}
            config["teachers"] = dict.fromkeys(self.roles, each)
        self.taught = bool(self.wanted.needs - {"labels", "views"})
        torch.manual_seed(0)
        self.model = Distiller(
            tiny.STUDENT,
            config,
            target,
            maps=self.wanted.pyramid,
            augment=augment,
            levels_before=sorted(self.wanted.levels_before),
            teacher=self.sides(top),
            roles=self.roles,
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), 4e-3)
        self.model.steps = STEPS

    def sides(self, more: dict[str, Any]) -> dict[str, Any]:
        """Arguments of TeacherSide, by role where there are several: of networks that differ."""
        if not self.taught:
            return {}
        live = {**tiny.TEACHER, "width": self.width, "logits": self.logits}
        own: dict[str, Any] = {"live": live, **more}
        if "classifier" in self.wanted.needs:
            own["classifier"] = True
        return {
            role: {**own, "live": {**own["live"], "seed": 42 + k}}
            for k, role in enumerate(self.roles)
        } or own

    def terms(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.model(**self.batch(data), mode="loss")

    def batch(self, given: dict[str, Tensor]) -> dict[str, Any]:
        """What ViewStream would give this method of these pictures."""
        data: dict[str, Any] = dict(given)
        if self.roles:
            data["teachers"] = {role: {"teacher_images": data["images"]} for role in self.roles}
        elif self.taught:
            data["teacher_images"] = data["images"]
        if "labels" not in self.wanted.needs:
            del data["labels"]  # label-free: there is none to look at
        return data

    @torch.no_grad()
    def held_out(self) -> float:
        """The loss on held-out pictures, weighed as in the last step."""
        self.model.step = STEPS - 1
        return float(torch.stack(list(self.terms(tiny.batch(200, 7000)).values())).sum())

    def train(self, steps: int, labels: torch.Generator | None = None) -> list[float]:
        """Losses of `steps` steps; with a generator, labels belong to other images."""
        self.model.train()
        losses = []
        for step in range(steps):
            data = dict(tiny.batch(BATCH, step))  # a copy: batches are kept for the other tests
            if labels is not None:
                data["labels"] = data["labels"][torch.randperm(BATCH, generator=labels)]
            self.model.step = step
            loss = torch.stack(list(self.terms(data).values())).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.model.objective.after_step()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def agreement(self) -> float:
        """Linear CKA, on held-out pictures, of the student and what it is to learn.

        The target, the teacher's feature, map or logits, or the labels; centred, so that a mean
        counts for nothing.
        """
        data = tiny.batch(400, 5000)
        self.model.eval()
        self.model._tap[0].eval()
        x = (data["images"].float() - self.model.mean) / self.model.std
        outs = build_levels(self.model, x)
        if not self.taught:
            return cka(outs["pooled"], torch.nn.functional.one_hot(data["labels"]).float())
        teacher_output = self.model.teacher_side.live(data["images"])  # type: ignore[misc]
        if self.model.target is not None:
            return cka(outs["pooled"], self.model.target(teacher_output.pooled))
        if "pooled" in self.wanted.needs:
            return cka(outs["pooled"], teacher_output.pooled)
        if self.wanted.pyramid and "logits" not in self.wanted.needs:
            return cka(places(outs["s16"]), places(teacher_output.maps["s16"]))
        assert teacher_output.logits is not None
        return cka(outs["pooled"], teacher_output.logits)


def places(x_BCHW: Tensor) -> Tensor:
    """[B H W, C]: every place a sample."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


def build_levels(model: Distiller, x: Tensor) -> dict[str, Tensor]:
    """The student's pooled feature and its last map, in eval mode."""
    before, after = model._tap[0](x)
    return {"pooled": before.mean((2, 3)), "s16": after}


def cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


@pytest.fixture
def shuffled() -> Iterator[torch.Generator]:
    """While it is set up, what the teacher says of a batch belongs to other images of it."""
    tiny.TinyTeacher.shuffled = torch.Generator().manual_seed(3)
    yield torch.Generator().manual_seed(4)
    tiny.TinyTeacher.shuffled = None


@cache
def learned(name: str, folder: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    """(held-out loss, agreement) before and after a method is taught as it should be."""
    arm = Arm(name, folder)
    before = arm.held_out(), arm.agreement()
    arm.train(STEPS)
    return before, (arm.held_out(), arm.agreement())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("align")


def own(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls_and_agreement_rises(name: str, folder: Path):
    (loss, agreement), (later_loss, later_agreement) = learned(name, own(folder, name))
    assert later_loss < loss
    assert later_agreement > agreement + 0.05


@pytest.mark.parametrize("name", TRAINED)
def test_shuffled_targets_give_no_gain(name: str, folder: Path, shuffled: torch.Generator):
    tiny.TinyTeacher.shuffled, kept = None, tiny.TinyTeacher.shuffled
    (_, before), (_, after) = learned(name, own(folder, name))
    tiny.TinyTeacher.shuffled = kept
    arm = Arm(name, own(folder, name))
    arm.train(STEPS, labels=shuffled)
    tiny.TinyTeacher.shuffled = None
    gain = arm.agreement() - before
    assert gain < 0.5 * (after - before)


def arguments(config: Json) -> Iterator[tuple[str, Json]]:
    """(name of an argument, config with another value of it), parts of a sum included."""
    kind = locate(config["type"])
    for part, inner in (config.get("parts") or {}).items():
        for name, other in arguments(inner["objective"]):
            changed = copy.deepcopy(config)
            changed["parts"][part]["objective"] = other
            yield f"{part}.{name}", changed
        changed = copy.deepcopy(config)
        changed["parts"][part]["weight"] = 0.37
        yield f"{part}.weight", changed
    if config.get("parts"):
        return
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        skipped = {"self", "teachers", *kind.requires, *SILENT}
        if {name, f"{name} of {kind.__name__}"} & skipped or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        value = config.get(name, parameter.default)
        if name == "weighting":
            other = None if value else {"type": EntropyWeights}
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, (int, float)):
            other = value + 1 if isinstance(value, int) else 1.7 * value + 0.05
            if isinstance(value, float) and 0.9 <= value < 1:
                other = 0.5
        elif f"{name} of {kind.__name__}" in OTHERS_OF:
            other = OTHERS_OF[f"{name} of {kind.__name__}"]
        elif name in OTHERS and OTHERS[name] != value:
            other = OTHERS[name]
        elif hasattr(value, "keys") and "type" in value:
            other = 0.25
        else:
            raise AssertionError(f"{kind.__name__}.{name} = {value!r}: add another value to OTHERS")
        yield name, {**config, name: other}


@pytest.mark.parametrize("name", TRAINED)
def test_every_argument_changes_what_is_learned(name: str, folder: Path):
    def course(objective: Json | None) -> list[float]:
        return Arm(name, own(folder, name), objective).train(2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = course(None)
        assert usual == course(None)  # or no difference would mean anything
        for argument, config in arguments(resolve("method", name)["objective"]):
            if (name, argument) not in SILENT_IN:
                assert course(config) != usual, f"{argument} changes nothing"


@pytest.mark.parametrize("name", TRAINED)
def test_gradient_reaches_the_tap_alone_and_a_plain_backbone_is_left(name: str, folder: Path):
    arm = Arm(name, own(folder, name))
    arm.model.step = STEPS // 2
    before = arm.model.teacher_side.live.checksum() if arm.taught else None  # type: ignore[union-attr]
    torch.stack(list(arm.terms(tiny.batch(BATCH, 0)).values())).sum().backward()
    deep = arm.model.backbone.get_parameter("convs.0.weight").grad
    assert deep is not None
    assert bool(deep.any())
    if not ("maps" in arm.wanted.needs and "pooled" not in arm.wanted.needs):
        last = arm.model.backbone.get_parameter("convs.3.weight").grad
        assert last is not None
        assert bool(last.any())
    if arm.taught:
        live = arm.model.teacher_side.live
        assert live is not None
        assert all(p.grad is None for p in live.parameters())
        assert live.checksum() == before
    kept, dropped = strip(arm.model.state_dict())
    assert set(kept) == set(build_backbone(tiny.STUDENT).state_dict())
    assert set(dropped) <= {"objective", "target"}


def test_the_graphs_temperature_is_that_of_its_attention(folder: Path):
    """The one argument that another argument of its method switches on."""
    config = resolve("method", "instance_graph")["objective"]
    one, two = (
        Arm("instance_graph", folder, {**config, "form": "attention", "tau": tau}).train(1)
        for tau in (0.1, 0.5)
    )
    assert one != two


@pytest.mark.parametrize("name", TRAINED)
def test_the_cost_column_counts_forward_passes_of_all_other_networks(name: str, folder: Path):
    arm = Arm(name, own(folder, name))
    samples: list[int] = []
    for module in arm.model.objective.modules():
        if isinstance(module, NewNetwork):
            module.register_forward_hook(lambda _m, args, _out: samples.append(len(args[0])))
    arm.model.step = STEPS // 2
    arm.terms(tiny.batch(BATCH, 0))
    assert sum(samples) == arm.wanted.forwards * BATCH
