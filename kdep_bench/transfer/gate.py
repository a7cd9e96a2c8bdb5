"""The load gate: checks that a downstream model contains exactly the exported backbone.

mm's `init_cfg=dict(type='Pretrained')` loads with `strict=False` and only warns, so a wrong prefix
or a renamed layer loads nothing and the run silently measures a random network. The gate compares
every backbone tensor, bit by bit, with the exported file after the model has initialised.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn

from kdep_bench.checkpoints import bad_tensors, read_checkpoint
from kdep_bench.errors import KdepError, made_again

_LISTED = 8  # names quoted in a message; the gate's own lists are complete


def read_tensors(path: str | Path) -> OrderedDict[str, Tensor]:
    """The flat name -> tensor mapping of a checkpoint, loaded with `weights_only=True`.

    A `{"state_dict": {...}}` wrapper is opened.

    Raises:
        KdepError: the file is missing, empty or damaged, contains anything but tensors, contains no
            tensor, or a value that is not finite.
    """
    fix = made_again(Path(path).parent)
    loaded = read_checkpoint(path, "the checkpoint", fix)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise KdepError(
            f"the checkpoint {path} contains a {type(loaded).__name__}",
            expected="a mapping from names to tensors",
            fix=fix,
        )
    alien = [str(k)[:60] for k, v in loaded.items() if not (isinstance(v, Tensor) and _named(k))]
    if alien or not loaded:
        what = f"entries that are not tensors ({_names(alien)})" if alien else "no tensor at all"
        raise KdepError(
            f"the checkpoint {path} contains {what}",
            expected="a flat mapping from names to tensors",
            fix=fix,
        )
    bad = bad_tensors(loaded)
    if nan := [k for k, why in bad.items() if "NaN" in why]:
        raise KdepError(
            f"the checkpoint {path} contains NaN or infinity in {len(nan)} tensors ({_names(nan)})",
            fix="check the loss curve of the pre-training stage; lower its learning rate",
        )
    if bad:
        name = next(iter(bad))
        raise KdepError(
            f"the checkpoint {path}: {name} {bad[name]}",
            expected="dense tensors of numbers",
            fix=fix,
        )
    return OrderedDict(loaded)


def _named(key: Any) -> bool:
    return type(key) is str


def compare(
    module: nn.Module, tensors: Mapping[str, Tensor], allow_missing: Sequence[str] = ()
) -> dict[str, Any]:
    """Compares a backbone's parameters and buffers with the file it should have been loaded from.

    Args:
        module: the plain backbone inside the downstream model.
        tensors: the exported file, names without prefix.
        allow_missing: regular expressions; a fault whose whole tensor name matches one is waived.

    Returns:
        `matched` (count of equal tensors), `missing` (in the model only), `unexpected` (in the
        file only), `mismatched` (other shape, type or value, with the reason), `waived`, and
        `coverage` ("weights loaded" in the tables): fraction of the model's parameters and
        buffers, by element count, that are equal to the file. Waived tensors count as not equal.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in tensors]
    unexpected = [k for k in tensors if k not in own]
    mismatched: dict[str, str] = {}
    equal = total = matched = 0
    for name, value in own.items():
        total += value.numel()
        if name not in tensors:
            continue
        if reason := _difference(value, tensors[name]):
            mismatched[name] = reason
        else:
            equal += value.numel()
            matched += 1
    waivers = [re.compile(p) for p in allow_missing]
    faults = [*missing, *unexpected, *mismatched]
    return {
        "matched": matched,
        "missing": missing,
        "unexpected": unexpected,
        "mismatched": [f"{k}: {v}" for k, v in mismatched.items()],
        "waived": sorted({k for k in faults if any(w.fullmatch(k) for w in waivers)}),
        "coverage": equal / total if total else 0.0,
    }


