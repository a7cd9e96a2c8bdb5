"""Embeddings of class names, from a file that the user makes with a text encoder.

The file is written with `np.savez` and has these arrays:

* `classes`: C class names, those of the class folders.
* `text`: [C, D], the embedding of each name, in the space in which the vision-language model
  compares images with texts.
* `projection`, optional: [W, D], the matrix that maps the feature of the vision tower to that
  space: feature @ projection. Without it, the feature must be in that space (W = D).

Imports no torch.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdep_bench.data.listing import shown
from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import plain_text

ARRAYS = ("classes", "text", "projection")
_WRITE = "write it with np.savez(file, classes=names, text=embeddings)"
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)
_LISTED = 4  # largest number of class names that an error lists


@dataclass(frozen=True)
class TextEmbeddings:
    """The content of the file.

    Attributes:
        path: the file, for errors.
        classes: C different class names.
        text: [C, D] float64.
        projection: [W, D] float64, or None.
    """

    path: str
    classes: tuple[str, ...]
    text: np.ndarray
    projection: np.ndarray | None

    def for_classes(self, names: Sequence[str]) -> np.ndarray:
        """[len(names), D], the embeddings of these classes, in this order.

        Raises:
            KdepError: the file lacks a class.
        """
        row = {name: k for k, name in enumerate(self.classes)}
        if missing := [name for name in names if name not in row]:
            raise KdepError(
                f"{self.path} lacks the text embeddings of {len(missing)} of {len(names)} classes "
                f"({_quoted(missing)}); it has {_quoted(self.classes)}",
                expected="the names of the class folders",
                fix="add the missing names to `classes`, and their embeddings to `text`",
            )
        return self.text[[row[name] for name in names]]

    def check_width(self, width: int, teacher: str = "the teacher") -> None:
        """Raises KdepError if image features of this width cannot be compared with the texts.

        `teacher` is what the error calls the network of the features.
        """
        d = self.text.shape[1]
        if self.projection is None and d != width:
            raise KdepError(
                f"the text embeddings in {self.path} have {d} dimensions, but the feature of "
                f"{teacher} has {width}",
                expected="both in the space in which the vision-language model compares them",
                fix=f"add the projection of the vision tower to the file, as an array `projection` "
                f"of shape ({width}, {d}), or use the text encoder that belongs to this teacher",
            )
        if self.projection is not None and len(self.projection) != width:
            raise KdepError(
                f"`projection` in {self.path} has the shape {self.projection.shape}, but the "
                f"feature of {teacher} has {width} dimensions",
                expected=f"({width}, {d}), because it is used as feature @ projection",
                fix="transpose it if it is the weight of a linear layer; otherwise use the "
                "projection that belongs to this teacher",
            )


def read_text_embeddings(path: str | Path | None) -> TextEmbeddings:
    """Reads and checks the file; a relative path is below the current folder.

    Raises:
        KdepError: no file is given, no such file, a file of another kind, other arrays or shapes,
            a name that is listed twice, an embedding that is zero or not finite, or the same
            embedding for all classes.
    """
    if path is None:
        raise KdepError(
            "the probe has no file of text embeddings",
            expected="`text` in its config, the path of a file of np.savez",
            fix="encode the class names with the text encoder of the vision-language teacher, and "
            + _WRITE,
        )
    name = shown(path)
    arrays = _arrays(Path(path).expanduser(), name)
    classes, text, projection = (arrays.get(key) for key in ARRAYS)
    if classes is None or classes.ndim != 1 or classes.dtype.kind != "U":
        raise _fault(name, "classes", classes, "an array of class names, such as np.array(names)")
    names = tuple(classes.tolist())
    if text is None or text.ndim != 2 or text.dtype.kind != "f" or not text.size:
        raise _fault(name, "text", text, f"floats of shape ({len(names)}, dimensions)")
    if len(text) != len(names):
        raise _fault(name, "text", text, f"{len(names)} rows, one for each of `classes`")
    if repeated := [n for n, count in Counter(names).items() if count > 1]:
        raise KdepError(f"{name} lists a class twice: {_quoted(repeated)}", fix=_WRITE)
    text = text.astype(np.float64)
    lengths = np.linalg.norm(text, axis=1)
    if bad := [n for n, v in zip(names, lengths, strict=True) if not 0 < v < np.inf]:
        raise KdepError(
            f"the text embeddings of {len(bad)} classes in {name} are zero, NaN or infinite "
            f"({_quoted(bad)})",
            fix="compute them again, in float32",
        )
    if len(names) > 1 and np.ptp(text / lengths[:, None], axis=0).max() < 1e-6:
        raise KdepError(
            f"the text embeddings of all {len(names)} classes in {name} are equal",
            fix="encode a text that contains the name of the class, such as 'a photo of a dog'",
        )
    if projection is not None:
        expected = f"finite floats of shape (width of the feature, {text.shape[1]})"
        if projection.ndim != 2 or projection.dtype.kind != "f":
            raise _fault(name, "projection", projection, expected)
        if projection.shape[1] != text.shape[1] or not np.isfinite(projection).all():
            raise _fault(name, "projection", projection, expected)
        projection = projection.astype(np.float64)
    return TextEmbeddings(name, names, text, projection)


def _arrays(path: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of the file by name; KdepError if it is not a file of `np.savez`."""
    if not path.is_file():
        raise KdepError(
            f"the file of text embeddings {name} does not exist",
            fix="correct `text` in the probe's config",
        )
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise KdepError(f"{name} contains a single array", fix=_WRITE)
        with stored:
            stored_names = stored.files
            arrays = {key: stored[key] for key in stored_names if key in ARRAYS}
    # zipfile raises a RuntimeError for encrypted files, and for unknown methods of compression.
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, *_ZIP_ERRORS) as e:
        raise KdepError(
            f"the file of text embeddings {name} cannot be read ({plain_text(e)})",
            expected="a file of np.savez, without Python objects",
            fix=f"{_WRITE}, where names is np.array(names, dtype=str)",
        ) from None
    if unknown := [key for key in stored_names if key not in ARRAYS]:
        raise KdepError(
            f"{name} contains {first_of(map(repr, unknown), _LISTED)}",
            expected=f"arrays named {', '.join(ARRAYS[:-1])} and, optionally, {ARRAYS[-1]}",
            fix=_WRITE,
        )
    return arrays


def _fault(name: str, key: str, array: np.ndarray | None, expected: str) -> KdepError:
    """The error for an array that is missing or unsuitable."""
    if array is None:
        return KdepError(f"{name} has no array `{key}`", expected=expected, fix=_WRITE)
    return KdepError(
        f"the array `{key}` in {name} has the shape {array.shape} and the type {array.dtype}",
        expected=expected,
        fix=f"correct it: {_WRITE}",
    )


def _quoted(names: Sequence[str]) -> str:
    return first_of(map(repr, names), _LISTED)
