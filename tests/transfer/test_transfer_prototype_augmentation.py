"""ProC-KD at transfer: losses in float64, real stages, and what the plan refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
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


class Classifier(nn.Module):
    """The part of an ImageClassifier that the method reads."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()


def built(folder: Path, **arguments: Any) -> tuple[PrototypeAugmentation, Classifier]:
    """(the method with the prototypes of `write_pretraining`, a model to which it is attached)."""
    write_pretraining(path := folder / PRETRAINED, LEVELS)
    torch.manual_seed(0)
    maps = {k: {"channels": c, "stride": int(k[1:])} for k, c in LEVELS.items()}
    method = PrototypeAugmentation(maps, str(path), AUGMENTED, WEIGHT, TAU, **arguments)
    model = Classifier()
    method.attach(model, None)
    return method.double(), model.double()


def context(model: Classifier) -> TransferContext:
    """Random maps of a batch, after the model's own loss."""
    g = torch.Generator().manual_seed(1)
    maps = {
        k: torch.randn(B, c, SIDE, SIDE, generator=g, dtype=torch.float64).requires_grad_()
        for k, c in LEVELS.items()
    }
    samples = [2, 0]
    losses = model.head.loss((maps["s32"].mean((2, 3)),), samples)
    inputs = torch.zeros(B, 3, 8, 8, dtype=torch.float64)
    return TransferContext(inputs, samples, maps, task_losses=losses)


def dot(a: Any, b: Any) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: Any, b: Any) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def reference(method: PrototypeAugmentation, model: Classifier, ctx: TransferContext) -> Any:
    """(augmented feature, squared distances) of every sample, number by number."""
    features = [x.mean((1, 2)).tolist() for x in ctx.maps["s32"]]
    distances = [0.0] * B
    for level in LEVELS:
        phi, layer = method.projectors[level], method.augmenters[level]
        weight, bias = phi.get_parameter("weight").flatten(1).tolist(), phi.get_parameter("bias")
        w, p = layer.get_parameter("weight").tolist(), method.prototypes[level].tolist()
        for n, sample in enumerate(ctx.maps[level].tolist()):
            mean = [0.0] * CT
            for i in range(SIDE):
                for j in range(SIDE):
                    f = [channel[i][j] for channel in sample]
                    v = [dot(row, f) + b for row, b in zip(weight, bias.tolist(), strict=True)]
                    v = [x / math.sqrt(dot(v, v)) for x in v]  # projected, of length 1
                    e = [math.exp(cosine(v, pk) / TAU) for pk in p]
                    # The mean of the prototypes, weighted by the softmax of the cosines.
                    r = [sum(e[k] * p[k][c] for k in range(K)) / sum(e) for c in range(CT)]
                    mean = [m + x / SIDE**2 for m, x in zip(mean, r, strict=True)]
                    distances[n] += sum((a - b) ** 2 for a, b in zip(v, r, strict=True)) / SIDE**2
            features[n] = [x + dot(row, mean) for x, row in zip(features[n], w, strict=True)]
    return features, distances


def cross_entropy(model: Classifier, features: Any, labels: tuple[int, ...]) -> float:
    """The mean cross-entropy of the classifier for these features, number by number."""
    weight, bias = model.head.fc.weight.tolist(), model.head.fc.bias.tolist()
    total = 0.0
    for f, label in zip(features, labels, strict=True):
        scores = [dot(row, f) + b for row, b in zip(weight, bias, strict=True)]
        total += math.log(sum(map(math.exp, scores))) - scores[label]
    return total / len(features)


def test_the_losses_equal_the_formula_in_float64(tmp_path: Path):
    method, model = built(tmp_path)
    for layer in method.augmenters.values():
        nn.init.normal_(layer.get_parameter("weight"))
    ctx = context(model)
    features, distances = reference(method, model, ctx)
    terms = method.losses(ctx)
    plain = cross_entropy(model, ctx.maps["s32"].mean((2, 3)).tolist(), (2, 0))
    assert ctx.task_losses["loss"].item() == pytest.approx(plain)
    difference = cross_entropy(model, features, (2, 0)) - plain
    assert terms["augmented"].item() == pytest.approx(AUGMENTED * difference)
    assert terms["prototypes"].tolist() == pytest.approx([WEIGHT * d for d in distances])


def test_with_augmenters_of_zero_and_no_weight_the_training_is_the_task_s(tmp_path: Path):
    """This is the state in the first step. Only the augmenters get a gradient from the method."""
    method, model = built(tmp_path)
    method.weight = 0.0
    ctx = context(model)
    terms = method.losses(ctx)
    assert terms["augmented"].item() == 0
    total = terms["augmented"] + terms["prototypes"].mean()
    tensors: list[Tensor] = [*ctx.maps.values(), *model.head.parameters()]
    gradients = torch.autograd.grad(total, tensors, retain_graph=True)
    assert max(float(g.abs().max()) for g in gradients) < 1e-7
    weights = [layer.get_parameter("weight") for layer in method.augmenters.values()]
    assert all(bool(g.any()) for g in torch.autograd.grad(total, weights))


def test_only_student_classifier_and_augmenters_learn(tmp_path: Path):
    method, model = built(tmp_path)
    ctx = context(model)
    terms = method.losses(ctx)
    (terms["augmented"] + terms["prototypes"].mean()).backward()
    trained = {name for name, p in method.named_parameters() if p.grad is not None}
    assert trained == {f"augmenters.{level}.weight" for level in LEVELS}
    assert all(x.grad is not None for x in ctx.maps.values())


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


@pytest.mark.e2e
def test_a_classifier_learns_with_prototypes_and_only_the_task_s_model_is_saved(
    data, exported, student, tmp_path, in_subprocess
):
    write_pretraining(tmp_path / PRETRAINED, {"s16": 128, "s32": 256})
    changes = {"transfer": {"type": f"{METHODS}.PrototypeAugmentation"}, "keep_model": True}
    task = config("tasks", "smoke_finetune")
    task["recipe"].update(batch=16, test_batch=48)
    call = (student, data, exported, tmp_path / "a", changes, None, task, None, tmp_path)
    outputs = in_subprocess(run, *call)
    curves = {k.removeprefix("transfer.loss_"): dict(v) for k, v in outputs["curves"].items()}
    assert set(curves) == {"loss", "augmented", "prototypes"}
    assert curves["augmented"][1] == 0  # the augmenters begin at 0
    assert curves["augmented"][3] != 0
    assert curves["prototypes"][3] != curves["prototypes"][1]
    assert outputs["gate"]["coverage"] == 1.0
    saved = {k.partition(".")[0] for k in read_tensors(tmp_path / "a" / MODEL)}
    assert saved == {"backbone", "head"}
    # Per level: prototypes, projector with bias, augmenter.
    parameters = sum(K * CT + (c + 1) * CT + CT * 256 for c in (128, 256))
    assert outputs["transfer"] == {"extra_parameters": parameters, "extra_forwards": 0}


FINETUNE: dict[str, Any] = dict(tasks=["smoke_finetune"])


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
        ({}, {}, "does not support the task 'smoke_seg'"),
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
