"""TinyBERT for vision transformers (ViTs): formula in float64, pairs of blocks, refused networks.

A student learns attention scores and tokens of the teacher's blocks; if the teacher has more
blocks, every block of the student is paired with one of the teacher's. The formula is in the
docstring of `TransformerLayers`. A network has prefix tokens (class and register tokens) and one
token per patch.

`plan` lists the stages of a small suite and checks it, without running anything.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.networks.attention import Attention, Block, find_transformer
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.levels import block_pairs, teacher_blocks
from kdep_bench.objectives.transformer_layers import TransformerLayers
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.suite.arguments import check_is_transformer
from kdep_bench.suite.config import resolve
from kdep_bench.teachers.base import TeacherOutput
from kdep_bench.transfer.export import strip
from tests.objectives.test_objectives_dmae import STUDENT, VIT, WIDTH, images
from tests.suite.test_suite_methods import plan

TYPE = "kdep_bench.objectives.transformer_layers.TransformerLayers"
SIZES = {"width": WIDTH, "heads": 2, "patches": 16}
DEPTH = 6  # blocks of timm's test_vit


def model(
    depths: tuple[int, int] = (DEPTH, DEPTH), teacher: dict[str, Any] | None = None, **options: Any
) -> Distiller:
    """A ViT student with a live ViT teacher, as the pre-training stage builds them."""
    config = dict(
        type=TYPE, width=WIDTH, teacher_attention=SIZES,
        student_depth=depths[0], teacher_depth=depths[1], **options,
    )  # fmt: skip
    torch.manual_seed(0)
    reader = dict(live=teacher or VIT, blocks=teacher_blocks(config))
    return Distiller(STUDENT, config, teacher=reader)


def losses(distiller: Distiller, x: Tensor | None = None) -> dict[str, Tensor]:
    """The loss terms of images x, by default of three random ones."""
    x = images() if x is None else x
    return distiller(images=x, teacher_images=x)


# ---- the formula ----

STUDENT_SIZES, TEACHER_SIZES = (2, 2, 6), (4, 2, 4)  # (blocks, heads, width)
PATCHES, B = 4, 2


def random_attention(seed: int, sizes: tuple[int, int, int], prefix: int) -> Attention:
    """Random float64 tokens, queries, keys and values of a network, for B images.

    Args:
        seed: random seed.
        sizes: (blocks, heads, width).
        prefix: number of prefix tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    depth, heads, width = sizes
    n_tokens = prefix + PATCHES

    def random(*shape: int) -> Tensor:
        """Normal noise in float64."""
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    blocks = {}
    for k in range(depth):
        tokens = random(B, n_tokens, width)
        queries, keys, values = (random(B, heads, n_tokens, width // heads) for _ in range(3))
        blocks[k] = Block(tokens, queries, keys, values)
    return Attention(random(B, n_tokens, width), blocks, random(B, n_tokens, width), prefix)


class FixedRecorder:
    """Stands in for the recorder of the student's blocks; returns a fixed Attention."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention

    def take(self) -> Attention:
        """The fixed Attention."""
        return self.attention


def terms(
    prefixes: tuple[int, int] = (1, 1), **options: Any
) -> tuple[Any, Attention, Attention, dict[str, Tensor]]:
    """A student of two blocks and a teacher of four, with random tokens.

    Args:
        prefixes: numbers of prefix tokens of student and teacher.
        options: arguments of the objective.

    Returns:
        The objective, the Attention of the student, that of the teacher, and the terms {name: [B]}.
    """
    student = random_attention(0, STUDENT_SIZES, prefixes[0])
    teacher = random_attention(1, TEACHER_SIZES, prefixes[1])
    torch.manual_seed(0)
    objective: Any = TransformerLayers(
        STUDENT_SIZES[2], teacher.sizes(), student_depth=2, teacher_depth=4, **options
    ).double()
    objective._recorders = [FixedRecorder(student)]
    feature = torch.zeros(B, 3)
    output = TeacherOutput(feature, None, attention=teacher)
    return objective, student, teacher, objective.terms(Context(feature, feature, teacher=output))


def scores(block: Block, b: int, head: int) -> np.ndarray:
    """[T, T]: q.k / sqrt(d) of every pair of tokens of one image and head, number by number."""
    q, k = block.queries[b, head].numpy(), block.keys[b, head].numpy()
    return np.array([[float(x @ y) / math.sqrt(len(x)) for y in k] for x in q])


@pytest.mark.parametrize("prefixes", [(1, 1), (1, 3)])
@pytest.mark.parametrize("relative", [False, True])
def test_every_term_equals_the_formula_in_float64(prefixes: tuple[int, int], relative: bool):
    options = dict(attention=0.5, hidden=0.7, embedding=0.9, relative=relative)
    objective, student, teacher, computed = terms(prefixes, **options)
    weight, bias = (p.detach().numpy() for p in objective.projector.parameters())
    # Prefix tokens are compared only if both networks have as many.
    skip = (0, 0) if prefixes[0] == prefixes[1] else prefixes

    def attention_scores(net: Attention, block: int, skipped: int) -> np.ndarray:
        """[B, heads, T, T] without the first `skipped` tokens."""
        return np.stack(
            [
                [scores(net.blocks[block], b, head)[skipped:, skipped:] for head in range(2)]
                for b in range(B)
            ]
        )

    # {term: pairs of student and teacher array that are compared}
    pairs = {"attention": [], "hidden": [], "embedding": []}
    # Blocks 0 and 1 of the student are paired with blocks 1 and 3 of the teacher.
    for student_block, teacher_block in ((0, 1), (1, 3)):
        of_student = attention_scores(student, student_block, skip[0])
        of_teacher = attention_scores(teacher, teacher_block, skip[1])
        pairs["attention"].append([of_student, of_teacher])
    tokens = {
        "hidden": [
            (student.blocks[0].hidden, teacher.blocks[1].hidden),
            (student.final, teacher.final),  # of the last block: after the last norm
        ],
        "embedding": [(student.embedding, teacher.embedding)],
    }
    for name, token_pairs in tokens.items():
        for student_tokens, teacher_tokens in token_pairs:
            projected = student_tokens.numpy() @ weight.T + bias
            pairs[name].append([projected[:, skip[0] :], teacher_tokens.numpy()[:, skip[1] :]])
    for name, factor in (("attention", 0.5), ("hidden", 0.7), ("embedding", 0.9)):
        expected = np.zeros(B)
        for of_student, of_teacher in pairs[name]:
            scale = np.square(of_teacher).mean() if relative else 1.0
            error = np.square(of_student - of_teacher).reshape(B, -1).mean(1)
            expected += factor * error / scale
        np.testing.assert_allclose(computed[name].detach(), expected, rtol=1e-6, err_msg=name)
    assert set(computed) == set(pairs)


def test_average_heads_compares_the_mean_scores_of_both_networks():
    _, student, teacher, computed = terms(average_heads=True, relative=False)
    expected = np.zeros(B)
    for student_block, teacher_block in ((0, 1), (1, 3)):
        for b in range(B):
            student_mean, teacher_mean = (
                (scores(block, b, 0) + scores(block, b, 1)) / 2
                for block in (student.blocks[student_block], teacher.blocks[teacher_block])
            )
            expected[b] += np.square(student_mean - teacher_mean).mean()
    np.testing.assert_allclose(computed["attention"].detach(), expected, rtol=1e-9)


def test_every_block_of_the_student_is_paired_with_the_last_block_of_an_equal_part_of_the_teacher():
    """12 blocks for 3: parts 0 to 3, 4 to 7, 8 to 11."""
    assert block_pairs(3, 12) == [(0, 3), (1, 7), (2, 11)]
    assert block_pairs(12, 12) == [(k, k) for k in range(12)]
    assert teacher_blocks(dict(student_depth=2, teacher_depth=6)) == [2, 5]
    with pytest.raises(KdepError, match="12 blocks cannot be divided over the 5 blocks"):
        block_pairs(5, 12)


# ---- real networks ----


def test_equal_networks_have_the_loss_0():
    distiller = model().eval()
    student: Any = distiller.backbone
    teacher: Any = distiller.first_teacher_reader.live
    teacher.net.load_state_dict(student.net.state_dict(), strict=False)
    distiller.objective.projector = nn.Identity()  # type: ignore[assignment]
    for name, value in losses(distiller).items():
        assert float(value) < 1e-8, name
    with torch.no_grad():
        student.net.blocks[3].attn.qkv.weight[0, 0] += 1.0
        student.net.blocks[3].mlp.fc2.bias[0] += 1.0
    changed = losses(distiller)  # the embedding is before block 3
    assert float(changed["loss_attention"].detach()) > 1e-4
    assert float(changed["loss_hidden"].detach()) > 1e-4
    assert float(changed["loss_embedding"].detach()) < 1e-8


@pytest.mark.parametrize("name", ["attention", "hidden", "embedding"])
def test_a_term_with_the_factor_0_is_off(name: str):
    factor: dict[str, Any] = {name: 0.0}
    default, without = losses(model()), losses(model(**factor))
    for key, value in default.items():
        expected = value * (key != f"loss_{name}")
        torch.testing.assert_close(without[key], expected)


def test_all_student_parameters_are_trained_and_the_export_is_a_plain_backbone():
    distiller = model(depths=(DEPTH, DEPTH))
    teacher: Any = distiller.first_teacher_reader.live
    checksum = teacher.checksum()
    torch.stack(list(losses(distiller).values())).sum().backward()
    for module in (distiller.backbone, distiller.objective):
        untrained = [n for n, p in module.named_parameters() if p.grad is None]
        assert untrained == []
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.checksum() == checksum
    kept, dropped = strip(distiller.state_dict())
    assert dropped == ["objective"]
    assert set(kept) == set(build_backbone(STUDENT).state_dict())


def test_the_loss_falls_more_if_the_teacher_gets_the_same_image_as_the_student():
    def total(terms: dict[str, Tensor]) -> Tensor:
        """The sum of all loss terms."""
        return torch.stack(list(terms.values())).sum()

    loss_after = {}
    for shift in (0, 1):  # with shift 1 the teacher gets another image
        distiller = model(embedding=0.0).train()
        optimizer = torch.optim.Adam(distiller.parameters(), 2e-3)
        for step in range(30):
            distiller.step, x = step, images(8, 100 + step)
            optimizer.zero_grad()
            total(distiller(images=x, teacher_images=x.roll(shift, 0))).backward()
            optimizer.step()
        with torch.no_grad():
            loss_after[shift] = float(total(losses(distiller.eval(), images(16, 7))))
    loss_before = float(total(losses(model(embedding=0.0).eval())).detach())
    assert loss_after[0] < 0.8 * loss_before
    assert loss_after[0] < 0.97 * loss_after[1]


@pytest.mark.parametrize(
    ("depths", "teacher", "message"),
    [
        ((3, 6), {}, "the student has 6 blocks, .* reads 3 blocks"),
        ((6, 12), {}, "the teacher vit_teacher has 6 blocks, .* reads block 11"),
        ((6, 6), dict(input_px=96), "teacher has 36 patches, but the student has 16.*4 times"),
        ((6, 6), dict(args=dict(num_heads=4)), "student has 2 attention heads and the teacher 4"),
    ],
)
def test_networks_that_do_not_match_are_refused(
    depths: tuple[int, int], teacher: dict[str, Any], message: str
):
    config = copy.deepcopy(VIT)
    config["args"] |= teacher.pop("args", {})
    config |= teacher
    x = images()
    teacher_images = torch.zeros(3, 3, config["input_px"], config["input_px"], dtype=torch.uint8)
    with pytest.raises(KdepError, match=message):
        model(depths, config)(images=x, teacher_images=teacher_images)


def test_networks_with_different_numbers_of_heads_can_be_compared_by_averages():
    config = VIT | dict(args=VIT["args"] | dict(num_heads=4))
    assert float(losses(model(teacher=config, average_heads=True))["loss_attention"].detach()) > 0


# ---- the plan ----

# 196 / 14 = 224 / 16: as many patches as a student with patches of 16 pixels.
DINO = dict(base="dinov2_vitb14", input_px=196)
SMALL: dict[str, Any] = dict(  # a student with 6 blocks
    name="vit_t_6",
    backbone=STUDENT["backbone"] | dict(model="vit_tiny_patch16_224", depth=6),
    width=192,
    input_px=224,
    tap="output",
)


@pytest.mark.parametrize(
    ("objective", "suite", "message"),
    [
        ({}, dict(teacher="efficientnet_lite0"), "does not state that it is a vision transformer"),
        ({}, dict(students=["resnet18_w32"]), "'resnet18_w32' is not a vision transformer"),
        (
            {},
            dict(teacher=dict(DINO, model="vit_relpos_base_patch16_224")),
            r"the teacher 'dinov2_vitb14' is not .* \(its class is VisionTransformerRelPos\)",
        ),
        (dict(student_depth=6), {}, r"reads 6 blocks of the student, but 'vit_t' has 12"),
        ({}, dict(students=[SMALL]), r"reads 12 blocks of the student, but 'vit_t_6' has 6"),
        (dict(student_depth=5), {}, "12 blocks cannot be divided over the 5 blocks"),
        (dict(teacher_depth=24), {}, r"a teacher with 24 blocks, but .*'dinov2_vitb14' has 12"),
        (dict(average_heads=False), {}, "12 attention heads, but the student has 3"),
        (dict(hidden=-1.0), {}, "hidden = -1"),
    ],
)
def test_the_plan_refuses_pairs_of_student_and_teacher_that_do_not_match(
    objective: dict[str, Any], suite: dict[str, Any], message: str
):
    changes: dict[str, Any] = {"students": ["vit_t"], "teacher": DINO, **suite}
    with pytest.raises(KdepError, match=message):
        plan(dict(base="tinybert", name="changed", students=None, objective=objective), **changes)


@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224.augreg_in21k", "deit_tiny_distilled_patch16_224", "flexivit_small"),
        *("vit_relpos_small_patch16_224", "vit_small_patch16_rope_224", "vit_small_patch16_dinov3"),
        *("convit_tiny", "resnet18"),
    ],
)
def test_the_plan_accepts_a_network_of_timm_if_its_blocks_can_be_recorded(name: str):
    with torch.device("meta"):
        recordable = find_transformer(timm.create_model(name.partition(".")[0])) is not None
    assert recordable == name.startswith(("vit_tiny", "deit", "flexivit"))
    student = dict(base="vit_t", backbone=dict(model=name))
    if recordable:
        check_is_transformer("a method", resolve("student", student))
        return
    with pytest.raises(KdepError, match=r"vit_t' is not a vision transformer of .* \(its class is"):
        check_is_transformer("a method", resolve("student", student))


def test_a_sum_with_a_part_that_runs_the_student_again_is_refused_by_the_plan():
    """The layers of the second pass would be compared with the teacher's of the first."""
    tst = dict(type="kdep_bench.objectives.tst.TeachWhatYouShould")
    layers = dict(type=TYPE, student_depth=12, teacher_depth=12, average_heads=True)
    teacher = dict(base="dinov2_vitb14", input_px=224, has_logits=True)
    method = dict(
        base="tinybert",
        name="both",
        students=None,
        needs=["attention", "logits", "teacher_images"],
    )
    weighted = dict(_delete_=True, type="kdep_bench.objectives.weighted_sum.WeightedSum")
    alone: dict[str, Any] = dict(layers=dict(objective=layers))
    both = dict(tst=dict(objective=tst), **alone)
    with pytest.raises(KdepError, match=r"combines TransformerLayers, .*TeachWhatYouShould, which"):
        plan(
            method | dict(objective=dict(weighted, parts=both)), students=["vit_t"], teacher=teacher
        )
    plan(method | dict(objective=dict(weighted, parts=alone)), students=["vit_t"], teacher=teacher)


def test_pairs_that_match_are_planned_with_a_live_teacher():
    half = dict(base="tinybert", students=None, objective=dict(student_depth=6))
    for method, student in (("tinybert", "vit_t"), (half, SMALL)):
        stages = plan(method, students=[student], teacher=DINO).stages.values()
        (pretraining,) = (s for s in stages if s.kind == "pretrain")
        assert pretraining.spec["teacher"]["name"] == "dinov2_vitb14"
        assert not any(s.kind == "cache" for s in stages)
