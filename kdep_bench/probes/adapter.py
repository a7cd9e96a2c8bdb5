"""Few-shot accuracy with a trained adapter and class prototypes, after SgVA-CLIP (TMM 2023).

The feature x of an image (after the last activation) is divided by its Euclidean norm. A prototype
is the mean feature of the few training images of a class. The adapter is a perceptron with one
hidden layer, blended with its input: a(x) = unit(alpha * W2 relu(W1 x) + (1 - alpha) * x). Two
classifiers compare an image with prototypes: one uses x, the other uses a(x). Source: Peng et al.;
FannierPeng/SgVA-CLIP `main.py` (loss newi2i+kd2+i2t), `models/coop_4.py` (Weight_Adapter).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdep_bench.bounds import Count, Counts, Positive, Positives
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import Features, Inputs, Measured, Probe, Value, top1, unit
from kdep_bench.probes.few_shot import draw


class Adapters(nn.Module):
    """One adapter for each of E draws of training images, trained side by side.

    Args:
        seeds: the E seeds of the initial weights.
        width: D, the width of the feature.
        alpha: initial blend; 0 returns the input.
    """

    def __init__(self, seeds: Sequence[int], width: int, alpha: float = 0.5) -> None:
        super().__init__()
        hidden = max(1, width // 2)
        self.into = nn.Parameter(_uniform(seeds, width, hidden, 0))
        self.out = nn.Parameter(_uniform(seeds, hidden, width, 1))
        self.alpha = nn.Parameter(torch.full((len(seeds), 1, 1), float(alpha)))

    def forward(self, x_END: Tensor) -> Tensor:
        """[E, N, D] unit features -> adapted features of the same shape, unit length."""
        hidden = F.relu(torch.bmm(x_END, self.into))
        blend = self.alpha * torch.bmm(hidden, self.out) + (1 - self.alpha) * x_END
        return F.normalize(blend, dim=2)


def _uniform(seeds: Sequence[int], fan_in: int, fan_out: int, layer: int) -> Tensor:
    """[E, fan_in, fan_out] weights, uniform in +-1/sqrt(fan_in), as those of `nn.Linear`."""
    # 11 makes the random numbers independent of other uses of the same seed.
    layers = [
        np.random.default_rng([seed, 11, layer]).uniform(-1, 1, (fan_in, fan_out)) for seed in seeds
    ]
    return torch.from_numpy(np.stack(layers)).float() / math.sqrt(fan_in)


def prototypes(x_END: Tensor, member_ENC: Tensor) -> Tensor:
    """[E, C, D], the mean feature of each class; `member_ENC` is 1 where an image has the class."""
    return torch.bmm(member_ENC.mT, x_END) / member_ENC.sum(1).unsqueeze(2)


def training_logits(x_END: Tensor, member_ENC: Tensor, scale: float) -> Tensor:
    """[E, N, C], scale * <x, prototype>, for the images that the prototypes are made of.

    An image is left out of the prototype of its own class, unless it is the only one of that class.
    """
    count_E1C = member_ENC.sum(1, keepdim=True)
    similar = torch.bmm(x_END, prototypes(x_END, member_ENC).mT)
    squared_norm = x_END.square().sum(2, keepdim=True)
    without_image = (count_E1C * similar - squared_norm) / (count_E1C - 1).clamp(min=1)
    return scale * torch.where((member_ENC > 0) & (count_E1C > 1), without_image, similar)


def adapter_loss(
    adapted_ENC: Tensor,
    guide_ENC: Tensor,
    label_EN: Tensor,
    temperature: float,
    guided_ENC: Tensor | None = None,
) -> dict[str, Tensor]:
    """The two terms of the adapter's loss for every image, each [E, N].

    `classes`: cross-entropy of the adapted classifier with the labels. `distillation`:
    cross-entropy of softmax(guide / T) and softmax(guided / T), without gradient for the guide.

    Args:
        adapted_ENC: logits of the adapted classifier.
        guide_ENC: logits of the classifier without adapter.
        label_EN: class numbers.
        temperature: T.
        guided_ENC: logits of the adapted features that learn from the guide; None: `adapted_ENC`.
    """
    classes = F.cross_entropy(adapted_ENC.mT, label_EN, reduction="none")
    target = (guide_ENC.detach() / temperature).softmax(2)
    guided_ENC = adapted_ENC if guided_ENC is None else guided_ENC
    distillation = -(target * (guided_ENC / temperature).log_softmax(2)).sum(2)
    return {"classes": classes, "distillation": distillation}


class Recipe(NamedTuple):
    """Settings of the training; see `SgvaClip`."""

    rate: float
    steps: int
    scale: float
    temperature: float


def train_adapters(
    x_END: Tensor,
    member_ENC: Tensor,
    seeds: Sequence[int],
    recipe: Recipe,
    texts: Iterable[Callable[[Tensor], Tensor]] | None = None,
) -> Adapters:
    """Trains one adapter for each draw, on all images of the draw; the features do not change.

    Args:
        x_END: unit features of the N images of each draw.
        member_ENC: 1 where an image has the class.
        seeds: the E seeds of the initial weights.
        recipe: settings.
        texts: for each step, [E, N, D] unit features -> [E, N, C] cosines with the texts of the
            classes. It is the guide, for features with and without adapter; None: the prototypes
            are.

    Raises:
        KdepError: a loss that is not finite.
    """
    adapters = Adapters(seeds, x_END.shape[2])
    label_EN, guided = member_ENC.argmax(2), None
    guide = training_logits(x_END, member_ENC, recipe.scale)
    text_of_step = None if texts is None else iter(texts)
    optimizer = torch.optim.SGD(
        adapters.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        adapted = adapters(x_END)
        logits = training_logits(adapted, member_ENC, recipe.scale)
        if text_of_step is not None:
            text = next(text_of_step)
            guide, guided = (recipe.scale * text(v) for v in (x_END, adapted))
        terms = adapter_loss(logits, guide, label_EN, recipe.temperature, guided)
        loss = sum(terms.values(), torch.zeros(())).mean(1).sum()  # draws do not share parameters
        if not math.isfinite(loss.item()):
            raise KdepError(
                f"the training of the adapter diverged with the learning rate {recipe.rate:g}",
                expected="a finite loss",
                fix="remove that value from `rates` in the probe's config, or lower `scale`",
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return adapters


def drawn_images(
    x_MD: np.ndarray, labels: np.ndarray, shots: int, draws: int
) -> tuple[Tensor, Tensor]:
    """Features [E, N, D] and classes [E, N, C] (1 where an image has the class) of E draws.

    Raises:
        KdepError: a class has fewer than `shots` images.
    """
    chosen = [draw(labels, shots, seed) for seed in range(draws)]
    x_END = torch.from_numpy(np.stack([x_MD[index] for index in chosen])).float()
    drawn = np.stack([labels[index] for index in chosen])
    return x_END, torch.from_numpy(drawn[..., None] == np.unique(labels)).float()


class SgvaClip(Probe):
    """Top-1 accuracy with few training images per class, an adapter and visual prototypes.

    A re-implementation without text: SgVA-CLIP guides and completes the adapted classifier by a
    classifier whose prototypes are embeddings of class names. A backbone has no text embeddings;
    here the prototypes of the features without adapter have both functions. `SgvaClipText` has the
    text prototypes, for a vision-language teacher.

    `top1, K per class`: accuracy with the mean of both classifiers' logits. `top1, K per class, no
    adapter`: accuracy with the prototypes of the features alone. Both are means over random draws
    of images; the draws are those of the probe `few_shot`, and the same for every backbone. The
    learning rate is chosen for each K on the validation
    split. The ReLU after the authors' adapter is left out, because the features of transformers
    have negative values.

    Args:
        shots: numbers of training images per class, two results for each.
        draws: number of random draws.
        rates: learning rates to choose from.
        steps: optimiser steps; each uses all images of the draw.
        scale: factor of the cosine in both classifiers, 100 in CLIP.
        temperature: temperature of the distillation.
    """

    reads = frozenset({"classes"})
    splits = ("train", "val", "test")
    shots_argument = "shots"

    def __init__(
        self,
        shots: Counts,
        draws: Count = 10,
        rates: Positives = (5e-4, 3.5e-3),
        steps: Count = 100,
        scale: Positive = 100.0,
        temperature: Positive = 5.0,
    ) -> None:
        self.numbers, self.draws = sorted(shots), int(draws)
        self.recipes = [
            Recipe(float(rate), int(steps), float(scale), float(temperature))
            for rate in sorted(rates)
        ]

    def measure(self, data: Inputs) -> Measured:
        train, val, test = (data.splits[s] for s in self.splits)
        x, classes = unit(train.post_activation), np.unique(train.labels)
        values: dict[str, Value] = {}
        notes = []
        for n_done, shots in enumerate(self.numbers):
            data.progress(n_done, len(self.numbers), f"{shots} images per class")
            x_END, member_ENC = drawn_images(x, train.labels, shots, self.draws)
            best: tuple[float, Recipe, Adapters] | None = None
            for recipe in self.recipes:
                adapters = train_adapters(x_END, member_ENC, range(self.draws), recipe)
                score = mean_top1(self._predict(adapters, x_END, member_ENC, classes, val), val)
                if best is None or score.value > best[0]:
                    best = score.value, recipe, adapters
            assert best is not None
            val_score, recipe, adapters = best
            fused = self._predict(adapters, x_END, member_ENC, classes, test)
            alone = self._predict(None, x_END, member_ENC, classes, test)
            values[f"top1, {shots} per class"] = mean_top1(fused, test)
            values[f"top1, {shots} per class, no adapter"] = mean_top1(alone, test)
            deviation = np.std((fused == test.labels).mean(1), ddof=1) if self.draws > 1 else 0.0
            notes.append(
                f"{shots} per class: learning rate {recipe.rate:g} chosen on val "
                f"({val_score:.4f}), standard deviation over draws {deviation:.4f}"
            )
        return Measured(values, tuple(notes))

    @torch.no_grad()
    def _predict(
        self,
        adapters: Adapters | None,
        x_END: Tensor,
        member_ENC: Tensor,
        classes: np.ndarray,
        split: Features,
    ) -> np.ndarray:
        """[E, M] class numbers of the M images of a split, predicted with each draw's prototypes.

        `adapters`: None for the prototypes of the features alone.
        """
        query = torch.from_numpy(unit(split.post_activation)).float().expand(len(x_END), -1, -1)
        logits = torch.bmm(query, prototypes(x_END, member_ENC).mT)
        if adapters is not None:
            adapted = prototypes(adapters(x_END), member_ENC)
            logits = (logits + torch.bmm(adapters(query), adapted.mT)) / 2
        return classes[logits.argmax(2).numpy()]


def mean_top1(predicted_EM: np.ndarray, split: Features) -> Value:
    """Accuracy, averaged over the draws."""
    results = [top1(split.labels, predicted) for predicted in predicted_EM]
    return Value(
        float(np.mean([r.value for r in results])), "larger", percent=True, chance=results[0].chance
    )
