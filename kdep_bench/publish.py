"""Finished students for other people: backbone.pth, backbone.safetensors and a model card.

The names of the tensors are mmpretrain's. For ResNets they are torchvision's and timm's as well
(without `fc`), so the files load there as they are.
"""

from __future__ import annotations

from pathlib import Path

from kdep_bench.cards import CARD, PTH, SAFE, card
from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash, write_atomic
from kdep_bench.safe_files import copy_file, real_folder
from kdep_bench.suite import state
from kdep_bench.suite.config import Suite
from kdep_bench.suite.plan import Cell, Plan


def publish(
    suite: Suite, plan: Plan, work: Path, out: Path, wanted: set[str] | None = None
) -> list[Path]:
    """Writes one folder for every finished export stage of `plan`, named as the stage.

    Args:
        work: the work dir with the stage directories.
        out: made if absent; what is there already is written anew.
        wanted: ids of export stages; all that are done where None.

    Raises:
        KdepError: nothing is done, or a file is not the one its stage recorded.
    """
    cells: dict[str, Cell] = {}
    for cell in plan.cells:
        cells.setdefault(cell.chain["export"], cell)
    made = []
    for one, cell in sorted(cells.items()):
        record = state.finished(plan.stages[one], work)[0]
        if record is None or (wanted is not None and one not in wanted):
            continue
        chain = {
            kind: state.finished(plan.stages[up], work)[0] or {}
            for kind, up in cell.chain.items()
            if kind in ("prepare", "cache", "align", "pretrain")
        }
        source = state.folder(work, one) / PTH
        if file_hash(source) != record["outputs"]["checksum"]:
            raise KdepError(
                f"the file {source} is not the one its stage exported",
                f"SHA-256 {record['outputs']['checksum']}",
                "run the suite with --verify",
            )
        folder = real_folder(out / one)
        copy_file(source, folder / PTH)
        checksums = {PTH: record["outputs"]["checksum"], SAFE: to_safetensors(source, folder)}
        outputs = {k: v.get("outputs", {}) for k, v in chain.items()}
        told, whence = plan.stages[one].about, f"{one}, suite {suite.name}"
        text = card(told, cell.student, outputs, record["outputs"], checksums, whence)
        write_atomic(folder / CARD, text)
        made.append(folder)
    if not made:
        raise KdepError(
            f"no exported student of the suite {suite.name!r} is done in {work}",
            "one at least",
            "run the suite first, or name its --work-dir",
        )
    return made


def to_safetensors(source: Path, folder: Path) -> str:
    """`folder`/backbone.safetensors with the tensors of `source`; returns its SHA-256."""
    import torch
    from safetensors.torch import load_file, save_file

    from kdep_bench.transfer.gate import read_tensors

    tensors = {k: v.contiguous() for k, v in read_tensors(source).items()}
    partial = folder / f".{SAFE}.partial"
    partial.unlink(missing_ok=True)
    save_file(tensors, partial, metadata={"format": "pt"})
    again = load_file(partial)
    if again.keys() != tensors.keys() or not all(torch.equal(again[k], tensors[k]) for k in again):
        raise KdepError(f"the file {partial} does not hold the tensors of {source}", "", "")
    partial.replace(folder / SAFE)
    return file_hash(folder / SAFE)
