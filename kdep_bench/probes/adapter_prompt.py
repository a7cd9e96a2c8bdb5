"""Few-shot accuracy of a vision-language teacher with an adapter and a trained prompt: SgVA-CLIP.

The notation is that of `kdep_bench.probes.adapter_text`; here t_c depends on the prompt. The prompt
of class c is: start, L context vectors, the tokens of the name of c and of ".", end. The context
vectors are the same for all classes and take the place of token embeddings; the text tower is
frozen.

* loss of the prompt: cross-entropy of softmax(z) with the labels
* loss of the adapter: cross-entropy of the adapted classifier with the labels, and distillation
  from z, without gradient for the prompt

Each step computes both losses with the prompt before the step, then changes prompt and adapter.

Source: Peng et al., TMM 2023; FannierPeng/SgVA-CLIP `main.py` (loss newi2i+kd+i2t),
`models/coop_4.py` (PromptLearner, TextEncoder); Zhou et al., "Learning to Prompt for
Vision-Language Models", IJCV 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdep_bench.bounds import Count, Counts, Fractions, Positive, Positives, Words
from kdep_bench.errors import KdepError
from kdep_bench.files import plain_text
from kdep_bench.probes.adapter import Adapters, Recipe, drawn_images, mean_top1, train_adapters
from kdep_bench.probes.adapter_text import (
    Queries,
    adapted_logits,
    cosines,
    queries,
    text_note,
    text_top1,
)
from kdep_bench.probes.base import Inputs, Measured, Probe, unit
from kdep_bench.probes.clip_folder import ClipFolder, read_clip_folder
from kdep_bench.teachers.huggingface import transformers

PLAIN_WORDS = "a photo of a"  # the prompt of CLIP without training


class TextTower:
    """The frozen text encoder of a CLIP, with its tokenizer and the projection of its images.

    Args:
        folder: the checked folder of the CLIP.

    Attributes:
        width: width of a token embedding.
        projection_DT: the projection of the vision tower: feature @ projection.

    Raises:
        KdepError: transformers cannot be imported, cannot read the folder, or the weights are
            incomplete, or the tokenizer belongs to another model.
    """

    def __init__(self, folder: ClipFolder) -> None:
        self.folder = folder
        model, self.tokenizer = _loaded(folder)
        self.tower, self.text_projection = model.text_model, model.text_projection
        self.projection_DT = model.visual_projection.weight.detach().T
        self.tokens = model.get_submodule("text_model.embeddings.token_embedding")
        self.width = self.tokens.embedding_dim
        self.start, self.end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        pooled = model.config.text_config.eos_token_id
        largest = len(self.tokenizer) - 1
        # With eos_token_id 2, as in the configs of OpenAI, transformers reads the largest token.
        if self.end != (largest if pooled == 2 else pooled) or largest >= len(self.tokens.weight):
            raise KdepError(
                f"the tokenizer in {folder.name} does not fit the text tower: its end token is "
                f"{self.end}, with {largest + 1} tokens; the tower has eos_token_id {pooled} and "
                f"{len(self.tokens.weight)} token embeddings",
                fix="save the tokenizer of this CLIP in the folder",
            )

    def token_ids(self, text: str) -> list[int]:
        """Token numbers of a text, without start and end.

        Raises:
            KdepError: the tokenizer has no token for a part of the text.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if {self.start, self.end, self.tokenizer.unk_token_id} & set(ids):
            raise KdepError(
                f"the tokenizer in {self.folder.name} has no token for a part of {text!r}",
                fix="rename the class folder, or correct `words` in the probe's config",
            )
        return ids

    def word_vectors(self, words: str) -> Tensor:
        """[number of tokens, width], the token embeddings of the words."""
        return self.tokens.weight[self.token_ids(words)].detach()

    def prompts(self, names: Sequence[str], length: int) -> Tensor:
        """[C, tokens] token numbers of the prompts, padded with the end token.

        The `length` tokens after the start are placeholders of the context.

        Raises:
            KdepError: a prompt is longer than the tower allows.
        """
        # The placeholder is the start token, because the tower reads the end token only.
        rows = []
        for name in names:
            ids = [self.start] * length + self.token_ids(name.replace("_", " ") + ".")
            self.folder.check_length(len(ids), f"the prompt of the class {name!r}")
            rows.append([self.start, *ids, self.end])
        longest = max(map(len, rows))
        return torch.tensor([row + [self.end] * (longest - len(row)) for row in rows])

    def encode(self, context_LW: Tensor, prompts: Tensor) -> Tensor:
        """[C, T], the unit embeddings of the prompts with these context vectors."""

        def insert(_module: Any, _ids: Any, embedded: Tensor) -> Tensor:
            """Replaces the embeddings of the placeholders."""
            context = context_LW.expand(len(embedded), -1, -1)
            after = embedded[:, 1 + len(context_LW) :]
            return torch.cat([embedded[:, :1], context, after], 1)

        # The tower accepts token numbers only, not embeddings.
        handle = self.tokens.register_forward_hook(insert)
        try:
            pooled = self.tower(input_ids=prompts).pooler_output
        finally:
            handle.remove()
        return F.normalize(self.text_projection(pooled), dim=1)


