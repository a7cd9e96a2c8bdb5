"""nms, soft_nms, nms_match and bbox_overlaps against plain float64 loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv import ops as mmcv_ops
from mmcv.ops import batched_nms, bbox_overlaps, nms_match

nms: Any = mmcv_ops.nms  # mmcv's type hint does not say that a tensor gives a tensor
soft_nms: Any = mmcv_ops.soft_nms

# Coordinates are integers and thresholds are binary fractions. Rounding therefore never moves an
# IoU across a threshold, and float32 and float64 must give the same result.
THRESHOLDS = (0.25, 0.5, 0.75)


def iou64(a: list[float], b: list[float], offset: int = 0) -> float:
    """The IoU of two boxes; `offset` 1 counts both edges as part of a box."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    union = sum(areas) - shared
    return shared / union if union else 0.0


def nms64(boxes: list, scores: list, threshold: float, offset: int = 0) -> list[int]:
    """Indices of the boxes that non-maximum suppression keeps, best first."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou64(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def soft_nms64(
    boxes: list, scores: list, threshold: float, sigma: float, floor: float, method: str
) -> list[tuple[int, float]]:
    """(index, reduced score) of each box that soft NMS keeps, highest reduced score first."""
    remaining, result = dict(enumerate(scores)), []
    while remaining:
        best = max(remaining, key=lambda i: (remaining[i], -i))  # a tie keeps the first box
        result.append((best, remaining.pop(best)))
        for i in list(remaining):
            iou = iou64(boxes[best], boxes[i])
            if method == "gaussian":
                remaining[i] *= math.exp(-iou * iou / sigma)
            elif iou >= threshold:
                remaining[i] *= 1 - iou if method == "linear" else 0.0
            if remaining[i] < floor:
                del remaining[i]
    return result


def random_boxes(seed: int, n: int = 40, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """n boxes with integer coordinates, and n different scores."""
    rng = np.random.default_rng(seed)
    near = rng.integers(0, size, (n, 2))
    far = near + rng.integers(1, size, (n, 2))
    scores = rng.permutation(n) / n + 0.01
    return torch.tensor(np.hstack([near, far]), dtype=torch.float32), torch.tensor(scores).float()


boxes_strategy = st.lists(
    st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2), min_size=1, max_size=25
).map(lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows]).float())


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("seed", range(12))
def test_nms_equals_the_float64_reference(seed: int, offset: int, device: torch.device) -> None:
    boxes, scores = random_boxes(seed)
    for threshold in THRESHOLDS:
        dets, kept = nms(boxes.to(device), scores.to(device), threshold, offset)
        assert kept.tolist() == nms64(boxes.tolist(), scores.tolist(), threshold, offset)
        assert torch.equal(dets.cpu(), torch.cat([boxes, scores[:, None]], 1)[kept.cpu()])


@settings(deadline=None, max_examples=60)
@given(boxes_strategy, st.sampled_from(THRESHOLDS), st.randoms(use_true_random=False))
def test_nms_is_idempotent_and_independent_of_the_order_of_boxes(
    boxes: torch.Tensor, threshold: float, random
) -> None:
    scores = torch.arange(1, len(boxes) + 1) / len(boxes)
    dets, kept = nms(boxes, scores, threshold)
    kept_again = nms(dets[:, :4].contiguous(), dets[:, 4].contiguous(), threshold)[1]
    assert kept_again.tolist() == list(range(len(kept)))  # idempotent
    order = list(range(len(boxes)))
    random.shuffle(order)
    shuffled = nms(boxes[order], scores[order], threshold)[1]
    assert [order[i] for i in shuffled] == kept.tolist()  # the order of the input does not matter
    for i in set(range(len(boxes))) - set(kept.tolist()):  # a kept box suppresses each other box
        assert any(
            scores[j] > scores[i] and iou64(boxes[i].tolist(), boxes[j].tolist()) > threshold
            for j in kept.tolist()
        )


def test_nms_of_no_boxes_equal_boxes_and_an_iou_at_the_threshold(device: torch.device) -> None:
    none = torch.empty(0, 4, device=device)
    assert nms(none, none[:, 0], 0.5)[1].tolist() == []
    twins = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 4.0]], device=device)
    assert len(nms(twins, torch.tensor([0.5, 0.5], device=device), 0.5)[1]) == 1
    half = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 2.0]], device=device)  # IoU is 0.5, not above it
    assert len(nms(half, torch.tensor([0.9, 0.5], device=device), 0.5)[1]) == 2
    for dtype in (torch.float16, torch.bfloat16):
        assert len(nms(twins.to(dtype), torch.ones(2, device=device).to(dtype), 0.5)[1]) == 1


def test_nms_accepts_numpy_arrays_and_batched_nms_treats_classes_separately() -> None:
    boxes, scores = random_boxes(3)
    dets, kept = nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == nms64(boxes.tolist(), scores.tolist(), 0.5)
    classes = torch.arange(len(boxes)) % 3
    _, kept = batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5})
    expected: list[int] = []
    for c in range(3):
        rows = torch.nonzero(classes == c)[:, 0].tolist()
        kept_of_class = nms64(boxes[rows].tolist(), scores[rows].tolist(), 0.5)
        expected += [rows[i] for i in kept_of_class]
    assert sorted(kept.tolist()) == sorted(expected)


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("seed", range(5))
def test_soft_nms_equals_the_float64_reference(seed: int, method: str) -> None:
    boxes, scores = random_boxes(seed)
    dets, kept = soft_nms(boxes, scores, 0.5, sigma=0.5, min_score=0.05, method=method)
    expected = soft_nms64(boxes.tolist(), scores.tolist(), 0.5, 0.5, 0.05, method)
    assert kept.tolist() == [i for i, _ in expected]
    assert torch.equal(dets[:, :4], boxes[kept])
    np.testing.assert_allclose(dets[:, 4], [s for _, s in expected], rtol=1e-5)


def test_soft_nms_of_mmcv_s_example_and_of_no_boxes() -> None:
    boxes = [[4, 3, 5, 3], [4, 3, 5, 4], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1], [3, 1, 3, 1]]
    scores = np.array([0.9, 0.9, 0.5, 0.5, 0.4, 0.0], dtype=np.float32)
    dets, kept = soft_nms(np.array(boxes, dtype=np.float32), scores, 0.6, sigma=0.5)
    assert len(kept) == len(dets) == 5
    dets, kept = soft_nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert len(kept) == len(dets) == 0


@settings(deadline=None, max_examples=40)
@given(boxes_strategy, st.sampled_from([0.3, 0.55, 0.7]))
def test_nms_match_groups_each_box_with_the_one_that_suppresses_it(
    boxes: torch.Tensor, threshold: float
) -> None:
    scores = torch.arange(1, len(boxes) + 1) / len(boxes)
    groups = [
        group.tolist() for group in nms_match(torch.cat([boxes, scores[:, None]], 1), threshold)
    ]
    # Each box is in one group.
    assert sorted(i for group in groups for i in group) == list(range(len(boxes)))
    # Only an IoU equal to the threshold makes mmcv's ">=" differ from the ">" of nms64.
    tie = any(abs(iou64(a, b) - threshold) < 1e-6 for a in boxes.tolist() for b in boxes.tolist())
    if not tie:
        assert [group[0] for group in groups] == nms64(boxes.tolist(), scores.tolist(), threshold)
    for head, *rest in groups:
        assert all(iou64(boxes[head].tolist(), boxes[i].tolist()) > threshold - 1e-6 for i in rest)
        assert rest == sorted(rest, reverse=True)  # by score, which rises with the index here


def test_nms_match_suppresses_at_the_threshold_itself() -> None:
    dets = torch.tensor([[0, 0, 4, 4, 0.9], [0, 0, 4, 2, 0.5], [9, 9, 10, 10, 0.7]])
    assert [g.tolist() for g in nms_match(dets, 0.5)] == [[0, 1], [2]]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_bbox_overlaps_equal_the_float64_reference(
    mode: str, offset: int, device: torch.device
) -> None:
    first, second = random_boxes(1, 9)[0], random_boxes(2, 9)[0]

    def reference(a: list[float], b: list[float]) -> float:
        """The IoU or, in mode "iof", the intersection over the area of `a`."""
        if mode == "iou":
            return iou64(a, b, offset)
        width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
        height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
        return width * height / ((a[2] - a[0] + offset) * (a[3] - a[1] + offset))

    table = [[reference(a, b) for b in second.tolist()] for a in first.tolist()]
    args = (first.to(device), second.to(device), mode)
    np.testing.assert_allclose(bbox_overlaps(*args, False, offset).cpu(), table, rtol=1e-6)
    pairs = bbox_overlaps(*args, True, offset).cpu()
    np.testing.assert_allclose(pairs, np.diag(table), rtol=1e-6)


def test_bbox_overlaps_of_empty_boxes_is_zero() -> None:
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert bbox_overlaps(point, point).tolist() == [[0.0]]
