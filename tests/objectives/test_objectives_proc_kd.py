"""ProC-KD: the losses in float64, planted local parts, and what the plan refuses.

Prototypes are learned vectors that reconstruct the teacher's local features (the channels of a map
at one position). The student learns these reconstructions through a projector, a 1x1 convolution.
The formula is in the docstring of `PrototypeDistillation`.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.networks.prototypes import assign, spread_out
from kdep_bench.objectives.base import Context, demands
from kdep_bench.objectives.proc_kd import PrototypeDistillation
from kdep_bench.suite.config import load_suite, resolve
from kdep_bench.teachers.base import TeacherOutput
from tests.suite.test_suite_methods import plan

CS, CT, SIDE = 3, 4, 2  # channels of the student's and of the teacher's map, side of both
B, K = 3, 5  # images per batch, prototypes


def build(prototypes: int = K, **arguments: Any) -> PrototypeDistillation:
    """The objective on the level s8 in float64, with fixed initial weights."""
    torch.manual_seed(0)
    student, teacher = ({"s8": {"channels": c, "stride": 8}} for c in (CS, CT))
    return PrototypeDistillation({"s8": "s8"}, prototypes, student, teacher, **arguments).double()


def context(seed: int = 0, teacher: Tensor | None = None) -> Context:
    """A batch with random maps, the student's with a gradient; `teacher` replaces the teacher's."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(B, CS, SIDE, SIDE, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    random_teacher = torch.randn(B, CT, SIDE, SIDE, generator=generator, dtype=torch.float64)
    teacher = random_teacher if teacher is None else teacher
    pooled = student.mean((2, 3))
    output = TeacherOutput(teacher.mean((2, 3)), None, {"s8": teacher})
    return Context(pooled, pooled, teacher=output, maps={"s8": student})


def dot(a: list[float], b: list[float]) -> float:
    """The scalar product."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(vector: list[float]) -> list[float]:
    """The vector divided by its length."""
    return [v / math.sqrt(dot(vector, vector)) for v in vector]


def reference(objective: PrototypeDistillation, ctx: Context, tau: float) -> tuple[Any, Any]:
    """(|u - r|^2, |v - r|^2) of every sample, without loss weights, from the formula in loops."""
    assert ctx.teacher is not None
    p = objective.prototypes["s8"].tolist()
    projector: Any = objective.projectors["s8"]
    weight, bias = projector.weight.flatten(1).tolist(), projector.bias.tolist()
    reconstruction, student = [], []
    for s_map, t_map in zip(ctx.maps["s8"].tolist(), ctx.teacher.maps["s8"].tolist(), strict=True):
        errors = [0.0, 0.0]
        for i in range(SIDE):
            for j in range(SIDE):
                u = unit([channel[i][j] for channel in t_map])
                f = [channel[i][j] for channel in s_map]
                e = [math.exp(dot(u, unit(pk)) / tau) for pk in p]
                r = [sum(e[k] * p[k][c] for k in range(len(p))) / sum(e) for c in range(CT)]
                v = unit([dot(w, f) + b for w, b in zip(weight, bias, strict=True)])
                for n, x in enumerate((u, v)):
                    errors[n] += sum((a - b) ** 2 for a, b in zip(x, r, strict=True)) / SIDE**2
        reconstruction.append(errors[0])
        student.append(errors[1])
    return reconstruction, student


@pytest.mark.parametrize("tau", [0.1, 0.7])
def test_the_losses_equal_the_formula_in_float64(tau: float):
    objective = build(tau=tau, weight=3.0, prototype_weight=7.0)
    objective.terms(context(9))  # the prototypes begin as features of another batch
    ctx = context()
    terms = objective.terms(ctx)
    reconstruction, student = reference(objective, ctx, tau)
    assert terms["prototypes"].tolist() == pytest.approx([7 * e for e in reconstruction])
    assert terms["s8"].tolist() == pytest.approx([3 * e for e in student])


def test_the_teacher_trains_only_the_prototypes_and_these_train_only_the_student():
    objective, ctx = build(), context()
    terms = objective.terms(ctx)
    prototypes = objective.prototypes["s8"]
    projector = objective.projectors["s8"].get_parameter("weight")
    of_student = torch.autograd.grad(
        terms["s8"].sum(),
        [ctx.maps["s8"], projector, prototypes],
        retain_graph=True,
        allow_unused=True,
    )
    assert [g is not None for g in of_student] == [True, True, False]
    of_prototypes = torch.autograd.grad(
        terms["prototypes"].sum(), [ctx.maps["s8"], projector, prototypes], allow_unused=True
    )
    assert [g is not None for g in of_prototypes] == [False, False, True]


def test_the_losses_do_not_depend_on_the_scale_of_the_maps():
    """Therefore large maps of the student cannot make the loss diverge."""
    losses = []
    for scale in (1.0, 50.0):
        objective, ctx = build(), context()
        nn.init.zeros_(objective.projectors["s8"].get_parameter("bias"))
        assert ctx.teacher is not None
        scaled = context(teacher=scale * ctx.teacher.maps["s8"])
        scaled.maps["s8"].data.mul_(scale)
        losses.append(objective.terms(scaled))
    for name, term in losses[0].items():
        torch.testing.assert_close(losses[1][name], term)


PARTS = 6  # planted local parts: directions that every image has at random positions


def planted(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Maps [count, 8, 4, 4] of scaled parts with noise, and the part at each position."""
    g = torch.Generator().manual_seed(seed)
    directions = (
        torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(5))).Q[:PARTS]
        + 0.5
    )
    part = torch.randint(PARTS, (count, 4, 4), generator=g)
    scale = 0.5 + 2 * torch.rand(count, 4, 4, 1, generator=g)
    maps = (scale * directions[part]).permute(0, 3, 1, 2)
    return maps + 0.15 * torch.randn(maps.shape, generator=g), part


