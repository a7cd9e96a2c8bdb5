"""The second stages, on a task, of TinyBERT (distillation of transformers) and DisCo (contrast)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL, TransferContext
from kdep_bench.transfer.methods.supervised_contrastive import (
    SupervisedContrastive,
    supervised_contrast,
)
from kdep_bench.transfer.methods.transformer_distillation import (
    TransformerDistillation,
    soft_cross_entropy,
)
from tests.suite.test_suite_transfer_methods import plan
from tests.transfer.conftest import config, export_random
from tests.transfer.test_transfer_methods import run

METHODS = "kdep_bench.transfer.methods"
TIMM = "kdep_bench.students.timm_backbone.TimmBackbone"
PX, CLASSES = 32, 3


# ---- the supervised contrastive loss ----


def test_the_contrastive_loss_equals_the_formula():
    g = torch.Generator().manual_seed(0)
    features = torch.randn(5, 4, generator=g, dtype=torch.float64)
    labels, tau = [0, 1, 0, 2, 0], 0.3  # image 1 and image 3 have no other image of their class
    unit = [[x / math.hypot(*f) for x in f] for f in features.tolist()]

    def similarity(i: int, j: int) -> float:
        return math.exp(sum(a * b for a, b in zip(unit[i], unit[j], strict=True)) / tau)

    expected = []
    for i in range(5):
        total = sum(similarity(i, a) for a in range(5) if a != i)
        positives = [p for p in range(5) if p != i and labels[p] == labels[i]]
        losses = [-math.log(similarity(i, p) / total) for p in positives]
        expected.append(sum(losses) / len(losses) if losses else 0.0)
    loss = supervised_contrast(features, torch.tensor(labels), tau)
    assert loss.tolist() == pytest.approx(expected)
    assert expected[1] == expected[3] == 0


def test_equal_features_have_the_loss_of_a_random_choice():
    loss = supervised_contrast(torch.ones(6, 3), torch.zeros(6).long(), 0.3)
    assert loss.tolist() == pytest.approx([math.log(5)] * 6)


def test_a_batch_of_one_image_has_no_contrastive_loss_and_finite_gradients():
    features = torch.randn(1, 3).requires_grad_()
    loss = supervised_contrast(features, torch.tensor([1]), 0.3)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert features.grad is not None
    assert not features.grad.isnan().any()


class Classifier(nn.Module):
    """The parts of an ImageClassifier that the methods read, with a network of timm."""

    def __init__(self, student: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = build_backbone(student)
        self.head = Head(student["width"])

    def forward(self, images: Tensor, mode: str = "tensor") -> Tensor:
        return self.head(tuple(x.mean((2, 3)) for x in self.backbone(images)))


class Head(nn.Module):
    """A linear classifier that reads the last feature, as mmpretrain's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.fc(features[-1])


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_task_and_contrastive_loss_are_weighted_to_one(weight: float):
    method = SupervisedContrastive(weight=weight)
    model: Any = nn.Module()
    model.head = Head(4)
    method.attach(model, None)
    features = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    model.head((features,))
    samples = [SimpleNamespace(gt_label=torch.tensor([k])) for k in (0, 1, 1, 0)]
    task_loss = torch.tensor(2.0)
    terms = method.losses(TransferContext(features, samples, {}, task_losses={"loss": task_loss}))
    contrast = supervised_contrast(features, torch.tensor([0, 1, 1, 0]), method.tau).mean()
    total = task_loss + terms["contrast"].mean() + terms["task"]
    assert float(total) == pytest.approx(float((1 - weight) * 2 + weight * contrast))
    assert method.finish(model) == {}
    model.head((features,))
    assert not method._features  # nothing is recorded after the training


# ---- TinyBERT ----


def vit(width: int, depth: int, **change: Any) -> dict[str, Any]:
    """The config of a small ViT with four patches."""
    backbone = dict(
        type=TIMM,
        model="vit_tiny_patch16_224",
        dynamic_img_size=True,
        embed_dim=width,
        depth=depth,
        num_heads=2,
    )
    return dict(name="vit", backbone=backbone, width=width, input_px=PX, tap="output", **change)


def attached(**options: Any) -> tuple[TransformerDistillation, Classifier, Classifier]:
    """(method, student of two blocks, teacher of four) with random weights."""
    torch.manual_seed(0)
    student, teacher = Classifier(vit(8, 2)), Classifier(vit(12, 4)).eval()
    method = TransformerDistillation(**options)
    method.attach(student, teacher)
    return method, student, teacher


