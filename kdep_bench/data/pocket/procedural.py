"""Procedurally drawn cut-outs, used if the Debian packages with cut-outs are not available.

Each class has one kind of outline and one kind of texture. The colours are random, so they do not
depend on the class. Results on these data have a note that the objects are not photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

PER_CLASS = 24  # objects per class


def procedural_cutouts(
    classes: Sequence[str], distractor: str, px: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields PER_CLASS objects of each class and of `distractor`, the same in every call.

    Yields:
        (name, class, [h, w, 4] uint8 BGRA), cropped to the object; its longer side is about `px`.
    """
    for number, label in enumerate((*classes, distractor)):
        for k in range(PER_CLASS):
            rng = np.random.default_rng([number, k])
            mask = _outline(number, rng, px)
            image = np.dstack([_texture(number, rng, px), mask])
            ys, xs = np.nonzero(mask > 16)
            image = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
            yield f"procedural/{label}/{k:02d}", label, np.ascontiguousarray(image)


def _outline(family: int, rng: np.random.Generator, px: int) -> np.ndarray:
    """A mask [px, px] uint8 of a closed curve, whose radius is a wave that depends on `family`."""
    angle = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    lobes = (2, 3, 4, 5, 6, 8, 10, 14, 7)[family % 9]
    depth = rng.uniform(0.12, 0.3)
    wave = (np.sin, _triangle, _square)[family % 3]
    radius = 1 + depth * wave(lobes * angle + rng.uniform(0, 6.28))
    radius *= 1 + 0.05 * np.sin(angle * 2 + rng.uniform(0, 6.28))
    stretch = rng.uniform(0.6, 1.0)
    points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius * stretch], 1)
    points = points / np.abs(points).max() * (px / 2 - 2) + px / 2
    mask = np.zeros((px, px), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    if family % 4 == 3:  # a round hole in the middle
        cv2.circle(mask, (px // 2, px // 2), int(px * rng.uniform(0.08, 0.14)), 0, -1, cv2.LINE_AA)
    return mask


def _triangle(x: np.ndarray) -> np.ndarray:
    return 2 / np.pi * np.arcsin(np.sin(x))


def _square(x: np.ndarray) -> np.ndarray:
    return np.tanh(4 * np.sin(x))


def _texture(family: int, rng: np.random.Generator, px: int) -> np.ndarray:
    """A texture [px, px, 3] uint8: two random colours, mixed by a pattern, and shaded.

    The pattern depends on `family`: stripes, checks, rings, dots or noise.
    """
    y, x = np.mgrid[:px, :px] / px
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(4, 9)  # periods per image side
    u = x * np.cos(angle) + y * np.sin(angle)
    v = -x * np.sin(angle) + y * np.cos(angle)
    waves = np.sin(2 * np.pi * frequency * u), np.sin(2 * np.pi * frequency * v)
    rings = np.sin(2 * np.pi * frequency * np.hypot(x - 0.5, y - 0.5) * 1.4)
    noise = cv2.resize(rng.normal(size=(12, 12)), (px, px), interpolation=cv2.INTER_CUBIC)
    patterns = (waves[0], waves[0] * waves[1] * 2, rings, np.maximum(*waves), noise)
    mix = np.clip(0.5 + patterns[family % 5] * 0.7, 0, 1)[..., None]
    colour_a, colour_b = rng.uniform(20, 235, (2, 3))
    light = 0.75 + 0.5 * (1 - np.hypot(x - 0.35, y - 0.3))[..., None]
    image = (colour_a * (1 - mix) + colour_b * mix) * np.clip(light, 0.6, 1.2)
    return np.clip(image + rng.normal(0, 5, (px, px, 1)), 0, 255).astype(np.uint8)
