"""Finds, checks and loads the weights of teachers; downloads them only if the config allows it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.checkpoints import read_checkpoint, unusable_tensors
from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import file_hash, plain_text
from kdep_bench.teachers.base import load_exactly

RANDOM = "random"  # value of `weights`: keep the random initial weights
_MAX_LISTED = 4  # maximum number of names that an error lists


@dataclass(frozen=True)
class Hub:
    """Weights of a model that can be downloaded.

    Attributes:
        url: where the weights can be downloaded.
        local: path of an earlier download, or None.
        size: size of the file as text ("102 MB", "about 346 MB"); "" if unknown.
        fetch: function that downloads the file and returns its path.
    """

    url: str
    local: Path | None
    size: str
    fetch: Callable[[], Path]


def url_hub(url: str, size: str = "") -> Hub:
    """A Hub for a URL.

    If the file name ends with the first digits of a SHA-256 (resnet50-0676ba61.pth), the download
    is checked against them. The file is stored in torch.hub's folder `checkpoints`, where the user
    may also copy it.
    """
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name

    def fetch() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=named_hash(name), progress=False)
        return path

    return Hub(url, path if path.is_file() else None, size, fetch)


def hugging_face_hub(repo: str, names: Sequence[str], size: str = "") -> Hub:
    """A Hub for a Hugging Face repository, with the first of the files `names` that it has."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    cached = (try_to_load_from_cache(repo, n) for n in names)
    local = next((Path(p) for p in cached if isinstance(p, str)), None)

    def fetch() -> Path:
        for name in names[:-1]:
            try:
                return Path(hf_hub_download(repo, name))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(repo, names[-1]))

    return Hub(f"https://huggingface.co/{repo}", local, size, fetch)


def file_size_text(net: nn.Module) -> str:
    """Approximate size of a weights file of the network, as text."""
    total = sum(v.numel() * v.element_size() for v in net.state_dict().values())
    return f"about {total / 1e6:.0f} MB"


def named_hash(name: str) -> str | None:
    """The SHA-256 digits in a file name such as "resnet50-0676ba61.pth"; None if there are none."""
    match = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    return match.group(1) if match else None


def find_weights(name: str, weights: str | Path | None, hub: Hub | None, download: bool) -> Path:
    """The path of the file with the weights of a teacher.

    Args:
        name: name of the teacher, for errors.
        weights: path of a file; None: the weights of `hub`.
        hub: the downloadable weights; None if there are none.
        download: whether a file that is not on this machine may be downloaded.

    Raises:
        KdepError: the path does not exist, there are no weights, the download is not allowed or
            fails, or an earlier download has a wrong checksum.
    """
    if weights is not None:
        path = _path(weights)
        if not path.exists():
            raise KdepError(
                f"the weights file {path} of teacher {name} does not exist",
                fix="correct `weights=` in the teacher's config",
            )
        return path
    if hub is None:
        raise KdepError(
            f"teacher {name} has no weights", fix="set `weights=` to the path of a weights file"
        )
    if hub.local is not None:
        if (digits := named_hash(hub.local.name)) and not file_hash(hub.local).startswith(digits):
            raise KdepError(
                f"the checksum of {hub.local} differs from the one in its name",
                expected=f"a SHA-256 that starts with {digits}",
                fix="download it again, or set `weights=` to the path of an intact copy",
            )
        return hub.local
    size = f" ({hub.size})" if hub.size else ""
    if not download:
        raise KdepError(
            f"the weights of teacher {name} are not on this machine",
            expected=f"the file from {hub.url}{size}",
            fix="to download it, set download=True in the teacher's config; otherwise set "
            "`weights=` to the path of that file",
        )
    try:
        return hub.fetch()
    except Exception as e:  # urllib, httpx and huggingface_hub raise different types
        reason = plain_text(e)
        raise KdepError(
            f"the weights of teacher {name} could not be downloaded from {hub.url} ({reason})",
            fix="download the file on another machine and set `weights=` to its path",
        ) from e


