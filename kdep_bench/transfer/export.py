"""Stage `export`: takes the backbone out of a pre-training checkpoint and checks every tensor."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash, write_atomic
from kdep_bench.flops import forward_flops
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.safe_files import new_temporary
from kdep_bench.transfer.gate import check, read_tensors
from kdep_bench.transfer.model_card import CARD, PTH, card, outputs_before

PREFIX = "backbone."


def strip(
    tensors: Mapping[str, Tensor], path: str | Path = "the checkpoint"
) -> tuple[OrderedDict[str, Tensor], list[str]]:
    """Splits a pre-training model's tensors into the backbone's (without prefix) and the rest.

    Returns:
        The backbone's tensors and the sorted top-level names of everything dropped
        (for instance `["aligner", "head"]`).

    Raises:
        KdepError: when no tensor has the prefix `backbone.`.
    """
    kept = OrderedDict(
        (k[len(PREFIX) :], v.detach().contiguous().cpu())
        for k, v in tensors.items()
        if k.startswith(PREFIX)
    )
    heads = sorted({k.split(".")[0] for k in tensors if not k.startswith(PREFIX)})
    if not kept:
        raise KdepError(
            f"no tensor in {path} has a name beginning with {PREFIX}; the names begin with "
            f"{', '.join(heads[:6])}",
            fix="save the state dict of the whole pre-training model, neither wrapped nor only a "
            "part of it",
        )
    return kept, heads


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Writes a flat mapping of tensors atomically; returns the file's SHA-256."""
    fd, tmp = new_temporary(path)
    try:
        # Through the handle: given a path, torch writes that (random) name into the file.
        with os.fdopen(fd, "wb") as f:
            torch.save(OrderedDict(tensors), f)
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:
        raise KdepError(
            f"{path} cannot be written ({e})", fix="free disk space and run again"
        ) from None
    finally:
        tmp.unlink(missing_ok=True)
    return file_hash(path)


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Stage `export`: `student.pth` of the pretrain stage -> `backbone.pth`.

    Args:
        spec: uses `student.backbone` (a mm backbone config) and, if given, `allow_missing`;
            `about`: values for the model card, see `kdep_bench.transfer.model_card.about`.
        inputs: `pretrain`, a finished stage directory with `student.pth`.
        out: receives `backbone.pth`: a flat OrderedDict of tensors, keys as in the mm backbone;
            and `README.md`, its model card.

    Returns:
        `checksum` (SHA-256 of the file), `coverage` (fraction of the backbone's parameters and
        buffers, by element count, that equal the file),
        `tensors`, `parameters` (elements of learnable tensors), `flops` (of one image's forward
        pass at the student's `input_px`), `dropped` (top-level names).

    Raises:
        KdepError: when a backbone tensor is missing, surplus, of the wrong shape, or not finite.
    """
    source = Path(inputs["pretrain"]) / "student.pth"
    progress(0, 1, "reading the student")
    kept, dropped = strip(read_tensors(source), source)
    backbone = build_backbone(spec["student"])
    expected = backbone.state_dict()
    # Load the tensors that fit; `check` then names all the others at once.
    fits = {k: v for k, v in kept.items() if k in expected and expected[k].shape == v.shape}
    backbone.load_state_dict(fits, strict=False)
    gate = check(backbone, source, spec.get("allow_missing", ()), tensors=kept)
    target = Path(out) / PTH
    checksum = save_tensors(kept, target)
    check(backbone, target, spec.get("allow_missing", ()))  # the written file
    progress(1, 1, "exported")
    px = spec["student"].get("input_px")
    made = {
        "checksum": checksum,
        "coverage": gate["coverage"],
        "tensors": len(kept),
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "flops": forward_flops(backbone, torch.zeros(1, 3, px, px)) if px else None,
        "dropped": dropped,
    }
    before = outputs_before(Path(inputs["pretrain"]))
    plan_values, files = spec.get("about", {}), {PTH: checksum}
    text = card(plan_values, spec["student"], before, made, files, Path(out).name)
    write_atomic(Path(out) / CARD, text)
    return made
