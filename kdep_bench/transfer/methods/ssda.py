"""SSDA-YOLO's semi-supervised domain adaptation, for the detectors of mmdet.

L = L_det(S, x_s, y) + styled * L_det(S, x_s in target style, y)
    + distillation * L_det(S, x_t, boxes of T(x_t in source style))
    + consistency * (L_det(S, x_s, y) - L_det(S, x_s in target style, y))^2

x_s are source images with boxes y, x_t target images without boxes. L_det is the sum of the
detector's losses. S is the detector that is trained. T is its exponential moving average (decay
0.99, in evaluation mode, without gradient). T's boxes are those with a score of at least 0.5, after
non-maximum suppression per class at IoU 0.3, at most 20 per image. Target images without such a box
are left out; if none is left, the term is 0. Only S is scored.

Style: FDA (Yang and Soatto, CVPR 2020). The amplitudes of the lowest frequencies of each colour
channel are replaced by those of an image of the other domain; phases and all higher frequencies
stay. The source image i and the target image i of a batch exchange their amplitudes.

Source: Zhou et al., "SSDA-YOLO" (CVIU 2023); hnuzhy/SSDA-YOLO, ssda_yolov5_train.py (weights,
thresholds, terms) and utils/torch_utils.py (WeightEMA); YanchaoYang/FDA utils/__init__.py.

Differences:
* The authors translate images with a trained generative network (CUT), and the detector is YOLOv5.
* The authors draw a random box for a target image without boxes. Here the image is left out.
* The authors' average has parameters only. Here it also has the running statistics of BatchNorm.
* YOLOv5 multiplies its losses by the batch size, so the authors' consistency term has a larger
  weight relative to the other terms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from kdep_bench.bounds import BelowOne, Count, Fraction, NotNegative
from kdep_bench.errors import KdepError
from kdep_bench.objectives.mean_teacher import update_state
from kdep_bench.transfer.method import TransferContext, TransferMethod


class SSDA(TransferMethod):
    """Domain adaptation of a detector; see the top of this module.

    If `distillation` is 0, its term is not computed. The other two terms share one forward pass,
    which is left out if both weights are 0. With all weights 0, the training is that of the task.

    Args:
        styled, distillation, consistency: weights of the three terms.
        decay: decay per step of the moving average.
        score, iou, boxes: score threshold, IoU threshold, and maximum number of T's boxes.
        size: amplitudes are exchanged for frequencies of up to floor(size * shorter side) periods
            per image, in both directions.
    """

    families = frozenset({"detection"})
    needs = frozenset({"target_images"})
    single_process: ClassVar[bool] = True  # processes would run different numbers of passes
    extra_trained_images: ClassVar[int] = 2
    extra_forward_images: ClassVar[int] = 1

    def __init__(
        self,
        styled: NotNegative = 1.0,
        distillation: NotNegative = 0.005,
        consistency: NotNegative = 2.0,
        decay: BelowOne = 0.99,
        score: Fraction = 0.5,
        iou: Fraction = 0.3,
        boxes: Count = 20,
        size: Fraction = 0.05,
    ) -> None:
        super().__init__()
        self.styled, self.distillation = float(styled), float(distillation)
        self.consistency, self.decay = float(consistency), float(decay)
        self.score, self.iou, self.boxes, self.size = float(score), float(iou), int(boxes), size
        self.teacher: nn.Module = nn.Identity()
        self.target_batches: Iterator[Any] = iter(())
        self._model: list[Any] = []  # in a list, so that torch does not register it
        self._task_class: type = nn.Module

    @classmethod
    def change_config(cls, cfg: Any, config: Mapping[str, Any], data_root: Path) -> None:
        if cfg.get("unlabelled_dataloader") is None:
            raise KdepError(
                "SSDA reads target images, and the task has none",
                fix="use a task of kdep_bench.transfer.domain_detection, such as pocket_det_fog",
            )

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        self._model, self._task_class = [model], type(model)
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SSDA:
        super().train(mode)
        self.teacher.eval()
        return self

    def hooks(self) -> list[Hook]:
        return [_Adaptation(self)] if self.reads_target else []

    @property
    def reads_target(self) -> bool:
        """Whether target images are read: if any weight is above 0."""
        return max(self.styled, self.distillation, self.consistency) > 0

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """teacher <- decay * teacher + (1 - decay) * the trained detector."""
        names = self.teacher.state_dict().keys()  # the model also has this method and its teacher
        tensors = {k: v for k, v in self._model[0].state_dict().items() if k in names}
        update_state(self.teacher, tensors, decay)

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        if not self.reads_target:
            return {}
        target = self._preprocessed(next(self.target_batches))
        sizes = [sample.img_shape for sample in ctx.samples]
        target_sizes = [sample.img_shape for sample in target["data_samples"]]
        terms: dict[str, Tensor] = {}
        if self.styled > 0 or self.consistency > 0:
            styled = self.restyle(ctx.inputs, sizes, target["inputs"], target_sizes)
            source_loss = self._total(ctx.task_losses)
            styled_loss = self._detection_loss(styled, ctx.samples)
            terms["styled"] = self.styled * styled_loss
            terms["consistency"] = self.consistency * (source_loss - styled_loss).square()
        if self.distillation > 0:
            source_style = self.restyle(target["inputs"], target_sizes, ctx.inputs, sizes)
            loss = self._distillation_loss(target, source_style)
            terms["distillation"] = self.distillation * loss
        return terms

    def _distillation_loss(self, target: Mapping[str, Any], source_style: Tensor) -> Tensor:
        """L_det of the detector on target images, with the teacher's boxes as truth: a scalar."""
        samples = self.pseudo_labelled(source_style, target["data_samples"])
        kept = [i for i, sample in enumerate(samples) if len(sample.gt_instances)]
        if not kept:
            return source_style.new_zeros(())
        return self._detection_loss(target["inputs"][kept], [samples[i] for i in kept])

    @torch.no_grad()
    def pseudo_labelled(self, inputs: Tensor, samples: Sequence[Any]) -> list[Any]:
        """Copies of the samples with the teacher's boxes as their true boxes.

        Args:
            inputs: [B, 3, H, W], the images for the teacher.
            samples: mmdet's data samples of these images; they are not changed.
        """
        # Repeated here, because OpenMMLab backbones follow their parent module to training mode.
        self.teacher.eval()
        copies = [copy.deepcopy(sample) for sample in samples]
        self.extra_images += len(inputs)
        predicted: Any = self.teacher
        for sample in predicted.predict(inputs, copies, rescale=False):
            detections = sample.pred_instances
            detections = detections[detections.scores >= self.score]
            boxes, labels = detections.bboxes, detections.labels
            kept = batched_nms(boxes, detections.scores, labels, self.iou)[: self.boxes]
            sample.gt_instances = InstanceData(
                bboxes=boxes[kept].clone(), labels=labels[kept].clone()
            )
            # The detector also reads the boxes to ignore, which the loader's samples lack.
            sample.ignored_instances = sample.gt_instances[:0]
            del sample.pred_instances
        return copies

    def _detection_loss(self, inputs: Tensor, samples: Sequence[Any]) -> Tensor:
        """The sum of the detector's own losses, without those of this method: a scalar."""
        self.extra_images += len(inputs)
        return self._total(self._task_class.loss(self._model[0], inputs, list(samples)))

    def _total(self, losses: Mapping[str, Any]) -> Tensor:
        return self._model[0].parse_losses(dict(losses))[0]

    def _preprocessed(self, batch: Any) -> dict[str, Any]:
        return self._model[0].data_preprocessor(batch, training=True)

    def restyle(
        self, inputs: Tensor, sizes: Sequence[Any], styles: Tensor, style_sizes: Sequence[Any]
    ) -> Tensor:
        """The normalised images [B, 3, H, W] in the style of the images `styles`.

        Amplitudes are exchanged in pixel values, because the mean of a normalised image may be
        negative, and an amplitude has no sign.

        Args:
            inputs: padded images.
            sizes: (height, width) of each image without its padding; the padding is not changed.
            styles, style_sizes: the images whose style is taken, in the same format.
        """
        preprocessor = self._model[0].data_preprocessor
        mean, std = preprocessor.mean, preprocessor.std
        out = inputs.clone()
        for i, ((h, w), (style_h, style_w)) in enumerate(zip(sizes, style_sizes, strict=True)):
            style = styles[i : i + 1, :, :style_h, :style_w] * std + mean
            style = F.interpolate(style, size=(h, w), mode="bilinear", align_corners=False)
            image = exchange_amplitude(inputs[i, :, :h, :w] * std + mean, style[0], self.size)
            out[i, :, :h, :w] = (image.clamp(0, 255) - mean) / std
        return out


