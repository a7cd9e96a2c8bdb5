"""DMAE: student and teacher get the same patches, and the teacher runs only up to one layer.

DMAE adds the distillation of one layer of a teacher to MAE (masked autoencoder). Without masking it
is distillation only; with alpha (the weight of the distillation) 0 it is MAE. The formula is in the
docstring of `Dmae`. A student is a vision transformer (ViT); a teacher is a ViT or convolutional.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.networks.taps import capture_modules
from kdep_bench.objectives.dmae import token_distance
from kdep_bench.pretrain.distiller import Distiller
from kdep_bench.transfer.export import strip

PX = 64  # side of the images in pixels: 4 x 4 = 16 patches of 16 pixels
BLOCK, WIDTH = 3, 64  # distilled block of the student and the ViT teacher, width of its tokens
STUDENT: dict[str, Any] = dict(
    name="vit",
    backbone=dict(
        type="kdep_bench.students.timm_backbone.TimmBackbone",
        model="test_vit",
        dynamic_img_size=True,
    ),
    width=WIDTH,
    input_px=PX,
    tap="output",
)
VIT: dict[str, Any] = dict(  # a teacher
    type="kdep_bench.teachers.timm_models.Timm",
    name="vit_teacher",
    model="test_vit",
    input_px=PX,
    weights="random",
    args=dict(dynamic_img_size=True),
    mean=tuple(MEAN),
    std=tuple(STD),
)
LITE: dict[str, Any] = dict(  # a convolutional teacher
    type="kdep_bench.teachers.efficientnet_lite.EfficientNetLite",
    name="lite0",
    variant=0,
    input_px=PX,
)
DMAE = "kdep_bench.objectives.dmae.Dmae"
MAE = dict(
    type="kdep_bench.objectives.masked_autoencoder.MaskedAutoencoder", width=WIDTH, decoder_depth=1
)


def mask(ratio: float = 0.75) -> dict[str, Any]:
    """Config of the augmentation that hides a fraction `ratio` of the patches."""
    return dict(type="kdep_bench.augments.mask_patches.MaskPatches", patch=16, ratio=ratio)


def model(
    teacher: dict[str, Any] | None = None,
    ratio: float = 0.75,
    objective: dict[str, Any] | None = None,
    **options: Any,
) -> Distiller:
    """A student and a live teacher, as the pre-training stage builds them.

    Args:
        teacher: config of the teacher; None: VIT.
        ratio: fraction of the patches that are hidden.
        objective: config of another objective, which has no teacher; None: DMAE.
        options: arguments of DMAE.
    """
    network = VIT if teacher is None else teacher
    # The teacher's layer and its channels.
    layer, width = ("s16", 112) if network is LITE else (f"blocks.{BLOCK}", WIDTH)
    config = dict(
        type=DMAE,
        **{k: v for k, v in MAE.items() if k != "type"},
        layer_width=width,
        teacher_layer=layer,
        student_block=BLOCK,
        **options,
    )
    torch.manual_seed(0)
    return Distiller(
        STUDENT,
        objective or config,
        teacher=dict(live=network, layer=config["teacher_layer"]) if objective is None else {},
        augment=mask(ratio),
    )


def images(count: int = 3, seed: int = 1) -> Tensor:
    """Random images [count, 3, PX, PX] of blocks of 8 x 8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 8, 8), generator=generator)
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).to(torch.uint8)


def losses(distiller: Distiller, x: Tensor | None = None) -> dict[str, Tensor]:
    """The loss terms of images x, by default of three random ones."""
    x = images() if x is None else x
    return distiller(images=x, teacher_images=x)


def live_teacher(distiller: Distiller) -> Any:
    """The live teacher."""
    return distiller.first_teacher_reader.live


def copy_student_weights(distiller: Distiller) -> None:
    """Gives the teacher the student's weights, and the objective an identity projector."""
    student: Any = distiller.backbone
    live_teacher(distiller).net.load_state_dict(student.net.state_dict(), strict=False)
    objective: Any = distiller.objective
    objective.projector = nn.Identity()


