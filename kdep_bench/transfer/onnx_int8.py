"""Static quantisation of a backbone's ONNX file to 8-bit integers, and the scores of ONNX files."""

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
    """[N, 3, px, px] float32, RGB from 0 to 255: at most `count` images of a folder.

    They are evenly spaced in the sorted list of file names. The shorter side is resized to `px`,
    and the centre is cropped.

    Raises:
        KdepError: the folder has no image, or an image cannot be read.
    """
    names = list_images(folder).images
    if not names:
        raise KdepError(
            f"the folder {folder} has no image to calibrate with",
            fix="run the suite again; its prepare stage writes these images",
        )
    positions = np.linspace(0, len(names) - 1, min(count, len(names))).astype(int)
    images = []
    for name in (names[i] for i in positions):
        try:
            with Image.open(folder / name) as image:
                square = ImageOps.fit(image.convert("RGB"), (px, px), Image.Resampling.BOX)
        except OSError as e:
            raise KdepError(
                f"the image {folder / name} cannot be read ({e})",
                fix="run the suite again; its prepare stage writes this image",
            ) from None
        images.append(np.asarray(square, np.float32).transpose(2, 0, 1))
    return np.stack(images)


class _Reader:
    """Passes images to onnxruntime one by one (its interface CalibrationDataReader)."""

    def __init__(self, images: np.ndarray) -> None:
        batches = [{"images": image[None]} for image in images]
        self._batches: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantise(source: Path, images: np.ndarray, path: Path) -> None:
    """Writes a copy of an ONNX file with 8-bit convolutions and matrix products.

    Inputs and outputs do not change. Weights are signed, with one scale per output channel and
    7 bits, so that products do not overflow on older x86 processors. Activations are unsigned;
    their ranges are measured on `images`.

    Args:
        source: the ONNX file in 32-bit floats.
        images: [N, 3, H, W], see `calibration_images`.
        path: file to write. An existing file is replaced only if quantisation succeeds.

    Raises:
        KdepError: onnxruntime cannot quantise the file, or cannot load the result.
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
    except Exception as e:  # onnxruntime's errors have no narrower common class
        raise KdepError(
            f"onnxruntime cannot quantise {source} ({str(e).splitlines()[0]:.160})",
            fix="publish the student without --int8",
        ) from None
    finally:
        partial.unlink(missing_ok=True)


class OnnxBackbone(nn.Module):
    """Runs a backbone's ONNX file in place of the network: normalised images -> (last map,)."""

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = open_session(path)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor]:
        pixels = images_B3HW.cpu() * self.std + self.mean  # the file normalises them itself
        (last_map,) = self.session.run(["map"], {"images": pixels.contiguous().numpy()})
        return (torch.from_numpy(last_map),)


def probe_scores(
    files: Mapping[str, Path],
    task: Any,
    student: Mapping[str, Any],
    data_root: Path,
    checkpoint: Path,
    seed: int,
) -> dict[str, float]:
    """Top-1 accuracies of a linear probe, which is fitted to the features of each ONNX file.

    Args:
        files: {name: ONNX file}.
        task: a LinearProbe whose recipe has protocol="split".
        student, data_root, checkpoint, seed: those of the transfer stage.
    """
    with tempfile.TemporaryDirectory() as folder:
        work_dir = Path(folder)
        return {
            name: task.score_with(
                OnnxBackbone(path), data_root, student, checkpoint, seed, work_dir
            )
            for name, path in files.items()
        }
