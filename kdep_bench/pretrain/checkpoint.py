"""Writes the result of a pre-training stage, and builds students that are not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdep_bench import openmmlab
from kdep_bench.data.given_files import check_and_remove_content
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.registry import locate

CHECKPOINT = "student.pth"


def write_untrained(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """Writes a student that is not pre-trained, and returns the outputs of the stage.

    Its weights are random, drawn from the spec's `seed` (the method scratch), or a reference such
    as imagenet: the method's `weights` is then the config of a function that loads them into the
    backbone.

    Raises:
        KdepError: a file of weights changed after the run was planned.
    """
    method = spec["method"]
    torch.manual_seed(spec["seed"])
    backbone = build_backbone(spec["student"])
    if method.get("weights") is not None:
        arguments = check_and_remove_content(method["weights"])
        load_weights = locate(arguments.pop("type"))
        load_weights(backbone, **arguments)
    if openmmlab.is_main_rank():
        save_state({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, out)
    return {
        "steps": 0,
        "epochs": 0.0,
        "images": 0,
        "images_seen": 0,
        "views": 0,
        "labels_used": bool(method["labels_used"]),
        "images_per_s": None,
        "train_s": 0.0,
        "curves": {},
    }


def save_state(state: dict[str, Any], out: Path) -> None:
    """Writes a state dict of CPU tensors to `student.pth` in the folder `out`, atomically."""
    partial = out / f".{CHECKPOINT}"
    torch.save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, partial)
    partial.replace(out / CHECKPOINT)
