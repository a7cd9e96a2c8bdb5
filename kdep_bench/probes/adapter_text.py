"""Few-shot accuracy of a vision-language teacher with text prototypes: SgVA-CLIP (TMM 2023).

The feature v of an image (after the last activation) is divided by its norm. P is the projection of
the vision tower (the identity if the feature is in the space of the texts), t_c the embedding of
the name of class c, of unit length, and a(v) the adapter of `kdep_bench.probes.adapter`:

* text classifier: z_c = s * <unit(v P), t_c>
* adapted classifier: s * <a(v), mean of a(v) over the few training images of class c>
* loss of the adapter: cross-entropy of the adapted classifier with the labels, and cross-entropy of
  softmax(z / T) with softmax(s * <unit(a(v) P), t_c> / T)
* prediction: w * adapted classifier + (1 - w) * text classifier

Source: Peng et al.; FannierPeng/SgVA-CLIP `main.py` (loss newi2i+kd+i2t, test head Fuse_af),
`models/classification_heads_4.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdep_bench.bounds import Count, Counts, Fractions, Positive, Positives
from kdep_bench.probes.adapter import (
    Adapters,
    Recipe,
    drawn_images,
    mean_top1,
    prototypes,
    train_adapters,
)
from kdep_bench.probes.base import Features, Inputs, Measured, Probe, Value, top1, unit
from kdep_bench.probes.text import TextEmbeddings, read_text_embeddings

TEXTS = "the text embeddings"  # what a note calls the user's file


class TextClassifier:
    """Cosines of image features with the texts of the classes.

    Args:
        embeddings: the user's file.
        names: the C class names.
        width: D, the width of the image features.

    Raises:
        KdepError: the file lacks a class, or its dimensions do not fit the features.
    """

    def __init__(self, embeddings: TextEmbeddings, names: list[str], width: int) -> None:
        embeddings.check_width(width)
        self.text_CT = torch.from_numpy(unit(embeddings.for_classes(names)))
        self.projection_DT = (
            None if embeddings.projection is None else torch.from_numpy(embeddings.projection)
        )

    def __call__(self, x_END: Tensor) -> Tensor:
        """[E, N, D] unit features -> [E, N, C] cosines."""
        return cosines(x_END, self.text_CT, self.projection_DT)


def cosines(x_END: Tensor, text: Tensor, projection_DT: Tensor | None) -> Tensor:
    """[E, N, D] unit features -> [E, N, C] cosines with texts [C, T] or [E, C, T] of unit length.

    `projection_DT`: projection of the vision tower; None: the features are in the space of texts.
    """
    if projection_DT is not None:
        x_END = F.normalize(x_END @ projection_DT.to(x_END), dim=2)
    return x_END @ text.to(x_END).mT


class SgvaClipText(Probe):
    """Top-1 accuracy of the method's teacher with few training images, an adapter and class texts.

    The teacher must be the vision tower of a vision-language model. `text` names the user's file of
    text embeddings (see `kdep_bench.probes.text`); classes are matched by name.

    `top1, 0 per class`: accuracy of the text classifier alone. `top1, K per class`: accuracy of
    the weighted sum of the adapted and the text classifier. `top1, K per class, no text`: accuracy
    of the adapted classifier alone. Those with K images are means over random draws of images,
    which are those of the probe `few_shot`. The learning rate and the weight of the sum are chosen
    for each K on the validation split.

    SgVA-CLIP also trains a prompt, which changes t_c; it needs the text encoder, with which
    `SgvaClipPrompt` trains it. Without a prompt, the third term of the loss (cross-entropy of the
    text classifier with the labels) is constant. The
    ReLU after the authors' adapter is left out, because the features of transformers have negative
    values. a(v) P is divided by its norm, which the authors' code leaves out: so an adapter that
    returns its input gives the distribution of the text classifier.

    Args:
        shots: numbers of training images per class, two results for each.
        text: path of the file of text embeddings.
        draws: number of random draws.
        rates: learning rates to choose from.
        fusion: values of w, the weight of the adapted classifier, to choose from.
        steps: optimiser steps; each uses all images of the draw.
        scale: s, 100 in CLIP.
        temperature: T, the temperature of the distillation.
    """

    reads = frozenset({"teacher_classes"})
    splits = ("train", "val", "test")
    shots_argument = "shots"
    text_argument = "text"
    only_with_teacher = True

    def __init__(
        self,
        shots: Counts,
        text: str | None,
        draws: Count = 10,
        rates: Positives = (5e-4, 3.5e-3),
        fusion: Fractions = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        steps: Count = 100,
        scale: Positive = 100.0,
        temperature: Positive = 5.0,
    ) -> None:
        self.numbers, self.draws, self.fusion = sorted(shots), int(draws), sorted(fusion)
        self.embeddings = read_text_embeddings(text)
        self.recipes = [
            Recipe(float(rate), int(steps), float(scale), float(temperature))
            for rate in sorted(rates)
        ]

    def measure(self, data: Inputs) -> Measured:
        train = data.teacher_splits["train"]
        x, classes = unit(train.post_activation), np.unique(train.labels)
        text = TextClassifier(self.embeddings, [train.classes[c] for c in classes], x.shape[1])
        val, test = (queries(data.teacher_splits[s], classes, text) for s in ("val", "test"))
        values = {"top1, 0 per class": text_top1(test)}
        notes = [text_note(text_top1(val))]
        for n_done, shots in enumerate(self.numbers):
            data.progress(n_done, len(self.numbers), f"{shots} images per class")
            x_END, member_ENC = drawn_images(x, train.labels, shots, self.draws)
            best: tuple[float, float, Recipe, Adapters] | None = None
            for recipe in self.recipes:
                adapters = train_adapters(
                    x_END, member_ENC, range(self.draws), recipe, repeat(text)
                )
                logits = adapted_logits(adapters, x_END, member_ENC, val)
                for w in self.fusion:
                    score = mean_top1(val.fused(w, logits), val.images).value
                    if best is None or score > best[0]:
                        best = score, w, recipe, adapters
            assert best is not None
            score, w, recipe, adapters = best
            logits = adapted_logits(adapters, x_END, member_ENC, test)
            fused = test.fused(w, logits)
            values[f"top1, {shots} per class"] = mean_top1(fused, test.images)
            alone = mean_top1(test.fused(1.0, logits), test.images)
            values[f"top1, {shots} per class, no text"] = alone
            correct = (fused == test.images.labels).mean(1)
            deviation = np.std(correct, ddof=1) if self.draws > 1 else 0.0
            notes.append(
                f"{shots} per class: learning rate {recipe.rate:g} and weight {w:g} of the adapted "
                f"classifier chosen on val ({score:.4f}), standard deviation over draws "
                f"{deviation:.4f}"
            )
        return Measured(values, tuple(notes))


class Queries(NamedTuple):
    """The images of a split that are classified.

    Attributes:
        images: their features and labels.
        classes: [C] class numbers.
        unit_1MD: unit features.
        text_1MC: cosines with the texts of the classes; [E, M, C] if each draw has its texts.
    """

    images: Features
    classes: np.ndarray
    unit_1MD: Tensor
    text_1MC: Tensor

    def fused(self, weight: float, adapted_EMC: Tensor) -> np.ndarray:
        """[E, M] class numbers by the weighted sum of the adapted and the text classifier."""
        logits = weight * adapted_EMC + (1 - weight) * self.text_1MC
        return self.classes[logits.argmax(2).numpy()]


def queries(images: Features, classes: np.ndarray, text: Callable[[Tensor], Tensor]) -> Queries:
    """The images of a split, with their cosines with the texts."""
    unit_1MD = torch.from_numpy(unit(images.post_activation)).float()[None]
    return Queries(images, classes, unit_1MD, text(unit_1MD))


def text_top1(queries: Queries) -> Value:
    """Accuracy of the text classifier alone."""
    return top1(queries.images.labels, queries.classes[queries.text_1MC[0].argmax(1).numpy()])


@torch.no_grad()
def adapted_logits(
    adapters: Adapters, x_END: Tensor, member_ENC: Tensor, queries: Queries
) -> Tensor:
    """[E, M, C] cosines of the adapted features with each draw's adapted prototypes."""
    adapted = adapters(queries.unit_1MD.expand(len(x_END), -1, -1))
    return torch.bmm(adapted, prototypes(adapters(x_END), member_ENC).mT)


def text_note(val: Value, source: str = TEXTS) -> str:
    """A note on the accuracy of the texts alone on the validation split.

    `source` is what the note calls their origin.
    """
    note = f"0 per class: {val.value:.4f} on val"
    if val.chance is not None and val.value <= val.chance:
        note += f", not above chance: {source} may belong to another vision-language model"
        note += ", or `classes` may have another order than `text`" if source == TEXTS else ""
    return note