def read_weights(
    path: Path,
    sha256: str | None = None,
    key: str | None = None,
    prefix: str = "",
    drop: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint, by name.

    Args:
        path: a safetensors file, or a file that `torch.load(weights_only=True)` can read.
        sha256: expected SHA-256 of the file, or its first digits (at least 8); None for no check.
        key: the entry that contains the tensors ("state_dict", or "ema.model" for the entry "model"
            in the entry "ema"); not needed if there is only one.
        prefix: if not "", only names that start with it are read, and it is removed from them.
        drop: tensors whose names (after the prefix is removed) start with one of these are ignored.

    Raises:
        KdepError: another checksum, an unreadable file, a prefix or `drop` that matches no name, or
            a tensor that is not finite, not dense, or larger than the file.
    """
    path = _path(path)
    _check_hash(path, sha256)
    tensors = _flat(path, key)
    if prefix:
        selected = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not selected:
            raise KdepError(
                f"no tensor of {path} has a name that begins with {prefix!r} (`prefix=`); its "
                f"names are {first_of(tensors, _MAX_LISTED)}",
                fix="correct `prefix=` in the teacher's config",
            )
        tensors = selected
    for start in drop:
        if not any(k.startswith(start) for k in tensors):
            raise KdepError(
                f"no tensor of {path} has a name that begins with {start!r} (`drop=`); its names "
                f"are {first_of(tensors, _MAX_LISTED)}",
                fix="correct `drop=` in the teacher's config",
            )
    tensors = {k: v for k, v in tensors.items() if not k.startswith(tuple(drop))}
    check_tensors(tensors, f"the weights file {path}", "get another copy")
    return tensors


def check_tensors(tensors: Mapping[str, Tensor], what: str, fix: str) -> None:
    """Raises KdepError if a tensor cannot be a weight (NaN, sparse, ...; see `unusable_tensors`).

    Args:
        tensors: tensors by name.
        what: the file or object that contains them; the error begins with it.
        fix: the fix that the error states.
    """
    bad = unusable_tensors(tensors)
    if not bad:
        return
    nan = [k for k, v in bad.items() if "NaN" in v]
    if nan:
        raise KdepError(
            f"{what} contains NaN or infinity in {len(nan)} tensors ({first_of(nan, _MAX_LISTED)})",
            fix=fix,
        )
    name = next(iter(bad))
    raise KdepError(
        f"{what}: the tensor {name} {bad[name]}", expected="dense tensors of numbers", fix=fix
    )


def _path(path: Any) -> Path:
    if not isinstance(path, (str, Path)) or not str(path):
        raise KdepError(
            f"`weights` is {path!r}",
            expected="the path of a file",
            fix="correct `weights=` in the teacher's config",
        )
    return Path(path).expanduser()


def _check_hash(path: Path, sha256: str | None) -> None:
    """Raises KdepError if the SHA-256 of a file does not begin with `sha256`; None: no check."""
    if sha256 is None:
        return
    expected = sha256.lower() if isinstance(sha256, str) else ""
    if not re.fullmatch(r"[0-9a-f]{8,64}", expected):
        raise KdepError(
            f"`sha256` is {sha256!r}",
            expected="8 to 64 hex digits, or None for no check",
            fix=f"set it to the first word that `sha256sum {path}` prints",
        )
    if not path.is_file():
        return  # `read_checkpoint` raises the error for it
    try:
        actual = file_hash(path)
    except OSError as e:
        raise KdepError(
            f"the weights file {path} cannot be read ({e.strerror})", fix="check its permissions"
        ) from None
    if not actual.startswith(expected):
        raise KdepError(
            f"the weights file {path} has the SHA-256 {actual}",
            expected=f"a SHA-256 that starts with {expected} (`sha256=`)",
            fix="use the file that the teacher's config names. To use this file instead, set "
            "sha256 to its checksum, or sha256=None for no check. For weights that you trained, "
            "use a config of type Checkpoint; see configs/teachers/microsoft_resnet50.py",
        )


def _flat(path: Path, key: str | None) -> dict[str, Tensor]:
    """The tensors of a file by name; see `read_weights` for `key`."""
    loaded = read_checkpoint(path)
    where = "at the top level"
    if isinstance(loaded, Mapping):
        sets = _sets(loaded)
        if key is None and sets and "" not in sets:
            if len(sets) > 1:
                raise KdepError(
                    f"the weights file {path} contains several sets of tensors: {', '.join(sets)}",
                    fix="set `key` in the teacher's config to one of them",
                )
            key = next(iter(sets))
        if key is not None:
            loaded, where = _entry(loaded, key, path, sets), f"under {key!r}"
    if not isinstance(loaded, Mapping):
        raise KdepError(
            f"the weights file {path} contains a {type(loaded).__name__} {where}",
            expected="a mapping from names to tensors",
            fix="save the network's state_dict() with torch.save",
        )
    others = {k: v for k, v in loaded.items() if not (isinstance(v, Tensor) and type(k) is str)}
    if others or not loaded:
        types = [f"{str(k)[:60]}: {type(v).__name__}" for k, v in others.items()]
        content = (
            f"entries that are not tensors ({first_of(types, _MAX_LISTED)})"
            if others
            else "no tensor"
        )
        raise KdepError(
            f"the weights file {path} contains {content} {where}",
            expected="a mapping from names to tensors",
            fix="save only the state_dict, or set `key=` to the entry that contains it",
        )
    return dict(loaded)


_MAX_DEPTH = 4  # levels of nested entries that are searched for tensors


def _sets(loaded: Mapping[Any, Any]) -> dict[str, Any]:
    """The mappings that contain tensors, by dotted path ("" for the top level).

    Only those at the highest level with tensors are returned; the state of an optimiser is at a
    lower level than the weights.
    """
    level: dict[str, Any] = {"": loaded}
    for _ in range(_MAX_DEPTH):
        if sets := {k: v for k, v in level.items() if _holds_tensors(v)}:
            return sets
        level = {
            f"{parent}.{k}" if parent else str(k): v
            for parent, entries in level.items()
            for k, v in entries.items()
            if isinstance(v, Mapping)
        }
    return {}


def _entry(loaded: Mapping[Any, Any], key: str, path: Path, sets: Mapping[str, Any]) -> Any:
    """The mapping with tensors at `key`: a name, or names of nested entries joined by dots."""
    matches = [v for v in _resolve(loaded, str(key)) if _holds_tensors(v)]
    if not matches:
        known = [repr(k) for k in sets if k]
        expected, fix = f"one of: {', '.join(known)}", "correct `key=`"
        if not known:
            expected, fix = "no `key=`, because its tensors are at the top level", "remove `key=`"
        raise KdepError(
            f"the weights file {path} has no set of tensors {key!r}", expected=expected, fix=fix
        )
    if len(matches) > 1:
        raise KdepError(
            f"key={key!r} is ambiguous: the weights file {path} has {len(matches)} sets of tensors "
            "with that path (one name contains a dot)",
            fix="save the intended tensors alone in a file",
        )
    return matches[0]


def _resolve(value: Any, key: str) -> list[Any]:
    """All entries whose path is `key`; there are several if names contain dots."""
    if not isinstance(value, Mapping):
        return []
    matches = [value[key]] if key in value else []
    for dot in (i for i, c in enumerate(key) if c == "."):
        if key[:dot] in value:
            matches += _resolve(value[key[:dot]], key[dot + 1 :])
    return matches


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def load_network(net: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Loads tensors with `load_exactly`.

    If the file's names have a prefix that the network's names lack, the error says which `prefix=`
    to set.

    `num_batches_tracked` may be missing: checkpoints older than torch 0.4.1 do not have it, and it
    is not used in eval mode.

    Raises:
        KdepError: the tensors do not fit the network.
    """
    state = net.state_dict()
    counters = {k: v for k, v in state.items() if k.endswith("num_batches_tracked")}
    full = {**{k: v for k, v in counters.items() if k not in tensors}, **tensors}
    if not set(state) & set(tensors):
        first = next((k for k in state if k not in counters), "")
        ends = [k for k in tensors if k.endswith("." + first)]
        if ends:
            raise KdepError(
                f"the tensors of {source} have other names than those of the network: {ends[0]} "
                f"instead of {first}",
                fix=f"set prefix={ends[0].removesuffix(first)!r}",
            )
    load_exactly(net, full, str(source))
