"""Writes a backbone as an ONNX file, checks its outputs, and measures latencies."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.errors import KdepError

ONNX = "backbone.onnx"
TOLERANCE = 1e-4  # maximum difference, relative to the largest absolute value of an output
_PACKAGES = "onnx, onnxruntime and onnxscript"
_CHECKED_BATCHES = (1, 3)  # batch sizes; the file is exported with a batch of 2
_RUNS, _WARM_UP = 20, 3  # numbers of forward passes for a latency


class WithPreprocessing(nn.Module):
    """A backbone with input normalisation: reads RGB pixels from 0 to 255, [B, 3, H, W].

    It returns the pooled feature [B, C] and the last map [B, C, h, w].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.backbone((images_B3HW - self.mean) / self.std)
        last = levels[-1] if isinstance(levels, tuple | list) else levels
        return last.mean((2, 3)), last


def write_onnx(backbone: nn.Module, px: int, path: Path) -> None:
    """Writes the backbone with its input normalisation as an ONNX file, and checks the file.

    The input is `images` [B, 3, px, px], float32 RGB from 0 to 255, with any batch size B. The
    outputs are `feature` and `map`; see `WithPreprocessing`.

    Args:
        backbone: the backbone; it is set to eval mode.
        px: height and width of the images.
        path: the file to write; an existing file is replaced.

    Raises:
        KdepError: packages are missing, the network cannot be exported, or onnxruntime's outputs
            differ from the network's by more than TOLERANCE of their largest value.
    """
    export_network(WithPreprocessing(backbone).eval(), (px, px), ("feature", "map"), path)


def export_network(
    network: nn.Module,
    size: tuple[int, int],
    names: tuple[str, ...],
    path: Path,
    *,
    check: Callable[[Path], None] | None = None,
    translations: dict[Callable[..., Any], Callable[..., Any]] | None = None,
) -> None:
    """Writes a network as ONNX, for any batch size, and checks the file.

    Args:
        network: a network in evaluation mode, which returns a tuple of outputs for RGB images
            [B, 3, height, width] from 0 to 255.
        size: (height, width) of the images.
        names: names of the outputs.
        path: file to write. An existing file is replaced only if export and check succeed.
        check: raises KdepError if the given file is wrong; the default is `check_onnx`.
        translations: for operators that torch cannot export, functions that write them in ONNX.

    Raises:
        KdepError: see `write_onnx`.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise _missing(e) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (_images(2, *size),),
                dynamo=True,
                input_names=["images"],
                output_names=list(names),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                custom_translation_table=translations,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as e:
        raise KdepError(
            f"the network for {path.name} cannot be exported to ONNX "
            f"({str(e).splitlines()[0]:.160})",
            fix="publish the student without --onnx",
        ) from None
    assert program is not None
    partial = path.with_name(f".{path.name}.partial")
    try:
        program.save(partial)
        if check is None:
            check_onnx(network, partial, size, names)
        else:
            check(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_onnx(
    network: nn.Module, path: Path, size: tuple[int, int], names: tuple[str, ...]
) -> None:
    """Raises KdepError if the outputs of the file differ from those of the network.

    Args:
        network: the exported network, in evaluation mode.
        path: the ONNX file.
        size: (height, width) of the images.
        names: names of the outputs.
    """
    session = open_session(path)
    for batch in _CHECKED_BATCHES:
        images = _images(batch, *size)
        with torch.inference_mode():
            expected = network(images)
        outputs = session.run(None, {"images": images.numpy()})
        for name, computed, exported in zip(names, expected, outputs, strict=True):
            difference = (computed - torch.from_numpy(exported)).abs().max().item()
            scale = computed.abs().max().item()
            if not difference <= TOLERANCE * max(scale, 1e-12):
                raise KdepError(
                    f"the output {name} of the ONNX file {path} differs from that of the network "
                    f"by up to {difference:.3g}, for values up to {scale:.3g} (batch of {batch})",
                    expected=f"a difference of at most {TOLERANCE:g} times the largest value",
                    fix="publish the student without --onnx, and open an issue that names the "
                    "network",
                )


def open_session(path: Path) -> Any:
    """An onnxruntime session with one thread on the CPU.

    Raises:
        KdepError: onnxruntime is not installed, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise _missing(e) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:  # the only common base class of onnxruntime's errors
        raise KdepError(
            f"onnxruntime cannot read the ONNX file {path} ({str(e).splitlines()[0]:.160})",
            fix="publish it again, and update onnxruntime",
        ) from None


def latencies(
    backbone: nn.Module, path: Path, px: int, batches: tuple[int, ...] = (1, 32)
) -> list[dict[str, float]]:
    """Measures the latency of torch and of onnxruntime, alternately, with one CPU thread.

    Args:
        backbone: the backbone.
        path: its ONNX file.
        px: height and width of the images.
        batches: batch sizes.

    Returns:
        one dict per batch size: batch, torch_ms and onnxruntime_ms (median milliseconds per batch).
    """
    network, session = WithPreprocessing(backbone).eval(), open_session(path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table = []
    try:
        with torch.inference_mode():
            for batch in batches:
                images = _images(batch, px, px)
                feed = {"images": images.numpy()}
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(_WARM_UP + _RUNS):
                    times[0].append(_seconds(lambda x=images: network(x)))
                    times[1].append(_seconds(lambda f=feed: session.run(None, f)))
                torch_ms, onnxruntime_ms = (1000 * statistics.median(t[_WARM_UP:]) for t in times)
                table.append(dict(batch=batch, torch_ms=torch_ms, onnxruntime_ms=onnxruntime_ms))
    finally:
        torch.set_num_threads(threads)
    return table


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _images(batch: int, height: int, width: int) -> Tensor:
    """Images of random pixels, the same for every call with this batch size."""
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, 3, height, width, generator=generator) * 255


def _missing(error: ImportError) -> KdepError:
    return KdepError(
        f"the package {error.name}, which is needed for ONNX files, is not installed",
        expected=_PACKAGES,
        fix="run: pip install 'kdep_bench[onnx]'",
    )
