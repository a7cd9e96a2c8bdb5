"""Stage `export`: writes the backbone of a pre-training checkpoint, and checks every tensor."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdep_bench.errors import KdepError, first_of
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
    """Selects the backbone's tensors of a pre-training model.

    Args:
        tensors: state dict of the pre-training model.
        path: file of the state dict, for errors.

    Returns:
        the backbone's tensors, with the prefix `backbone.` removed from their names; the sorted
        top-level names of all other tensors, for example `["aligner", "head"]`.

    Raises:
        KdepError: no tensor has the prefix `backbone.`.
    """
    backbone = OrderedDict(
        (k[len(PREFIX) :], v.detach().contiguous().cpu())
        for k, v in tensors.items()
        if k.startswith(PREFIX)
    )
    others = sorted({k.split(".")[0] for k in tensors if not k.startswith(PREFIX)})
    if not backbone:
        raise KdepError(
            f"no tensor in {path} has a name beginning with {PREFIX}; the names begin with "
            f"{first_of(others, 6)}",
            fix="save the state dict of the complete pre-training model, without DDP wrapper",
        )
    return backbone, others


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Writes a state dict atomically; returns the SHA-256 of the file.

    Raises:
        KdepError: the file cannot be written.
    """
    fd, tmp = new_temporary(path)
    try:
        # A file object: given a path, torch would write its random name into the file.
        with os.fdopen(fd, "wb") as f:
            torch.save(OrderedDict(tensors), f)
        os.replace(tmp, path)
    except (OSError, RuntimeError) as e:
        raise KdepError(
            f"the file {path} cannot be written ({e})", fix="free disk space and run again"
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
    """Stage `export`: writes `backbone.pth` from `student.pth` of stage `pretrain`.

    Args:
        spec: `student`, the student config; `allow_missing`, see `gate.compare` (optional);
            `about`, values for the model card (see `model_card.about`; optional).
        inputs: `pretrain`, the directory of a finished stage.
        out: the stage's directory, for `backbone.pth`, a state dict of the OpenMMLab backbone, and
            `README.md`, its model card.
        progress: called with (done, total, note).

    Returns:
        checksum: SHA-256 of the file.
        coverage: fraction of the backbone's parameters and buffers, by element count, that are
            equal to the file.
        tensors: number of tensors.
        parameters: number of elements of parameters.
        flops: FLOPs of the forward pass of one image at the student's `input_px`, or None.
        dropped: top-level names of the tensors that are not part of the backbone.

    Raises:
        KdepError: a backbone tensor is missing, unexpected, has the wrong shape or is not finite.
    """
    source = Path(inputs["pretrain"]) / "student.pth"
    progress(0, 1, "reading the student")
    tensors, dropped = strip(read_tensors(source), source)
    backbone = build_backbone(spec["student"])
    expected = backbone.state_dict()
    # Load only the tensors that fit; `check` then reports all others in one error.
    fitting = {k: v for k, v in tensors.items() if k in expected and expected[k].shape == v.shape}
    backbone.load_state_dict(fitting, strict=False)
    gate = check(backbone, source, spec.get("allow_missing", ()), tensors=tensors)
    target = Path(out) / PTH
    checksum = save_tensors(tensors, target)
    check(backbone, target, spec.get("allow_missing", ()))  # compares with the written file
    progress(1, 1, "exported")
    px = spec["student"].get("input_px")
    outputs = {
        "checksum": checksum,
        "coverage": gate["coverage"],
        "tensors": len(tensors),
        "parameters": sum(p.numel() for p in backbone.parameters()),
        "flops": forward_flops(backbone, torch.zeros(1, 3, px, px)) if px else None,
        "dropped": dropped,
    }
    earlier = outputs_before(Path(inputs["pretrain"]))
    plan_values, files = spec.get("about", {}), {PTH: checksum}
    text = card(plan_values, spec["student"], earlier, outputs, files, Path(out).name)
    write_atomic(Path(out) / CARD, text)
    return outputs
