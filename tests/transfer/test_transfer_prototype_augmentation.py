"""ProC-KD at transfer: losses in float64, real stages, and what the plan refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL, PRETRAINED, TransferContext
from kdep_bench.transfer.methods.prototype_augmentation import PrototypeAugmentation
from tests.suite.test_suite_transfer_methods import plan
from tests.transfer.conftest import config
from tests.transfer.test_transfer_methods import run

METHODS = "kdep_bench.transfer.methods.prototype_augmentation"
LEVELS = {"s16": 3, "s32": 5}  # channels of the student's maps
CT, K = 4, 6  # channels of the teacher; prototypes per level
B, SIDE, CLASSES = 2, 2, 3  # images in the batch; height and width of the maps; classes
TAU, AUGMENTED, WEIGHT = 0.3, 0.4, 1.7


def write_pretraining(path: Path, channels: dict[str, int]) -> None:
    """Writes random prototypes and projectors of these student levels, with a backbone tensor."""
    g = torch.Generator().manual_seed(3)
    tensors = {"backbone.weight": torch.ones(1)}
    for level, count in channels.items():
        tensors[f"objective.projectors.{level}.weight"] = (
            torch.randn(CT, count, 1, 1, generator=g) / count
        )
        tensors[f"objective.projectors.{level}.bias"] = torch.randn(CT, generator=g)
        tensors[f"objective.prototypes.{level}"] = torch.randn(K, CT, generator=g)
    torch.save(tensors, path)


class Head(nn.Module):
    """A linear classifier with the interface of mmpretrain's; a sample is the number of a class."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = LEVELS["s32"]
        self.fc = nn.Linear(self.in_channels, CLASSES)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.fc(features[-1])

    def loss(self, features: tuple[Tensor, ...], samples: list[int]) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self(features), torch.tensor(samples))}


class Backbone(nn.Module):
    """Returns constant maps, from "s16" to "s32"."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.maps.values())


class Network(BaseModel):
    """The structure that the toolkits' models share: the loss is computed from `extract_feat`."""

    with_neck = False

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)  # of the layers of the subclasses
        self.backbone = Backbone(maps)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Classifier(Network):
    """As mmpretrain's ImageClassifier: its head reads the pooled last map."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__(maps)
        self.head = Head()

    def extract_feat(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.backbone(x)[-1].mean((2, 3)),)

    def loss(self, inputs: Tensor, samples: list[int]) -> dict[str, Tensor]:
        return self.head.loss(self.extract_feat(inputs), samples)


class Neck(nn.Module):
    """BatchNorm on the last map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (*maps[:-1], self.norm(maps[-1]))


class Segmenter(Network):
    """As mmseg's models: a neck, dropout, and a linear classifier at every position.

    Args:
        maps: what the backbone returns.
        read: positions of the maps that the classifier reads.
    """

    with_neck = True

    def __init__(self, maps: dict[str, Tensor], read: tuple[int, ...]) -> None:
        super().__init__(maps)
        channels = [x.shape[1] for x in maps.values()]
        self.neck, self.read = Neck(channels[-1]), read
        self.decode_head = nn.Conv2d(sum(channels[i] for i in read), CLASSES, 1)

    def extract_feat(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.backbone(x))

    def loss(self, inputs: Tensor, samples: list[int]) -> dict[str, Tensor]:
        maps = self.extract_feat(inputs)
        scores = self.decode_head(F.dropout(torch.cat([maps[i] for i in self.read], 1), 0.5))
        labels = torch.tensor(samples)[:, None, None].expand(-1, SIDE, SIDE)
        # mmseg's losses contain an accuracy, which is not added.
        return {"decode.loss_ce": F.cross_entropy(scores, labels), "decode.acc": scores.mean()}


def random_maps(levels: dict[str, int] = LEVELS) -> dict[str, Tensor]:
    """Random maps of a batch, with gradient, of these levels with their channels."""
    g = torch.Generator().manual_seed(1)
    return {
        k: torch.randn(B, c, SIDE, SIDE, generator=g, dtype=torch.float64).requires_grad_()
        for k, c in levels.items()
    }


def attached(
    folder: Path, model: Any, levels: dict[str, int] = LEVELS
) -> tuple[PrototypeAugmentation, Any, TransferContext]:
    """(the method with prototypes of these levels, the model in float64, the batch).

    The model has computed its own loss of the batch.
    """
    write_pretraining(path := folder / PRETRAINED, levels)
    torch.manual_seed(0)
    maps = {k: {"channels": c, "stride": int(k[1:])} for k, c in LEVELS.items()}
    method = PrototypeAugmentation(maps, str(path), AUGMENTED, WEIGHT, TAU)
    method.attach(model, None)
    method, model = method.double(), model.double()
    inputs, samples = torch.zeros(B, 3, 8, 8, dtype=torch.float64), [2, 0]
    losses = model.loss(inputs, samples)
    return method, model, TransferContext(inputs, samples, model.backbone.maps, task_losses=losses)


