"""EfficientNet-Lite with an earlier tap, rounded weights or random weights."""

from __future__ import annotations

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.teachers.efficientnet_lite import EfficientNetLite, round_to_bits
from tests.teachers.conftest import output_of, random_images


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    return EfficientNetLite("lite0", 0, 64)


@pytest.mark.parametrize(("tap", "width"), [("s4", 24), ("s16", 112), ("s32", 320)])
def test_an_earlier_tap_is_the_average_of_the_complete_network_s_map(lite0, tap, width):
    teacher = EfficientNetLite("mid", 0, 64, tap=tap, has_logits=False)
    images = random_images(64)
    out = output_of(teacher, images)
    assert teacher.width == width
    torch.testing.assert_close(out.pooled, lite0(images).maps[tap].mean((2, 3)))
    assert teacher.logit_head is None
    assert teacher.checksum() == lite0.checksum()


def test_weights_are_rounded_to_the_nearest_of_the_values_of_k_bits():
    weight = torch.tensor([[0.7, -0.4, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0], [-3.5, 1.2, 0.6, 2.0]])
    # 3 bits: integers -3..3; the scales of the rows are 0.7 / 3 and 3.5 / 3.
    expected = torch.tensor([[3.0, -2, 0, 0], [0, 0, 0, 0], [-3, 1, 1, 2]])
    expected *= torch.tensor([[0.7 / 3], [0], [3.5 / 3]])
    torch.testing.assert_close(round_to_bits(weight, 3), expected)
    assert len(round_to_bits(torch.randn(1, 999), 4).unique()) <= 15


def test_fewer_bits_change_the_feature_more_and_the_checksum(lite0):
    images, exact = random_images(64, 4), lite0(random_images(64, 4))
    errors = []
    for bits in (8, 4):
        teacher = EfficientNetLite("rounded", 0, 64, bits=bits)
        out = output_of(teacher, images)
        errors.append(float((out.pooled - exact.pooled).norm() / exact.pooled.norm()))
        assert teacher.checksum() != lite0.checksum()
        head = teacher.logit_head
        assert head is not None
        torch.testing.assert_close(head(out.pooled), out.logits)
    assert 0 < errors[0] < 0.2 < errors[1]


def test_random_weights_are_the_same_each_time_and_leave_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = EfficientNetLite("random", 0, 64, weights="random", has_logits=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.checksum() == EfficientNetLite("other", 0, 64, weights="random").checksum()
    assert output_of(first, random_images(64)).pooled.std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tap="s5", has_logits=False), "tap 's5' in the teacher 'x'"),
        (dict(tap="s16"), "set has_logits=False"),
        (dict(bits=1), "expected 2 to 16"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(KdepError, match=message):
        EfficientNetLite("x", 0, 64, **options)
