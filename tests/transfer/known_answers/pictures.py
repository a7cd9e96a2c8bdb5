"""Helpers: images whose colours are codes (see networks.py), and the student that reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.transfer.conftest import quiet

CODES = 32  # number of codes, 0 to 31
STILL = 1e-30  # a learning rate that changes no weight (tasks refuse a rate of 0)
NETWORKS = "tests.transfer.known_answers.networks"


def colour(code: int, index: int = 0) -> tuple[int, int, int]:
    """The (red, green, blue) of a code; `index` is the position of the image in its split."""
    red = 8 * code + 4
    return red, 8 * index + 4, 255 - red


def uniform_image(code: int, index: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """An image [H, W, 3] of one colour; `size` is (width, height)."""
    return np.full((size[1], size[0], 3), colour(code, index), np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    """Writes a PNG, or a JPEG that changes the colours of blocks of 8 x 8 pixels by at most 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {} if path.suffix == ".png" else {"quality": 100, "subsampling": 0}
    Image.fromarray(pixels).save(path, **options)


def student(output: str = "one_hot", **backbone: Any) -> dict[str, Any]:
    """The student config of the network `ColourBackbone`, with these arguments."""
    width = 3 if output == "codes" else 32
    return {
        "name": "colours",
        "backbone": {"type": f"{NETWORKS}.ColourBackbone", "output": output, **backbone},
        "width": width,
        "input_px": 32,
        "tap": "output",
        "pyramid": {"out_indices": [0], "channels": [width], "strides": [8]},
    }


def export(folder: Path) -> Path:
    """Writes the weights of the network as an `export` stage does; returns the folder."""
    from tests.transfer.known_answers.networks import ColourBackbone

    folder.mkdir(parents=True, exist_ok=True)
    torch.save(ColourBackbone().state_dict(), folder / "backbone.pth")
    return folder


def run_stage(
    task: dict[str, Any], student: dict[str, Any], prepare: Path, out: Path, seed: int = 0
) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    """Runs the real transfer stage; returns (its outputs, the entries of `networks.SEEN`).

    To be called in a new process.
    """
    from kdep_bench.transfer import stage
    from tests.transfer.known_answers.networks import SEEN

    SEEN.clear()
    (out / "stage").mkdir(parents=True, exist_ok=True)
    inputs = {"prepare": prepare, "export": export(out / "export")}
    spec = {"task": task, "student": student, "seed": seed, "threads": 1}
    outputs = stage.run(spec, inputs, out / "stage", quiet)
    return outputs, list(SEEN)


def seen_in(seen: Iterable[tuple[str, int, int]], mode: str) -> list[int]:
    """The indices of the images that the network saw in the mode "train" or "test", in order."""
    return [index for seen_mode, _, index in seen if seen_mode == mode]


def head(file: Path, meaning: dict[int, int], classes: int, layer: str) -> Path:
    """Writes a linear layer (or 1 x 1 convolution) from one-hot codes to class scores.

    `meaning` is {code: label}, `layer` the layer's name in the model. Returns the file.
    """
    weight = torch.zeros(classes, CODES)
    for code, label in meaning.items():
        weight[label, code] = 1
    if layer == "conv_seg":
        weight = weight[:, :, None, None]
    torch.save({f"{layer}.weight": weight, f"{layer}.bias": torch.zeros(classes)}, file)
    return file
