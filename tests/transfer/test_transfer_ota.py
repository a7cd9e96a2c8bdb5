"""OTA: its losses against their formulas, its generated images, and real stages without a pool.

OTA makes a classifier from few images of a task in three steps: IRF trains a teacher with a
contrastive loss, DIGG generates images through the teacher by gradient descent on pixels, guided by
the task's images, and OTA distils the teacher on both. The formulas are in the docstrings of the
modules `irf`, `digg` and `ota` in kdep_bench/transfer/methods.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor, nn

from kdep_bench.networks.running_statistics import unchanged_running_statistics
from kdep_bench.transfer.gate import read_tensors
from kdep_bench.transfer.method import MODEL, TransferContext
from kdep_bench.transfer.methods import digg
from kdep_bench.transfer.methods.irf import IRF, contrast, mask_patches
from kdep_bench.transfer.methods.ota import OTA, divergence
from tests.transfer.conftest import config, export_random
from tests.transfer.test_transfer_methods import interrupted, run, untimed

METHODS = "kdep_bench.transfer.methods"
# Settings of the generation, see `digg.Generation`.
SETTINGS = dict(images=48, steps=40, rate=0.05, statistics=1.0, guide=1.0, smooth=0.01)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    """A random float64 tensor that depends only on the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ---- formulas ----


