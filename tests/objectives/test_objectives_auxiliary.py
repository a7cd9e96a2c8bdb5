"""Auxiliary modules, which are modules with a separate optimiser, and AMAL, which has one.

AMAL's are the loss weights of every image, one for the label and one for the teacher. They are
trained so that the student's loss on held-out images falls (a meta-gradient).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.objectives.amal import Amal, meta_gradient
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules
from kdep_bench.objectives.base import Context, demands
from kdep_bench.teachers.base import TeacherOutput

SGD = dict(type="SGD", lr=0.5)


def test_a_module_is_trained_only_by_its_own_optimiser_and_leaves_other_gradients_unset():
    bridge, student = nn.Linear(3, 1, bias=False), nn.Linear(2, 3)
    initial = bridge.weight.detach().clone()
    auxiliary = AuxiliaryModules({"bridge": AuxiliaryModule(bridge, SGD)})
    x = torch.ones(4, 2)
    auxiliary.factor = 0.1
    with auxiliary.training():
        auxiliary.minimise("bridge", bridge(student(x)).mean())
    # Learning rate 0.5 times the schedule's factor 0.1.
    torch.testing.assert_close(bridge.weight, initial - 0.05 * student(x).mean(0))
    assert student.weight.grad is None
    assert bridge.weight.grad is None
    bridge(student(x)).mean().backward()  # a loss of the student that passes through the bridge
    assert student.weight.grad is not None
    assert bridge.weight.grad is None


# The program of one of two processes (rank 0 or 1), with the arguments rank and folder.
RANK_CODE = """
import sys
import torch
from torch import distributed, nn
from kdep_bench.objectives.auxiliary import AuxiliaryModule, AuxiliaryModules

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
opponents = nn.ModuleDict({"adam": nn.Linear(3, 1), "limited": nn.Linear(3, 1)})
auxiliary = AuxiliaryModules({
    "adam": AuxiliaryModule(opponents["adam"], dict(type="Adam", lr=0.1)),
    "limited": AuxiliaryModule(opponents["limited"], dict(type="SGD", lr=0.1), max_norm=0.2),
})
data = torch.randn(8, 3) * torch.tensor([9.0, 1.0]).repeat(4)[:, None]
for _ in range(3):
    for name, opponent in opponents.items():
        with auxiliary.training():  # each process has every second sample
            auxiliary.minimise(name, opponent(data[rank::2]).square().mean())
torch.save(opponents.state_dict(), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_train_an_auxiliary_module_as_one_process_does(tmp_path: Path):
    """Also if the norm of its gradient is limited: the samples of the ranks differ in size."""
    root = Path(__file__).parents[2]
    paths = f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK_CODE, str(rank), str(tmp_path)], env=env)
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.manual_seed(0)
    opponents = nn.ModuleDict({"adam": nn.Linear(3, 1), "limited": nn.Linear(3, 1)})
    auxiliary = AuxiliaryModules(
        {
            "adam": AuxiliaryModule(opponents["adam"], dict(type="Adam", lr=0.1)),
            "limited": AuxiliaryModule(
                opponents["limited"], dict(type="SGD", lr=0.1), max_norm=0.2
            ),
        }
    )
    data = torch.randn(8, 3) * torch.tensor([9.0, 1.0]).repeat(4)[:, None]
    for _ in range(3):
        for name, opponent in opponents.items():
            with auxiliary.training():
                auxiliary.minimise(name, opponent(data).square().mean())
    for name, expected in opponents.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected)


def test_an_auxiliary_module_that_is_not_scheduled_keeps_its_learning_rate():
    weight = nn.Linear(1, 1, bias=False)
    auxiliary = AuxiliaryModules({"weights": AuxiliaryModule(weight, SGD, scheduled=False)})
    auxiliary.factor, initial = 0.1, weight.weight.item()  # the schedule's factor
    for lowered_by in (0.5, 1.0):  # the learning rate is 0.5 and the gradient 1
        auxiliary.apply("weights", [torch.ones(1, 1)])
        assert weight.weight.item() == pytest.approx(initial - lowered_by)


