"""Feature maps of an exported backbone on images with masks, extracted once for all probes.

The maps are the levels that a segmentation head reads: those of the student's `pyramid` with stride
8 or more. Images and masks, in folders as in Cityscapes, are resized to one size, so that the maps
of a split are one array. Maps are stored in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict
from kdep_bench.probes.extract import BATCH, LISTING, loaded_backbone

MIN_STRIDE = 8  # levels with a smaller stride are not stored
IMAGE_SUFFIX, MASK_SUFFIX = "_leftImg8bit.png", "_gtFine_labelTrainIds.png"
IGNORE = 255  # mask value of pixels without a class
MAX_FLOAT16 = 65_504.0  # largest number in half precision


@dataclass(frozen=True, eq=False)
class Maps:
    """Maps of the N images of a split.

    Attributes:
        levels: [N, C, h, w] float16 each, the finest first.
        masks: [N, H, W] uint8 class numbers, IGNORE for pixels without a class.
    """

    levels: tuple[np.ndarray, ...]
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.masks)


def map_extractor(
    student: Mapping[str, Any], checkpoint: Path
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """A function from [B, H, W, 3] uint8 RGB images to the levels, [B, C, h, w] float32 each.

    Raises:
        KdepError: the student has no pyramid, or the file and the backbone have different tensors.
    """
    import torch

    from kdep_bench.devices import compute_device
    from kdep_bench.transfer.mm_config import pyramid

    levels_config = pyramid(student, "the probe of linear segmentation")
    backbone = loaded_backbone(student, checkpoint, out_indices=tuple(levels_config["out_indices"]))
    device = compute_device()
    backbone.to(device)
    backbone.eval()  # a separate statement: `eval` of OpenMMLab backbones returns None
    used = [i for i, stride in enumerate(levels_config["strides"]) if stride >= MIN_STRIDE]
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

    @torch.inference_mode()
    def extract(images: np.ndarray) -> list[np.ndarray]:
        x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
        levels = backbone((x.float() - mean) / std)
        return [levels[i].float().cpu().numpy() for i in used]

    return extract


def scenes(root: Path, split: str, size: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images [B, H, W, 3] uint8 RGB, masks [B, H, W] uint8) of a split, sorted by name."""
    import cv2
    from PIL import Image

    paths = sorted((root / "leftImg8bit" / split).rglob(f"*{IMAGE_SUFFIX}"))
    width_height = (int(size[1]), int(size[0]))
    for start in range(0, len(paths), BATCH):
        images, masks = [], []
        for path in paths[start : start + BATCH]:
            relative_path = path.relative_to(root / "leftImg8bit")
            name = relative_path.name.removesuffix(IMAGE_SUFFIX) + MASK_SUFFIX
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            with Image.open(root / "gtFine" / relative_path.parent / name) as opened:
                # The values of a palette image are the class numbers, not colours.
                mask = np.asarray(opened).astype(np.uint8)
            if image is None or mask.ndim != 2:
                raise KdepError(
                    f"{path} or its mask {name} cannot be used",
                    expected="an image, and a mask with one channel of class numbers",
                    fix="copy both again",
                )
            if image.shape[:2] != tuple(size):
                image = cv2.resize(image, width_height, interpolation=cv2.INTER_LINEAR)
            if mask.shape != tuple(size):
                mask = cv2.resize(
                    mask.astype(np.uint8), width_height, interpolation=cv2.INTER_NEAREST
                )
            images.append(image[..., ::-1])
            masks.append(mask.astype(np.uint8))
        yield np.stack(images), np.stack(masks)


def split_maps(
    root: Path,
    spec: Mapping[str, Any],
    extract: Callable[[np.ndarray], list[np.ndarray]],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, int]:
    """Writes one npz per split; returns the number of images by split.

    Args:
        root: folder of the images and masks.
        spec: `splits` and `size` (height, width).
        extract: the function that `map_extractor` returns.
        out: folder for the files.
        progress: called with (done, total, note).

    Raises:
        KdepError: invalid images or masks, or maps that are not finite in half precision.
    """
    from kdep_bench.data.checks import check_segmentation

    expected = check_segmentation(root, IGNORE, spec["splits"])
    counts = {}
    for i, split in enumerate(spec["splits"]):
        progress(i, len(spec["splits"]), f"feature maps of {split}")
        parts = [(extract(x), masks) for x, masks in scenes(root, split, spec["size"])]
        masks = np.concatenate([m for _, m in parts])
        if len(masks) != expected[split]:
            raise KdepError(
                f"{root} has {expected[split]} images of {split}, but {len(masks)} were read",
                fix="run the suite again",
            )
        levels_by_batch = [batch_levels for batch_levels, _ in parts]
        levels = [np.concatenate(level) for level in zip(*levels_by_batch, strict=True)]
        for level in levels:
            if not np.isfinite(level).all() or np.abs(level).max() > MAX_FLOAT16:
                raise KdepError(
                    f"the backbone's feature maps of {split} contain NaN, infinity or values above "
                    f"{MAX_FLOAT16:g}",
                    fix="check the loss curve of the pre-training",
                )
        named: dict[str, Any] = {
            f"level_{k}": level.astype(np.float16) for k, level in enumerate(levels)
        }
        np.savez(out / f"{split}.npz", masks=masks, **named)
        counts[split] = len(masks)
    return counts


def open_maps(folder: Path) -> dict[str, Maps]:
    """Maps by split of a finished `features` stage of images with masks."""
    maps = {}
    for split in read_strict(folder / LISTING)["splits"]:
        with np.load(folder / f"{split}.npz") as stored:
            n_levels = len(stored.files) - 1  # the other array is `masks`
            levels = tuple(stored[f"level_{k}"] for k in range(n_levels))
            maps[split] = Maps(levels, stored["masks"])
    return maps