def test_student_and_teacher_get_the_same_patches_in_the_same_order():
    distiller = model().eval()
    copy_student_weights(distiller)
    assert float(losses(distiller)["loss_layer"]) < 1e-5  # equal networks, equal patches
    teacher = live_teacher(distiller)
    up_to = teacher.up_to  # runs the teacher up to a layer
    # The same patches in another order, then other patches.
    teacher.up_to = lambda x, layer, visible, hidden: up_to(x, layer, visible.roll(1, 1), hidden)
    assert float(losses(distiller)["loss_layer"]) > 0.01
    teacher.up_to = lambda x, layer, visible, hidden: up_to(x, layer, (visible + 1) % 16, hidden)
    assert float(losses(distiller)["loss_layer"]) > 0.01


@pytest.mark.parametrize(
    ("teacher", "run", "not_run"),
    [
        (VIT, [f"blocks.{k}" for k in range(4)], ["blocks.4", "blocks.5", "norm", "head"]),
        (
            LITE,
            [f"blocks.{k}" for k in range(5)],
            ["blocks.5", "blocks.6", "conv_head", "bn2", "classifier"],
        ),
    ],
    ids=["vit", "cnn"],
)
def test_the_teacher_stops_after_the_layer_that_is_read(
    teacher: dict[str, Any], run: list[str], not_run: list[str]
):
    distiller = model(teacher)
    layers_run: list[str] = []
    for path in [*run, *not_run]:
        module = live_teacher(distiller).net.get_submodule(path)
        module.register_forward_pre_hook(lambda *_, path=path: layers_run.append(path))
    for _ in range(2):
        torch.stack(list(losses(distiller).values())).sum().backward()
    assert layers_run == 2 * run


def test_hidden_patches_do_not_change_a_convolutional_teacher_s_features():
    teacher = live_teacher(model(LITE).eval())
    x = images(2)
    hidden = torch.ones(2, 4, 4, dtype=torch.bool)
    hidden[:, 1, 2] = False
    visible = torch.full((2, 1), 6)  # patch 6 of 16 is in row 1 and column 2
    changed = x.clone()
    hidden_pixels = hidden.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].expand_as(x)
    changed[hidden_pixels] = 255 - changed[hidden_pixels]
    features = [teacher.up_to(v, "s16", visible, hidden) for v in (x, changed)]
    assert features[0].shape == (2, 1, 112)
    torch.testing.assert_close(*features, rtol=0, atol=0)
    unmasked = teacher.up_to(x, "s16", visible, torch.zeros_like(hidden))
    assert not torch.allclose(features[0], unmasked)
    torch.testing.assert_close(unmasked[:, 0], teacher(x).maps["s16"][:, :, 1, 2])


def test_without_masking_the_loss_is_the_distance_of_the_two_layers():
    """Tokens have length 1 and are compared by the mean absolute difference."""
    distiller = model(ratio=0.0, alpha=3.0).eval()
    x = images()
    normalised = (x.float() - distiller.mean) / distiller.std
    terms = losses(distiller, x)
    layer_outputs: list[Tensor] = []
    nets: list[Any] = [distiller.backbone.net, live_teacher(distiller).net]
    for net in nets:
        with torch.no_grad(), capture_modules(net, {"z": (f"blocks.{BLOCK}", "out")}) as recorded:
            net.forward_features(normalised)
        layer_outputs.append(recorded["z"])
    projected = distiller.objective.projector(layer_outputs[0])  # type: ignore[operator]
    student, teacher = (
        tokens / tokens.square().sum(2, keepdim=True).sqrt()
        for tokens in (projected, layer_outputs[1])
    )
    torch.testing.assert_close(terms["loss_layer"], 3 * (student - teacher).abs().mean())
    assert float(terms["loss_reconstruction"]) == 0


def test_with_alpha_0_training_equals_mae_bit_for_bit():
    runs = []
    for distiller in (model(alpha=0.0), model(objective=MAE)):
        optimizer = torch.optim.SGD(distiller.parameters(), 0.1)
        step_losses = []
        for step in range(3):
            distiller.step = step
            terms = losses(distiller, images(4, step))
            assert float(terms.get("loss_layer", 0.0)) == 0
            step_losses.append(float(terms["loss_reconstruction"].detach()))
            optimizer.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
        runs.append((step_losses, distiller.backbone.state_dict()))
    (dmae_losses, dmae_weights), (mae_losses, mae_weights) = runs
    assert dmae_losses == mae_losses
    assert all(torch.equal(v, mae_weights[k]) for k, v in dmae_weights.items())