def test_a_long_gradient_is_scaled_to_the_limit_over_all_parameters_of_the_auxiliary_module():
    layer = nn.Linear(1, 1)
    auxiliary = AuxiliaryModules({"weights": AuxiliaryModule(layer, SGD, max_norm=1.0)})
    # Gradients (3, 4) and (0.3, 0.4) have the norms 5 and 0.5: the first is divided by 5.
    for gradient, scaled in ((3.0, 0.6), (0.3, 0.3)):
        before = layer.weight.item(), layer.bias.item()
        auxiliary.apply(
            "weights", [torch.full((1, 1), gradient), torch.full((1,), gradient * 4 / 3)]
        )
        assert before[0] - layer.weight.item() == pytest.approx(0.5 * scaled, rel=1e-4)
        assert before[1] - layer.bias.item() == pytest.approx(0.5 * scaled * 4 / 3, rel=1e-4)


def test_the_auxiliary_modules_of_a_part_of_a_sum_are_named_part_dot_auxiliary_module():
    a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    auxiliary = AuxiliaryModules(
        {"a.net": AuxiliaryModule(a, SGD), "b.net": AuxiliaryModule(b, SGD)}
    )
    assert auxiliary.part("b").parameters("net")[0] is b.weight
    with pytest.raises(KdepError, match="unknown auxiliary module"):
        auxiliary.parameters("net")
    assert set(auxiliary.state_dict()) == {"a.net", "b.net"}


