"""Every method of configs/methods trains on tiny images; an objective that does nothing fails.

A new method is tested here as soon as its config exists. If it requires a new argument, add it to
`build_arguments`; if the tests cannot guess another value of an argument, add one to OTHERS.
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
from kdep_bench.objectives.attention_features import AttentionFeatures, spatial_pattern
from kdep_bench.objectives.base import TEACHER_ARGUMENTS, Demands, demands
from kdep_bench.objectives.entropy_weights import EntropyWeights
from kdep_bench.objectives.levels import teacher_blocks
from kdep_bench.objectives.map_patterns import MapPatterns
from kdep_bench.pretrain.distiller import Distiller, NewNetwork
from kdep_bench.pretrain.pyramid import describe
from kdep_bench.registry import locate
from kdep_bench.suite.config import names, resolve
from kdep_bench.suite.schema import Json
from kdep_bench.transfer.export import strip
from tests.objectives import tiny

# Methods for a transformer student have their own test files.
TRAINED = [
    n
    for n in names("method")
    if resolve("method", n).get("objective") is not None
    and not locate(resolve("method", n)["objective"]["type"]).transformer
]
STEPS, BATCH, EPOCHS = 40, 32, 20.0  # enough for every method to learn in about a second
# Another valid value of an argument whose value is neither a number nor a schedule.
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
    "kernels": [1, 3],
    "peer": None,
    "unit_length": False,
    "align": {"type": "kdep_bench.features.aligners.RandomBasis", "seed": 3},
}
# The same for one class, where the value above is not valid.
OTHERS_OF: dict[str, Any] = {
    "levels of Pursuhint": {"s8": "s16", "s16": "s8"},
    "tap of MapRegression": "before",
    "levels of SemiOnline": {"s16": "s8"},
    "pacing of CurriculumExperts": 1.0,
    "optimizer of Hssakd": {"type": "SGD", "lr": 0.5},
    "optimizer of CrossArchitectureViews": {"type": "SGD", "lr": 0.5},
    # A phase that contains the first steps.
    "phases of TeachWhatYouShould": [0.0],
}
# Argument -> why it does not change the loss in these tests.
WITHOUT_EFFECT = {
    "entropy_floor": "threshold of a warning",
    "tau of InstanceGraph": "has a separate test",
    "regions of CrossArchitectureViews": "has a separate test: the tiny teacher has 4 x 4 patches",
    "queue of ContrastiveDistillation": "has a separate test: all tiny batches have the same rows",
    "memory of CurriculumExperts": "has a separate test: two steps do not fill it",
    # The weights of the tiny teachers are given, so nothing is chosen on held-out images.
    **{
        f"{name} of WeightedAssistants": "has a separate test"
        for name in ("held_out", "reference", "floor", "seed")
    },
    "held_out of BestTeacher": "has a separate test",
    # Amal's weights change only in every tenth step after a warm-up.
    **{
        f"{name} of Amal": "has a separate test"
        for name in ("every", "warmup", "repeats", "virtual_lr", "optimizer")
    },
    "shares of MapRegression": "has a separate test: the tiny networks have one level",
    **{
        f"{name} of TeachWhatYouShould": "has a separate test"
        for name in ("active", "length", "optimizer")
    },
    "sign of MapRegression": "has a separate test: the tiny teacher's map is too narrow",
}
# (method, argument) without effect. `unit` divides by the target's root mean square, which is 1
# here. `tap`: only the last map of the tiny network can be read before its activation.
WITHOUT_EFFECT_IN = {("phis", "unit"), ("whiten", "unit"), ("kdep_maps_4", "tap")}


@cache
def teacher(width: int) -> tiny.TinyTeacher:
    """The tiny teacher with this feature width."""
    return tiny.TinyTeacher("t", width)


@cache
def fitted(width: int) -> tuple[Moments, Tensor]:
    """Moments and features [512, width] of the teacher, for fitting alignments."""
    features = teacher(width)(tiny.batch(512, 1000)["images"]).pooled
    moments = Moments(width)
    moments.add(features)
    return moments, features


def build_arguments(
    target: dict[str, Any] | None, width: int, logits: int = tiny.LOGITS
) -> dict[str, Any]:
    """Every argument that the pre-training stage could pass to an objective, by name."""
    feature = fitted(width)[1]
    mean_square = None if target is None else float(build_target(**target)(feature).square().mean())
    teacher_output = teacher(width)(tiny.batch(2, 0)["images"])
    return {
        "width": tiny.DS,
        "input_px": tiny.PX,
        "teacher_px": tiny.PX,
        "classes": tiny.CLASSES,
        "epochs": EPOCHS,
        "views": tiny.VIEWS,
        "pool_images": 4000,
        "target_mean_square": mean_square,
        "teacher_mean_variance": float(feature.square().mean()),
        "teacher_width": width,
        "teacher_config": {**tiny.TEACHER, "width": width},
        "teacher_classes": logits,
        "student_maps": describe(tiny.STUDENT),
        "layer_width": teacher_output.maps["s16"].shape[1],
        "teacher_attention": teacher(width)
        .with_attention(tiny.batch(2, 0)["images"], [0])
        .attention.sizes(),  # type: ignore[union-attr]
        "layer_distances": distances(width),
        "map_moments": moments_of_maps(width),
        "teacher_maps": {
            name: {"channels": m.shape[1], "stride": tiny.PX // m.shape[2]}
            for name, m in teacher_output.maps.items()
        },
    }


def distances(width: int) -> dict[str, dict[str, float]]:
    """1 - CKA of averaged maps for every pair of layers, like `features.layers.layer_distances`."""
    former_generator, tiny.TinyTeacher.shuffle_generator = tiny.TinyTeacher.shuffle_generator, None
    teacher_output = teacher(width)(tiny.batch(64, 0)["images"])
    tiny.TinyTeacher.shuffle_generator = former_generator  # the generator's state has not changed
    means = {k: m.mean((2, 3)) for k, m in teacher_output.maps.items()}
    return {a: {b: 1 - cka(means[a], means[b]) for b in means} for a in means}


@cache
def moments_of_maps(width: int) -> str:
    """Folder with the moments of the teacher's maps, as the pre-training stage writes them."""
    folder = Path(tempfile.mkdtemp(prefix="moments-"))
    atexit.register(shutil.rmtree, folder, True)
    former_generator, tiny.TinyTeacher.shuffle_generator = tiny.TinyTeacher.shuffle_generator, None
    maps = teacher(width)(tiny.batch(256, 1000)["images"]).maps
    tiny.TinyTeacher.shuffle_generator = former_generator
    for name, x in maps.items():
        for side in {1, *(level["side"] for level in describe(tiny.STUDENT).values())}:
            moments = Moments(x.shape[1])
            moments.add(resize_map(x, (side, side)).permute(0, 2, 3, 1).flatten(0, 2))
            write_moments(moments, folder, name, side)
    return str(folder)


