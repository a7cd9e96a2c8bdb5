"""Augmentations: closed forms; random numbers do not depend on processes or resuming."""

from __future__ import annotations

import pytest
import torch

from kdep_bench.augments.base import Batch, Draw, as_uint8, build_augment
from kdep_bench.augments.crop import RandomCrop, cropped
from kdep_bench.augments.mixup import Mixup
from kdep_bench.augments.multi_view import MultiView
from kdep_bench.data.normalisation import MEAN
from kdep_bench.errors import KdepError
from kdep_bench.teachers.base import TeacherOutput


def test_random_numbers_of_a_split_batch_equal_those_of_the_complete_batch():
    complete = Draw(seed=3, step=7, size=24).uniform(2)
    combined = torch.empty_like(complete)
    for rank in range(2):
        for part in range(3):
            part_draw = Draw(3, 7, size=4, rank=rank, ranks=2, part=part, parts=3)
            # rank 0 has samples 0, 2, 4, ...; a micro-batch is a run of one rank's samples
            combined[torch.arange(24)[rank::2][part * 4 : part * 4 + 4]] = part_draw.uniform(2)
    torch.testing.assert_close(combined, complete, rtol=0, atol=0)
    assert not torch.equal(Draw(3, 8, 24).uniform(2), complete)
    assert not torch.equal(Draw(4, 7, 24).uniform(2), complete)
    assert Draw(3, 7, 4).beta(0.2, 0.2) == Draw(3, 7, 12).beta(0.2, 0.2)


def test_mixup_mixes_images_and_stored_teacher_outputs_with_the_same_weight():
    generator = torch.Generator().manual_seed(0)
    images, p = (
        torch.rand(6, 3, 4, 4, generator=generator),
        torch.rand(6, 9, generator=generator).softmax(1),
    )
    target, pooled = torch.randn(6, 5, generator=generator), torch.randn(6, 7, generator=generator)
    out = TeacherOutput(pooled, pooled, {"s4": images}, probabilities=p)
    mixed = Mixup(0.7).change(Batch(images, {}, {"": out}, {"": target}), Draw(1, 2, 6))
    w = Draw(1, 2, 6).beta(0.7, 0.7)
    assert 0 < w < 1
    for mixed_values, values in (
        (mixed.images, images),
        (mixed.targets[""], target),
        (mixed.stored[""].pooled, pooled),
        (mixed.stored[""].probabilities, p),
    ):
        assert mixed_values is not None
        torch.testing.assert_close(mixed_values, w * values + (1 - w) * values.flip(0))
    assert mixed.stored[""].probabilities is not None
    torch.testing.assert_close(mixed.stored[""].probabilities.sum(1), torch.ones(6))
    assert mixed.stored[""].logits is None  # mixed logits would not give mixed probabilities
    assert not mixed.stored[""].maps


def test_a_crop_of_the_complete_image_is_the_image_and_a_mirrored_crop_its_mirror():
    images = torch.rand(2, 3, 8, 8)
    same = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    torch.testing.assert_close(cropped(images, same), images)
    same[:, 0, 0] = -1
    torch.testing.assert_close(cropped(images, same), images.flip(3))


def test_student_and_teacher_receive_the_same_crop_at_their_input_sizes():
    ramp = torch.linspace(0, 255, 64)[None, None, None, :].expand(5, 3, 64, 64)
    small = torch.nn.functional.avg_pool2d(ramp, 2)
    batch = RandomCrop().change(Batch(small, {"t": ramp}), Draw(0, 0, 5))
    teacher_view = torch.nn.functional.avg_pool2d(batch.teacher_images["t"], 2)
    torch.testing.assert_close(batch.images, teacher_view, atol=3.0, rtol=0)
    # On a horizontal ramp the width of a crop is the difference between its right and left edge.
    widths = (batch.images[..., -1] - batch.images[..., 0]).abs().mean((1, 2))
    assert len({round(float(v)) for v in widths}) > 1  # samples have different crops
    assert (widths < 250).all()


def test_images_for_a_teacher_are_rounded_and_clipped_to_uint8():
    converted = as_uint8(torch.tensor([-3.0, 0.6, 254.4, 300.0]))
    assert converted.tolist() == [0, 1, 254, 255]


def test_wrong_arguments_and_classes_are_refused():
    with pytest.raises(KdepError, match="scale="):
        RandomCrop([0.5, 2.0])
    with pytest.raises(KdepError, match="is not an Augment"):
        build_augment(dict(type="kdep_bench.objectives.cross_entropy.CrossEntropy"))


def test_views_change_the_chosen_images_of_student_and_teacher_alike():
    generator = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(64, 3, 4, 4, generator=generator)
    small, large = (torch.nn.functional.interpolate(coarse, size=s) for s in (16, 32))
    augment, draw = MultiView(p=0.5, angle=20.0), Draw(0, 3, 64)
    out = augment.change(Batch(small, {"teacher": large}), draw)
    changed = (out.images != small).flatten(1).any(1)
    assert torch.equal(changed, (out.teacher_images["teacher"] != large).flatten(1).any(1))
    assert 20 < int(changed.sum()) < 44  # of 64 images, each with probability 0.5
    again = augment.change(Batch(small), Draw(0, 3, 64)).images
    assert torch.equal(out.images, again)
    halved = torch.nn.functional.avg_pool2d(out.teacher_images["teacher"], 2)
    unrelated = (halved.roll(1, 0) - out.images).abs().mean()
    assert float((halved - out.images).abs().mean()) < 0.3 * float(unrelated)
    assert float(out.images.min()) >= 0
    assert float(out.images.max()) <= 255
    never = MultiView(p=0.0).change(Batch(small), draw).images
    assert torch.equal(never, small)


def test_the_square_that_covers_part_of_an_image_has_the_requested_side_and_the_mean_colour():
    images = torch.full((8, 3, 16, 16), 200.0)
    only_square = MultiView(p=1.0, shrink=0.0, angle=0.0, colour=0.0, square=0.25)
    out = only_square.change(Batch(images), Draw(0, 0, 8)).images
    covered = (out != 200.0).all(1)
    assert covered.flatten(1).sum(1).tolist() == [16] * 8  # (0.25 * 16)^2 pixels in each image
    torch.testing.assert_close(out[0, :, covered[0]][:, 0], torch.tensor(MEAN))
    no_change = MultiView(p=1.0, shrink=0.0, angle=0.0, colour=0.0, square=0.0)
    torch.testing.assert_close(no_change.change(Batch(images), Draw(0, 0, 8)).images, images)
