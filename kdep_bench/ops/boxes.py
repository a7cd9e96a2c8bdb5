"""Box operators: nms, softnms, nms_match, bbox_overlaps. Boxes are x1, y1, x2, y2 in pixels.

The width of a box is x2 - x1 + offset. As in mmcv, `offset` is 0 by default, and 1 in old
detectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as torchvision_nms

from kdep_bench.ops._dtype import compute_dtype

_NAIVE, _LINEAR, _GAUSSIAN = 0, 1, 2  # mmcv's codes of the soft-NMS methods
_IOU, _IOF = 0, 1  # mmcv's codes: intersection over union, or over the area of the first box


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression of `boxes` (N, 4) with `scores` (N,).

    A box is removed if its IoU with a kept box is *greater than* the threshold.

    Returns:
        indices of the kept boxes, (K,) int64, highest score first.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    dtype = compute_dtype(boxes, scores)
    boxes = boxes.detach().to(dtype)
    if offset:  # the same IoU as for boxes with their far corner moved by one pixel
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]) * offset
    # Boxes with equal scores are in the order of torch's default sort in mmcv, and in the order of
    # a stable sort in torchvision. Sorting here and passing ranks as scores gives mmcv's result.
    # float32 represents ranks up to 2 ** 24 exactly.
    order = scores.detach().sort(0, descending=True)[1]
    ranks = torch.arange(len(order), 0, -1, device=boxes.device, dtype=dtype)
    return order[torchvision_nms(boxes[order], ranks, float(iou_threshold))]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503).

    Each round keeps the remaining box with the highest score, multiplies the scores of the other
    boxes by a factor that depends on their IoU with the kept box, and removes boxes with a score
    below `min_score`. If scores are equal, the box with the lowest index is kept first.

    Args:
        boxes: (N, 4).
        scores: (N,).
        dets: (N, 5); the first K rows are filled with box and reduced score, in the order kept.
        iou_threshold: for the naive and the linear method.
        sigma: for the Gaussian method.
        min_score: minimum reduced score of a kept box; the first box is kept whatever its score.
        method: _NAIVE, _LINEAR or _GAUSSIAN.
        offset: see the top of this module.

    Returns:
        indices of the kept boxes, (K,) int64.
    """
    remaining = torch.arange(len(boxes))
    dtype = compute_dtype(boxes, scores)
    boxes, scores = boxes.detach().cpu().to(dtype), scores.detach().cpu().to(dtype).clone()
    kept: list[int] = []
    while len(remaining):
        best = remaining[scores[remaining].argmax()]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(int(best))
        remaining = remaining[remaining != best]
        iou = _overlaps(boxes[best][None], boxes[remaining], _IOU, offset)
        scores[remaining] *= _soft_factor(iou, iou_threshold, sigma, method)
        remaining = remaining[scores[remaining] >= min_score]
    return torch.tensor(kept, dtype=torch.long)


def _soft_factor(iou: Tensor, iou_threshold: float, sigma: float, method: int) -> Tensor:
    if method == _GAUSSIAN:
        return torch.exp(-(iou * iou) / sigma)
    reduced = torch.zeros_like(iou) if method == _NAIVE else 1 - iou
    return torch.where(iou >= iou_threshold, reduced, 1.0)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups the boxes of `dets` (N, 5) into kept boxes and those that they suppress.

    A box is suppressed if its IoU is greater than *or equal to* the threshold, as in mmcv.

    Returns:
        one list per kept box: its index, then the indices of the boxes that it suppresses, by
        score.
    """
    dets = dets.detach().to("cpu", compute_dtype(dets))
    remaining = dets[:, 4].sort(descending=True)[1]
    iou = box_iou(dets[:, :4], dets[:, :4])
    groups: list[list[int]] = []
    while len(remaining):
        best, others = remaining[0], remaining[1:]
        is_suppressed = iou[best, others] >= iou_threshold
        groups.append([int(best), *others[is_suppressed].tolist()])
        remaining = others[~is_suppressed]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Fills `ious` with the overlaps of `bboxes1` (M, 4) and `bboxes2` (N, 4).

    Args:
        bboxes1, bboxes2: the boxes.
        ious: (M, N); if `aligned`, (M,). The overlap of two empty boxes is 0.
        mode: _IOU or _IOF.
        aligned: whether to compare box i only with box i; then M = N.
        offset: see the top of this module.
    """
    dtype = compute_dtype(bboxes1, bboxes2)
    first, second = bboxes1.to(dtype), bboxes2.to(dtype)
    if not aligned:
        first, second = first[:, None], second[None]
    ious.copy_(_overlaps(first, second, mode, offset))


def _overlaps(first: Tensor, second: Tensor, mode: int, offset: int) -> Tensor:
    """Overlaps of boxes (..., 4), with broadcasting."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (bottom_right - top_left + offset).clamp(min=0).prod(-1)
    base = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if mode != _IOF:
        base = base + (second[..., 2:] - second[..., :2] + offset).prod(-1) - intersection
    return torch.where(base > 0, intersection / base, 0.0)
