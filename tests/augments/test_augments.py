"""Augmentations: closed forms, and random numbers that no split and no resume changes."""

from __future__ import annotations

import pytest
import torch

from kdep_bench.augments.base import Batch, Draw, as_uint8, build_augment
from kdep_bench.augments.crop import RandomCrop, cropped
from kdep_bench.augments.mixup import Mixup
from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import TeacherOutput


def test_numbers_of_a_split_batch_are_those_of_the_whole_one():
    whole = Draw(3, 7, 24).uniform(2)
    again = torch.empty_like(whole)
    for rank in range(2):
        for part in range(3):
            own = Draw(3, 7, 4, rank, 2, part, 3).uniform(2)
            # rank 0 has samples 0, 2, 4, ...; a micro-batch is a run of one rank's samples
            again[torch.arange(24)[rank::2][part * 4 : part * 4 + 4]] = own
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    assert not torch.equal(Draw(3, 8, 24).uniform(2), whole)
    assert not torch.equal(Draw(4, 7, 24).uniform(2), whole)
    assert Draw(3, 7, 4).beta(0.2, 0.2) == Draw(3, 7, 12).beta(0.2, 0.2)


def test_a_mixed_target_is_the_convex_mixture_of_the_stored_ones():
    g = torch.Generator().manual_seed(0)
    images, p = torch.rand(6, 3, 4, 4, generator=g), torch.rand(6, 9, generator=g).softmax(1)
    target, pooled = torch.randn(6, 5, generator=g), torch.randn(6, 7, generator=g)
    out = TeacherOutput(pooled, pooled, {"s4": images}, probabilities=p)
    mixed = Mixup(0.7).change(Batch(images, {}, {"": out}, {"": target}), Draw(1, 2, 6))
    w = Draw(1, 2, 6).beta(0.7, 0.7)
    assert 0 < w < 1
    for got, own in (
        (mixed.images, images),
        (mixed.targets[""], target),
        (mixed.stored[""].pooled, pooled),
        (mixed.stored[""].probabilities, p),
    ):
        assert got is not None
        torch.testing.assert_close(got, w * own + (1 - w) * own.flip(0))
    assert mixed.stored[""].probabilities is not None
    torch.testing.assert_close(mixed.stored[""].probabilities.sum(1), torch.ones(6))
    assert mixed.stored[""].logits is None  # a mixture of logits is not one of probabilities
    assert not mixed.stored[""].maps


def test_the_whole_image_as_crop_is_the_image_and_a_mirrored_one_its_mirror():
    images = torch.rand(2, 3, 8, 8)
    same = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    torch.testing.assert_close(cropped(images, same), images)
    same[:, 0, 0] = -1
    torch.testing.assert_close(cropped(images, same), images.flip(3))


def test_student_and_teacher_see_the_same_crop_at_their_own_size():
    ramp = torch.linspace(0, 255, 64)[None, None, None, :].expand(5, 3, 64, 64)
    small = torch.nn.functional.avg_pool2d(ramp, 2)
    batch = RandomCrop().change(Batch(small, {"t": ramp}), Draw(0, 0, 5))
    big = torch.nn.functional.avg_pool2d(batch.teacher_images["t"], 2)
    torch.testing.assert_close(batch.images, big, atol=3.0, rtol=0)
    widths = (batch.images[..., -1] - batch.images[..., 0]).abs().mean((1, 2))
    assert len({round(float(v)) for v in widths}) > 1  # another crop for every sample
    assert (widths < 250).all()


def test_images_for_a_teacher_are_whole_numbers_in_range():
    shown = as_uint8(torch.tensor([-3.0, 0.6, 254.4, 300.0]))
    assert shown.tolist() == [0, 1, 254, 255]


def test_wrong_arguments_and_classes_are_refused():
    with pytest.raises(KdepError, match="scale="):
        RandomCrop([0.5, 2.0])
    with pytest.raises(KdepError, match="is not an Augment"):
        build_augment(dict(type="kdep_bench.objectives.cross_entropy.CrossEntropy"))
