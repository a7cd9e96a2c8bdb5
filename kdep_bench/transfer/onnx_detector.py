"""A Faster R-CNN of mmdet as one network with outputs of fixed shape, and its export to ONNX.

mmdet computes the boxes of each image in Python, with numbers of boxes that vary. Here an invalid
or suppressed box keeps its place and gets the score 0, so that a batch is computed at once.
Non-maximum suppression is one operator of ONNX, NonMaxSuppression.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from kdep_bench.errors import KdepError
from kdep_bench.transfer.onnx_file import WithPreprocessing, export_network, open_session

Array = np.ndarray[Any, Any]
OUTPUTS = ("boxes", "scores", "labels")
TOLERANCE = 1e-4  # of a score, and of a coordinate relative to the larger side of the image
# Two boxes whose overlap equals a threshold up to rounding may be suppressed by one runtime only.
UNMATCHED = 0.01  # maximum fraction of detections without a counterpart


@torch.library.custom_op("kdep_bench::kept_boxes", mutates_args=())
def kept_boxes(
    boxes_BN4: Tensor, scores_BGN: Tensor, iou_threshold: float, score_threshold: float
) -> Tensor:
    """Non-maximum suppression within each image and group.

    Args:
        boxes_BN4: corners (x1, y1, x2, y2) of N boxes per image.
        scores_BGN: their scores in each of G groups.
        iou_threshold: a box whose IoU with a kept box of higher score exceeds it is suppressed.
        score_threshold: boxes with this score or a lower one are not kept.

    Returns:
        [B, G, N] float: 1 for kept boxes, 0 for others.
    """
    kept = torch.zeros_like(scores_BGN)
    for image, boxes_N4 in enumerate(boxes_BN4):
        for group, scores_N in enumerate(scores_BGN[image]):
            (candidates,) = torch.nonzero(scores_N > score_threshold, as_tuple=True)
            chosen = nms(boxes_N4[candidates], scores_N[candidates], iou_threshold)
            kept[image, group, candidates[chosen]] = 1
    return kept


@kept_boxes.register_fake
def _(boxes_BN4: Tensor, scores_BGN: Tensor, iou_threshold: float, score_threshold: float):
    """The shape of the output, for tracing."""
    return torch.empty_like(scores_BGN)


def kept_boxes_in_onnx(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float):
    """`kept_boxes` in operators of ONNX."""
    from onnxscript import opset18

    op: Any = opset18  # its type hints admit only the values of eager execution
    every = op.Constant(value_int=2**62)  # maximum number of boxes per image and group
    kept = op.NonMaxSuppression(
        boxes,
        scores,
        every,
        op.Constant(value_float=iou_threshold),
        op.Constant(value_float=score_threshold),
    )
    count = op.Shape(kept, start=0, end=1)
    kept_values = op.Expand(op.Constant(value_float=1.0), count)
    zeros = op.Expand(op.Constant(value_float=0.0), op.Shape(scores))
    return op.ScatterND(zeros, kept, kept_values)


class OnnxDetector(WithPreprocessing):
    """A Faster R-CNN that returns (boxes, scores, labels) for RGB images [B, 3, H, W], 0 to 255.

    boxes [B, M, 4]: corners (x1, y1, x2, y2) in pixels; scores [B, M]: in descending order, 0 where
    an image has fewer than M detections; labels [B, M]: index of the class, in the order of the
    training annotations. M is `max_per_img` of the detector.
    """

    backbone: Any  # the detector of mmdet

    def __init__(self, model: Any, size: tuple[int, int]) -> None:
        super().__init__(model)
        self.size = size
        unit = int(model.data_preprocessor.pad_size_divisor)
        self.padding = [-side % unit for side in size]  # rows below, columns to the right
        self.levels = len(model.rpn_head.prior_generator.strides)
        with torch.inference_mode():
            padded = torch.zeros(1, 3, *(s + p for s, p in zip(size, self.padding, strict=True)))
            scores, _ = model.rpn_head(model.extract_feat(padded))
        anchors = model.rpn_head.prior_generator.grid_priors(
            [score.shape[-2:] for score in scores], device=padded.device
        )
        for level, boxes_N4 in enumerate(anchors):
            self.register_buffer(f"anchors_{level}", boxes_N4.clone(), persistent=False)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.backbone.extract_feat(self.preprocess(images_B3HW))
        proposals_BP4, are_valid_BP = self._proposals(maps)
        return self._detections(maps, proposals_BP4, are_valid_BP)

    def preprocess(self, images_B3HW: Tensor) -> Tensor:
        """Normalised images, extended by zeros to the size that mmdet's preprocessor gives them."""
        below, right = self.padding
        normalised = (images_B3HW - self.mean) / self.std
        return nn.functional.pad(normalised, (0, right, 0, below))

    def _proposals(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """(boxes [B, P, 4] of the first stage, whether each is valid [B, P])."""
        head = self.backbone.rpn_head
        config = head.test_cfg
        boxes: list[Tensor] = []  # per level
        scores: list[Tensor] = []
        for level, (score, delta) in enumerate(zip(*head(maps), strict=True)):
            score_BN = score.permute(0, 2, 3, 1).flatten(1).sigmoid()
            delta_BN4 = delta.permute(0, 2, 3, 1).reshape(delta.shape[0], -1, 4)
            count = score_BN.shape[1]
            if config.get("nms_pre", -1) > 0:
                count = min(count, int(config.nms_pre))
            top_BK, index_BK = score_BN.topk(count)
            delta_BK4 = delta_BN4.gather(1, index_BK[..., None].expand(-1, -1, 4))
            anchors_BK4 = getattr(self, f"anchors_{level}")[index_BK]
            boxes.append(self._decode(head.bbox_coder, anchors_BK4, delta_BK4))
            scores.append(top_BK)
        level_K = torch.cat(
            [torch.full((score.shape[1],), level) for level, score in enumerate(scores)]
        )
        boxes_BK4, score_BK = torch.cat(boxes, 1), torch.cat(scores, 1)
        width_BK, height_BK = (boxes_BK4[..., 2:] - boxes_BK4[..., :2]).unbind(-1)
        smallest = config.min_bbox_size
        score_BK = score_BK * ((width_BK > smallest) & (height_BK > smallest))
        # Levels are suppressed separately, as in mmdet.
        is_level_LK = level_K[None] == torch.arange(self.levels)[:, None]
        kept_BLK = torch.ops.kdep_bench.kept_boxes(
            boxes_BK4, score_BK[:, None] * is_level_LK, float(config.nms.iou_threshold), 0.0
        )
        score_BK = score_BK * kept_BLK.sum(1)
        top_BP, index_BP = score_BK.topk(min(int(config.max_per_img), score_BK.shape[1]))
        return boxes_BK4.gather(1, index_BP[..., None].expand(-1, -1, 4)), top_BP > 0

    def _detections(
        self, maps: tuple[Tensor, ...], proposals_BP4: Tensor, are_valid_BP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs: see the class."""
        head, config = self.backbone.roi_head, self.backbone.roi_head.test_cfg
        batch, count = proposals_BP4.shape[:2]
        image_BP1 = torch.arange(batch)[:, None, None].expand(-1, count, 1)
        rois_R5 = torch.cat([image_BP1.to(proposals_BP4), proposals_BP4], 2).flatten(0, 1)
        features = self._pooled(maps, rois_R5)
        if head.with_shared_head:
            features = head.shared_head(features)
        logits_RC, delta = head.bbox_head(features)
        score_BPC = logits_RC.softmax(-1)[:, :-1].unflatten(0, (batch, count))
        score_BCP = (score_BPC * are_valid_BP[..., None]).transpose(1, 2)
        classes = score_BCP.shape[1]
        per_class = delta.shape[1] // 4  # 1 if all classes share a box
        roi_R4 = rois_R5[:, 1:].repeat_interleave(per_class, 0)
        boxes_R4 = self._decode(head.bbox_head.bbox_coder, roi_R4[None], delta.reshape(1, -1, 4))[0]
        boxes_BCP4 = boxes_R4.reshape(batch, count, per_class, 4).transpose(1, 2)
        boxes_BCP4 = boxes_BCP4.expand(-1, classes, -1, -1)
        kept = torch.ops.kdep_bench.kept_boxes(
            boxes_BCP4.flatten(0, 1),
            score_BCP.flatten(0, 1)[:, None],
            float(config.nms.iou_threshold),
            float(config.score_thr),
        )
        score_BN = (score_BCP * kept.reshape(batch, classes, count)).flatten(1)
        top_BM, index_BM = score_BN.topk(min(int(config.max_per_img), classes * count))
        boxes_BN4 = boxes_BCP4.flatten(1, 2)
        boxes_BM4 = boxes_BN4.gather(1, index_BM[..., None].expand(-1, -1, 4))
        return boxes_BM4, top_BM, index_BM // count

    def _pooled(self, maps: tuple[Tensor, ...], rois_R5: Tensor) -> Tensor:
        """Features of the boxes [R, C, h, w]; each is read from the map that suits its size."""
        extractor = self.backbone.roi_head.bbox_roi_extractor
        pooled = []
        for layer, level_map in zip(extractor.roi_layers, maps, strict=False):
            pooled.append(
                roi_align(
                    level_map,
                    rois_R5,
                    layer.output_size,
                    layer.spatial_scale,
                    layer.sampling_ratio,
                    layer.aligned,
                )
            )
        if len(pooled) == 1:
            return pooled[0]
        level_R = extractor.map_roi_levels(rois_R5, len(pooled))
        return sum(p * (level_R == i)[:, None, None, None] for i, p in enumerate(pooled))  # type: ignore[return-value]

    def _decode(self, coder: Any, boxes_BN4: Tensor, deltas_BN4: Tensor) -> Tensor:
        """Boxes from predicted offsets, limited to the image, [B, N, 4]."""
        from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox

        # `coder.decode` would use another, deprecated function during the export.
        decoded = delta2bbox(
            boxes_BN4.flatten(0, 1), deltas_BN4.flatten(0, 1), coder.means, coder.stds, self.size
        )
        return decoded.reshape(boxes_BN4.shape)


def write_detector(detector: OnnxDetector, images: Tensor, path: Path) -> None:
    """Writes a detector as ONNX, for any batch size, and compares it with torch on `images`.

    Args:
        detector: a detector in evaluation mode.
        images: some images of the task [B, 3, H, W], RGB from 0 to 255.
        path: file to write. An existing file is replaced only if export and check succeed.

    Raises:
        KdepError: see `onnx_file.export_network`.
    """
    export_network(
        detector,
        detector.size,
        OUTPUTS,
        path,
        check=lambda partial: check_detector(detector, images, partial),
        translations={torch.ops.kdep_bench.kept_boxes.default: kept_boxes_in_onnx},
    )


def check_detector(detector: OnnxDetector, images: Tensor, path: Path) -> None:
    """Raises KdepError unless the file and mmdet find the same objects in `images`."""
    session = open_session(path)
    for batch in (images[:1], images):
        expected = toolkit_outputs(detector, batch)
        outputs = session.run(None, {"images": batch.numpy()})
        objects, unmatched = compare(expected, outputs, max(detector.size))
        if unmatched > UNMATCHED * objects:
            raise KdepError(
                f"the ONNX file {path} and mmdet find different objects: {unmatched} of {objects} "
                f"detections differ in class, score or box (batch of {len(batch)})",
                expected=f"in all but {UNMATCHED:.0%} of the detections the same class, and "
                f"differences of at most {TOLERANCE:g} for score and coordinates / image size",
                fix="publish the student without --onnx, and open an issue that names the network",
            )


def toolkit_outputs(detector: OnnxDetector, images_B3HW: Tensor) -> list[Array]:
    """mmdet's own detections in the form of the outputs of `OnnxDetector`."""
    from mmdet.structures import DetDataSample

    model, size = detector.backbone, detector.size
    shapes = dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=shapes) for _ in images_B3HW]
    with torch.inference_mode():
        detected = model.predict(detector.preprocess(images_B3HW), samples, rescale=False)
    count = int(model.roi_head.test_cfg.max_per_img)
    outputs = [np.zeros((len(detected), count, *shape), np.float32) for shape in ((4,), (), ())]
    for i, sample in enumerate(detected):
        objects = sample.pred_instances
        for output, values in zip(
            outputs, (objects.bboxes, objects.scores, objects.labels), strict=True
        ):
            output[i, : len(values)] = values.numpy()
    return outputs


