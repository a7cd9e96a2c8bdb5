"""Cut-outs drawn by formula, for systems without Debian packages.

A class has one kind of outline and one kind of texture; colours are random, so that the class
cannot be recognised by colour. A note with the results states that these are not photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

PER_CLASS = 24


def procedural_cutouts(
    classes: Sequence[str], distractor: str, px: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields (name, class, [h, w, 4] uint8 BGRA) of PER_CLASS objects per class, always alike."""
    for number, label in enumerate((*classes, distractor)):
        for k in range(PER_CLASS):
            rng = np.random.default_rng([number, k])
            mask = _outline(number, rng, px)
            image = np.dstack([_texture(number, rng, px), mask])
            ys, xs = np.nonzero(mask > 16)
            image = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            yield f"procedural/{label}/{k:02d}", label, np.ascontiguousarray(image)


def _outline(family: int, rng: np.random.Generator, px: int) -> np.ndarray:
    """A mask [px, px] uint8; its radius is a function of the angle that depends on `family`."""
    angle = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    lobes = (2, 3, 4, 5, 6, 8, 10, 14, 7)[family % 9]
    depth = rng.uniform(0.12, 0.3)
    sharp = (np.sin, _triangle, _square)[family % 3]
    radius = 1 + depth * sharp(lobes * angle + rng.uniform(0, 6.28))
    radius *= 1 + 0.05 * np.sin(angle * 2 + rng.uniform(0, 6.28))
    stretch = rng.uniform(0.6, 1.0)
    points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius * stretch], 1)
    points = points / np.abs(points).max() * (px / 2 - 2) + px / 2
    mask = np.zeros((px, px), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    if family % 4 == 3:
        cv2.circle(mask, (px // 2, px // 2), int(px * rng.uniform(0.08, 0.14)), 0, -1, cv2.LINE_AA)
    return mask


def _triangle(x: np.ndarray) -> np.ndarray:
    return 2 / np.pi * np.arcsin(np.sin(x))


def _square(x: np.ndarray) -> np.ndarray:
    return np.tanh(4 * np.sin(x))


def _texture(family: int, rng: np.random.Generator, px: int) -> np.ndarray:
    """A texture [px, px, 3] uint8: two colours mixed by stripes, checks, rings, dots or noise."""
    y, x = np.mgrid[:px, :px] / px
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(4, 9)
    u = x * np.cos(turn) + y * np.sin(turn)
    v = -x * np.sin(turn) + y * np.cos(turn)
    waves = np.sin(2 * np.pi * pitch * u), np.sin(2 * np.pi * pitch * v)
    rings = np.sin(2 * np.pi * pitch * np.hypot(x - 0.5, y - 0.5) * 1.4)
    noise = cv2.resize(rng.normal(size=(12, 12)), (px, px), interpolation=cv2.INTER_CUBIC)
    kinds = (waves[0], waves[0] * waves[1] * 2, rings, np.maximum(*waves), noise)
    mix = np.clip(0.5 + kinds[family % 5] * 0.7, 0, 1)[..., None]
    low, high = rng.uniform(20, 235, (2, 3))
    light = 0.75 + 0.5 * (1 - np.hypot(x - 0.35, y - 0.3))[..., None]
    image = (low * (1 - mix) + high * mix) * np.clip(light, 0.6, 1.2)
    return np.clip(image + rng.normal(0, 5, (px, px, 1)), 0, 255).astype(np.uint8)
