"""Pre-training images made from few images, by mixing and by a generator.

The first step of FS-BBT (few-shot learning with a black-box teacher, ECCV 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from kdep_bench.bounds import Count, Fraction, MultipleOf32, Positive
from kdep_bench.devices import compute_device
from kdep_bench.errors import KdepError
from kdep_bench.networks.conditional_vae import ConditionalVAE

HALF_WIDTH = 3.0  # half of the latent vectors are uniform in [-HALF_WIDTH, HALF_WIDTH]


@dataclass(frozen=True)
class Mixes:
    """Pairs of images and their weights.

    Attributes:
        first, second: [M] numbers of the images.
        weight: [M], lambda: mix = lambda * first + (1 - lambda) * second.
        replaced: [M] bool, whether the mix is so close to one of its images that a generated image
            replaces it.
    """

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    replaced: np.ndarray


class FewShotImages:
    """M images from N: mixtures of pairs, and images of a conditional VAE.

    Every image is mixed equally often as the first and as the second of a pair, in random order,
    with lambda ~ Beta(alpha, alpha). Mixtures with lambda or 1 - lambda of at most `threshold` are
    nearly copies; as many generated images replace them. The VAE learns the N images with the class
    that the teacher predicts as condition. Images are generated equally often for each of these
    classes (their numbers differ by at most one). Half of the latent vectors are normal, half
    uniform in [-3, 3].

    Source: Nguyen et al., ECCV 2022; nphdang/FS-BBT `cifar10/{fsbbt_alexnet,cvae}.py` and the
    repository's settings for CIFAR-10: 40,000 images, alpha 1, threshold 0.05, 2 latent numbers,
    600 epochs of Adam at batch 64. One departure: the two kinds of latent vectors are shuffled over
    the classes. In the published code the lower half of the classes gets the normal ones only,
    and no class gets an image if there are fewer of them than classes.

    Args:
        images: M, number of images in addition to the N.
        alpha: of the Beta distribution.
        threshold: see above.
        latent: numbers of the latent vector.
        epochs: passes of the VAE over the N images.
        batch: images per step of the VAE.
        lr: learning rate of Adam.
        px: side of the images in pixels.
        vae_px: side of the images that the VAE learns, a multiple of 32; they are enlarged to `px`.
    """

    def __init__(
        self,
        images: Count = 40_000,
        alpha: Positive = 1.0,
        threshold: Fraction = 0.05,
        latent: Count = 2,
        epochs: Count = 600,
        batch: Count = 64,
        lr: Positive = 1e-3,
        px: Count = 128,
        vae_px: MultipleOf32 = 32,
    ) -> None:
        self.images, self.px, self.vae_px = int(images), int(px), int(vae_px)
        self.alpha, self.threshold, self.lr = float(alpha), float(threshold), float(lr)
        self.latent, self.epochs, self.batch = int(latent), int(epochs), int(batch)

    def mixes(self, count: int, rng: np.random.Generator) -> Mixes:
        """M pairs of `count` images."""
        numbers = np.resize(np.arange(count), self.images)
        first, second = rng.permutation(numbers), rng.permutation(numbers)
        weight = rng.beta(self.alpha, self.alpha, self.images)
        replaced = np.minimum(weight, 1 - weight) <= self.threshold
        return Mixes(first, second, weight, replaced)

    def latent_vectors(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, latent] float32: half normal, half uniform, in random order."""
        normal = rng.normal(size=(count // 2, self.latent))
        uniform = rng.uniform(-HALF_WIDTH, HALF_WIDTH, (count - count // 2, self.latent))
        return rng.permutation(np.concatenate([normal, uniform])).astype(np.float32)

    def balanced_choice(
        self, classes: np.ndarray, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """[count] of the values in `classes`, whose frequencies differ by at most one."""
        return np.resize(rng.permutation(np.unique(classes)), count)

    def make(
        self, pixels: np.ndarray, classes: np.ndarray, seed: int, progress: Callable[..., None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Makes M images from the few images.

        Args:
            pixels: [N, px, px, 3] uint8, the few images.
            classes: [N] class of each image, predicted by the teacher.
            seed: of all random numbers.
            progress: called with (epochs of the VAE done, epochs, note).

        Returns:
            (mixed [A, px, px, 3], generated [G, px, px, 3]) uint8 with A + G = M.

        Raises:
            KdepError: fewer than two images, which cannot be mixed.
        """
        if len(pixels) < 2:
            raise KdepError(
                f"few-shot images are mixed from pairs, but there are {len(pixels)} images",
                expected="at least 2",
                fix="raise `shares` of the suite",
            )
        rng = np.random.default_rng(seed)
        mixes = self.mixes(len(pixels), rng)
        kept = ~mixes.replaced
        weight = mixes.weight[kept][:, None, None, None].astype(np.float32)
        mixed = np.empty((int(kept.sum()), *pixels.shape[1:]), np.uint8)
        pairs = zip(mixes.first[kept], mixes.second[kept], weight, strict=True)
        for k, (first, second, w) in enumerate(pairs):
            mixed[k] = np.rint(w * pixels[first] + (1 - w) * pixels[second])
        n_generated = int(mixes.replaced.sum())
        if not n_generated:
            return mixed, np.empty((0, *pixels.shape[1:]), np.uint8)
        return mixed, self._generate(pixels, classes, n_generated, rng, seed, progress)

    def _generate(
        self,
        pixels: np.ndarray,
        classes: np.ndarray,
        count: int,
        rng: np.random.Generator,
        seed: int,
        progress: Callable[..., None],
    ) -> np.ndarray:
        """[count, px, px, 3] uint8 images of a VAE that is trained on `pixels`."""
        values, condition = np.unique(classes, return_inverse=True)
        vae, device = self._train(pixels, condition, len(values), rng, seed, progress)
        chosen = self.balanced_choice(condition, count, rng)
        z = self.latent_vectors(count, rng)
        images = np.empty((count, self.px, self.px, 3), np.uint8)
        with torch.no_grad():
            for start in range(0, count, 256):  # images per forward pass
                part = slice(start, start + 256)
                one_hot = F.one_hot(torch.from_numpy(chosen[part]), len(values)).float()
                x = vae.decode(torch.from_numpy(z[part]).to(device), one_hot.to(device))
                x = F.interpolate(x, (self.px, self.px), mode="bilinear", align_corners=False)
                as_bytes = (255 * x).round().clamp(0, 255).to(torch.uint8)
                images[part] = as_bytes.permute(0, 2, 3, 1).cpu().numpy()
        return images

    def _train(
        self,
        pixels: np.ndarray,
        condition: np.ndarray,
        classes: int,
        rng: np.random.Generator,
        seed: int,
        progress: Callable[..., None],
    ) -> tuple[ConditionalVAE, torch.device]:
        """(the trained VAE, its device)."""
        device = compute_device()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = ConditionalVAE(classes, self.vae_px, self.latent).to(device)
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        x = F.interpolate(x, (self.vae_px, self.vae_px), mode="area").to(device)
        one_hot = F.one_hot(torch.from_numpy(condition), classes).float().to(device)
        optimizer = torch.optim.Adam(vae.parameters(), self.lr)
        for epoch in range(self.epochs):
            for rows in np.array_split(rng.permutation(len(x)), -(-len(x) // self.batch)):
                noise = rng.normal(size=(len(rows), self.latent)).astype(np.float32)
                index = torch.from_numpy(rows).to(device)
                loss = vae.loss(x[index], one_hot[index], torch.from_numpy(noise).to(device))
                optimizer.zero_grad()
                loss.mean().backward()
                optimizer.step()
            progress(epoch + 1, self.epochs, "training the conditional VAE")
        return vae.eval(), device