def test_prototypes_recover_planted_parts():
    """The most similar prototype identifies the part.

    Purity: the fraction of positions whose part is the most frequent one of their prototype. It is
    about 1/5 for a random assignment.
    """
    levels = {"s8": {"channels": 8, "stride": 8}}
    torch.manual_seed(0)
    objective = PrototypeDistillation({"s8": "s8"}, PARTS, levels, levels)
    optimizer = torch.optim.SGD(objective.parameters(), 0.1)
    for step in range(60):
        t, _ = planted(16, step)
        pooled = t.mean((2, 3))
        ctx = Context(
            pooled, pooled, teacher=TeacherOutput(pooled, None, {"s8": t}), maps={"s8": t}
        )
        loss = objective.terms(ctx)["prototypes"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out, part = planted(64, 999)
    nearest = assign(held_out, objective.prototypes["s8"], 0.1).argmax(1)
    counts = torch.zeros(PARTS, PARTS).index_put_(
        (nearest.flatten(), part.flatten()), torch.tensor(1.0), accumulate=True
    )
    purity = float(counts.max(1).values.sum() / counts.sum())
    assert purity > 0.95


def test_the_first_prototypes_are_one_feature_of_each_direction():
    directions = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2, 1, 3, 0, 2]]
    maps = (directions * torch.arange(1, 9)[:, None]).view(2, 4, 1, 4).transpose(1, 3)
    assert sorted(spread_out(maps, 4).tolist()) == sorted(torch.eye(4).tolist())


@pytest.mark.parametrize("zeros", [(0,), (3, 7)])
def test_positions_of_zeros_are_no_first_prototypes(zeros: tuple[int, ...]):
    """Maps after a ReLU have such positions, whose cosine with every prototype is 0."""
    x_NC = torch.rand(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    x_NC[list(zeros)] = 0
    maps = x_NC.view(2, 4, 1, 4).transpose(1, 3)
    chosen = spread_out(maps, 8 - len(zeros))
    assert len(chosen.unique(dim=0)) == len(chosen)
    torch.testing.assert_close(chosen.norm(dim=1), torch.ones(len(chosen)).double())
    with pytest.raises(KdepError, match=rf"8 prototypes.* {8 - len(zeros)} positions that are not"):
        spread_out(maps, 8)


def test_fewer_directions_than_prototypes_are_refused():
    directions = torch.eye(4)[[0, 1, 0, 1, 1, 0, 0, 1]] * torch.arange(1, 9)[:, None]
    with pytest.raises(KdepError, match=r"3 prototypes.* 2 different directions"):
        spread_out(directions.view(2, 4, 1, 4).transpose(1, 3), 3)


def fake_second_rank(monkeypatch: pytest.MonkeyPatch, other: Tensor) -> None:
    """Makes this process rank 0 of two, whose rank 1 has the maps `other`."""

    def all_gather(out: list[Tensor], x: Tensor) -> None:
        """Stands in for torch.distributed.all_gather."""
        for target, value in zip(out, (x, other), strict=True):
            target.copy_(value)

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather", all_gather)


def test_a_rank_whose_maps_are_zero_starts_from_the_maps_of_the_other_rank(
    monkeypatch: pytest.MonkeyPatch,
):
    other = F.normalize(context(1).teacher.maps["s8"], dim=1)  # type: ignore[union-attr]
    fake_second_rank(monkeypatch, other)
    u = torch.zeros_like(other)
    torch.testing.assert_close(
        build().initialised_prototypes("s8", u).detach(), spread_out(other, K)
    )


def test_the_first_prototypes_of_several_processes_are_those_of_the_global_batch(
    monkeypatch: pytest.MonkeyPatch,
):
    u, other = (F.normalize(context(seed).teacher.maps["s8"], dim=1) for seed in (0, 1))  # type: ignore[union-attr]
    expected = spread_out(torch.cat([u, other]), K)
    assert not torch.equal(expected, spread_out(u, K))
    fake_second_rank(monkeypatch, other)
    torch.testing.assert_close(build().initialised_prototypes("s8", u).detach(), expected)


def test_a_resumed_run_keeps_its_prototypes():
    objective = build()
    objective.terms(context(9))
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(objective.state_dict()))
    expected = objective.terms(context())["s8"].tolist()
    assert resumed.terms(context())["s8"].tolist() == expected
    assert torch.equal(objective.prototypes["s8"], resumed.prototypes["s8"])


