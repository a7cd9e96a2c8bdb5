"""Cross-architecture distillation: formulas in float64, swap, regions and discriminator.

A convolutional student learns attention and tokens of a vision transformer. The formula and its
symbols are in the docstring of `CrossArchitecture`. `CrossArchitectureViews` adds a discriminator,
which learns to distinguish the tokens of student and teacher.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.networks.attention import Attention, Block
from kdep_bench.objectives.auxiliary import AuxiliaryModules
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.cross_architecture import (
    CrossArchitecture,
    CrossArchitectureViews,
    RegionLinear,
)
from kdep_bench.teachers.base import TeacherOutput
from tests.suite.test_suite_methods import plan

B, C, SIDE = 2, 3, 3  # images, channels and side of the student's map
WIDTH, HEADS = 4, 2  # of the teacher
MAPS = {"s32": {"channels": C, "stride": 32}}
SIZES = {"width": WIDTH, "heads": HEADS, "patches": SIDE**2}


def build(kind: Any = CrossArchitecture, **arguments: Any) -> Any:
    """The objective in float64, with fixed initial weights; it reads the teacher's block 5."""
    torch.manual_seed(0)
    options = dict(teacher_block=5, regions=2) | arguments
    return kind(MAPS, SIZES, **options).double()


def context(seed: int = 1, side: int = SIDE) -> Context:
    """A map of the student, and a class token and SIDE^2 patches of the teacher."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        """Normal noise in float64."""
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    queries, keys, values = (random(B, HEADS, 1 + SIDE**2, WIDTH // HEADS) for _ in range(3))
    embedding, hidden, final = (random(B, 1 + SIDE**2, WIDTH) for _ in range(3))
    attention = Attention(embedding, {5: Block(hidden, queries, keys, values)}, final, prefix=1)
    feature = random(B, 7)
    return Context(
        feature,
        feature,
        teacher=TeacherOutput(feature, None, attention=attention),
        maps={"s32": random(B, C, side, side).requires_grad_()},
    )


def attention_of(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v of one head, row by row."""
    rows = []
    for query in q:
        weight = np.exp([query @ key / math.sqrt(q.shape[1]) for key in k])
        rows.append((weight[:, None] * v).sum(0) / weight.sum())
    return np.array(rows)