def exchange_amplitude(image: Tensor, style: Tensor, size: float) -> Tensor:
    """The image with the amplitudes of the lowest frequencies of `style`.

    Args:
        image, style: [C, H, W], in pixel values.
        size: the largest exchanged frequency is floor(size * min(H, W)) periods per image.
    """
    height, width = image.shape[-2:]
    largest = math.floor(size * min(height, width))
    a, b = torch.fft.rfft2(image), torch.fft.rfft2(style)
    rows = torch.fft.fftfreq(height, 1 / height, device=image.device).abs().round()
    columns = torch.fft.rfftfreq(width, 1 / width, device=image.device).round()
    low = (rows[:, None] <= largest) & (columns <= largest)
    amplitude = torch.where(low, b.abs(), a.abs())
    return torch.fft.irfft2(torch.polar(amplitude, a.angle()), s=(height, width))


class _Adaptation(Hook):
    """Opens the loader of target images, and updates the moving average."""

    def __init__(self, method: SSDA) -> None:
        self.method = method

    def before_train(self, runner: Any) -> None:
        self.method.average(0.0)  # the weights were loaded after `attach`
        loader = runner.build_dataloader(runner.cfg.unlabelled_dataloader, seed=runner.seed)
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed for its workers
            self.method.target_batches = iter(loader)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.method.average(self.method.decay)