def test_the_distillation_loss_is_the_divergence_of_the_formula():
    student, teacher, tau = random_tensor(3, 5), random_tensor(3, 5, seed=1), 4.0
    exponentials = [np.exp(x.numpy() / tau) for x in (teacher, student)]
    p, q = (x / x.sum(1, keepdims=True) for x in exponentials)
    expected = tau**2 * (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(divergence(student, teacher, tau), expected, rtol=1e-10)
    assert divergence(teacher, teacher, tau).abs().max() < 1e-12


def test_the_contrastive_loss_is_that_of_the_formula_and_lower_for_equal_views():
    """Rows i and i + 3 are the features of the two views of image i."""
    features, temperature = random_tensor(6, 4), 0.3
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    exponentials = np.exp(unit @ unit.T / temperature)
    np.fill_diagonal(exponentials, 0)
    per_view = [-np.log(exponentials[i, (i + 3) % 6] / exponentials[i].sum()) for i in range(6)]
    expected = [(per_view[i] + per_view[i + 3]) / 2 for i in range(3)]
    np.testing.assert_allclose(contrast(features, temperature), expected, rtol=1e-10)
    equal_views = torch.cat([features[:3], features[:3]])
    views_of_other_images = torch.cat([features[:3], features[[1, 2, 0]]])
    losses = [contrast(x, temperature).mean() for x in (equal_views, views_of_other_images)]
    assert losses[0] < losses[1]


def test_masked_patches_are_squares_of_the_mean_colour():
    """In normalised values the mean colour is 0; the images are 1."""
    torch.manual_seed(0)
    masked = mask_patches(torch.ones(200, 3, 20, 12), 0.3, 8)
    assert set(masked.unique().tolist()) == {0.0, 1.0}
    patches = masked[:, :, :16, :8].unfold(2, 8, 8).unfold(3, 8, 8)  # the complete ones
    assert set(patches.mean((1, -1, -2)).unique().tolist()) == {0.0, 1.0}
    assert 1 - patches.mean().item() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(mask_patches(torch.ones(2, 3, 8, 8), 0.0, 8), torch.ones(2, 3, 8, 8))


def test_the_terms_of_the_generation_are_those_of_the_formula():
    """S compares BatchNorm statistics, the guide term features, TV (total variation) neighbours."""
    x = random_tensor(4, 3, 5, 6)
    norm = nn.BatchNorm2d(3).double().eval()
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    variance.copy_(torch.tensor([0.5, 2.0, 1.0]))
    pixels = x.numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    std = np.sqrt(variance.numpy() + norm.eps)
    shift = (pixels.mean(1) - mean.numpy()) / std
    scale = np.sqrt(pixels.var(1) + norm.eps) / std - 1
    expected = (shift**2 + scale**2).mean()
    assert digg.statistics_loss(x, norm).item() == pytest.approx(expected, rel=1e-10)
    feature, guide = random_tensor(4, 7), random_tensor(4, 7, seed=1)
    squared_error = ((feature - guide).numpy() ** 2).sum(1).mean()
    expected = squared_error / (guide.numpy() ** 2).sum(1).mean()
    assert digg.guide_loss(feature, guide).item() == pytest.approx(expected, rel=1e-10)
    rows, columns = (np.abs(np.diff(x.numpy(), axis=axis)).mean() for axis in (2, 3))
    assert digg.total_variation(x).item() == pytest.approx(rows + columns, rel=1e-10)


# ---- generated images ----


class Teacher(nn.Module):
    """A small network with BatchNorm, with the interface of mmpretrain's ImageClassifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
        )

    def extract_feat(self, x: Tensor, stage: str) -> tuple[Tensor]:
        """The pooled feature [B, 12]."""
        assert stage == "neck"
        return (self.layers(x).mean((2, 3)),)


def squares(count: int, seed: int) -> Tensor:
    """Images [count, 3, 16, 16] of a coloured square on a background of another colour."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 2, 3, 1, 1, generator=generator) * 2 - 1
    images = colours[:, 0].repeat(1, 1, 16, 16)
    images[:, :, 4:12, 4:12] = colours[:, 1]
    return images


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """A teacher whose running statistics are those of `squares`."""
    torch.manual_seed(0)
    network = Teacher().train()
    with torch.no_grad():
        for seed in range(100, 140):
            network.layers(squares(64, seed))
    return network.eval().requires_grad_(False)


def frechet(teacher: Teacher, first: Tensor, second: Tensor) -> float:
    """The Fréchet distance of the teacher's features of two sets of images."""
    with torch.no_grad():
        a, b = (teacher.extract_feat(x, "neck")[0].double().numpy() for x in (first, second))
    cov_a, cov_b = (np.cov(x, rowvar=False) + 1e-9 * np.eye(x.shape[1]) for x in (a, b))
    root = np.real(np.asarray(linalg.sqrtm(cov_a @ cov_b)))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def generate_images(teacher: Teacher, seed: int = 0, **changes: Any) -> Tensor:
    """48 images [48, 3, 16, 16], generated from noise with 24 guides; `changes` of SETTINGS."""
    torch.manual_seed(seed)
    settings = digg.Generation(**{**SETTINGS, "start": "noise", **changes})
    low, high = torch.full((3, 1, 1), -1.2), torch.full((3, 1, 1), 1.1)
    return digg.generate(teacher, squares(24, 1), low, high, settings)


def test_generated_images_are_nearer_to_the_task_s_images_than_noise(teacher):
    """Both if they begin as noise and as the task's images. They equal none of the task's images,
    and their values are in the range of pixel values."""
    noise = generate_images(teacher, steps=0)
    from_noise, from_images = generate_images(teacher), generate_images(teacher, start="images")
    of_noise, *distances = (
        frechet(teacher, squares(300, 7), images) for images in (noise, from_noise, from_images)
    )
    assert max(distances) < of_noise / 4
    for images in (from_noise, from_images):
        assert images.shape == (48, 3, 16, 16)
        assert -1.2 <= images.min() < images.max() <= 1.1 + 1e-6
        differences = (images[:, None] - squares(24, 1)).abs().flatten(2).mean(2)
        assert differences.min() > 0.05


def test_generation_depends_only_on_the_seed_and_leaves_the_teacher_unchanged(teacher):
    state = {k: v.clone() for k, v in teacher.state_dict().items()}
    first, second = generate_images(teacher), generate_images(teacher)
    assert torch.equal(first, second)
    assert not torch.equal(first, generate_images(teacher, seed=1))
    assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())
    assert not any(m._forward_pre_hooks for m in teacher.modules())


@pytest.mark.parametrize("term", ["statistics", "guide", "smooth"])
def test_each_term_changes_the_generated_images(teacher, term):
    without_term = generate_images(teacher, **{"steps": 3, term: 0.0})
    assert not torch.equal(generate_images(teacher, steps=3), without_term)


def test_a_teacher_without_batch_norm_generates_by_its_guides_alone():
    torch.manual_seed(0)
    network = Teacher()
    network.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU()).requires_grad_(False)
    with digg.batch_statistics(network) as losses:
        network.extract_feat(squares(2, 0), "neck")
    assert losses == []
    assert generate_images(network, steps=2).isfinite().all()


