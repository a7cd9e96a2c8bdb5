"""Image corruptions at five severities, after Hendrycks and Dietterich, ICLR 2019.

The severities are those of the authors' Tiny-ImageNet-C for 64 px (hendrycks/robustness
ImageNet-C/create_c/make_tinyimagenet_c.py); the width of a blur grows with the image. Corruptions
are applied to the images as the network reads them, resized and cropped, as for Tiny-ImageNet-C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from PIL import Image

SEVERITIES = (1, 2, 3, 4, 5)
PX = 64  # side in pixels of the images of Tiny-ImageNet-C

# (images [B, H, W, 3] in 0..1, severity, random generator) -> corrupted images; may exceed 0..1
Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def gaussian_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise of equal variance to every channel."""
    return x + rng.normal(0, (0.04, 0.08, 0.12, 0.15, 0.18)[severity - 1], x.shape)


def shot_noise(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Replaces pixel values by Poisson counts of a limited number of photons."""
    photons = (250, 100, 50, 30, 15)[severity - 1]
    return rng.poisson(x * photons) / photons


def gaussian_blur(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Blurs by a Gaussian whose width is proportional to the image height."""
    from scipy.ndimage import gaussian_filter

    sigma = (0.5, 0.75, 1.0, 1.25, 1.5)[severity - 1] * x.shape[1] / PX
    return gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def brightness(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Increases V of HSV: scales the three channels by a common factor; black becomes grey."""
    added = (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = x.max(-1, keepdims=True)
    brighter = np.minimum(value + added, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def contrast(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Moves every channel of an image towards its mean over the image."""
    mean = x.mean((1, 2), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1] + mean


def pixelate(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Resizes an image to a smaller size and back, both with a box filter."""
    h, w = x.shape[1:3]
    scale = (0.9, 0.8, 0.7, 0.6, 0.5)[severity - 1]
    small, box = (max(1, int(w * scale)), max(1, int(h * scale))), Image.Resampling.BOX
    images = [Image.fromarray(image) for image in to_bytes(x)]
    return np.stack([np.asarray(p.resize(small, box).resize((w, h), box)) / 255 for p in images])


def jpeg_compression(x: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Encodes and decodes an image as a JPEG of low quality."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, (65, 58, 50, 40, 25)[severity - 1]]
    out = []
    for image in to_bytes(x):
        encoded = cv2.imencode(".jpg", image[..., ::-1], quality)[1]
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded is not None
        out.append(decoded[..., ::-1] / 255)
    return np.stack(out)


CORRUPTIONS: Mapping[str, Corruption] = {
    f.__name__: f
    for f in (
        gaussian_noise,
        shot_noise,
        gaussian_blur,
        brightness,
        contrast,
        pixelate,
        jpeg_compression,
    )
}


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Converts values in 0..1 to uint8, clipped and rounded."""
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def corrupted(images: np.ndarray, name: str, severity: int, seed: list[int]) -> np.ndarray:
    """Applies a corruption to images [B, H, W, 3] uint8 RGB.

    The random generator starts from `seed`, so the result is repeatable.
    """
    rng = np.random.default_rng(seed)
    return to_bytes(CORRUPTIONS[name](images / 255.0, severity, rng))