def check(
    module: nn.Module,
    path: str | Path,
    allow_missing: Sequence[str] = (),
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """`compare`, stopped with a KdepError at every fault that is not waived by name.

    Args:
        module: the plain backbone inside the downstream model, after `init_weights()`.
        path: the exported file (named in the message; read unless `tensors` is given).
        allow_missing: see `compare`.
        tensors: the file's content, if the caller has read it already.
    """
    tensors = read_tensors(path) if tensors is None else tensors
    gate = compare(module, tensors, allow_missing)
    waived = set(gate["waived"])
    missing = [k for k in gate["missing"] if k not in waived]
    unexpected = [k for k in gate["unexpected"] if k not in waived]
    mismatched = [k for k in gate["mismatched"] if k.split(":")[0] not in waived]
    if not (missing or unexpected or mismatched) and (gate["matched"] or waived):
        return gate
    parts = [
        f"{len(names)} {what} ({_names(names)})"
        for what, names in (
            ("missing from the file", missing),
            ("in the file only", unexpected),
            ("different", mismatched),
        )
        if names
    ]
    raise KdepError(
        f"only {gate['coverage']:.1%} of the backbone's weights equal the file {path}"
        + (f": {'; '.join(parts)}" if parts else ""),
        expected="100 % of the parameters and buffers",
        fix=_fix_for(missing, unexpected, mismatched),
    )


def _difference(own: Tensor, file: Tensor) -> str:
    """The difference between two tensors, as a clause; "" if they are bit-equal."""
    if own.shape != file.shape:
        return f"shape {list(own.shape)} in the model, {list(file.shape)} in the file"
    if own.dtype != file.dtype:
        return f"type {own.dtype} in the model, {file.dtype} in the file"
    differ = int((own.detach().cpu() != file.cpu()).sum())
    return f"{differ} of {own.numel()} values differ" if differ else ""


def _fix_for(missing: list[str], unexpected: list[str], mismatched: list[str]) -> str:
    for theirs in unexpected:
        for ours in missing:
            if theirs.endswith("." + ours):
                prefix = theirs[: -len(ours)]
                return f"strip the prefix {prefix!r} from the names in the file"
    if missing or unexpected:
        return (
            "use the student config the file was exported from, or list the names in allow_missing"
        )
    if any("values differ" in m for m in mismatched):
        return "look for code that re-initialises or skips the backbone after the file is loaded"
    return "export the backbone from the same student config"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


class Parts(nn.Module):
    """Several modules that together contain one backbone, with one flat state dict.

    A C4 detector, for instance, keeps the last stage in its RoI head.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = list(modules)  # a plain list: their names stay as they are

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        joined: OrderedDict[str, Tensor] = OrderedDict()
        for part in self.parts:
            own = part.state_dict()
            if twice := joined.keys() & own.keys():
                raise KdepError(
                    f"the tensor {min(twice)!r} belongs to two parts of the model",
                    expected="each backbone tensor in one part",
                    fix="correct `parts` of the load gate",
                )
            joined.update(own)
        return joined


@HOOKS.register_module(name="KdepLoadGate")
class LoadGate(Hook):
    """Runs the gate when training begins, after mm has initialised the model, before any step.

    Args:
        checkpoint: the exported backbone file.
        allow_missing: see `compare`.
        parts: module paths that hold the backbone between them.
    """

    def __init__(
        self,
        checkpoint: str,
        allow_missing: Sequence[str] = (),
        parts: Sequence[str] = ("backbone",),
    ) -> None:
        self.checkpoint = checkpoint
        self.allow_missing = list(allow_missing)
        self.parts = list(parts)
        self.gate: dict[str, Any] | None = None

    def before_train(self, runner: Any) -> None:
        model = getattr(runner.model, "module", runner.model)
        modules = [model.get_submodule(p) for p in self.parts]
        backbone = modules[0] if len(modules) == 1 else Parts(modules)
        self.gate = check(backbone, self.checkpoint, self.allow_missing)
