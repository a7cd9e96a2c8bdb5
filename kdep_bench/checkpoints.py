"""Reads checkpoint files: safetensors, and files of `torch.save` with `weights_only=True`.

The format is recognised by the first bytes, not by the suffix, and no code in a file is executed.
Of torch's error texts only the reason is shown, because the rest suggests loading without
`weights_only`, which is unsafe.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import plain_text

_MAX_NAMES = 4  # largest number of file names that an error lists
_DOWNLOAD_AGAIN = "download or copy the file again"
_UNPACK = "unpack it and give the path of the weights file in it"
_OTHER_FORMAT = "get the PyTorch or safetensors weights"
#: First bytes of files that are not weights, the kind of file, and what to do.
_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"\x89HDF", "an HDF5 file (Keras)", _OTHER_FORMAT),
    (b"\x93NUMPY", "a NumPy array", _OTHER_FORMAT),
    (b"GGUF", "a GGUF file", _OTHER_FORMAT),
    (b"\x89PNG", "a PNG image", _DOWNLOAD_AGAIN),
    (b"\xff\xd8\xff", "a JPEG image", _DOWNLOAD_AGAIN),
    (b"%PDF", "a PDF document", _DOWNLOAD_AGAIN),
    (b"\x7fELF", "a program", _DOWNLOAD_AGAIN),
)
#: Only this many bytes at the start of a pickle are searched for imports.
_MAX_PICKLE_BYTES = 64 << 20
#: Prefixes of names that the file of a plain state dict imports; `weights_only=True` allows them.
_HARMLESS = ("torch._utils.", "torch._tensor.", "torch.storage.", "torch.serialization.")


def read_checkpoint(
    path: str | Path,
    label: str = "the weights file",
    fix: str = _DOWNLOAD_AGAIN,
    map_location: Any = "cpu",
) -> Any:
    """The content of a safetensors or torch file.

    Args:
        path: the file.
        label: what the file is called in errors.
        fix: advice for a damaged file.
        map_location: for torch files, see `torch.load`.

    Raises:
        KdepError: the path is not a regular file; the file is of another kind, damaged, or too
            large for the memory; or it contains objects other than tensors and plain containers
            (the error names their class).
    """
    path = Path(path).expanduser()
    head, size = _read_head(path, label)
    _check_kind(path, head, size, label, fix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_safetensors(head, size):
                from safetensors.torch import load_file

                return load_file(path)
            with path.open("rb") as f:  # for a path, torch would choose the format by its suffix
                return torch.load(f, map_location=map_location, weights_only=True)
    except MemoryError:
        raise KdepError(
            f"{label} {path} does not fit into memory", fix="free memory, or use a smaller file"
        ) from None
    except Exception as e:  # both libraries raise many types for a damaged file
        raise _load_error(path, e, label, fix) from None


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` has a valid safetensors header.

    Format: https://github.com/huggingface/safetensors#format
    """
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return struct.unpack("<Q", head[:8])[0] <= size - 8


def unusable_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors that cannot be weights: name -> reason.

    The reasons: NaN or infinity, not dense, or an expanded view above 1 MiB.

    An expanded view repeats a few stored numbers. Up to 1 MiB it is checked like any tensor. Above,
    it is always reported: a small file can contain a view of 10^15 elements, whose check for NaN
    would need all memory.
    """
    bad = {}
    for name, value in tensors.items():
        if value.layout != torch.strided or value.is_quantized or value.device.type == "meta":
            kind = "quantised" if value.is_quantized else str(value.layout).removeprefix("torch.")
            bad[name] = f"is a {'meta' if value.device.type == 'meta' else kind} tensor"
            continue
        if (size := value.numel() * value.element_size()) > 1 << 20:
            stored = value.untyped_storage().nbytes()
            if size > stored:
                bad[name] = f"has the shape {list(value.shape)} with {stored} bytes of numbers"
                continue
        if (value.is_floating_point() or value.is_complex()) and not _is_finite(value):
            bad[name] = "contains NaN or infinity"
    return bad


def _is_finite(value: Tensor) -> bool:
    if value.element_size() == 1:  # torch has no isfinite for float8
        value = value.float()
    return bool(torch.isfinite(value).all())


def _read_head(path: Path, label: str) -> tuple[bytes, int]:
    """(first 512 bytes, size in bytes) of a file.

    Raises:
        KdepError: it is not a regular file, or cannot be read.
    """
    try:
        if path.is_dir():
            raise KdepError(f"{label} {path} is a folder", fix=_folder_fix(path))
        if not path.exists():
            raise KdepError(f"{label} {path} does not exist", fix="correct the path")
        if not path.is_file():
            raise KdepError(
                f"{label} {path} is a pipe or device", fix="give the path of a regular file"
            )
        with path.open("rb") as f:
            head, size = f.read(512), os.fstat(f.fileno()).st_size
    except (OSError, ValueError) as e:  # ValueError: a null byte in the path
        reason = getattr(e, "strerror", None) or str(e)
        raise KdepError(
            f"{label} {path} cannot be read ({reason})", fix="check its permissions"
        ) from None
    return head, size


def _folder_fix(path: Path) -> str:
    """The fix for a folder instead of a file, with the names of weights files in it."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        suffixes = {".safetensors", ".pth", ".pt", ".bin"}
        names = sorted(p.name for p in path.iterdir() if p.suffix in suffixes)
    return (
        f"give the path of the file in it: {first_of(names, _MAX_NAMES)}"
        if names
        else "give the path of the weights file"
    )