def with_random_augmenters(method: PrototypeAugmentation) -> PrototypeAugmentation:
    """The method, with weights as after some steps."""
    for layer in method.augmenters.values():
        nn.init.normal_(layer.get_parameter("weight"))
    return method


def dot(a: Any, b: Any) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: Any, b: Any) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def reconstructed(method: PrototypeAugmentation, level: str, ctx: TransferContext) -> Any:
    """(r[n][i][j], |v - r|^2 of image n) of a level, number by number; r: prototypes, averaged."""
    phi, p = method.projectors[level], method.prototypes[level].tolist()
    weight, bias = phi.get_parameter("weight").flatten(1).tolist(), phi.get_parameter("bias")
    r: list[Any] = [[[[] for _ in range(SIDE)] for _ in range(SIDE)] for _ in range(B)]
    squared = [0.0] * B
    for n, sample in enumerate(ctx.maps[level].tolist()):
        for i in range(SIDE):
            for j in range(SIDE):
                f = [channel[i][j] for channel in sample]
                v = [dot(row, f) + b for row, b in zip(weight, bias.tolist(), strict=True)]
                v = [x / math.sqrt(dot(v, v)) for x in v]  # projected, of length 1
                e = [math.exp(cosine(v, pk) / TAU) for pk in p]
                # Weighted by the softmax of the cosines.
                mean = [sum(e[k] * p[k][c] for k in range(K)) / sum(e) for c in range(CT)]
                squared[n] += sum((a - b) ** 2 for a, b in zip(v, mean, strict=True)) / SIDE**2
                r[n][i][j] = mean
    return r, squared


def augmenter(method: PrototypeAugmentation, level: str) -> list[list[float]]:
    """The rows of W_l."""
    return method.augmenters[level].get_parameter("weight").flatten(1).tolist()


def augmented_pooled(method: PrototypeAugmentation, ctx: TransferContext) -> list[list[float]]:
    """f' of a classifier, number by number."""
    features = [x.mean((1, 2)).tolist() for x in ctx.maps["s32"]]
    for level in LEVELS:
        r, w = reconstructed(method, level, ctx)[0], augmenter(method, level)
        for n in range(B):
            positions = [r[n][i][j] for i in range(SIDE) for j in range(SIDE)]
            mean = [sum(column) / SIDE**2 for column in zip(*positions, strict=True)]
            features[n] = [x + dot(row, mean) for x, row in zip(features[n], w, strict=True)]
    return features


def augmented_map(method: PrototypeAugmentation, level: str, ctx: TransferContext) -> Tensor:
    """F'_l of a detector or segmenter, number by number."""
    r, w = reconstructed(method, level, ctx)[0], augmenter(method, level)
    out = ctx.maps[level].tolist()
    for n in range(B):
        for c, row in enumerate(w):
            for i in range(SIDE):
                for j in range(SIDE):
                    out[n][c][i][j] += dot(row, r[n][i][j])
    return torch.tensor(out, dtype=torch.float64)


def distances(method: PrototypeAugmentation, ctx: TransferContext) -> list[float]:
    """The weighted sums over the levels of |v - r|^2, by image."""
    by_level = [reconstructed(method, level, ctx)[1] for level in LEVELS]
    return [WEIGHT * sum(column) for column in zip(*by_level, strict=True)]


def cross_entropy(model: Classifier, features: Any, labels: tuple[int, ...]) -> float:
    """The mean cross-entropy of the classifier for these features, number by number."""
    weight, bias = model.head.fc.weight.tolist(), model.head.fc.bias.tolist()
    total = 0.0
    for f, label in zip(features, labels, strict=True):
        scores = [dot(row, f) + b for row, b in zip(weight, bias, strict=True)]
        total += math.log(sum(map(math.exp, scores))) - scores[label]
    return total / len(features)