class TinyRun:
    """A method set up as in the pre-training stage, with a live tiny teacher.

    Args:
        name: the method.
        folder: where the alignment is written.
        objective: an objective config to use instead of the method's.
    """

    def __init__(self, name: str, folder: Path, objective: Json | None = None) -> None:
        method = resolve("method", name)
        config = copy.deepcopy(objective or method["objective"])
        if "levels" in config:  # the tiny networks have no stride 32
            config["levels"] = {k: v for k, v in config["levels"].items() if k != "s32"}
        if config.get("student_level") == "s32":
            config["student_level"] = "s16"
        if config.get("peer"):  # a second network as small as the student
            config["peer"] = tiny.LARGER
        kind = locate(config["type"])
        augment = copy.deepcopy(method["augment"]) if kind.reads_from_augment else None
        # Tiny images need small patches, and a short training needs a low ratio.
        if augment and "patch" in augment:
            augment |= {"patch": 8, "ratio": 0.5}
        reader_options = {}
        if "top_classes" in config:  # the tiny teacher has only few classes
            config["top_classes"] = 3 if objective is None else min(config["top_classes"], 4)
            reader_options = {"top": config["top_classes"]}
        if "teacher_layer" in config:
            reader_options = {"layer": config["teacher_layer"]}
        if "attention" in kind.needs:
            reader_options = {"blocks": teacher_blocks(config)}
        self.requirements: Demands = demands(config)
        # A method that looks up labels among the teacher's classes needs a teacher with as many
        # classes as the data.
        self.n_logits = tiny.CLASSES if "classes" in self.requirements.needs else tiny.LOGITS
        same_width = "Identity" in str(method.get("align"))
        self.width, target = tiny.DS if same_width else tiny.DT, None
        if "target" in self.requirements.needs:
            basis = build_aligner(method["align"]).fit(fitted(self.width)[0], tiny.DS)
            basis.save(folder)
            target = {"align_dir": folder, "transform": method["transform"]}
        self.roles = list(method.get("teachers") or [])
        arguments = build_arguments(target, self.width, self.n_logits)
        # The first teacher, with which `agreement` compares, has the largest weight.
        arguments["teacher_weights"] = dict(zip(self.roles, (0.7, 0.3, 0.0), strict=False))
        required = self.requirements.stage_arguments - (TEACHER_ARGUMENTS if self.roles else set())
        config |= {a: arguments[a] for a in required - set(config)}
        if self.roles:
            per_teacher = {
                a: arguments[a] for a in self.requirements.stage_arguments & TEACHER_ARGUMENTS
            }
            config["teachers"] = dict.fromkeys(self.roles, per_teacher)
        self.has_teacher = bool(self.requirements.needs - {"labels", "views"})
        torch.manual_seed(0)
        self.model = Distiller(
            tiny.STUDENT,
            config,
            target,
            maps=self.requirements.pyramid,
            augment=augment,
            pre_activation_levels=sorted(self.requirements.pre_activation_levels),
            teacher=self.teacher_reader_arguments(reader_options),
            roles=self.roles,
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), 4e-3)
        self.model.steps = STEPS

    def teacher_reader_arguments(self, extra_arguments: dict[str, Any]) -> dict[str, Any]:
        """Arguments of TeacherReader; with several teachers by role, each a different network."""
        if not self.has_teacher:
            return {}
        live = {**tiny.TEACHER, "width": self.width, "logits": self.n_logits}
        arguments: dict[str, Any] = {"live": live, **extra_arguments}
        if "classifier" in self.requirements.needs:
            arguments["classifier"] = True
        return {
            role: {**arguments, "live": {**arguments["live"], "seed": 42 + k}}
            for k, role in enumerate(self.roles)
        } or arguments

    def terms(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss terms of a batch of images."""
        return self.model(**self.batch(data), mode="loss")

    def batch(self, images: dict[str, Tensor]) -> dict[str, Any]:
        """The batch that ViewStream would make of these images for this method."""
        data: dict[str, Any] = dict(images)
        if self.roles:
            data["teachers"] = {role: {"teacher_images": data["images"]} for role in self.roles}
        elif self.has_teacher:
            data["teacher_images"] = data["images"]
        if "labels" not in self.requirements.needs:
            del data["labels"]  # a label-free method must not receive labels
        return data

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The loss on held-out images, with the weights of the last step."""
        self.model.step = STEPS - 1
        return float(torch.stack(list(self.terms(tiny.batch(200, 7000)).values())).sum())

    def train(self, steps: int, labels: torch.Generator | None = None) -> list[float]:
        """Losses of `steps` steps; the generator `labels` permutes the labels within each batch."""
        self.model.train()
        losses = []
        for step in range(steps):
            data = dict(tiny.batch(BATCH, step))  # a copy, as `tiny.batch` caches its result
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
        """Linear CKA, on held-out images, of the student's features and its learning target.

        The learning target is KDEP's target, the teacher's feature, map or logits, or the labels.
        """
        data = tiny.batch(400, 5000)
        self.model.eval()
        self.model._tap[0].eval()
        x = (data["images"].float() - self.model.mean) / self.model.std
        outputs = build_levels(self.model, x)
        if not self.has_teacher:
            return cka(outputs["pooled"], torch.nn.functional.one_hot(data["labels"]).float())
        teacher_output = self.model.first_teacher_reader.live(data["images"])  # type: ignore[misc]
        if isinstance(self.model.objective, AttentionFeatures):  # learns only spatial patterns
            patterns = [
                spatial_pattern(levels["s16"], (2, 2)) for levels in (outputs, teacher_output.maps)
            ]
            return cka(*patterns)
        if isinstance(self.model.objective, MapPatterns):
            s = outputs["s16"]
            t = resize_map(teacher_output.maps["s16"], (s.shape[2], s.shape[3]))
            return cka(*(self.model.objective.pattern(x).flatten(1) for x in (s, t)))
        if self.model.target is not None:
            return cka(outputs["pooled"], self.model.target(teacher_output.pooled))
        if "pooled" in self.requirements.needs:
            return cka(outputs["pooled"], teacher_output.pooled)
        if self.requirements.pyramid and "logits" not in self.requirements.needs:
            return cka(
                positions_as_samples(outputs["s16"]),
                positions_as_samples(teacher_output.maps["s16"]),
            )
        assert teacher_output.logits is not None
        return cka(outputs["pooled"], teacher_output.logits)


def positions_as_samples(x_BCHW: Tensor) -> Tensor:
    """[B H W, C]: every position of a map is a sample."""
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
def shuffled_teacher() -> Iterator[torch.Generator]:
    """Permutes the teacher's outputs within each batch; yields a generator for the labels."""
    tiny.TinyTeacher.shuffle_generator = torch.Generator().manual_seed(3)
    yield torch.Generator().manual_seed(4)
    tiny.TinyTeacher.shuffle_generator = None


@cache
def train_with_teacher(name: str, folder: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    """(held-out loss, agreement) before and after normal training of a method.

    Auxiliary modules have a separate optimiser. Both losses use them as they are after training:
    the student may learn from them, and then its loss may rise while they improve.
    """
    run = TinyRun(name, folder)
    loss, agreement = run.held_out_loss(), run.agreement()
    run.train(STEPS)
    if run.model.auxiliary is not None:
        untrained = TinyRun(name, folder)
        trained = run.model.objective.auxiliary_modules()
        for role, auxiliary in untrained.model.objective.auxiliary_modules().items():
            auxiliary.module.load_state_dict(trained[role].module.state_dict())
        loss = untrained.held_out_loss()
    return (loss, agreement), (run.held_out_loss(), run.agreement())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the alignments of all methods."""
    return tmp_path_factory.mktemp("align")


def subfolder(folder: Path, name: str) -> Path:
    """A subfolder, created if it is missing."""
    (folder / name).mkdir(exist_ok=True)
    return folder / name


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls_and_agreement_rises(name: str, folder: Path):
    (loss, agreement), (later_loss, later_agreement) = train_with_teacher(
        name, subfolder(folder, name)
    )
    assert later_loss < loss
    assert later_agreement > agreement + 0.05


@pytest.mark.parametrize("name", TRAINED)
def test_shuffled_targets_give_less_than_half_of_the_gain(
    name: str, folder: Path, shuffled_teacher: torch.Generator
):
    # The reference run is without shuffling, and so is the set-up: each call of the teacher in it
    # would use a permutation, and the bound would depend on how many calls it makes.
    tiny.TinyTeacher.shuffle_generator, generator = None, tiny.TinyTeacher.shuffle_generator
    (_, before), (_, after) = train_with_teacher(name, subfolder(folder, name))
    run = TinyRun(name, subfolder(folder, name))
    tiny.TinyTeacher.shuffle_generator = generator
    run.train(STEPS, labels=shuffled_teacher)
    tiny.TinyTeacher.shuffle_generator = None
    gain = run.agreement() - before
    assert gain < 0.5 * (after - before)


def arguments(config: Json) -> Iterator[tuple[str, Json]]:
    """(argument, config with another value of it) of every argument, also in parts of a sum."""
    kind = locate(config["type"])
    for part, inner in (config.get("parts") or {}).items():
        for name, changed_value in arguments(inner["objective"]):
            changed = copy.deepcopy(config)
            changed["parts"][part]["objective"] = changed_value
            yield f"{part}.{name}", changed
        changed = copy.deepcopy(config)
        changed["parts"][part]["weight"] = 0.37
        yield f"{part}.weight", changed
    if config.get("parts"):
        return
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        skipped_names = {"self", "teachers", *kind.stage_arguments, *WITHOUT_EFFECT}
        if {name, f"{name} of {kind.__name__}"} & skipped_names or parameter.kind in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            continue
        value = config.get(name, parameter.default)
        if name == "weighting":
            changed_value = None if value else {"type": EntropyWeights}
        elif isinstance(value, bool):
            changed_value = not value
        elif isinstance(value, (int, float)):
            changed_value = value + 1 if isinstance(value, int) else 1.7 * value + 0.05
            if isinstance(value, float) and 0.9 <= value < 1:
                changed_value = 0.5
        elif f"{name} of {kind.__name__}" in OTHERS_OF:
            changed_value = OTHERS_OF[f"{name} of {kind.__name__}"]
        elif name in OTHERS and OTHERS[name] != value:
            changed_value = OTHERS[name]
        elif hasattr(value, "keys") and "type" in value:  # the config of a schedule
            changed_value = 0.25
        else:
            raise AssertionError(f"{kind.__name__}.{name} = {value!r}: add another value to OTHERS")
        yield name, {**config, name: changed_value}


@pytest.mark.parametrize("name", TRAINED)
def test_every_argument_changes_the_losses(name: str, folder: Path):
    def losses(objective: Json | None) -> list[float]:
        """Losses of two steps with this objective (None: the method's)."""
        return TinyRun(name, subfolder(folder, name), objective).train(2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default_losses = losses(None)
        assert default_losses == losses(None)  # training is deterministic
        for argument, config in arguments(resolve("method", name)["objective"]):
            if (name, argument) not in WITHOUT_EFFECT_IN:
                assert losses(config) != default_losses, f"{argument} changes nothing"


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_only_the_student_and_the_export_is_a_plain_backbone(
    name: str, folder: Path
):
    run = TinyRun(name, subfolder(folder, name))
    run.model.step = STEPS // 2
    before = run.model.first_teacher_reader.live.checksum() if run.has_teacher else None  # type: ignore[union-attr]
    torch.stack(list(run.terms(tiny.batch(BATCH, 0)).values())).sum().backward()
    first_gradient = run.model.backbone.get_parameter("convs.0.weight").grad
    assert first_gradient is not None
    assert bool(first_gradient.any())
    reads_only_maps = "maps" in run.requirements.needs and "pooled" not in run.requirements.needs
    if not reads_only_maps:  # an objective on early maps does not train the last layer
        last_gradient = run.model.backbone.get_parameter("convs.3.weight").grad
        assert last_gradient is not None
        assert bool(last_gradient.any())
    if run.has_teacher:
        live = run.model.first_teacher_reader.live
        assert live is not None
        assert all(p.grad is None for p in live.parameters())
        assert live.checksum() == before
    kept, dropped = strip(run.model.state_dict())
    assert set(kept) == set(build_backbone(tiny.STUDENT).state_dict())
    assert set(dropped) <= {"objective", "target"}


def test_tau_changes_the_loss_of_an_instance_graph_with_attention(folder: Path):
    """`tau` has an effect only with form="attention"."""
    config = resolve("method", "instance_graph")["objective"]
    first, second = (
        TinyRun("instance_graph", folder, {**config, "form": "attention", "tau": tau}).train(1)
        for tau in (0.1, 0.5)
    )
    assert first != second


# `tst` also runs the student again and a teacher of its own; test_objectives_tst.py counts them.
@pytest.mark.parametrize("name", sorted(set(TRAINED) - {"tst"}))
def test_the_declared_extra_forward_passes_equal_those_that_are_run(name: str, folder: Path):
    run = TinyRun(name, subfolder(folder, name))
    samples: list[int] = []
    for module in run.model.objective.modules():
        if isinstance(module, NewNetwork):
            module.register_forward_hook(lambda _m, args, _out: samples.append(len(args[0])))
    run.model.step = STEPS // 2
    run.terms(tiny.batch(BATCH, 0))
    copies = 1 if run.model.augment is None else run.model.augment.copies
    assert sum(samples) == run.requirements.forwards * BATCH * copies
