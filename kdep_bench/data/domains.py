"""Generated domains: an image of a scene in fog, at night or as a pencil drawing.

They are used as a domain that differs from the training images, with the same objects at the same
positions. A generated image depends only on the source image, the name of the domain and a seed.

* fog: Koschmieder's law, as in Foggy Cityscapes (Sakaridis et al., IJCV 2018),
  I t + A (1 - t) with image I, light A and transmission t = exp(-beta d). The true depth d is
  unknown. The depth used falls from 1 at the top of the image to 0.3 at the bottom, plus smooth
  noise between -0.25 and 0.25.
* night: a power of the pixel values, less light, mostly blue, and noise of the sensor.
* sketch: grey values divided by their local mean (a "dodge"): dark lines on white paper.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from kdep_bench.errors import unknown_name

# (image [H, W, 3] RGB in 0..1, random generator) -> changed image; values may exceed 0..1
Domain = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def fog(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds fog; objects near the upper edge of the image are the farthest."""
    height, width = x.shape[:2]
    depth = np.linspace(1.0, 0.3, height)[:, None] + _smooth_noise(rng, height, width, 0.25)
    transmission = np.exp(-rng.uniform(1.5, 2.5) * np.clip(depth, 0.0, None))[..., None]
    light = rng.uniform(200, 245) / 255
    return x * transmission + light * (1 - transmission)


def night(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Reduces the light, most of all the red, and adds noise."""
    light = rng.uniform(0.3, 0.45) * np.array([0.6, 0.75, 1.0])
    return x**1.8 * light + rng.normal(0, 0.02, x.shape)


def sketch(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A drawing in grey values; the width of its lines grows with the image height."""
    grey = x @ np.array([0.299, 0.587, 0.114])
    sigma = max(1.0, rng.uniform(0.02, 0.03) * len(x))
    local = cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    lines = np.clip((grey + 0.02) / (local + 0.02), 0, 1) ** 2
    return np.repeat(lines[..., None], 3, axis=2)


DOMAINS: Mapping[str, Domain] = {f.__name__: f for f in (fog, night, sketch)}


def to_domain(image: np.ndarray, domain: str, seed: Sequence[int]) -> np.ndarray:
    """The image [H, W, 3] uint8 RGB in another domain, of the same shape and type.

    Args:
        image: the image.
        domain: a name of DOMAINS.
        seed: numbers from which the fog, the light and the noise are drawn.

    Raises:
        KdepError: there is no such domain.
    """
    if domain not in DOMAINS:
        raise unknown_name("domain", domain, DOMAINS)
    rng = np.random.default_rng([list(DOMAINS).index(domain), *seed])
    x = DOMAINS[domain](image / 255.0, rng)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def seed_from_name(file_name: str) -> list[int]:
    """The seed of an image file, from its name without folders."""
    return [zlib.crc32(file_name.rpartition("/")[2].encode())]


def _smooth_noise(rng: np.random.Generator, height: int, width: int, largest: float) -> np.ndarray:
    """[height, width]: 4 x 4 random numbers in -largest..largest, interpolated."""
    coarse = rng.uniform(-largest, largest, (4, 4))
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
