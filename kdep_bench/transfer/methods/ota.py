"""One to Transfer All (OTA): a classifier to deploy, from few images of its task.

It needs a foundation model, but not the data with which that model was trained.

1. Image re-representation fine-tuning (IRF, `irf.py`) makes the task-specific model: the tuned
   teacher, with `transfer=dict(type=IRF)` in `teacher`.
2. Downstream-image-guided generation (DIGG, `digg.py`) makes images through that teacher, guided by
   the images of the task.
3. The deployed student is trained on the task's images with their labels, and distilled from the
   teacher on the generated and on the task's images:

   L = L_task + generated * tau^2 KL(t || s on generated images) + real * tau^2 KL(t || s)

   t and s are the class probabilities of teacher and student at temperature tau. A step has as many
   generated images as images of the task. The student's running statistics of BatchNorm are those
   of the task's images, which it is evaluated on.

Re-implementation from the abstract of arXiv 2111.12386 ("One to Transfer All") alone: it names the
two steps and states that no upstream data are needed. No losses, numbers or code could be read, so
every formula here is ours.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.nn import functional as F

from kdep_bench.bounds import Count, NotNegative, Positive
from kdep_bench.networks.running_statistics import unchanged_running_statistics
from kdep_bench.transfer.method import TransferContext, TransferMethod
from kdep_bench.transfer.methods.digg import Generation, generate
from kdep_bench.transfer.parallel import unwrapped

WHITE = 255.0  # largest pixel value


class OTA(TransferMethod):
    """Distillation on generated and real images of the task; see the top of this module.

    Args:
        generated, real: weights of the two distillation losses. With generated=0 no image is
            generated; with both 0, the training is that of the task.
        tau: temperature.
        images, steps, rate, statistics, guide, smooth, start: see `digg.Generation`.
    """

    families = frozenset({"classification"})
    needs = frozenset({"tuned_teacher"})
    single_process: ClassVar[bool] = True  # otherwise every process would generate all images
    extra_trained_images: ClassVar[int] = 1
    optimises_images: ClassVar[bool] = True

    def __init__(
        self,
        generated: NotNegative = 1.0,
        real: NotNegative = 1.0,
        tau: Positive = 4.0,
        images: Count = 256,
        steps: Count = 50,
        rate: Positive = 0.05,
        statistics: NotNegative = 1.0,
        guide: NotNegative = 1.0,
        smooth: NotNegative = 0.01,
        start: Literal["images", "noise"] = "images",
    ) -> None:
        super().__init__()
        self.generated, self.real, self.tau = float(generated), float(real), float(tau)
        self.generation = Generation(
            int(images), int(steps), rate, statistics, guide, smooth, str(start)
        )
        self.images = torch.empty(0)
        self.targets = torch.empty(0)  # the teacher's class scores of `images`
        self._networks: list[Any] = []  # [student, teacher]; torch must not register them
        self._scores: list[Tensor] = []  # [[B, C] class scores of the task's own forward pass]
        self._task_class: Any = nn.Module  # the model's class before the method was added to it

    def attach(self, model: nn.Module, teacher: nn.Module | None) -> None:
        assert teacher is not None
        self._networks, self._task_class = [model, teacher], type(model)
        if self.real > 0:
            self._networks[0].head.register_forward_hook(self._record)

    def _record(self, _module: nn.Module, _args: Any, scores: Tensor) -> None:
        self._scores = [scores]

    def hooks(self) -> list[Hook]:
        return [_Generate(self)] if self.generated > 0 else []

    def prepare(self, guides: Tensor) -> None:
        """Generates the images, and computes the teacher's class scores for them.

        Args:
            guides: [N, 3, H, W] normalised images of the task.
        """
        student, teacher = self._networks
        teacher.to(guides.device)
        mean, std = student.data_preprocessor.mean, student.data_preprocessor.std
        self.images = generate(teacher, guides, -mean / std, (WHITE - mean) / std, self.generation)
        self.targets = self.teacher_scores(self.images)
        # For each generated image: one pass for each of two guides, and one in every Adam step.
        self.extra_images += len(self.images) * (2 + self.generation.steps)

    @torch.no_grad()
    def teacher_scores(self, images: Tensor) -> Tensor:
        """[B, C] class scores (logits) of the teacher."""
        teacher = self._networks[1].to(images.device)
        self.extra_images += len(images)
        return torch.cat([teacher(part, mode="tensor") for part in images.split(64)]).float()

    def losses(self, ctx: TransferContext) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        recorded, self._scores = self._scores, []
        if self.real > 0:
            scores = self.teacher_scores(ctx.inputs)
            terms["real"] = self.real * divergence(recorded[0].float(), scores, self.tau)
        if self.generated > 0:
            rows = torch.randint(len(self.images), (len(ctx.inputs),))
            self.extra_images += len(rows)
            with unchanged_running_statistics(self._networks[0]):
                student = self._task_class.forward(
                    self._networks[0], self.images[rows], None, mode="tensor"
                )
            self._scores = []  # the pass above recorded scores of generated images
            loss = divergence(student.float(), self.targets[rows], self.tau)
            terms["generated"] = self.generated * loss
        return terms


def divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """tau^2 KL(teacher || student) of class scores [B, C] at temperature tau: (B,)."""
    log_s, log_t = F.log_softmax(student / tau, 1), F.log_softmax(teacher / tau, 1)
    return tau**2 * (log_t.exp() * (log_t - log_s)).sum(1)


class _Generate(Hook):
    """Generates the images before the first step, from the task's training images."""

    def __init__(self, method: OTA) -> None:
        self.method = method

    def before_train(self, runner: Any) -> None:
        model, dataset = unwrapped(runner), runner.train_dataloader.dataset
        count = min(len(dataset), self.method.generation.images)
        rows = torch.randperm(len(dataset))[:count].tolist()
        inputs = [dataset[i]["inputs"] for i in rows]
        # Only the images are used, not their labels.
        self.method.prepare(model.data_preprocessor({"inputs": inputs}, training=False)["inputs"])