class Classifier(nn.Module):
    """An ImageClassifier of mmpretrain, reduced to what OTA calls."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.head = nn.Linear(12, 4)
        self.data_preprocessor = nn.Module()
        self.data_preprocessor.mean = torch.full((3, 1, 1), 127.5)
        self.data_preprocessor.std = torch.full((3, 1, 1), 127.5)

    def extract_feat(self, x: Tensor, stage: str = "neck") -> tuple[Tensor]:
        """The pooled feature [B, 12]."""
        return (self.body(x).mean((2, 3)),)

    def forward(self, x: Tensor, samples: Any = None, mode: str = "") -> Tensor:
        """The class scores [B, 4]."""
        assert mode == "tensor"
        return self.head(self.extract_feat(x)[0])


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_student_learns_its_teacher_s_scores_from_ota_s_terms_alone(shuffled):
    """If the teacher's scores are shuffled between the images, it does not learn them."""
    teacher = Classifier(1).eval().requires_grad_(False)
    teacher.head.weight.mul_(12)
    student, method = Classifier(2), OTA(tau=1.0, images=64, steps=3)
    method.attach(student, teacher)
    method.prepare(squares(32, 1))
    if shuffled:
        method.targets = method.targets[torch.randperm(len(method.targets))]
        method.real = 0.0
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    test = squares(200, 5)

    def error() -> float:
        """Mean KL divergence of the teacher's and the student's scores of the test images."""
        with torch.no_grad():
            scores = student.eval()(test, mode="tensor"), teacher(test, mode="tensor")
        student.train()
        return divergence(*scores, 1.0).mean().item()

    for step in range(80):
        images = squares(32, 200 + step)
        student(images, mode="tensor")  # the task's own pass
        terms = method.losses(TransferContext(images, [], {}, step=step, steps=80))
        optimizer.zero_grad()
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
        optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    uniform_scores = torch.zeros(200, 4)
    error_of_uniform = divergence(uniform_scores, teacher(test, mode="tensor"), 1.0).mean().item()
    assert (error() < error_of_uniform / 4) != shuffled