def compare(expected: Sequence[Array], outputs: Sequence[Array], side: int) -> tuple[int, int]:
    """(number of detections of both runtimes, number of them that the other runtime lacks).

    Args:
        expected: boxes [B, M, 4], scores [B, M] and labels [B, M] of mmdet.
        outputs: the same of onnxruntime.
        side: larger side of the images in pixels.
    """
    objects = unmatched = 0
    for image in range(len(expected[0])):
        rows, other_rows = (
            _rows(boxes[image], scores[image], labels[image], side)
            for boxes, scores, labels in (expected, outputs)
        )
        objects += len(rows) + len(other_rows)
        if len(rows) == 0 or len(other_rows) == 0:
            unmatched += len(rows) + len(other_rows)
            continue
        are_equal = np.asarray((np.abs(rows[:, None] - other_rows[None]) <= TOLERANCE).all(2))
        pairs = linear_sum_assignment(are_equal, maximize=True)
        unmatched += len(rows) + len(other_rows) - 2 * int(are_equal[pairs].sum())
    return objects, unmatched


def _rows(boxes: Array, scores: Array, labels: Array, side: int) -> Array:
    """One row per detection: its label, score, and corners as fractions of the larger side."""
    is_object = scores > 0
    columns = [labels[is_object, None], scores[is_object, None], boxes[is_object] / side]
    return np.concatenate(columns, 1)
