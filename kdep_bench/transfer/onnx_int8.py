"""A backbone's ONNX file in 8-bit integers (static quantisation), and the score that it loses."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from kdep_bench.data.listing import list_images
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError
from kdep_bench.transfer.onnx_file import open_session

INT8 = "backbone_int8.onnx"
CALIBRATION_IMAGES = 128


def calibration_images(folder: Path, px: int, count: int = CALIBRATION_IMAGES) -> np.ndarray:
    """[N, 3, px, px] float32, RGB from 0 to 255: images of a folder, evenly spaced by name.

    The shorter side is resized to `px`, and the centre is cropped.

    Raises:
        KdepError: no image in the folder, or one that cannot be read.
    """
    names = list_images(folder).images
    if not names:
        raise KdepError(
            f"the folder {folder} has no image to calibrate with", fix="run the suite again"
        )
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)]
    images = []
    for name in chosen:
        try:
            with Image.open(folder / name) as image:
                square = ImageOps.fit(image.convert("RGB"), (px, px), Image.Resampling.BOX)
        except OSError as e:
            raise KdepError(
                f"the image {folder / name} cannot be read ({e})", fix="run the suite again"
            ) from None
        images.append(np.asarray(square, np.float32).transpose(2, 0, 1))
    return np.stack(images)


class _Reader:
    """Feeds images one by one; onnxruntime's CalibrationDataReader."""

    def __init__(self, images: np.ndarray) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter([{"images": i[None]} for i in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantise(source: Path, images: np.ndarray, path: Path) -> None:
    """Writes an ONNX file with 8-bit convolutions and matrix products; same inputs and outputs.

    Weights are signed, one scale per output channel, with 7 bits, so that products of older x86
    processors do not overflow; activations are unsigned, their ranges those of `images`.

    Args:
        source: the ONNX file in 32-bit floats.
        images: [N, 3, H, W] for the ranges.
        path: the file; replaced where it exists, and left alone if quantisation fails.

    Raises:
        KdepError: onnxruntime cannot quantise it, or reads no result.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    partial = path.with_name(f".{path.name}.partial")
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(partial),
                _Reader(images),  # type: ignore[arg-type]
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                per_channel=True,
                reduce_range=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        open_session(partial)
        partial.replace(path)
    except KdepError:
        raise
    except Exception as e:  # its errors have no common class but Exception
        raise KdepError(
            f"onnxruntime cannot quantise {source} ({str(e).splitlines()[0]:.160})",
            fix="publish it without --int8",
        ) from None
    finally:
        partial.unlink(missing_ok=True)


class OnnxBackbone(nn.Module):
    """A backbone's ONNX file in the place of the network: normalised images -> (last level,)."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = open_session(path)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor]:
        pixels = images_B3HW.cpu() * self.std + self.mean  # the file normalises them itself
        (level,) = self.session.run(["map"], {"images": pixels.contiguous().numpy()})
        return (torch.from_numpy(level),)


def probe_scores(
    files: Mapping[str, Path],
    task: Any,
    student: Mapping[str, Any],
    data_root: Path,
    checkpoint: Path,
    seed: int,
) -> dict[str, float]:
    """Top-1 of a linear probe on the features of each ONNX file, refitted for each.

    Args:
        files: by name.
        task: a LinearProbe of the protocol 'split'.
        student, data_root, checkpoint, seed: of the transfer stage.
    """
    with tempfile.TemporaryDirectory() as work_dir:
        place = Path(work_dir)
        return {
            name: task.score_with(OnnxBackbone(f), data_root, student, checkpoint, seed, place)
            for name, f in files.items()
        }
