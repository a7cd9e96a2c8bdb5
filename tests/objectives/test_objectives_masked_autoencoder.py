"""MAE (masked autoencoder): which patches the student receives, and which the loss compares."""

from __future__ import annotations

import pytest
import torch

from kdep_bench.augments.base import Batch, Draw
from kdep_bench.augments.mask_patches import MaskPatches
from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.networks.visible import VisibleTokens
from kdep_bench.objectives.base import Context
from kdep_bench.objectives.masked_autoencoder import MaskedAutoencoder, patchify, position_embedding

TIMM = "kdep_bench.students.timm_backbone.TimmBackbone"
STUDENT = dict(backbone=dict(type=TIMM, model="test_vit", dynamic_img_size=True))
PX, PATCH = 64, 16  # side of image and patch in pixels: 4 x 4 = 16 patches


def setup() -> tuple[MaskedAutoencoder, torch.nn.Module]:
    """MAE's objective attached to a small vision transformer, and that student."""
    torch.manual_seed(0)
    student = build_backbone(STUDENT).eval()
    # Student width 64; a decoder of width 32 with one block of 4 heads.
    objective = MaskedAutoencoder(64, 32, 1, 4, patch=PATCH)
    objective.attach(student, torch.nn.Identity)
    return objective.eval(), student


def visible(ratio: float = 0.75, count: int = 3) -> torch.Tensor:
    """Indices [count, n] of the visible patches of `count` images; `ratio`: fraction masked."""
    images = torch.zeros(count, 3, PX, PX)
    return MaskPatches(PATCH, ratio).change(Batch(images), Draw(0, 1, count)).extra["visible"]


def terms(objective: MaskedAutoencoder, student: torch.nn.Module, x: torch.Tensor, visible_patches):
    """Reconstruction loss [B] of images x if only `visible_patches` [B, n] are visible."""
    objective.before_student({"visible": visible_patches})
    pooled = student(x)[-1].flatten(1)
    return objective.terms(Context(pooled, pooled, images=x))["reconstruction"]


def test_the_masking_ratio_sets_the_number_of_visible_patches():
    for ratio, count in ((0.75, 4), (0.0, 16), (0.99, 1)):
        visible_patches = visible(ratio)
        assert visible_patches.shape == (3, count)
        assert all(len(set(row.tolist())) == count for row in visible_patches)
    patches_per_image = {tuple(sorted(row.tolist())) for row in visible()}
    assert len(patches_per_image) > 1  # images have different visible patches
    with pytest.raises(KdepError, match="patches of 15"):
        MaskPatches(15).change(Batch(torch.zeros(1, 3, PX, PX)), Draw(0, 0, 1))


def test_hidden_patches_do_not_change_the_student_s_tokens():
    objective, student = setup()
    x, visible_patches = torch.randn(3, 3, PX, PX), visible()
    hidden = torch.ones(3, 16).scatter(1, visible_patches, 0.0).view(3, 1, 4, 4)
    changed = x + hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    tokens = []
    for images in (x, changed):
        objective.before_student({"visible": visible_patches})
        student(images)
        tokens.append(objective._student[0].tokens()[0])
    assert tokens[0].shape == (3, 1 + 4, 64)  # a class token and 4 visible patches
    torch.testing.assert_close(*tokens, rtol=0, atol=0)
    # Without a mask they do change the output.
    assert not torch.allclose(student(x)[-1], student(changed)[-1])


def test_with_every_patch_visible_the_output_equals_that_of_the_unmasked_student():
    _, student = setup()
    masked_student = VisibleTokens(student)
    x = torch.randn(2, 3, PX, PX)
    unmasked = student(x)[-1].flatten(1)
    masked_student.visible = torch.arange(16).repeat(2, 1)
    masked = student(x)[-1].flatten(1)
    torch.testing.assert_close(masked, unmasked)
    assert masked_student.tokens()[0].shape == (2, 17, 64)  # a class token and 16 patches


def test_the_loss_is_the_error_on_masked_patches_only():
    objective, student = setup()
    x, visible_patches = torch.randn(3, 3, PX, PX), visible()
    pixels = patchify(x, PATCH)
    centred = pixels - pixels.mean(2, keepdim=True)
    # The target: every patch with mean 0 and (unbiased) variance 1 of its pixels.
    variance = centred.square().sum(2, keepdim=True) / (3 * PATCH**2 - 1)
    target = centred / (variance + 1e-6).sqrt()
    is_masked = torch.ones(3, 16).scatter(1, visible_patches, 0.0)[:, :, None]
    wrong_on_visible = target + 2 * (1 - is_masked)
    objective.decode = lambda *_: wrong_on_visible  # type: ignore[method-assign]
    loss = terms(objective, student, x, visible_patches)
    torch.testing.assert_close(loss, torch.zeros(3), atol=1e-6, rtol=0)
    wrong_on_masked = target + 3 * is_masked  # an error of 3 in every pixel: the loss is 3^2
    objective.decode = lambda *_: wrong_on_masked  # type: ignore[method-assign]
    loss = terms(objective, student, x, visible_patches)
    torch.testing.assert_close(loss, torch.full((3,), 9.0))


def test_patches_are_ordered_row_by_row_and_have_different_position_codes():
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    # Pixels are numbered row by row, so the second of four 2 x 2 patches has 2, 3, 6 and 7.
    assert patchify(x, 2)[0, 1, ::3].tolist() == [2, 3, 6, 7]
    table = position_embedding(4, 32)
    assert table.shape == (16, 32)
    distances = torch.cdist(table, table).fill_diagonal_(torch.inf)
    assert distances.min() > 0.5
    torch.testing.assert_close(table[1, :16], table[5, :16])  # the same column
    torch.testing.assert_close(table[4, 16:], table[5, 16:])  # the same row


def test_gradient_reaches_every_weight_of_the_student_and_the_decoder():
    objective, student = setup()
    terms(objective, student, torch.randn(3, 3, PX, PX), visible()).mean().backward()
    for module in (student, objective):
        assert all(p.grad is not None for p in module.parameters())


def test_other_students_and_patch_sizes_are_refused():
    conv = build_backbone(dict(backbone=dict(type=TIMM, model="test_convnext")))
    with pytest.raises(KdepError, match="not a vision transformer"):
        MaskedAutoencoder(64).attach(conv, torch.nn.Identity)
    with pytest.raises(KdepError, match=r"patches have 16 pixels"):
        MaskedAutoencoder(64, patch=8).attach(build_backbone(STUDENT), torch.nn.Identity)
    with pytest.raises(KdepError, match="decoder_heads=5"):
        MaskedAutoencoder(64, decoder_heads=5)
