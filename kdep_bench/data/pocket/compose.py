"""Composes images: pastes cut-out objects onto photographs, with masks of their visible pixels.

Every function takes its random numbers from the numpy Generator `rng`, so an image depends only on
the seed. Canvases are [h, w, 3] float32 BGR in 0..255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from kdep_bench.data.pocket.material import CLASSES, DISTRACTOR, Cutout, Photo

MIN_VISIBLE_PX = 60  # minimum number of visible pixels per object
MIN_VISIBLE_FRACTION = 0.4  # minimum fraction of an object's pixels that is visible
MAX_UPSCALE = 2.2  # maximum enlargement of a cut-out
BLANK_STD = 22.0  # grey levels; crops with a smaller standard deviation show mostly wall or sky
_ATTEMPTS = 12  # placements that are tried per object


@dataclass(frozen=True)
class SourceImages:
    """The source images of one split: objects by label, including distractors, and backgrounds."""

    objects: Mapping[str, Sequence[Cutout]]
    photos: Sequence[Photo]


@dataclass(frozen=True)
class Scene:
    """A composed image with its instance mask.

    Attributes:
        image: [h, w, 3] uint8 BGR.
        instances: [h, w] int, 0 for the background, otherwise 1 + index into `labels`.
        labels: class number of each object.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: list[int]


def pick(rng: np.random.Generator, items: Sequence):
    """A uniformly random item of `items`."""
    return items[int(rng.integers(len(items)))]


def crop(
    rng: np.random.Generator, photo: Photo, width: int, height: int, low: float = 0.45
) -> np.ndarray:
    """A random crop of a photograph, mirrored at random, resized to [height, width, 3] uint8.

    Its sides are `low` to 1 times those of the largest crop with this aspect ratio.
    """
    h, w = photo.image.shape[:2]
    scale = min(h / height, w / width) * rng.uniform(low, 1.0)
    crop_w = min(w, max(8, round(width * scale)))
    crop_h = min(h, max(8, round(height * scale)))
    x, y = int(rng.integers(w - crop_w + 1)), int(rng.integers(h - crop_h + 1))
    piece = photo.image[y : y + crop_h, x : x + crop_w]
    shrinks = crop_w >= width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    out = cv2.resize(piece, (width, height), interpolation=interpolation)
    return out[:, ::-1] if rng.random() < 0.5 else out


def detail(rng: np.random.Generator, photo: Photo, px: int) -> np.ndarray:
    """A random square crop of a photograph, mirrored at random, resized to [px, px, 3].

    Its side is 0.25 to 1 times the photograph's shorter side. A crop with little contrast (see
    BLANK_STD) is drawn again, up to 5 times.
    """
    image = crop(rng, photo, px, px, low=0.25)
    for _ in range(5):
        if float(image.std()) >= BLANK_STD:
            break
        image = crop(rng, photo, px, px, low=0.25)
    return image