def test_the_objective_reads_neither_labels_nor_classes():
    reads = demands(resolve("method", "proc_kd")["objective"])
    assert reads.needs | reads.stage_arguments == {"maps", "student_maps", "teacher_maps"}


def test_a_batch_that_cannot_start_the_prototypes_is_refused():
    with pytest.raises(KdepError, match=r"13 prototypes.*12 positions"):
        build(prototypes=B * SIDE**2 + 1).terms(context())
    with pytest.raises(KdepError, match="is zero for the whole first batch"):
        build().terms(context(teacher=torch.zeros(B, CT, SIDE, SIDE).double()))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (dict(prototypes=0), "prototypes = 0"),
        (dict(tau=0.0), "tau = 0"),
        (dict(prototypes=100_000), "initialises 100000 prototypes.* positions"),
        (dict(levels=dict(_delete_=True, s16="s64")), "map 's64' in the teacher 'efficientnet"),
        (dict(levels=dict(_delete_=True, s64="s16")), "level 's64' in student"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_the_plan(objective: Any, message: str):
    assert plan("proc_kd").runs
    with pytest.raises(KdepError, match=message):
        plan(dict(base="proc_kd", name="changed", objective=objective))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (dict(base="efficientnet_lite0", card=dict(maps=False)), "needs feature maps"),
        ("efficientnet_lite0_black_box", "returns class probabilities only"),
    ],
)
def test_teachers_without_open_maps_are_refused_by_the_plan(teacher: Any, message: str):
    with pytest.raises(KdepError, match=message):
        plan("proc_kd", teacher=teacher)


def test_the_plan_counts_the_positions_of_a_micro_batch():
    budget = load_suite("smoke").budget.model_dump() | dict(accumulate=16)
    with pytest.raises(KdepError, match=r"72 prototypes.*the level s32 of 2 images has 8"):
        plan("proc_kd", budget=budget)


def test_the_plan_counts_the_positions_of_a_map_whose_side_is_rounded_up():
    """At stride 32, the maps of images of 80 pixels have 3 x 3 positions."""
    budget = load_suite("smoke").budget.model_dump() | dict(batch=8)
    student = dict(base="resnet18_w32", name="of_80_px", input_px=80)
    assert plan("proc_kd", students=[student], budget=budget).runs
    method = dict(base="proc_kd", name="more", objective=dict(prototypes=73))
    with pytest.raises(KdepError, match=r"of 8 images has 72 positions"):
        plan(method, students=[student], budget=budget)


def test_the_plan_counts_the_positions_for_a_part_of_an_objective():
    parts = {
        "local": {"objective": resolve("method", "proc_kd")["objective"] | {"prototypes": 9999}}
    }
    objective = dict(
        _delete_=True, type="kdep_bench.objectives.weighted_sum.WeightedSum", parts=parts
    )
    with pytest.raises(KdepError, match=r"9999 prototypes.* positions"):
        plan(dict(base="proc_kd", name="in_parts", objective=objective))