def test_the_losses_of_a_classifier_equal_the_formula_in_float64(tmp_path: Path):
    method, model, ctx = attached(tmp_path, Classifier(random_maps()))
    terms = with_random_augmenters(method).losses(ctx)
    plain = cross_entropy(model, ctx.maps["s32"].mean((2, 3)).tolist(), (2, 0))
    assert ctx.task_losses["loss"].item() == pytest.approx(plain)
    difference = cross_entropy(model, augmented_pooled(method, ctx), (2, 0)) - plain
    assert terms["augmented"].item() == pytest.approx(AUGMENTED * difference)
    assert terms["prototypes"].tolist() == pytest.approx(distances(method, ctx))


def test_the_losses_of_a_segmenter_equal_the_formula_in_float64(tmp_path: Path):
    """The maps are augmented at every position. Both passes have the same dropout.

    The second pass does not change the running statistics or the random numbers that follow.
    """
    method, model, ctx = attached(tmp_path, Segmenter(random_maps(), (0, 1)))
    with_random_augmenters(method)
    torch.manual_seed(5)
    losses = model.loss(ctx.inputs, ctx.samples)
    ctx = TransferContext(ctx.inputs, ctx.samples, ctx.maps, task_losses=losses)
    running = {k: v.clone() for k, v in model.neck.norm.state_dict().items()}
    generator = torch.get_rng_state()
    terms = method.losses(ctx)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(v, running[k]) for k, v in model.neck.norm.state_dict().items())

    def task_loss(s16: Tensor, s32: Tensor) -> float:
        mean, variance = s32.mean((0, 2, 3), keepdim=True), s32.var((0, 2, 3), False, keepdim=True)
        x = torch.cat([s16, (s32 - mean) / (variance + 1e-5).sqrt()], 1)
        torch.manual_seed(5)
        mask = F.dropout(torch.ones_like(x), 0.5)  # 0 or 2
        weight, bias = model.decode_head.weight.flatten(1), model.decode_head.bias
        scores = torch.einsum("kc,bchw->bhwk", weight, mask * x) + bias
        log_p = scores - scores.exp().sum(3, keepdim=True).log()
        return -torch.stack([log_p[0, ..., 2], log_p[1, ..., 0]]).mean().item()

    plain = task_loss(ctx.maps["s16"], ctx.maps["s32"])
    assert losses["decode.loss_ce"].item() == pytest.approx(plain)
    changed = task_loss(*(augmented_map(method, level, ctx) for level in ("s16", "s32")))
    assert abs(changed - plain) > 0.01
    assert terms["augmented"].item() == pytest.approx(AUGMENTED * (changed - plain))
    assert terms["prototypes"].tolist() == pytest.approx(distances(method, ctx))


def test_only_levels_that_the_backbone_returns_are_augmented(tmp_path: Path):
    """The backbone of a C4 detector has no map of stride 32."""
    model = Segmenter(random_maps({"s16": 3}), (0,))
    method, model, ctx = attached(tmp_path, model)
    terms = with_random_augmenters(method).losses(ctx)
    assert terms["augmented"].item() != 0
    expected = [WEIGHT * d for d in reconstructed(method, "s16", ctx)[1]]
    assert terms["prototypes"].tolist() == pytest.approx(expected)


def test_a_task_whose_heads_read_no_augmented_level_is_refused(tmp_path: Path):
    """Otherwise the training would be that of the task, under the name of the method."""
    model = Segmenter(random_maps(), (1,))  # reads s32
    method, _, ctx = attached(tmp_path, model, {"s16": 3})
    with pytest.raises(KdepError, match="reads a level that has prototypes: s16"):
        method.losses(ctx)


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_with_augmenters_of_zero_and_no_weight_the_training_is_that_of_the_task(
    kind: str, tmp_path: Path
):
    """This is the state in the first step. Only the augmenters get a gradient from the method."""
    maps = random_maps()
    a_model = Classifier(maps) if kind == "classifier" else Segmenter(maps, (0, 1))
    method, model, ctx = attached(tmp_path, a_model)
    method.weight = 0.0
    terms = method.losses(ctx)
    assert terms["augmented"].item() == 0
    total = terms["augmented"] + terms["prototypes"].mean()
    tensors: list[Tensor] = [*maps.values(), *model.parameters()]
    gradients = torch.autograd.grad(total, tensors, retain_graph=True)
    assert max(float(g.abs().max()) for g in gradients) < 1e-7
    weights = [layer.get_parameter("weight") for layer in method.augmenters.values()]
    assert all(bool(g.any()) for g in torch.autograd.grad(total, weights))


def test_only_student_classifier_and_augmenters_learn(tmp_path: Path):
    method, model, ctx = attached(tmp_path, Classifier(random_maps()))
    terms = method.losses(ctx)
    (terms["augmented"] + terms["prototypes"].mean()).backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {f"augmenters.{level}.weight" for level in LEVELS}
    assert all(x.grad is not None for x in (*ctx.maps.values(), *model.parameters()))


