"""The load gate: checks that a downstream model contains exactly the exported backbone.

mmengine's `init_cfg=dict(type='Pretrained')` loads with `strict=False` and only warns. With a wrong
prefix or a renamed layer it would load nothing, and the run would silently score a random network.
So the gate compares every tensor of the backbone with the exported file after initialisation.
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

from kdep_bench.checkpoints import read_checkpoint, unusable_tensors
from kdep_bench.errors import KdepError, how_to_rebuild

_MAX_LISTED = 8  # names in an error; the lists that `compare` returns are complete


def read_tensors(path: str | Path) -> OrderedDict[str, Tensor]:
    """The tensors of a checkpoint by name, loaded with `weights_only=True`.

    If the file contains {"state_dict": {...}}, the inner tensors are returned.

    Raises:
        KdepError: the file is missing, empty or damaged, contains objects that are not tensors, no
            tensors, or a value that is not finite.
    """
    fix = how_to_rebuild(Path(path).parent)
    loaded = read_checkpoint(path, "the checkpoint", fix)
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise KdepError(
            f"the checkpoint {path} contains a {type(loaded).__name__}",
            expected="a mapping from names to tensors",
            fix=fix,
        )
    others = [
        str(k)[:60] for k, v in loaded.items() if not (isinstance(v, Tensor) and type(k) is str)
    ]
    if others or not loaded:
        content = f"entries that are not tensors ({_names(others)})" if others else "no tensor"
        raise KdepError(
            f"the checkpoint {path} contains {content}",
            expected="a flat mapping from names to tensors",
            fix=fix,
        )
    bad = unusable_tensors(loaded)
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


def compare(
    module: nn.Module, tensors: Mapping[str, Tensor], allow_missing: Sequence[str] = ()
) -> dict[str, Any]:
    """Compares a backbone's parameters and buffers with those in its file.

    Args:
        module: the backbone in the downstream model.
        tensors: the tensors of the exported file.
        allow_missing: regular expressions for names of tensors that may be missing, different or
            in the file only.

    Returns:
        matched: number of equal tensors.
        missing: names of tensors that are only in the model.
        unexpected: names of tensors that are only in the file.
        mismatched: names of tensors with another shape, type or value, each with the reason.
        waived: names of missing, unexpected or mismatched tensors that `allow_missing` allows.
        coverage: fraction of the model's parameters and buffers, by element count, that are equal
            to the file ("weights loaded" in the tables). Waived tensors count as not equal.
    """
    state = module.state_dict()
    missing = [k for k in state if k not in tensors]
    unexpected = [k for k in tensors if k not in state]
    mismatched: dict[str, str] = {}
    equal = total = matched = 0
    for name, value in state.items():
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
    """Compares a backbone with its file, and raises KdepError if they are not equal.

    Args:
        module: the backbone in the downstream model, after `init_weights()`.
        path: the exported file; it is read unless `tensors` is given.
        allow_missing: see `compare`.
        tensors: the content of the file, if it was already read.

    Returns:
        the result of `compare`.

    Raises:
        KdepError: a tensor that is not waived is missing, unexpected or different.
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
        f"{len(names)} {fault} ({_names(names)})"
        for fault, names in (
            ("missing from the file", missing),
            ("in the file only", unexpected),
            ("different", mismatched),
        )
        if names
    ]
    raise KdepError(
        f"the backbone differs from the file {path} ({gate['coverage']:.1%} of its weights are "
        f"equal): {'; '.join(parts) or 'it has no tensors'}",
        expected="the same parameters and buffers"
        + (", except those in allow_missing" if waived else ""),
        fix=_fix_for(missing, unexpected, mismatched),
    )


def _difference(in_model: Tensor, in_file: Tensor) -> str:
    """The difference between a tensor of the model and of the file, as text; "" if equal."""
    if in_model.shape != in_file.shape:
        return f"shape {list(in_model.shape)} in the model, {list(in_file.shape)} in the file"
    if in_model.dtype != in_file.dtype:
        return f"type {in_model.dtype} in the model, {in_file.dtype} in the file"
    n_different = int((in_model.detach().cpu() != in_file.cpu()).sum())
    return f"{n_different} of {in_model.numel()} values differ" if n_different else ""


def _fix_for(missing: list[str], unexpected: list[str], mismatched: list[str]) -> str:
    """The fix that an error states, from the lists of `compare`."""
    for file_name in unexpected:
        for model_name in missing:
            if file_name.endswith("." + model_name):
                prefix = file_name[: -len(model_name)]
                return f"remove the prefix {prefix!r} from the names in the file"
    if missing or unexpected:
        return (
            "use the student config that the file was exported with, or list the names in "
            "allow_missing"
        )
    if any("values differ" in m for m in mismatched):
        return "look for code that initialises the backbone again after the file is loaded"
    return "export the backbone with the same student config"


def _names(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


class Parts(nn.Module):
    """Several modules that together contain one backbone; their state dicts are joined.

    For example, a C4 detector has the last stage of the backbone in its RoI head.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = list(modules)  # in a list, so that torch adds no prefix to their names

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        joined: OrderedDict[str, Tensor] = OrderedDict()
        for part in self.parts:
            state = part.state_dict()
            if repeated := joined.keys() & state.keys():
                raise KdepError(
                    f"the tensor {min(repeated)!r} belongs to two parts of the model",
                    expected="each backbone tensor in one part",
                    fix="correct `parts` of the load gate",
                )
            joined.update(state)
        return joined


@HOOKS.register_module(name="KdepLoadGate")
class LoadGate(Hook):
    """Runs the gate after the model is initialised and before the first training step.

    Args:
        checkpoint: the exported file.
        allow_missing: see `compare`.
        parts: paths of the modules that together contain the backbone.

    Attributes:
        gate: the result of `check`; None before training.
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
