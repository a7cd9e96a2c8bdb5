"""Networks with fixed weights, whose output depends only on the colour of an image.

Colours are codes: red = 8 * code + 4, green = 8 * index + 4 (index: position of the image in its
split), blue = 255 - red. A pixel with another blue (swapped channels, another normalisation) is
read as code `BAD`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.functional import dropout, one_hot

from tests.transfer.known_answers.pictures import CODES

BAD = CODES - 1  # the code of a colour that is not as expected
# ImageNet's values, repeated here so that the test does not depend on the code under test.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

#: The learning rate of each training step, where a task has the hook `RecordLearningRate`.
RATES: list[float] = []

#: The images that the backbone got, in order: ("train" or "test", code, index) of the first pixel.
SEEN: list[tuple[str, int, int]] = []


class RecordLearningRate(Hook):
    """Appends the learning rate of the head to `RATES` before each step."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Called by mmengine before each step."""
        RATES.append(max(runner.optim_wrapper.get_lr()["lr"]))


class ColourBackbone(BaseModule):
    """Returns the codes of normalised images [B, 3, H, W].

    Its outputs are wrong in training mode, so that a score shows the mode of the network. For that
    it has a BatchNorm, whose stored statistics (mean 0, variance 1) never change, and a Dropout of
    everything. In evaluation mode both are the identity. In training mode the BatchNorm mixes the
    images of a batch, and the Dropout sets everything to zero. A head can be trained on this
    backbone with `norm_eval` (the BatchNorm is always in evaluation mode) and `drops=False`.

    Args:
        output: "one_hot": the code as a one-hot vector, [B, 32, H, W]; "codes": the codes of red,
            green and blue, [B, 3, H, W].
        drops: the Dropout drops everything in training mode (True) or nothing (False).
        input_hw: the size that every test image must have; at any other size all codes are `BAD`.
    """

    def __init__(
        self,
        output: str = "one_hot",
        input_hw: Sequence[int] | None = None,
        drops: bool = True,
        out_indices: Sequence[int] = (0,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.output, self.norm_eval = output, norm_eval
        self.input_hw = None if input_hw is None else tuple(input_hw)
        self.levels = len(out_indices)
        self.norm = nn.BatchNorm2d(3, momentum=0.0)
        self.drop = nn.Dropout(1.0 if drops else 0.0)

    def train(self, mode: bool = True) -> ColourBackbone:
        """Sets the mode, except that of a BatchNorm with `norm_eval`."""
        super().train(mode)
        if self.norm_eval:
            self.norm.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The same map [B, 32 or 3, H, W] for every level; adds the images to `SEEN`."""
        mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        rgb = (images * std + mean).round()
        codes = (rgb / 8).floor()
        for first in codes[:, :, 0, 0].tolist():
            mode = "train" if self.training else "test"
            SEEN.append((mode, int(first[0]), int(first[1])))
        # JPEG and resizing change red + blue = 255 a little.
        is_valid = (rgb[:, 0] + rgb[:, 2] - 255).abs() <= 6
        if self.input_hw is not None and not self.training and images.shape[2:] != self.input_hw:
            is_valid = torch.zeros_like(is_valid)
        if self.output == "codes":
            out = self.drop(self.norm(codes)) * is_valid[:, None]
        else:
            red = self.drop(self.norm(codes))[:, 0].round().long().clamp(0, BAD)
            red = torch.where(is_valid, red, BAD)
            out = one_hot(red, CODES).permute(0, 3, 1, 2).float()
        return (out,) * self.levels


class BoxReader(BaseDetector):
    """A detector that looks up its detections in `answers` by the code of the image.

    During training it learns the label of each class code: the code is the colour in the middle of
    a training box. In training mode a Dropout of everything sets all scores to zero.

    Args:
        answers: {code of the image's first pixel: [[code of the class, score, x, y, w, h], ...]},
            with boxes as fractions of the image size.
        backbone, roi_head, data_preprocessor: as in mmdet's two-stage detectors; of `roi_head` only
            the number of classes is read.
        neck, rpn_head, init_cfg: not used.
    """

    def __init__(
        self,
        backbone: Any,
        neck: Any,
        roi_head: Any,
        answers: dict[str, list[list[float]]],
        rpn_head: Any = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.answers = answers
        self.classes = int(roi_head["bbox_head"]["num_classes"])
        self.weight = nn.Parameter(torch.ones(()))
        self.label_of: dict[int, int] = {}

    def extract_feat(self, batch_inputs: Tensor) -> Any:
        """The code of every pixel, [B, H, W]."""
        return self.backbone(batch_inputs)[0].argmax(1)

    def loss(self, batch_inputs: Tensor, batch_data_samples: Any) -> dict[str, Tensor]:
        """A loss of 0; learns the labels of the codes."""
        codes = self.extract_feat(batch_inputs)
        for code_map, sample in zip(codes, batch_data_samples, strict=True):
            boxes = sample.gt_instances.bboxes
            boxes = getattr(boxes, "tensor", boxes).tolist()
            for (x0, y0, x1, y1), label in zip(
                boxes, sample.gt_instances.labels.tolist(), strict=True
            ):
                code = int(code_map[int((y0 + y1) / 2), int((x0 + x1) / 2)])
                if self.label_of.setdefault(code, label) != label:
                    self.label_of[code] = -1  # a code with two labels gets no detection
        return {"loss": self.weight * 0.0}

    def predict(self, batch_inputs: Tensor, batch_data_samples: Any, rescale: bool = True) -> Any:
        """The data samples with the detections of `answers`, in pixels."""
        codes = self.extract_feat(batch_inputs)
        predictions = []
        for code_map, sample in zip(codes, batch_data_samples, strict=True):
            rows = self.answers.get(str(int(code_map[0, 0])), [])
            h, w = sample.img_shape
            boxes = torch.tensor([row[2:] for row in rows]).reshape(-1, 4).double()
            boxes[:, 2:] += boxes[:, :2]
            boxes *= torch.tensor([w, h, w, h])
            if rescale:
                boxes /= torch.tensor(sample.scale_factor).repeat(2)
            labels = [self.label_of.get(int(row[0]), -1) for row in rows]
            known = torch.tensor([0 <= label < self.classes for label in labels], dtype=torch.bool)
            scores = dropout(torch.tensor([row[1] for row in rows]), 1.0, self.training)
            predictions.append(
                InstanceData(
                    bboxes=boxes.float()[known],
                    scores=scores[known],
                    labels=torch.tensor(labels, dtype=torch.long)[known],
                )
            )
        return self.add_pred_to_datasample(batch_data_samples, predictions)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        """As mmdet's base class requires."""
        return self.extract_feat(batch_inputs)