@pytest.mark.parametrize(
    ("channels", "message"),
    [({}, "has no prototypes"), ({"s32": 7}, "level s32 of 7 channels"), ({"s4": 3}, "level s4")],
)
def test_a_pre_training_that_does_not_fit_is_refused(
    channels: dict[str, int], message: str, tmp_path: Path
):
    write_pretraining(path := tmp_path / PRETRAINED, channels)
    maps = {k: {"channels": c, "stride": int(k[1:])} for k, c in LEVELS.items()}
    with pytest.raises(KdepError, match=message):
        PrototypeAugmentation(maps, str(path))


HEADS = {
    "smoke_finetune": {"head"},
    "smoke_seg": {"decode_head", "auxiliary_head"},
    "smoke_det": {"neck", "rpn_head", "roi_head"},
}


@pytest.mark.e2e
@pytest.mark.parametrize("name", HEADS)
def test_a_task_is_learned_with_prototypes_and_only_its_model_is_saved(
    name, data, exported, student, tmp_path, in_subprocess
):
    write_pretraining(tmp_path / PRETRAINED, {"s16": 128, "s32": 256})
    changes = {"transfer": {"type": f"{METHODS}.PrototypeAugmentation"}, "keep_model": True}
    task = config("tasks", name)
    short = dict(batch=16, test_batch=48) if name == "smoke_finetune" else dict(iters=3, warmup=1)
    task["recipe"].update(short)
    if (
        name == "smoke_seg"
    ):  # in three steps of its rate, the loss changes by less than float32's eps
        task["recipe"].update(lr=0.5)
    call = (student, data, exported, tmp_path / "a", changes, None, task, None, tmp_path)
    outputs = in_subprocess(run, *call)
    curves = {k.removeprefix("transfer.loss_"): dict(v) for k, v in outputs["curves"].items()}
    assert set(curves) == {"loss", "augmented", "prototypes"}
    assert curves["augmented"][1] == 0  # the augmenters begin at 0
    assert curves["augmented"][3] != 0
    assert curves["prototypes"][3] != curves["prototypes"][1]
    assert outputs["gate"]["coverage"] == 1.0
    saved = {k.partition(".")[0] for k in read_tensors(tmp_path / "a" / MODEL)}
    assert saved == {"backbone"} | HEADS[name]
    # Per level: prototypes, projector with bias, augmenter to the pooled feature or to the map.
    pooled = name == "smoke_finetune"
    parameters = sum(K * CT + (c + 1) * CT + CT * (256 if pooled else c) for c in (128, 256))
    assert outputs["transfer"] == {"extra_parameters": parameters, "extra_forwards": 0}


FINETUNE: dict[str, Any] = dict(tasks=["smoke_finetune"])


def test_the_plan_accepts_classification_detection_and_segmentation():
    a_plan = plan("proc_kd_transfer", tasks=list(HEADS))
    assert {run.task["name"] for run in a_plan.runs} == set(HEADS)


def test_the_plan_reads_the_prototypes_of_the_student_s_own_pre_training():
    a_plan = plan("proc_kd", "proc_kd_transfer", **FINETUNE)
    plain, augmented = (
        next(r for r in a_plan.runs if (r.method.get("transfer") is None) == is_plain)
        for is_plain in (True, False)
    )
    assert plain.chain["pretrain"] == augmented.chain["pretrain"]
    stage = a_plan.stages[augmented.id]
    assert stage.needs["pretrain"] == augmented.chain["pretrain"]
    assert "pretrain" not in a_plan.stages[plain.id].needs
    assert "teacher" not in stage.needs


@pytest.mark.parametrize(
    ("change", "suite", "message"),
    [
        (dict(pretrained_by="scratch"), FINETUNE, "its student is not pre-trained"),
        (dict(pretrained_by="fitnets"), FINETUNE, "is pre-trained with .*Hints; expected"),
        ({}, dict(tasks=["smoke_probe"]), "does not support the task 'smoke_probe'"),
        (dict(transfer=dict(augmented=1.5)), FINETUNE, "augmented = 1.5"),
        (
            dict(transfer=dict(teacher=dict(student="resnet18_w48", method="scratch"))),
            FINETUNE,
            "has a `teacher` but reads none",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_the_plan(change: Any, suite: Any, message: str):
    with pytest.raises(KdepError, match=message):
        plan(dict(base="proc_kd_transfer", name="changed", **change), **suite)