def losses_at(
    method: TransformerDistillation, student: Classifier, step: int, steps: int
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(loss terms of a batch in this step, the student's class scores, the batch)."""
    images = torch.randn(2, 3, PX, PX, generator=torch.Generator().manual_seed(step))
    scores = student(images)
    ctx = TransferContext(
        images, [], {}, step=step, steps=steps, task_losses={"loss": scores.square().sum()}
    )
    return method.losses(ctx), scores, images


def test_layers_are_distilled_first_and_class_probabilities_afterwards():
    method, student, _ = attached(intermediate=0.7)
    steps = 10
    for step in range(steps):
        terms, _, _ = losses_at(method, student, step, steps)
        is_first_part = step < 7
        for name in ("attention", "hidden", "embedding"):
            assert (float(terms[name].detach().sum()) > 0) == is_first_part
        assert (float(terms["prediction"].detach().sum()) > 0) != is_first_part
    assert method.finish(student) == {"prediction_steps": 3}
    assert method.extra_images == 2 * steps


def test_the_prediction_loss_is_the_cross_entropy_with_the_teacher_s_probabilities():
    method, student, teacher = attached(intermediate=0.0, tau=2.0)
    terms, scores, images = losses_at(method, student, 0, 1)
    teacher_scores = teacher(images).tolist()
    expected = []
    for s, t in zip(scores.tolist(), teacher_scores, strict=True):
        e, f = ([math.exp(x / 2) for x in row] for row in (s, t))
        expected.append(-sum(b / sum(f) * math.log(a / sum(e)) for a, b in zip(e, f, strict=True)))
    assert terms["prediction"].tolist() == pytest.approx(expected, rel=1e-5)


def test_equal_class_scores_have_the_entropy_as_prediction_loss():
    scores = torch.zeros(2, 4)
    assert soft_cross_entropy(scores, scores, 1.0).tolist() == pytest.approx([math.log(4)] * 2)


@pytest.mark.parametrize("labels", [0.0, 1.0])
def test_labels_count_with_their_weight(labels: float):
    method, student, _ = attached(labels=labels)
    terms, scores, _ = losses_at(method, student, 0, 2)
    task_loss = float(scores.square().sum())
    assert task_loss + float(terms["task"]) == pytest.approx(labels * task_loss, abs=1e-6)


def test_every_parameter_of_student_and_method_has_a_gradient_in_both_parts():
    """Training over several processes stops if a parameter has none."""
    for step in (0, 1):
        method, student, teacher = attached(intermediate=0.5)
        terms, scores, _ = losses_at(method, student, step, 2)
        (scores.square().sum() + sum(t.mean() for t in terms.values())).backward()
        parameters = [*student.named_parameters(), *method.named_parameters()]
        assert [name for name, p in parameters if p.grad is None] == []
        assert not [p for p in teacher.parameters() if p.grad is not None]


def test_the_weights_of_attention_hidden_states_and_embedding_switch_them_off():
    for name in ("attention", "hidden", "embedding"):
        method, student, _ = attached(**{name: 0.0})
        terms, _, _ = losses_at(method, student, 0, 2)
        zero = {k for k in ("attention", "hidden", "embedding") if not terms[k].any()}
        assert zero == {name}


def test_identical_networks_have_no_loss_of_layers():
    torch.manual_seed(0)
    network = Classifier(vit(8, 2)).eval()
    method = TransformerDistillation()
    method.attach(network, network)
    method.layers.projector.weight.data = torch.eye(8)
    method.layers.projector.bias.data.zero_()
    terms, _, _ = losses_at(method, network, 0, 2)
    for name in ("attention", "hidden", "embedding"):
        assert float(terms[name].abs().max()) < 1e-10


@pytest.mark.e2e
def test_both_stages_run_and_only_the_task_s_model_is_saved(data, tmp_path, in_subprocess):
    student, teacher = vit(16, 2), vit(24, 4)
    task = config("tasks", "smoke_finetune")
    task["recipe"].update(batch=16, test_batch=48)
    folders = {}
    for name, network in (("student", student), ("teacher", teacher)):
        in_subprocess(export_random, network, tmp_path / name)
        folders[name] = tmp_path / name / "export"
    call = (teacher, data, folders["teacher"], tmp_path / "tuned", {"keep_model": True}, None, task)
    in_subprocess(run, *call)
    changes = {
        "transfer": {
            "type": f"{METHODS}.transformer_distillation.TransformerDistillation",
            "intermediate": 0.5,
        },
        "teacher": teacher,
        "keep_model": True,
    }
    call = (student, data, folders["student"], tmp_path / "a", changes, tmp_path / "tuned", task)
    outputs = in_subprocess(run, *call)
    curves = {k.removeprefix("transfer.loss_"): dict(v) for k, v in outputs["curves"].items()}
    steps = sorted(curves["hidden"])
    assert curves["hidden"][steps[0]] > 0 == curves["hidden"][steps[-1]]
    assert curves["prediction"][steps[0]] == 0 < curves["prediction"][steps[-1]]
    assert outputs["transfer"]["prediction_steps"] == len(steps) // 2
    assert outputs["gate"]["coverage"] == 1.0
    saved = {k.partition(".")[0] for k in read_tensors(tmp_path / "a" / MODEL)}
    assert saved == {"backbone", "head"}


@pytest.mark.e2e
def test_a_classifier_is_fine_tuned_with_the_contrastive_loss(
    data, exported, student, tmp_path, in_subprocess
):
    changes = {"transfer": {"type": f"{METHODS}.supervised_contrastive.SupervisedContrastive"}}
    task = config("tasks", "smoke_finetune")
    task["recipe"].update(batch=16, test_batch=48)
    outputs = in_subprocess(run, student, data, exported, tmp_path / "a", changes, None, task)
    curves = {k.removeprefix("transfer.loss_"): v for k, v in outputs["curves"].items()}
    assert set(curves) == {"loss", "contrast", "task"}
    for (_, task_loss), (_, term) in zip(curves["loss"], curves["task"], strict=True):
        assert task_loss > 0 > term
    assert outputs["transfer"] == {"extra_parameters": 0, "extra_forwards": 0}


# ---- what the plan refuses ----

FINETUNE: dict[str, Any] = dict(tasks=["smoke_finetune"])
VIT: dict[str, Any] = dict(students=[dict(base="vit_t", input_px=64)], **FINETUNE)
TINYBERT: dict[str, Any] = dict(
    base="tinybert_transfer", transfer=dict(teacher=dict(student=dict(input_px=64)))
)


def with_teacher(backbone: dict[str, Any] | None = None, **change: Any) -> dict[str, Any]:
    """tinybert_transfer for 64 px, with changes of the teacher's backbone or of `transfer`."""
    size = {"input_px": 64, "width": 384}
    model = {"model": "vit_small_patch16_224", **(backbone or {})}
    student = {"_delete_": True, "base": "vit_t", "name": "vit_s", "backbone": model, **size}
    transfer = {"teacher": {"student": student}, **change}
    return {"base": "tinybert_transfer", "name": "changed", "transfer": transfer}


def test_the_configs_are_planned():
    assert plan("ckd", "ckd_transfer", **FINETUNE).runs
    a_plan = plan(TINYBERT, **VIT)
    tuned = a_plan.stages[a_plan.stages[a_plan.runs[0].id].needs["teacher"]]
    assert tuned.spec["student"]["name"] == "vit_s"
    assert tuned.spec["keep_model"]
    assert plan(with_teacher(backbone=dict(model="deit_small_patch16_224")), **VIT).runs


@pytest.mark.parametrize(
    ("method", "suite", "message"),
    [
        (TINYBERT, FINETUNE, "none of its methods supports its students"),
        (dict(TINYBERT, students=None), FINETUNE, "the student 'resnet18_w32' is not a vision"),
        (
            with_teacher(backbone=dict(_delete_=True, type=TIMM, depth=18)),
            VIT,
            "18 blocks cannot be divided over the 12",
        ),
        (with_teacher(backbone=dict(model="resnet18d")), VIT, "the teacher 'vit_s' is not a vis"),
        (with_teacher(backbone=dict(model="convit_base")), VIT, "the teacher 'vit_s' is not a vis"),
        (
            with_teacher(backbone=dict(model="vit_small_patch16_dinov3")),
            VIT,
            r"VisionTransformer \(its class is Eva\)",
        ),
        (
            with_teacher(backbone=dict(model="vit_small_patch32_224")),
            VIT,
            "the student have 16 pixels and those of the teacher 32",
        ),
        (with_teacher(average_heads=False), VIT, "the student has 3 and the teacher 6"),
        (with_teacher(intermediate=1.5), VIT, "intermediate = 1.5"),
        (with_teacher(), dict(VIT, tasks=["smoke_probe"]), "does not support the task 'smoke_p"),
        ("tinybert_transfer", VIT, "is trained on images of 224 pixels"),
        (dict(base="ckd_transfer", transfer=dict(tau=0.0)), FINETUNE, "tau = 0"),
        ("ckd_transfer", {}, "does not support the task 'smoke_seg'"),
        (
            "ckd_transfer",
            dict(FINETUNE, runtime=dict(processes=dict(transfer=2))),
            "cannot divide a training over processes",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_by_the_plan(method: Any, suite: Any, message: str):
    with pytest.raises(KdepError, match=message):
        plan(method, **suite)


def test_the_fix_for_a_teacher_with_another_image_size_works():
    with pytest.raises(KdepError, match="add input_px=64 to `student` in its `teacher`"):
        plan("tinybert_transfer", **VIT)
    assert plan(TINYBERT, **VIT).runs  # TINYBERT has this fix