@pytest.mark.parametrize("unit_length", [True, False])
@pytest.mark.parametrize("class_tokens", [(1, 1), (1, 0), (0, 5)])
def test_the_token_distance_equals_the_formula_in_float64(
    unit_length: bool, class_tokens: tuple[int, int]
):
    """Class tokens are compared only if both networks have equally many."""
    generator = torch.Generator().manual_seed(0)
    patches, channels = 3, 7
    student, teacher = (
        torch.randn(2, count + patches, channels, generator=generator, dtype=torch.float64)
        for count in class_tokens
    )
    skipped = (0, 0) if class_tokens[0] == class_tokens[1] else class_tokens
    expected = []
    for b in range(2):
        rows = [
            [[float(v) for v in token] for token in tokens[b, skip:]]
            for tokens, skip in zip((student, teacher), skipped, strict=True)
        ]
        total, count = 0.0, 0
        for s, t in zip(*rows, strict=True):  # a token of the student and one of the teacher
            lengths = [sum(v * v for v in token) ** 0.5 if unit_length else 1.0 for token in (s, t)]
            total += sum(abs(a / lengths[0] - b / lengths[1]) for a, b in zip(s, t, strict=True))
            count += channels
        expected.append(total / count)
    computed = token_distance(student, teacher, patches, unit_length)
    assert computed.tolist() == pytest.approx(expected, rel=1e-12)


def test_gradients_reach_only_student_and_objective_and_the_export_is_a_plain_backbone():
    distiller = model()
    teacher = live_teacher(distiller)
    checksum = teacher.checksum()
    torch.stack(list(losses(distiller).values())).sum().backward()
    for module in (distiller.backbone, distiller.objective):
        assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.checksum() == checksum
    kept, dropped = strip(distiller.state_dict())
    assert dropped == ["objective"]
    assert set(kept) == set(build_backbone(STUDENT).state_dict())


def test_every_argument_changes_the_loss():
    default = losses(model())
    for name, value in dict(
        alpha=0.5, unit_length=False, student_block=2, teacher_layer="blocks.1", decoder_depth=2
    ).items():
        config = dict(
            type=DMAE,
            **{k: v for k, v in MAE.items() if k != "type"},
            layer_width=WIDTH,
            teacher_layer=f"blocks.{BLOCK}",
            student_block=BLOCK,
        )
        config |= {name: value}
        torch.manual_seed(0)
        reader = dict(live=VIT, layer=config["teacher_layer"])
        changed = losses(Distiller(STUDENT, config, teacher=reader, augment=mask()))
        assert any(not torch.equal(changed[k], v) for k, v in default.items()), name


def test_the_distance_falls_more_if_the_teacher_gets_the_same_image_as_the_student():
    loss_after = {}
    for shift in (0, 1):  # with shift 1 the teacher gets another image
        distiller = model(ratio=0.5).train()
        optimizer = torch.optim.Adam(distiller.parameters(), 2e-3)
        for step in range(30):
            distiller.step, x = step, images(8, 100 + step)
            terms = distiller(images=x, teacher_images=x.roll(shift, 0))
            optimizer.zero_grad()
            terms["loss_layer"].backward()
            optimizer.step()
        with torch.no_grad():
            loss_after[shift] = float(losses(distiller.eval(), images(16, 7))["loss_layer"])
    loss_before = float(losses(model(ratio=0.5).eval(), images(16, 7))["loss_layer"].detach())
    assert loss_after[0] < 0.7 * loss_before
    assert loss_after[0] < 0.97 * loss_after[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(input_px=96), r"teacher vit_teacher has 36 patches, but the student has 16.*4 times"),
        (dict(model="test_convnext", args={}), r"unknown layer 'blocks.3' in the teacher"),
    ],
)
def test_a_teacher_with_other_patches_is_refused(change: dict[str, Any], message: str):
    config = copy.deepcopy(VIT) | change
    distiller, px = model(config), config["input_px"]
    teacher_images = torch.zeros(3, 3, px, px, dtype=torch.uint8)
    with pytest.raises(KdepError, match=message):
        distiller(images=images(), teacher_images=teacher_images)


def test_a_block_that_the_student_does_not_have_is_refused():
    config = dict(
        type=DMAE, width=WIDTH, layer_width=WIDTH, teacher_layer="blocks.3", student_block=6
    )
    with pytest.raises(KdepError, match="block 6 of the student, which has 6 blocks"):
        Distiller(STUDENT, config, augment=mask())