def projections(objective: CrossArchitecture, map_CHW: np.ndarray) -> np.ndarray:
    """[3, HEADS, N, d]: the student's queries, keys and values at its N positions.

    They are 3x3 convolutions with zero padding, computed position by position.
    """
    weight, bias = (p.detach().numpy() for p in objective.qkv.parameters())
    padded = np.pad(map_CHW, ((0, 0), (1, 1), (1, 1)))
    rows = [
        [(weight * padded[:, r : r + 3, c : c + 3]).sum((1, 2, 3)) + bias for c in range(SIDE)]
        for r in range(SIDE)
    ]
    flat = np.array(rows).reshape(SIDE**2, 3, HEADS, WIDTH // HEADS)
    return flat.transpose(1, 2, 0, 3)


def test_every_term_equals_the_formula_in_float64():
    objective = build(attention=0.5, tokens=0.7, weight=3.0).eval()
    ctx = context()
    assert ctx.teacher is not None
    assert ctx.teacher.attention is not None
    block = ctx.teacher.attention.blocks[5]
    # Without the class token: queries, keys, values [3, B, HEADS, N, d] and final tokens [B, N, D].
    teacher = np.stack([block.queries, block.keys, block.values])[:, :, :, 1:]
    h = ctx.teacher.attention.final.numpy()[:, 1:]
    linear = [[p.detach().numpy() for p in m.parameters()] for m in objective.linear.layers]
    differences: dict[str, list[np.ndarray]] = {"attention": [], "values": [], "tokens": []}
    # The student's outputs are in units of the teacher's root mean square.
    units = np.sqrt(np.square(teacher).mean((1, 2, 3, 4), keepdims=True))[:, 0]  # of q, k and v
    for b in range(B):
        image = ctx.maps["s32"][b].detach().numpy()
        student = projections(objective, image) * units
        for name, function in (
            ("attention", lambda qkv: attention_of(*qkv)),
            ("values", lambda qkv: qkv[2] @ qkv[2].T / math.sqrt(WIDTH // HEADS)),
        ):
            of_student, of_teacher = (
                np.array([function(qkv[:, head]) for head in range(HEADS)])
                for qkv in (student, teacher[:, b])
            )
            differences[name].append(of_student - of_teacher)
        tokens = []
        for r in range(SIDE):
            for c in range(SIDE):
                # Of three rows, the first two are in the first region and the last in the second.
                weight, bias = linear[2 * (r * 2 // SIDE) + c * 2 // SIDE]
                tokens.append((weight @ image[:, r, c] + bias) * np.sqrt(np.square(h).mean()))
        differences["tokens"].append(np.array(tokens) - h[b])
    terms, v_square = objective.terms(ctx), np.square(teacher[2]).mean()
    # 3.0 * 0.5 for L_1 and 3.0 * 0.7 for L_2, divided as in the formula.
    factors = {
        "attention": 1.5 / v_square,
        "values": 1.5 / (WIDTH // HEADS) / v_square**2,
        "tokens": 2.1 / np.square(h).mean(),
    }
    for name, factor in factors.items():
        expected = [factor * np.mean(np.square(d)) for d in differences[name]]
        np.testing.assert_allclose(terms[name].detach(), expected, rtol=1e-6, err_msg=name)
    assert set(terms) == set(differences)


def test_with_swap_1_all_entries_are_the_teacher_s_in_training_and_none_in_evaluation():
    objective, ctx = build(swap=1.0), context()
    assert float(objective.terms(ctx)["attention"].detach().max()) == 0
    assert float(objective.eval().terms(ctx)["attention"].detach().min()) > 0


def test_the_swap_replaces_single_entries_at_random_in_training_only():
    objective = build(swap=0.3)
    student, teacher = torch.zeros(40, 50, 5), torch.ones(40, 50, 5)
    swapped = objective.swap_entries(student, teacher)  # 1 where the entry is the teacher's
    assert float(swapped.mean()) == pytest.approx(0.3, abs=0.02)
    # In most tokens, some of the five entries are replaced and others are not (all five are equal
    # in 0.7^5 + 0.3^5 = 17 % of the tokens).
    token_means = swapped.mean(2)
    assert float(((token_means > 0) & (token_means < 1)).float().mean()) > 0.75
    assert not bool(objective.eval().swap_entries(student, teacher).any())


def test_there_is_one_linear_layer_per_region_and_not_per_token():
    layer = RegionLinear(3, 2, side=14, regions=4, dropout=0.0)
    assert len(layer.layers) == 16
    assert sum(layer.sizes) == 14**2
    # 14 rows are divided into 4 + 3 + 4 + 3, so regions have 3 * 3, 3 * 4 or 4 * 4 tokens.
    assert sorted(set(layer.sizes)) == [9, 12, 16]
    with torch.no_grad():
        for k, part in enumerate(layer.layers):
            part.weight.zero_()  # type: ignore[union-attr]
            part.bias.fill_(k)  # type: ignore[union-attr]  # every output is the layer's number
    grid = layer(torch.zeros(1, 14**2, 3))[0, :, 0].detach().unflatten(0, (14, 14))
    assert grid[::13, ::13].tolist() == [[0, 3], [12, 15]]  # the four corners
    assert grid[0].tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 3
    assert float(RegionLinear(3, 2, 4, 4, 0.0).sizes[0]) == 1
    with pytest.raises(KdepError, match="3 x 3 patches, which cannot be divided into 4 x 4"):
        build(regions=4)


def test_the_map_is_resized_to_the_grid_of_the_teacher():
    objective = build()
    assert objective.terms(context(side=6))["tokens"].shape == (B,)
    assert objective.terms(context(side=1))["tokens"].shape == (B,)


def discriminator_run(same_tokens: bool) -> tuple[CrossArchitectureViews, Context, Tensor]:
    """Trains the discriminator for 200 steps.

    Args:
        same_tokens: whether the student gives the teacher's tokens.

    Returns:
        The objective, the batch, and the discriminator's probability [2, B] that tokens are the
        teacher's: first for those of the teacher, then for those of the student.
    """
    objective = build(CrossArchitectureViews, dropout=0.0, hidden=8, adversarial=1.0)
    objective.optimizer = {"type": "Adam", "lr": 0.01}
    auxiliary, ctx = AuxiliaryModules(objective.auxiliary_modules()), context()
    if same_tokens:
        objective.student_tokens = lambda ctx, _map: objective.teacher_tokens(ctx)
    for _ in range(200):
        with auxiliary.training():
            objective.update_auxiliary(ctx, auxiliary)
    student = objective.student_tokens(ctx, objective.student_map(ctx))
    both = objective.teacher_tokens(ctx), student
    probability = torch.stack([objective.logit(ctx, tokens).sigmoid() for tokens in both])
    return objective, ctx, probability.detach()


def test_the_discriminator_is_undecided_if_student_and_teacher_have_equal_tokens():
    _, _, undecided = discriminator_run(same_tokens=True)
    torch.testing.assert_close(undecided, torch.full_like(undecided, 0.5), atol=0.02, rtol=0)
    _, _, decided = discriminator_run(same_tokens=False)
    assert float(decided[0].min()) > 0.9  # teacher
    assert float(decided[1].max()) < 0.1  # student


def test_the_adversarial_term_makes_tokens_of_the_student_more_like_those_of_the_teacher():
    """The term is log(1 - probability), and it does not change the discriminator."""
    objective, ctx, probability = discriminator_run(same_tokens=False)
    term = objective.terms(ctx)["adversarial"]
    torch.testing.assert_close(term, (1 - probability[1]).log())
    weights = [p.detach().clone() for p in objective.discriminator.parameters()]
    optimizer = torch.optim.SGD(objective.linear.parameters(), 50.0)
    term.mean().backward()
    assert all(p.grad is None for p in objective.discriminator.parameters())
    optimizer.step()
    tokens = objective.student_tokens(ctx, objective.student_map(ctx))
    assert bool((objective.logit(ctx, tokens).sigmoid() > probability[1]).all())
    assert all(map(torch.equal, weights, objective.discriminator.parameters()))


# ---- the plan ----


@pytest.mark.parametrize(
    ("changes", "suite", "message"),
    [
        ({}, dict(teacher="efficientnet_lite0"), r"'efficientnet_lite0' does not state that it is"),
        (dict(teacher_source="cached"), {}, "attention of its teacher, which is in no cache"),
        (dict(augment=None, teacher_source="cached"), {}, "which is in no cache"),
        (dict(objective=dict(teacher_block=12)), {}, r"block 12 .*'dinov2_vitb14' has 12"),
        (dict(objective=dict(swap=1.5)), {}, "swap = 1.5"),
        (dict(objective=dict(student_level="s64")), {}, "unknown level.*'s64'"),
        (dict(students=["vit_t"]), dict(students=["vit_t"]), "has no `pyramid`"),
        (dict(teacher=dict(student="resnet18_w48", method="svd")), {}, "which is in no cache"),
    ],
)
def test_the_plan_refuses_pairs_of_student_and_teacher_that_cannot_work(
    changes: dict[str, Any], suite: dict[str, Any], message: str
):
    with pytest.raises(KdepError, match=message):
        plan(
            dict(base="cross_arch", name="changed", **changes),
            **{"teacher": "dinov2_vitb14", **suite},
        )


def test_a_vision_transformer_is_accepted_as_a_live_teacher():
    stages = plan("cross_arch", teacher="dinov2_vitb14").stages.values()
    (pretraining,) = (s for s in stages if s.kind == "pretrain")
    assert pretraining.spec["teacher"]["name"] == "dinov2_vitb14"
    assert not any(s.kind == "cache" for s in stages)
    # The error for a teacher without `card.blocks` suggests this fix.
    lite = dict(base="efficientnet_lite0", card=dict(blocks=12))
    assert plan("cross_arch", teacher=lite).runs
