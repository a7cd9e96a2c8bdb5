"""Contrastive knowledge distillation with a queue of teacher features (DisCo, arXiv 2112.05638)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import CountOrZero, Positive
from kdep_bench.errors import KdepError
from kdep_bench.objectives.base import Context, Objective

MAX_SCALE = 100.0  # largest 1 / tau, as in CLIP
NO_IMAGE = -1  # image number of an empty entry of the queue


class ContrastiveDistillation(Objective):
    """InfoNCE: -w log [exp(s_i.t_i / tau) / sum over j of exp(s_i.t_j / tau)], per sample i.

    t is the normalised pooled feature of the teacher, and s = (W f + b) / |W f + b| with f the
    student's pooled feature before the last activation. The sum is over the sample itself, the
    batch, and a queue of teacher features of earlier batches. The queue is empty at the start,
    holds the newest `queue` features (first in, first out), and is stored in checkpoints. Teacher
    features of the image of sample i, of another view or of an earlier epoch, are not negatives:
    they are left out of its sum. Features in the queue of any image of the batch are left out as
    well, because such an image would be a negative twice.

    Source: Gao, Wu et al., arXiv 2112.05638 (sentence embeddings); caskcsg/sentemb
    `DistilCSE/ckd_contrastive.py` and its run script: linear W, learned tau that starts at 1/e, w 1
    and a queue of 65,536 features for 5 M sentences. Three differences. The queue is shorter,
    because a pool of images is smaller: a queue longer than an epoch would contain images twice.
    The source has no rule for repeated sentences. 1 / tau is limited to 100, as in CLIP.

    log(n + 1) - loss / w, for n negatives, is a lower bound of the mutual information of student
    and teacher features, on average.

    Args:
        queue: number of teacher features in the queue; 0: the batch only.
        tau: temperature, or its first value if it is learned.
        learn_tau: whether log(1 / tau) is trained.
        weight: w.
        width, teacher_width, views: set by the pre-training stage.
    """

    needs = frozenset({"pooled"})
    stage_arguments = frozenset({"width", "teacher_width", "views"})
    couples_samples = True
    queue: Tensor
    queue_images: Tensor

    def __init__(
        self,
        width: int,
        teacher_width: int,
        views: int,
        queue: CountOrZero = 4096,
        tau: Positive = 0.3679,
        learn_tau: bool = True,
        weight: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.projector = nn.Linear(width, teacher_width)
        self.views, self.weight = int(views), float(weight)
        log_scale = torch.tensor(-math.log(tau))
        if learn_tau:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)
        self.register_buffer("queue", torch.zeros(queue, teacher_width))  # newest first
        self.register_buffer("queue_images", torch.full((queue,), NO_IMAGE))

    def terms(self, ctx: Context) -> dict[str, Tensor]:
        assert ctx.teacher is not None
        assert ctx.rows is not None
        if len(ctx.pre_activation) + len(self.queue) < 2:
            raise KdepError(
                "contrastive distillation has no negatives: the batch has one image and the queue "
                "is empty, so its loss would always be 0",
                expected="a batch of at least 2 images, or a queue",
                fix="increase `batch` in the suite's budget or `queue` in the method's objective",
            )
        student = F.normalize(self.projector(ctx.pre_activation), dim=1)
        keys = torch.cat([F.normalize(ctx.teacher.pooled, dim=1).detach(), self.queue])
        images = torch.cat([ctx.rows // self.views, self.queue_images])
        scores = self.log_scale.exp() * student @ keys.T
        scores = scores.masked_fill(self.ignored(images, len(student)), -torch.inf)
        own_key = torch.arange(len(student), device=scores.device)
        loss = F.cross_entropy(scores, own_key, reduction="none")
        if self.training:
            self.queue.copy_(keys[: len(self.queue)])
            self.queue_images.copy_(images[: len(self.queue)])
        return {"contrast": self.weight * loss}

    @staticmethod
    def ignored(images_N: Tensor, batch: int) -> Tensor:
        """[B, N] bool: the keys that are neither sample i's own nor negatives of it.

        Args:
            images_N: image numbers of all keys, the batch first.
            batch: B.
        """
        same_image = images_N[:batch, None] == images_N
        is_own = torch.eye(batch, len(images_N), dtype=torch.bool, device=images_N.device)
        is_queued = torch.arange(len(images_N), device=images_N.device) >= batch
        unused = is_queued & (same_image.any(0) | (images_N == NO_IMAGE))
        return (same_image & ~is_own) | unused

    @torch.no_grad()
    def after_step(self) -> None:
        self.log_scale.clamp_(max=math.log(MAX_SCALE))
