"""Weights of a teacher: from a file, always checked; from a hub only when that is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash
from kdep_bench.openmmlab.loading import load_weights
from kdep_bench.teachers.base import load_exactly

RANDOM = "random"
_LISTED = 4


@dataclass(frozen=True)
class Hub:
    """Where the weights of a hub's name come from.

    Attributes:
        where: the address.
        local: an earlier download, or None.
        size: of the file, for people ("102 MB", "about 346 MB"), or "".
        fetch: downloads and returns the path.
    """

    where: str
    local: Path | None
    size: str
    fetch: Callable[[], Path]


def url_hub(url: str, size: str = "") -> Hub:
    """The Hub of an address whose file name ends in the start of its SHA-256.

    Such a file lies in torch.hub's folder of checkpoints, downloaded or copied there.
    """
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name

    def fetch() -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=named_hash(name), progress=False)
        return path

    return Hub(url, path if path.is_file() else None, size, fetch)


def hugging_face_hub(repo: str, names: Sequence[str], size: str = "") -> Hub:
    """The Hub of a Hugging Face repository; the first of `names` that it has is taken."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    found = (try_to_load_from_cache(repo, n) for n in names)
    local = next((Path(p) for p in found if isinstance(p, str)), None)

    def fetch() -> Path:
        for name in names[:-1]:
            try:
                return Path(hf_hub_download(repo, name))
            except EntryNotFoundError:
                continue
        return Path(hf_hub_download(repo, names[-1]))

    return Hub(f"https://huggingface.co/{repo}", local, size, fetch)


def size_of(net: nn.Module) -> str:
    """About how large the file of a network's float32 tensors is."""
    total = sum(v.numel() * v.element_size() for v in net.state_dict().values())
    return f"about {total / 1e6:.0f} MB"


def named_hash(name: str) -> str | None:
    """The start of the SHA-256 that a file name ends in ("resnet50-0676ba61.pth")."""
    found = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    return found.group(1) if found else None