def data(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features [count, 4], labels and teacher logits [count, 3], in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return x, labels, 2 * torch.randn(count, 3, generator=generator, dtype=torch.float64)


def test_the_meta_gradient_is_that_of_finite_differences():
    """Rows 0 to 4 of the batch are trained on, rows 5 to 11 are held out."""
    layer = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (x, labels, teacher), (x_val, labels_val, teacher_val) = data(5, 2), data(7, 3)
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    tau, lr = 4.0, 0.7

    def held_out_loss(weights: Tensor) -> Tensor:
        """The loss on the held-out images after one step of gradient descent with these weights."""
        trained_layer = layer.clone().requires_grad_()
        z = x @ trained_layer.T
        hard = F.cross_entropy(z, labels, reduction="none")
        log_t, log_s = (F.log_softmax(v / tau, 1) for v in (teacher, z))
        soft = tau**2 * (log_t.exp() * (log_t - log_s)).sum(1)
        loss = (weights[:, 0] * hard + weights[:, 1] * soft).mean()
        (gradient,) = torch.autograd.grad(loss, trained_layer)
        return F.cross_entropy(x_val @ (layer - lr * gradient).T, labels_val)

    batch = (
        torch.cat([x, x_val]),
        torch.cat([labels, labels_val]),
        torch.cat([teacher, teacher_val]),
    )
    is_held_out = torch.arange(12) >= 5
    all_weights = F.pad(weights, (0, 0, 0, 7), value=0.3)  # those of held-out images do not matter
    gradients = meta_gradient(layer, batch, is_held_out, all_weights, tau, lr)
    assert not bool(gradients[5:].any())
    for b in range(5):
        for term in range(2):
            shift = torch.zeros_like(weights)
            shift[b, term] = 1e-6
            change = held_out_loss(weights + shift) - held_out_loss(weights - shift)
            expected = float(change) / 2e-6
            assert float(gradients[b, term]) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def amal(**options: object) -> Amal:
    """AMAL for 4 features, 3 classes and two views per image."""
    torch.manual_seed(0)
    return Amal(4, 3, 3, views=2, pool_images=400, **options)  # type: ignore[arg-type]


def batch(teacher: Tensor | None = None, step: int = 50) -> Context:
    """400 images, two views each; the label is the largest of the first three features.

    The teacher's logits are `teacher`, by default those of the right class.
    """
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(800, 4, generator=generator)
    labels = x[:, :3].argmax(1)
    right = 5 * F.one_hot(labels, 3).float()
    return Context(
        pre_activation=x,
        post_activation=x,
        labels=labels,
        rows=torch.arange(800),
        teacher=TeacherOutput(x, right if teacher is None else teacher),
        step=step,
        steps=100,
    )


def update_auxiliary(objective: Amal, ctx: Context) -> Tensor:
    """Loss weights [400, 2] of the images for label and teacher, after AMAL's step on a batch."""
    auxiliary = AuxiliaryModules(objective.auxiliary_modules())
    with auxiliary.training():
        objective.update_auxiliary(ctx, auxiliary)
    return objective.mixing.weights.detach()


def test_the_weight_of_a_wrong_teacher_falls_and_that_of_a_right_teacher_rises():
    random_teacher = 5 * torch.randn(800, 3, generator=torch.Generator().manual_seed(6))
    trained_on = ~amal().is_held_out(torch.arange(400))
    labels = batch().labels
    assert labels is not None
    is_wrong = (random_teacher.argmax(1) != labels).view(400, 2).all(1)[trained_on]  # in both views
    # Weights of the label (column 0, initially 0.1) and of the teacher (column 1, initially 0.9).
    with_random, with_right = (
        update_auxiliary(amal(repeats=20), batch(teacher))[trained_on]
        for teacher in (random_teacher, None)
    )
    assert float(with_random[is_wrong, 1].mean()) < 0.7
    assert float(with_right[:, 1].mean()) > 1.5
    assert float(with_random[:, 0].mean()) > 0.5
    assert float(with_right[:, 0].mean()) > 0.5


def test_held_out_images_are_not_trained_on_and_the_loss_is_the_mean_over_the_others():
    objective, ctx = amal(held_out=0.25), batch()
    is_held_out = objective.is_held_out(torch.arange(800) // 2)
    assert 0.15 < float(is_held_out.float().mean()) < 0.35
    assert bool((is_held_out[::2] == is_held_out[1::2]).all())  # both views of an image
    terms = objective.terms(ctx)
    assert ctx.labels is not None
    cross_entropy = F.cross_entropy(
        objective.head(ctx.post_activation), ctx.labels, reduction="none"
    )
    assert not bool(terms["cross_entropy"][is_held_out].any())
    expected = 0.1 * cross_entropy[~is_held_out].mean()  # 0.1: the initial weight
    torch.testing.assert_close(terms["cross_entropy"].mean(), expected)


def test_weights_of_trained_images_change_in_every_tenth_step_after_the_warm_up():
    initial = torch.tensor([0.1, 0.9])
    for step, changes in ((0, False), (10, True), (15, False)):  # the warm-up ends at step 5
        objective = amal()
        weights = update_auxiliary(objective, batch(step=step))
        changed = (weights != initial).any(1)
        assert bool(changed.any()) == changes
        assert not bool(changed[objective.is_held_out(torch.arange(400))].any())
        assert float(weights.min()) >= 1e-7
        assert float(weights.max()) <= 2 - 1e-7


def test_a_sum_has_auxiliary_modules_if_one_of_its_parts_has():
    weighted_sum = "kdep_bench.objectives.weighted_sum.WeightedSum"
    with_auxiliary = dict(objective=dict(type="kdep_bench.objectives.amal.Amal"))
    assert demands(dict(type=weighted_sum, parts=dict(a=with_auxiliary))).has_auxiliary_modules
    without = dict(objective=dict(type="kdep_bench.objectives.logit_kd.LogitKD"))
    assert not demands(dict(type=weighted_sum, parts=dict(a=without))).has_auxiliary_modules


def test_amal_refuses_labels_of_classes_other_than_those_of_the_teacher_and_an_empty_held_out_set():
    with pytest.raises(KdepError, match="one head is trained on both"):
        Amal(4, 3, 5, 1, 10)
    with pytest.raises(KdepError, match="held_out=0"):
        amal(held_out=0.0)