@pytest.mark.parametrize("name", ["irf", "ota"])
def test_running_statistics_are_those_of_the_task_s_images_alone(name: str):
    """Masked and generated images do not change them."""
    model, plain = Classifier(1), Classifier(1)
    first: Any = model.body[0]
    method: IRF | OTA = IRF() if name == "irf" else OTA(images=8, steps=1)
    cast(Any, model.head).in_channels = 12  # IRF reads the width of the feature there
    method.attach(model, None if name == "irf" else Classifier(2).eval().requires_grad_(False))
    if isinstance(method, OTA):
        method.prepare(squares(8, 1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    images = squares(32, 3)
    model(images, mode="tensor")  # the task's own pass
    plain(images, mode="tensor")
    terms = method.losses(TransferContext(images, [], {}, step=0, steps=2))
    torch.stack([term.mean() for term in terms.values()]).sum().backward()
    assert first.weight.grad.abs().max() > 0
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
        is_statistic = "running" in key or "num_batches" in key
        assert is_statistic != torch.equal(value, state[key])


def test_gradients_and_outputs_do_not_depend_on_the_update_of_running_statistics():
    model, images, results = Classifier(1), squares(8, 1), []
    first, norm = (cast(Any, model.body[k]) for k in (0, 1))
    for context in (nullcontext(), unchanged_running_statistics(model)):
        model.zero_grad()
        with context:
            out = model(images, mode="tensor")
        out.square().sum().backward()
        results.append((out.detach(), first.weight.grad.clone()))
    assert all(map(torch.equal, *results))
    model(images, mode="tensor")  # the update is on again
    assert norm.num_batches_tracked == 2


# ---- whole stages ----


def few_task() -> dict[str, Any]:
    """Fine-tuning on the 48 training images of the tiny data, in two epochs of three steps."""
    task = config("tasks", "smoke_finetune")
    task["recipe"].update(epochs=2, batch=16, test_batch=48)
    return task


def ota(**options: Any) -> dict[str, Any]:
    """The spec's entry of OTA with few generated images."""
    settings = {"images": 20, "steps": 2, **options}
    return {"type": f"{METHODS}.ota.OTA", **settings}


@pytest.fixture(scope="module")
def teacher_student() -> dict[str, Any]:
    """The teacher's network: a student of another width."""
    return config("students", "resnet18_w48")


@pytest.fixture(scope="module")
def irf(tmp_path_factory, teacher_student, data, in_subprocess) -> dict[str, Any]:
    """Outputs of trainings with IRF ("irf"), IRF of weight 0 ("zero") and without it ("plain").

    "folder" is the directory of the first, the teacher of OTA.
    """
    out = tmp_path_factory.mktemp("irf")
    in_subprocess(export_random, teacher_student, out)
    args, outputs = (teacher_student, data, out / "export"), {"folder": out / "irf"}
    for name, transfer in (
        ("irf", {"type": f"{METHODS}.irf.IRF"}),
        ("zero", {"type": f"{METHODS}.irf.IRF", "weight": 0.0}),
        ("plain", None),
    ):
        changes = {"keep_model": True, **({"transfer": transfer} if transfer else {})}
        outputs[name] = in_subprocess(run, *args, out / name, changes, None, few_task())
    return outputs


@pytest.mark.e2e
def test_the_weight_of_irf_falls_and_the_saved_model_has_no_part_of_it(irf):
    curve = dict(irf["irf"]["curves"]["transfer.loss_re_representation"])
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    assert curve[1] > 2 * curve[6] > 0  # the weights are 1 and 1/6
    # 6 steps of 16 images, two views each.
    assert irf["irf"]["transfer"]["extra_forwards"] == 6 * 16 * 2
    folder = irf["folder"].parent
    saved, plain = (read_tensors(folder / name / MODEL) for name in ("irf", "plain"))
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in plain.items()}
    # With weight 0, the training is that of the task.
    zero = {k: v for k, v in irf["zero"].items() if k != "transfer"}
    assert untimed(zero) == untimed(irf["plain"])
    assert irf["irf"]["curves"]["loss"] != irf["plain"]["curves"]["loss"]


@pytest.mark.e2e
def test_ota_trains_a_classifier_and_saves_only_the_task_s_model(
    data, exported, student, teacher_student, irf, tmp_path, in_subprocess
):
    """An interrupted stage that is run again gives the same outputs."""
    changes = {"transfer": ota(), "teacher": teacher_student, "keep_model": True}
    args = (student, data, exported)
    outputs = in_subprocess(run, *args, tmp_path / "a", changes, irf["folder"], few_task())
    json.dumps(outputs, allow_nan=False)
    in_subprocess(run, *args, tmp_path / "plain", {"keep_model": True}, None, few_task())
    terms = {k.removeprefix("transfer.loss_"): dict(v) for k, v in outputs["curves"].items()}
    loss = terms.pop("loss")
    assert set(terms) == {"real", "generated"}
    assert all(value > 0 for term in terms.values() for value in term.values())
    saved, saved_plain = (read_tensors(tmp_path / name / MODEL) for name in ("a", "plain"))
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in saved_plain.items()}
    # Per generated image 2 passes for the features of its guides, 2 for the steps, 1 for its
    # target. Then 6 steps with 16 passes of the student (generated images) and 16 of the teacher
    # (the task's images).
    assert outputs["transfer"]["extra_forwards"] == 20 * (2 + 2 + 1) + 6 * 16 * 2
    teacher = read_tensors(irf["folder"] / MODEL)
    parameters = sum(
        v.numel() for k, v in teacher.items() if "running" not in k and "num_" not in k
    )
    assert outputs["transfer"]["extra_parameters"] == parameters
    assert set(loss) == {1, 2, 3, 4, 5, 6}
    call = (*args, tmp_path / "b", changes, irf["folder"], few_task())
    assert in_subprocess(interrupted, *call, 3)  # in step 3
    assert untimed(in_subprocess(run, *call)) == untimed(outputs)


@pytest.mark.e2e
def test_ota_without_weights_is_the_task_s_own_training(
    data, exported, student, teacher_student, irf, tmp_path, in_subprocess
):
    changes = {"transfer": ota(generated=0.0, real=0.0), "teacher": teacher_student}
    args = (student, data, exported)
    outputs = in_subprocess(run, *args, tmp_path / "a", changes, irf["folder"], few_task())
    plain = in_subprocess(run, *args, tmp_path / "b", {}, None, few_task())
    assert outputs.pop("transfer")["extra_forwards"] == 0
    assert untimed(outputs) == untimed(plain)