def settle(name: str, weights: str | Path | None, hub: Hub | None, download: bool) -> Path:
    """The file the weights of teacher `name` are read from; never a silent download.

    Args:
        weights: a path, or None for the hub's own weights.
        hub: where those come from; None where there are none.
        download: whether a file that is not on this machine may be fetched.

    Raises KdepError for a path that does not exist, no source at all, a source that was not
    allowed, and a download that fails.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.exists():
            raise KdepError(
                f"the weights file {path} of teacher {name} does not exist", "", "check `weights=`"
            )
        return path
    if hub is None:
        raise KdepError(
            f"teacher {name} has no weights",
            "a weights file (random weights teach nothing)",
            "give `weights=` a path",
        )
    if hub.local is not None:
        if (start := named_hash(hub.local.name)) and not file_hash(hub.local).startswith(start):
            raise KdepError(
                f"{hub.local} does not have the checksum its name states",
                f"a SHA-256 that starts with {start}",
                "delete it and get it again",
            )
        return hub.local
    size = f" ({hub.size})" if hub.size else ""
    if not download:
        raise KdepError(
            f"the weights of teacher {name} are not on this machine; they would be downloaded from "
            f"{hub.where}{size}",
            "a file, or leave to download",
            "give `weights=` the path of that file, or set download=True",
        )
    try:
        return hub.fetch()
    except Exception as e:  # urllib, httpx and huggingface_hub each have their own
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise KdepError(
            f"the weights of teacher {name} could not be downloaded from {hub.where} ({reason})",
            "a connection to it",
            "get the file on another machine and give `weights=` its path",
        ) from e


def read_weights(
    path: Path,
    sha256: str | None = None,
    key: str | None = None,
    prefix: str = "",
    drop: Sequence[str] = (),
) -> dict[str, Tensor]:
    """The named tensors of a checkpoint.

    Args:
        path: a `.safetensors` file, or one that `torch.load(weights_only=True)` reads.
        sha256: what the file's SHA-256 must be (or start with, 8 digits at least).
        key: the entry that holds the tensors ("state_dict"); found where there is just one.
        prefix: only names that start with it are kept, and it is cut off.
        drop: beginnings of names (after the prefix) of tensors that are no part of the teacher.

    Raises KdepError for another checksum, an unreadable file, a prefix that no name has, a `drop`
    that matches nothing, and a value that is not finite.
    """
    _check_hash(path, sha256)
    tensors = _flat(path, key)
    if prefix:
        kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not kept:
            raise KdepError(
                f"no tensor of {path} has a name that begins with {prefix!r}",
                f"names such as {', '.join(list(tensors)[:_LISTED])}",
                "correct `prefix=`",
            )
        tensors = kept
    for start in drop:
        if not any(k.startswith(start) for k in tensors):
            raise KdepError(
                f"no tensor of {path} has a name that begins with {start!r}, to be dropped",
                f"names such as {', '.join(list(tensors)[:_LISTED])}",
                "correct `drop=`",
            )
    tensors = {k: v for k, v in tensors.items() if not k.startswith(tuple(drop))}
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        raise KdepError(
            f"the weights file {path} holds NaN or infinity in {len(bad)} tensors {bad[:_LISTED]}",
            "finite weights",
            "get another copy",
        )
    return tensors


def _check_hash(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    if not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise KdepError(
            f"sha256={sha256!r}", "8 to 64 lower-case hex digits", "run: sha256sum " + str(path)
        )
    if not (got := file_hash(path)).startswith(sha256):
        raise KdepError(
            f"the weights file {path} has the SHA-256 {got}",
            f"one that starts with {sha256}",
            "get the file that the teacher's page names, or correct `sha256=`",
        )


def _flat(path: Path, key: str | None) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            loaded: object = load_file(path)
        except (SafetensorError, OSError) as e:
            raise KdepError(
                f"the weights file {path} cannot be read ({e})", "", "get it again"
            ) from e
    else:
        loaded = load_weights(path)
    if isinstance(loaded, Mapping):
        holders = [str(k) for k, v in loaded.items() if _holds_tensors(v)]
        if key is None and holders and not any(isinstance(v, Tensor) for v in loaded.values()):
            if len(holders) > 1:
                raise KdepError(
                    f"the weights file {path} holds several sets of tensors: {', '.join(holders)}",
                    "one of them named",
                    "set `key=` to it",
                )
            key = holders[0]
        if key is not None:
            if key not in holders:
                raise KdepError(
                    f"the weights file {path} has no set of tensors {key!r}",
                    f"one of: {', '.join(holders) or 'none, its tensors lie at the top'}",
                    "correct `key=`",
                )
            loaded = loaded[key]
    found = {str(k): v for k, v in loaded.items()} if isinstance(loaded, Mapping) else {}
    alien = [k for k, v in found.items() if not isinstance(v, Tensor)]
    if alien or not found:
        what = f"entries that are no tensors {alien[:_LISTED]}" if alien else "no tensor"
        raise KdepError(f"the weights file {path} holds {what}", "names -> tensors", "")
    return found


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def fit(net: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """`load_exactly`, with the prefix named where one is in the way.

    `num_batches_tracked` may be absent: checkpoints older than torch 0.4.1 lack it, and eval mode
    does not read it.
    """
    own = net.state_dict()
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    full = {**{k: v for k, v in counters.items() if k not in tensors}, **tensors}
    if not set(own) & set(tensors):
        first = next((k for k in own if k not in counters), "")
        ends = [k for k in tensors if k.endswith("." + first)]
        if ends:
            raise KdepError(
                f"no tensor of {source} has a name of this network, but {ends[0]} is its {first}",
                "the same names",
                f"set prefix={ends[0].removesuffix(first)!r}",
            )
    load_exactly(net, full, str(source))
