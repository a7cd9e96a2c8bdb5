"""Sparse class probabilities: the stored and the rebuilt distribution against the full one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdep_bench.errors import KdepError
from kdep_bench.features import sparse

LOGITS = 3 * torch.randn(64, 20, generator=torch.Generator().manual_seed(0))


def rebuilt(k: int, half: bool = True) -> torch.Tensor:
    """The distribution [64, 20] rebuilt from the k largest probabilities."""
    values, index = sparse.largest(LOGITS, k, "t")
    return sparse.dense(values.half() if half else values, index, 20)


@pytest.mark.parametrize("k", [1, 5, 19, 20])
def test_the_rebuilt_distribution_sums_to_1_and_is_not_negative(k: int):
    probabilities = rebuilt(k)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(64), rtol=0, atol=1e-6)
    assert bool((probabilities >= 0).all())


def test_with_all_classes_stored_the_distribution_is_that_of_the_teacher():
    full = F.softmax(LOGITS, 1)
    torch.testing.assert_close(rebuilt(20, half=False), full)
    torch.testing.assert_close(rebuilt(20), full, rtol=0, atol=2.0**-11)


def test_the_largest_probabilities_are_exact_and_the_rest_is_spread_evenly():
    full, p = F.softmax(LOGITS, 1), rebuilt(3, half=False)
    order = full.argsort(1, descending=True)
    torch.testing.assert_close(p.gather(1, order)[:, :3], full.gather(1, order)[:, :3])
    small_probabilities = p.gather(1, order)[:, 3:]
    rest = (1 - full.gather(1, order)[:, :3].sum(1)) / 17  # 20 classes less the 3 stored ones
    torch.testing.assert_close(small_probabilities, rest[:, None].expand_as(small_probabilities))


def test_float16_that_rounds_the_sum_above_1_gives_no_negative_rest():
    values = torch.tensor([[0.5005, 0.5]]).half()
    probabilities = sparse.dense(values, torch.tensor([[2, 0]], dtype=torch.int16), 4)
    assert float(values.float().sum()) > 1
    torch.testing.assert_close(probabilities.sum(1), torch.ones(1))
    assert float(probabilities.min()) == 0


def test_more_probabilities_than_classes_are_refused():
    with pytest.raises(KdepError, match="has 20 classes"):
        sparse.largest(LOGITS, 21, "t")
    with pytest.raises(KdepError, match="at most 32768"):
        sparse.largest(torch.zeros(1, 40000), 3, "t")


def test_the_check_accepts_ties_and_detects_wrong_classes_and_values():
    logits = torch.tensor([[2.0, 2.0, 0.0, -9.0]])
    value = F.softmax(logits, 1)[:, :1]
    for tied in (0, 1):
        assert sparse.stored_error(logits, value, torch.tensor([[tied]])) < 1e-6
    assert sparse.stored_error(logits, value, torch.tensor([[2]])) > 0.3
    assert sparse.stored_error(logits, value + 0.1, torch.tensor([[0]])) > 0.09
    low = F.softmax(logits, 1)[:, 2:3]  # the right value of a class that is not the largest
    assert sparse.stored_error(logits, low, torch.tensor([[2]])) > 0.3