def _loaded(folder: ClipFolder) -> tuple[Any, Any]:
    """The CLIPModel, frozen and in float32, and its tokenizer."""
    library = transformers()
    try:
        model, info = library.CLIPModel.from_pretrained(
            folder.path, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
        tokenizer = library.AutoTokenizer.from_pretrained(folder.path, local_files_only=True)
    except Exception as e:  # transformers raises many types of exceptions for a malformed file
        raise KdepError(
            f"transformers cannot read the CLIP in {folder.name} "
            f"({type(e).__name__}: {plain_text(e)})",
            expected="a folder written by CLIPModel.save_pretrained, with its tokenizer",
            fix="save or download it again",
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise KdepError(
            f"the weights in {folder.name} lack {len(missing)} tensors, such as {missing[0]}",
            expected="the weights of a complete CLIPModel",
            fix="save or download it again",
        )
    return model.eval().requires_grad_(False), tokenizer


class PromptClassifier(NamedTuple):
    """Cosines of image features with the class texts of each draw.

    Attributes:
        text_ECT: unit embeddings of the prompts.
        projection_DT: projection of the vision tower.
    """

    text_ECT: Tensor
    projection_DT: Tensor

    def __call__(self, x_END: Tensor) -> Tensor:
        """[E or 1, N, D] unit features -> [E, N, C] cosines."""
        return cosines(x_END, self.text_ECT, self.projection_DT)


class TrainedPrompts(NamedTuple):
    """The result of `train_prompts`.

    Attributes:
        context_ELW: the trained context vectors of each draw.
        during: the classifiers before each step.
        final: the classifier after the last step.
    """

    context_ELW: Tensor
    during: list[PromptClassifier]
    final: PromptClassifier


def initial_context(
    tower: TextTower, seeds: Sequence[int], length: int, words: str | None
) -> Tensor:
    """[E, L, W] context vectors: of the words, or normal with the deviation 0.02 (CoOp)."""
    if words is not None:
        return tower.word_vectors(words).expand(len(seeds), -1, -1).clone()
    # 12 makes the random numbers independent of other uses of the same seed.
    vectors = [
        np.random.default_rng([seed, 12]).normal(0, 0.02, (length, tower.width)) for seed in seeds
    ]
    return torch.from_numpy(np.stack(vectors)).float()


def train_prompts(
    tower: TextTower,
    names: Sequence[str],
    context_ELW: Tensor,
    x_END: Tensor,
    label_EN: Tensor,
    recipe: Recipe,
) -> TrainedPrompts:
    """Trains the context vectors of each draw on all its images; nothing else changes.

    Args:
        tower: the text encoder.
        names: the C class names.
        context_ELW: initial context vectors, not changed.
        x_END: unit features of the images.
        label_EN: class numbers.
        recipe: settings; its temperature is not used.

    Raises:
        KdepError: a prompt that is too long, or a loss that is not finite.
    """
    prompts = tower.prompts(names, context_ELW.shape[1])
    contexts = nn.Parameter(context_ELW.clone())
    optimizer = torch.optim.SGD(
        [contexts], lr=recipe.rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=5, T_mult=2)
    during = []
    for _ in range(recipe.steps):
        optimizer.zero_grad()
        texts = []
        for draw, context in enumerate(contexts):  # one after the other, to limit the memory
            text = tower.encode(context, prompts)
            z = cosines(x_END[draw, None], text, tower.projection_DT)
            loss = F.cross_entropy(recipe.scale * z[0], label_EN[draw])
            if not math.isfinite(loss.item()):
                raise KdepError(
                    f"the training of the prompt diverged with the learning rate {recipe.rate:g}",
                    expected="a finite loss",
                    fix="remove that value from `prompt_rates` in the probe's config, or lower "
                    "`scale`",
                )
            loss.backward()
            texts.append(text.detach())
        during.append(PromptClassifier(torch.stack(texts), tower.projection_DT))
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        texts = torch.stack([tower.encode(context, prompts) for context in contexts])
    final = PromptClassifier(texts, tower.projection_DT)
    return TrainedPrompts(contexts.detach(), during, final)


class _Choice(NamedTuple):
    """The best settings on the validation split."""

    score: float
    weight: float
    rate: float
    prompt_rate: float
    adapters: Adapters
    text: PromptClassifier


class SgvaClipPrompt(Probe):
    """Top-1 accuracy of the method's teacher with few images, an adapter and a trained prompt.

    The teacher must be the vision tower of the CLIP in the folder `text_model`.

    `top1, 0 per class`: accuracy of the texts "a photo of a NAME." alone, or of `words` and the
    name, without training. `top1, K per class`: accuracy of the weighted sum of the adapted and the
    text classifier. `top1, K per class, no text` and `top1, K per class, text alone`: accuracy of
    one of them. Those with K images are means over random draws of images, which are those of the
    probe `few_shot`. Both learning rates and the weight are chosen for each K on the validation
    split.

    Args:
        shots: numbers of training images per class, three results for each.
        text_model: folder of the CLIP in the format of transformers (see `clip_folder`).
        draws: number of random draws.
        context: L, number of context vectors; not used with `words`.
        words: initial words of the context; None: random vectors.
        rates: learning rates of the adapter to choose from.
        prompt_rates: learning rates of the prompt to choose from.
        fusion: values of w, the weight of the adapted classifier, to choose from.
        steps: optimiser steps; each uses all images of the draw.
        scale: s, 100 in CLIP.
        temperature: T, the temperature of the distillation.
    """

    reads = frozenset({"teacher_classes"})
    splits = ("train", "val", "test")
    shots_argument = "shots"
    text_model_argument = "text_model"
    only_with_teacher = True

    def __init__(
        self,
        shots: Counts,
        text_model: str | None,
        draws: Count = 3,
        context: Count = 16,
        words: Words | None = None,
        rates: Positives = (5e-4, 3.5e-3),
        prompt_rates: Positives = (5e-5, 3.5e-3),
        fusion: Fractions = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        steps: Count = 100,
        scale: Positive = 100.0,
        temperature: Positive = 5.0,
    ) -> None:
        self.numbers, self.draws, self.fusion = sorted(shots), int(draws), sorted(fusion)
        self.folder = read_clip_folder(text_model)
        self.context, self.words = int(context), words
        settings = int(steps), float(scale), float(temperature)
        self.recipes, self.prompt_recipes = (
            [Recipe(float(rate), *settings) for rate in sorted(group)]
            for group in (rates, prompt_rates)
        )

    def measure(self, data: Inputs) -> Measured:
        train = data.teacher_splits["train"]
        x, classes = unit(train.post_activation), np.unique(train.labels)
        names = [train.classes[c] for c in classes]
        self.folder.check_width(x.shape[1])
        tower = TextTower(self.folder)
        plain = self._plain_texts(tower, names)
        val, test = (queries(data.teacher_splits[s], classes, plain) for s in ("val", "test"))
        values = {"top1, 0 per class": text_top1(test)}
        notes = [text_note(text_top1(val), "the folder `text_model`")]
        for n_done, shots in enumerate(self.numbers):
            data.progress(n_done, len(self.numbers), f"{shots} images per class")
            x_END, member_ENC = drawn_images(x, train.labels, shots, self.draws)
            best = self._best(tower, names, x_END, member_ENC, val)
            logits = adapted_logits(best.adapters, x_END, member_ENC, test)
            with_prompt = test._replace(text_1MC=best.text(test.unit_1MD))
            label = f"top1, {shots} per class"
            for suffix, w in (("", best.weight), (", no text", 1.0), (", text alone", 0.0)):
                predicted = with_prompt.fused(w, logits)
                values[label + suffix] = mean_top1(predicted, test.images)
            correct = (with_prompt.fused(best.weight, logits) == test.images.labels).mean(1)
            deviation = np.std(correct, ddof=1) if self.draws > 1 else 0.0
            notes.append(
                f"{shots} per class: learning rates {best.rate:g} (adapter) and "
                f"{best.prompt_rate:g} (prompt) and weight {best.weight:g} of the adapted "
                f"classifier chosen on val ({best.score:.4f}), standard deviation over draws "
                f"{deviation:.4f}"
            )
        return Measured(values, tuple(notes))

    @torch.no_grad()
    def _plain_texts(self, tower: TextTower, names: Sequence[str]) -> PromptClassifier:
        """The classifier without training, whose context is `words`, or that of CLIP."""
        vectors = tower.word_vectors(self.words or PLAIN_WORDS)
        text = tower.encode(vectors, tower.prompts(names, len(vectors)))
        return PromptClassifier(text[None], tower.projection_DT)

    def _best(
        self,
        tower: TextTower,
        names: Sequence[str],
        x_END: Tensor,
        member_ENC: Tensor,
        val: Queries,
    ) -> _Choice:
        """Trains with all pairs of learning rates; the best on the validation split."""
        start = initial_context(tower, range(self.draws), self.context, self.words)
        best: _Choice | None = None
        for prompt_recipe in self.prompt_recipes:
            label_EN = member_ENC.argmax(2)
            prompts = train_prompts(tower, names, start, x_END, label_EN, prompt_recipe)
            with_prompt = val._replace(text_1MC=prompts.final(val.unit_1MD))
            for recipe in self.recipes:
                seeds = range(self.draws)
                adapters = train_adapters(x_END, member_ENC, seeds, recipe, prompts.during)
                logits = adapted_logits(adapters, x_END, member_ENC, val)
                for w in self.fusion:
                    score = mean_top1(with_prompt.fused(w, logits), val.images).value
                    if best is None or score > best.score:
                        rates = recipe.rate, prompt_recipe.rate
                        best = _Choice(score, w, *rates, adapters, prompts.final)
        assert best is not None
        return best
