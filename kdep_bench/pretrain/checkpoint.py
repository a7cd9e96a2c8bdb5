"""The checkpoint that a pre-training run leaves, trained or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdep_bench import openmmlab
from kdep_bench.data.given_files import without_content
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.registry import locate

CHECKPOINT = "student.pth"


def untrained(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """The method scratch (seeded random weights), or a reference with given weights."""
    method = spec["method"]
    torch.manual_seed(spec["seed"])
    backbone = build_backbone(spec["student"])
    if method.get("weights") is not None:
        locate(method["weights"]["type"])(
            backbone, **{k: v for k, v in without_content(method["weights"]).items() if k != "type"}
        )
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
    """Pure tensors, contiguous, written whole or not at all."""
    partial = out / f".{CHECKPOINT}"
    torch.save({k: v.detach().cpu().contiguous().clone() for k, v in state.items()}, partial)
    partial.replace(out / CHECKPOINT)
