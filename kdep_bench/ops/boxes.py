"""Box operators: nms, softnms, nms_match, bbox_overlaps. Boxes are x1, y1, x2, y2.

`offset` is mmcv's: a box is x2 - x1 + offset wide, 0 by default and 1 in the oldest detectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as torchvision_nms

from kdep_bench.ops._dtype import compute_dtype

_NAIVE, _LINEAR, _GAUSSIAN = 0, 1, 2  # mmcv's codes for the soft-NMS weighting
_IOU, _IOF = 0, 1  # mmcv's codes for intersection over union / over the first box


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices (K,) int64 kept by greedy NMS of `boxes` (N, 4) by `scores` (N,), best first.

    A box is removed if its IoU with a kept box is *greater than* the threshold.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    dtype = compute_dtype(boxes, scores)
    boxes = boxes.detach().to(dtype)
    if offset:  # the same IoU as for boxes with their far corner moved by one pixel
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]) * offset
    # mmcv breaks ties by torch's default sort, torchvision by a stable one. Sorting here, and then
    # passing ranks, gives mmcv's result. float32 represents ranks up to 2 ** 24 exactly.
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
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503); returns the kept indices (K,) int64.

    Fills the first K rows of `dets` (N, 5) with box and reduced score, best first. Each round keeps
    the best remaining box, reduces the scores of the others by their IoU with it, and drops those
    below `min_score`. Equal scores are ordered by index.
    """
    left = torch.arange(len(boxes))
    dtype = compute_dtype(boxes, scores)
    boxes, scores = boxes.detach().cpu().to(dtype), scores.detach().cpu().to(dtype).clone()
    kept: list[int] = []
    while len(left):
        best = left[scores[left].argmax()]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(int(best))
        left = left[left != best]
        iou = _overlaps(boxes[best][None], boxes[left], _IOU, offset)
        scores[left] *= _soft_weight(iou, iou_threshold, sigma, method)
        left = left[scores[left] >= min_score]
    return torch.tensor(kept, dtype=torch.long)


def _soft_weight(iou: Tensor, iou_threshold: float, sigma: float, method: int) -> Tensor:
    if method == _GAUSSIAN:
        return torch.exp(-(iou * iou) / sigma)
    lowered = torch.zeros_like(iou) if method == _NAIVE else 1 - iou
    return torch.where(iou >= iou_threshold, lowered, 1.0)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of indices into `dets` (N, 5): a kept box, then those it suppressed, by score.

    Here a box is removed if its IoU is greater than *or equal to* the threshold, as in mmcv.
    """
    dets = dets.detach().to("cpu", compute_dtype(dets))
    left = dets[:, 4].sort(descending=True)[1]
    iou = box_iou(dets[:, :4], dets[:, :4])
    groups: list[list[int]] = []
    while len(left):
        best, rest = left[0], left[1:]
        hit = iou[best, rest] >= iou_threshold
        groups.append([int(best), *rest[hit].tolist()])
        left = rest[~hit]
    return groups


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Fills `ious` (M, N), or (M,) when `aligned`; two empty boxes overlap by 0."""
    dtype = compute_dtype(bboxes1, bboxes2)
    first, second = bboxes1.to(dtype), bboxes2.to(dtype)
    if not aligned:
        first, second = first[:, None], second[None]
    ious.copy_(_overlaps(first, second, mode, offset))


def _overlaps(first: Tensor, second: Tensor, mode: int, offset: int) -> Tensor:
    """Overlaps of boxes (..., 4) with broadcasting."""
    near = torch.maximum(first[..., :2], second[..., :2])
    far = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (far - near + offset).clamp(min=0).prod(-1)
    base = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if mode != _IOF:
        base = base + (second[..., 2:] - second[..., :2] + offset).prod(-1) - shared
    return torch.where(base > 0, shared / base, 0.0)
