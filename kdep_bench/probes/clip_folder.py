"""The folder of a CLIP in the format of transformers, checked without torch.

The folder has `config.json`, `model.safetensors` and the files of the tokenizer, as
`CLIPModel.save_pretrained` and the tokenizer's `save_pretrained` write them. Nothing is downloaded.
Format of the weights: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError
from kdep_bench.files import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either is sufficient
PROJECTION = "visual_projection.weight"
_MAX_HEADER = 100 << 20  # bytes, the limit of the safetensors library
_SAVE = (
    "save it with CLIPModel.save_pretrained(folder), and its tokenizer with "
    "AutoTokenizer.save_pretrained(folder)"
)


@dataclass(frozen=True)
class ClipFolder:
    """What is known of the CLIP before its weights are read.

    Attributes:
        path: the folder.
        name: the folder as errors show it.
        width: width of the feature that the projection of the vision tower reads.
        positions: largest number of tokens of the text tower, start and end included.
    """

    path: Path
    name: str
    width: int
    positions: int

    def check_width(self, width: int, teacher: str = "the teacher") -> None:
        """Raises KdepError if the projection of the vision tower reads another width.

        `teacher` is what the error calls the network of the features.
        """
        if width != self.width:
            raise KdepError(
                f"the projection of the vision tower in {self.name} reads features of "
                f"{self.width} dimensions, but the feature of {teacher} has {width}",
                expected="the CLIP whose vision tower is the teacher",
                fix="correct `text_model` in the probe's config, or choose another teacher",
            )

    def check_length(self, tokens: int, label: str) -> None:
        """Raises KdepError if a prompt is longer than the text tower allows.

        Args:
            tokens: number of tokens between start and end.
            label: what the error calls the prompt.
        """
        if tokens + 2 > self.positions:
            raise KdepError(
                f"{label} has at least {tokens} tokens, and one more for start and end each, but "
                f"the text tower in {self.name} has {self.positions} positions",
                fix="lower `context`, or shorten `words`, in the probe's config",
            )


def read_clip_folder(folder: str | Path | None) -> ClipFolder:
    """Checks the folder; a relative path is below the current folder.

    Raises:
        KdepError: no folder is given, transformers is not installed, a file is missing or cannot be
            read, the config is of another model type, or the weights lack the projection.
    """
    if folder is None:
        raise KdepError(
            "the probe has no text encoder",
            expected="`text_model` in its config, the folder of a CLIP in transformers' format",
            fix=_SAVE,
        )
    path, name = Path(folder).expanduser(), shown(folder)
    if not path.is_dir():
        raise KdepError(
            f"the folder of the CLIP {name} does not exist",
            fix="correct `text_model` in the probe's config; nothing is downloaded",
        )
    for files in ((CONFIG,), (WEIGHTS,)):
        if not (path / files[0]).is_file():
            raise KdepError(f"the folder of the CLIP {name} has no {files[0]}", fix=_SAVE)
    if not any(all((path / file).is_file() for file in files) for files in TOKENIZERS):
        raise KdepError(
            f"the folder of the CLIP {name} has no tokenizer",
            expected=" or ".join(" and ".join(files) for files in TOKENIZERS),
            fix="save the tokenizer of this CLIP there: AutoTokenizer.save_pretrained(folder)",
        )
    positions = _positions(path / CONFIG, name)
    width = _projection_width(path / WEIGHTS, name)
    if not _installed("transformers"):
        raise KdepError(
            "the package transformers is not installed; it runs the text encoder",
            fix="run: pip install 'transformers>=5.23,<6' (the optional extra `hf`)",
        )
    return ClipFolder(path, name, width, positions)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # an entry of sys.modules that is not a package
        return False


def _positions(path: Path, name: str) -> int:
    """Number of positions of the text tower; 77 if the config leaves it out, as transformers."""
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clip":
        raise KdepError(
            f"{CONFIG} of {name} is of the model type {kind!r}",
            expected="'clip', a model with a vision and a text tower",
            fix="correct `text_model` in the probe's config",
        )
    text = config.get("text_config")
    positions = text.get("max_position_embeddings", 77) if isinstance(text, dict) else 77
    if type(positions) is not int or positions < 1:
        raise KdepError(
            f"{CONFIG} of {name} has max_position_embeddings={positions!r}",
            expected="a number of positions",
            fix=_SAVE,
        )
    return positions


def _projection_width(path: Path, name: str) -> int:
    """Width that the projection of the vision tower reads, from the header of the weights."""
    shape = (_header(path, name).get(PROJECTION) or {}).get("shape")
    if not isinstance(shape, list) or len(shape) != 2:
        raise KdepError(
            f"{WEIGHTS} of {name} has no matrix {PROJECTION}",
            expected="the weights of a CLIPModel, with both towers and both projections",
            fix=_SAVE,
        )
    return int(shape[1])


def _header(path: Path, name: str) -> dict[str, Any]:
    """The header of a safetensors file: tensor name -> type, shape and place."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= _MAX_HEADER else None
    except (OSError, ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
        raise KdepError(
            f"{WEIGHTS} of {name} is not a valid safetensors file",
            fix="download or copy the file again",
        )
    return header