def _check_kind(path: Path, head: bytes, size: int, label: str, fix: str) -> None:
    """Raises KdepError if the first bytes of a file show that it does not contain weights.

    Args:
        path: the file.
        head: its first 512 bytes.
        size: its size in bytes.
        label: what the file is called in errors.
        fix: advice for a damaged file.
    """
    if size == 0:
        raise KdepError(f"{label} {path} is empty", fix=fix)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs"):
        raise KdepError(
            f"{label} {path} is a git-lfs pointer of {size} bytes instead of the file itself",
            fix="run `git lfs pull` in its repository, or download the file from its page",
        )
    if start[:1] == b"<":
        raise KdepError(
            f"{label} {path} is a web page or XML (it begins with {_shown_start(start)})",
            fix="download the file again; a web page (often a login or error page) was saved "
            "instead of it",
        )
    for magic, kind, advice in _FOREIGN:
        if head.startswith(magic):
            raise KdepError(
                f"{label} {path} is {kind}", expected="a safetensors or torch file", fix=advice
            )
    if head[257:262] == b"ustar":
        raise KdepError(
            f"{label} {path} is a tar archive",
            expected="a safetensors or torch file",
            fix=_UNPACK,
        )
    if head.startswith(b"PK"):
        _check_zip(path, label, fix)
    elif not is_safetensors(head, size) and not _is_pickle(head):
        is_json = start[:1] in (b"{", b"[")
        kind = "a text file" if _is_text(head) else "of an unknown format"
        raise KdepError(
            f"{label} {path} is {'a JSON file' if is_json else kind} (it begins with "
            f"{_shown_start(head)})",
            expected="a safetensors or torch file",
            fix="give the path of the weights file itself" if is_json else fix,
        )


def _check_zip(path: Path, label: str, fix: str) -> None:
    """Raises KdepError for a zip archive that torch.save did not write, or that is damaged."""
    try:
        with zipfile.ZipFile(path) as z:
            names = z.namelist()
    except Exception as e:  # zipfile raises many types for a damaged directory
        raise KdepError(
            f"{label} {path} is damaged or truncated ({plain_text(e)})",
            fix=f"{fix} (an interrupted download or copy is the usual cause)",
        ) from None
    if any(n.endswith("/constants.pkl") for n in names):
        raise KdepError(
            f"{label} {path} is a TorchScript program",
            fix="load it with torch.jit.load and save its state_dict() with torch.save",
        )
    if not any(n == "data.pkl" or n.endswith("/data.pkl") for n in names):
        raise KdepError(
            f"{label} {path} is a zip archive of other files ({first_of(names, _MAX_NAMES)})",
            expected="a safetensors or torch file",
            fix=_UNPACK,
        )


def _is_pickle(head: bytes) -> bool:
    return head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _is_text(head: bytes) -> bool:
    return all(c in b"\t\r\n" or 32 <= c < 127 for c in head)


def _shown_start(head: bytes) -> str:
    """The first bytes of a file, quoted, for an error."""
    return repr(head[:24])[1:]


def _load_error(path: Path, e: Exception, label: str, fix: str) -> KdepError:
    """The error for an exception of torch or safetensors."""
    text = str(e)
    if "can't allocate memory" in text or "DefaultCPUAllocator" in text:
        return KdepError(
            f"{label} {path} does not fit into memory", fix="free memory, or use a smaller file"
        )
    if "weights_only" in text or "Weights only" in text:
        if class_name := _forbidden_import(path):
            return KdepError(
                f"{label} {path} contains more than plain weights: it needs {class_name}, and "
                "loading classes or functions from a file can run code",
                expected="tensors in plain containers, as torch.save(net.state_dict(), file) "
                "writes them",
                fix="save only the state_dict where the file was made, or save it as safetensors",
            )
        reasons = re.findall(r"WeightsUnpickler error:\s*(.+)", text)
        return KdepError(
            f"{label} {path} is not a file of plain weights: it is damaged, or was not written by "
            "torch.save"
            + (f" ({reasons[-1].partition(' was not an allowed')[0][:120]})" if reasons else ""),
            expected="tensors in plain containers, as torch.save(net.state_dict(), file) writes "
            "them",
            fix=fix,
        )
    return KdepError(f"{label} {path} cannot be read ({plain_text(e)})", fix=fix)


def _forbidden_import(path: Path) -> str | None:
    """A class or function that a file imports and `weights_only=True` does not allow.

    None if there is none, or if the file is damaged. In a zip file it is the first in alphabetical
    order, in torch's older format the first in the file.
    """
    with contextlib.suppress(Exception):
        with path.open("rb") as f:
            if f.read(2) != b"PK":
                return _forbidden_pickle_import(path)
        return next(iter(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))), None)
    return None


def _forbidden_pickle_import(path: Path) -> str | None:
    """`_forbidden_import` for torch's older format: a sequence of pickles, not a zip file."""
    with path.open("rb") as f:
        raw = io.BytesIO(f.read(_MAX_PICKLE_BYTES))
    with contextlib.suppress(Exception):
        while raw.tell() < len(raw.getbuffer()):
            texts: list[str] = []
            for code, arg, _ in pickletools.genops(raw):
                if code.name in ("GLOBAL", "INST"):
                    name = str(arg).replace(" ", ".")
                elif code.name == "STACK_GLOBAL":
                    name = ".".join(texts[-2:])
                else:
                    texts += [arg] if isinstance(arg, str) else []
                    continue
                torch_type = re.fullmatch(r"torch\.(\w+Storage|\w*int\d+|b?float\d+)", name)
                plain_type = name in ("collections.OrderedDict", "torch.Size", "torch.device")
                if not (torch_type or plain_type or name.startswith(_HARMLESS)):
                    return name
    return None