def place(
    rng: np.random.Generator, cutout: Cutout, size: tuple[int, int], long_side: float, inside: float
) -> np.ndarray:
    """Draws a cut-out at a random position on an empty canvas, rotated by up to 20 degrees.

    It is mirrored, and slightly blurred, each with probability 0.5.

    Args:
        rng: random numbers.
        cutout: the object.
        size: (width, height) of the canvas.
        long_side: longer side of the rotated object in pixels; the source is enlarged at most
            MAX_UPSCALE times.
        inside: minimum fraction of the object's box that is inside the canvas, along each axis.

    Returns:
        [h, w, 4] float32, premultiplied BGRA in 0..255.
    """
    image, (width, height) = cutout.image, size
    angle = np.deg2rad(rng.uniform(-20, 20))
    cos, sin = np.cos(angle), np.sin(angle)
    h, w = image.shape[:2]
    # Width and height of the rotated cut-out.
    box = np.array([w * abs(cos) + h * abs(sin), w * abs(sin) + h * abs(cos)])
    scale = min(long_side / box.max(), MAX_UPSCALE)
    # Bilinear warping causes aliasing if it shrinks to less than half, so halve by averaging first.
    while scale < 0.5:
        image = cv2.resize(image, (max(1, w // 2), max(1, h // 2)), interpolation=cv2.INTER_AREA)
        scale, (h, w) = scale * w / image.shape[1], image.shape[:2]  # of the halved image
    half = box / 2 * min(long_side / box.max(), MAX_UPSCALE)  # half the box on the canvas
    margin = half * (2 * inside - 1)  # smallest distance of the centre from an edge of the canvas
    cx = _between(rng, margin[0], width - margin[0])
    cy = _between(rng, margin[1], height - margin[1])
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    a = scale * np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    shift = np.array([cx, cy]) - a @ np.array([w / 2 - 0.5, h / 2 - 0.5])
    matrix = np.hstack([a, shift[:, None]])
    layer = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        layer = cv2.GaussianBlur(layer, (3, 3), rng.uniform(0.3, 0.7))
    return layer.astype(np.float32)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform random number in low..high; the middle if low >= high."""
    return float(rng.uniform(low, high)) if high > low else (low + high) / 2


def blend(rng: np.random.Generator, canvas: np.ndarray, layer: np.ndarray) -> None:
    """Pastes `layer` onto `canvas` in place, with a soft shadow in 70 % of the cases.

    The object's mean colour is shifted by a quarter of its difference to the mean colour of the
    pixels that it covers, and its brightness is changed by up to 12 %.

    Args:
        rng: random numbers.
        canvas: [h, w, 3] float32 BGR; changed in place.
        layer: [h, w, 4] float32, premultiplied BGRA in 0..255.
    """
    colour, alpha = layer[..., :3], layer[..., 3:] * (1 / 255)
    if rng.random() < 0.7:
        darkness = rng.uniform(0.15, 0.45)
        dx, dy = int(rng.integers(-3, 4)), int(rng.integers(1, 6))
        kernel = 2 * int(rng.integers(2, 5)) + 1
        shadow = cv2.blur(np.roll(alpha[..., 0], (dy, dx), (0, 1)), (kernel, kernel))
        canvas *= 1 - darkness * shadow[..., None]
    weight = float(alpha.sum())
    if weight > 1:  # otherwise the object is outside the canvas and has no mean colour
        covered = cv2.multiply(canvas, cv2.merge([alpha[..., 0]] * 3)).sum((0, 1))
        colour = colour + alpha * (0.25 * (covered - colour.sum((0, 1))) / weight)
        colour *= rng.uniform(0.88, 1.12)
        np.clip(colour, 0, 255 * alpha, out=colour)
    canvas *= 1 - alpha
    canvas += colour


def finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """The canvas as uint8; half of the images are slightly blurred."""
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.2, 0.6))
    return image


def single(
    rng: np.random.Generator, sources: SourceImages, label: str, px: int
) -> tuple[np.ndarray, Cutout]:
    """Composes an image of one large object, with up to two smaller objects behind it.

    Args:
        rng: random numbers.
        sources: the objects and backgrounds of one split.
        label: class of the large object.
        px: side of the image.

    Returns:
        the image [px, px, 3] uint8 BGR, and the cut-out of the large object.
    """
    canvas = crop(rng, pick(rng, sources.photos), px, px).astype(np.float32)
    for _ in range(int(rng.integers(0, 3))):
        small_label = DISTRACTOR if rng.random() < 0.6 else pick(rng, CLASSES)
        small = pick(rng, sources.objects[small_label])
        blend(rng, canvas, place(rng, small, (px, px), px * rng.uniform(0.18, 0.4), 0.7))
    main = pick(rng, sources.objects[label])
    blend(rng, canvas, place(rng, main, (px, px), px * rng.uniform(0.5, 0.95), 0.95))
    return finish(rng, canvas), main


def scene(rng: np.random.Generator, sources: SourceImages, size: tuple[int, int]) -> Scene:
    """Composes a scene of up to 5 labelled objects and up to 2 distractors.

    If an object would hide too much of a labelled one (see MIN_VISIBLE_PX, MIN_VISIBLE_FRACTION),
    or is labelled and has fewer than MIN_VISIBLE_PX pixels, another object of its class is placed
    elsewhere, a little smaller. After _ATTEMPTS placements it is left out.

    Args:
        rng: random numbers.
        sources: the objects and backgrounds of one split.
        size: (width, height) in pixels.
    """
    width, height = size
    canvas = crop(rng, pick(rng, sources.photos), width, height).astype(np.float32)
    instances = np.zeros((height, width), np.int32)
    labels, full_areas = [], []  # per labelled object; areas in pixels, as if nothing covered it
    classes_drawn = [int(c) for c in rng.integers(len(CLASSES), size=rng.integers(2, 6))]
    classes_drawn += [-1] * int(rng.integers(0, 3))
    for index in rng.permutation(classes_drawn):
        label = CLASSES[index] if index >= 0 else DISTRACTOR
        for attempt in range(_ATTEMPTS):
            relative_size = rng.uniform(0.25, 0.7) * (1 - 0.04 * attempt)
            cutout = pick(rng, sources.objects[label])
            layer = place(rng, cutout, size, height * relative_size, 0.85)
            mask = layer[..., 3] > 127
            area = int(mask.sum())
            visible = np.bincount(instances[~mask], minlength=len(labels) + 1)[1:]
            required = np.maximum(MIN_VISIBLE_PX, MIN_VISIBLE_FRACTION * np.array(full_areas))
            if np.all(visible >= required) and (index < 0 or area >= MIN_VISIBLE_PX):
                break
        else:
            continue
        blend(rng, canvas, layer)
        instances[mask] = 0
        if index >= 0:
            labels.append(int(index))
            full_areas.append(area)
            instances[mask] = len(labels)
    return Scene(finish(rng, canvas), instances, labels)
