"""Finished students for other people: backbone.pth, backbone.safetensors and a model card.

The names of the tensors are mmpretrain's. For ResNets they are torchvision's and timm's as well
(without `fc`), so the files load there as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash, write_atomic
from kdep_bench.suite import state
from kdep_bench.suite.config import Json, Suite
from kdep_bench.suite.plan import Cell, Plan

PTH, SAFE, CARD = "backbone.pth", "backbone.safetensors", "README.md"


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
        folder = out / one
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / PTH)
        checksums = {PTH: record["outputs"]["checksum"], SAFE: to_safetensors(source, folder)}
        outputs = {k: v.get("outputs", {}) for k, v in chain.items()}
        write_atomic(folder / CARD, card(suite, cell, outputs, record["outputs"], checksums))
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
    save_file(tensors, partial, metadata={"format": "pt"})
    again = load_file(partial)
    if again.keys() != tensors.keys() or not all(torch.equal(again[k], tensors[k]) for k in again):
        raise KdepError(f"the file {partial} does not hold the tensors of {source}", "", "")
    partial.replace(folder / SAFE)
    return file_hash(folder / SAFE)


def card(
    suite: Suite,
    cell: Cell,
    outputs: Mapping[str, Json],
    exported: Json,
    checksums: Mapping[str, str],
) -> str:
    """The model card, Markdown. `outputs`: of prepare, cache, align and pretrain, by kind."""
    student, method, pre = cell.student, cell.method, outputs.get("pretrain", {})
    taught = cell.teacher or {}
    about = taught.get("card", {})
    teacher = outputs.get("cache", {}).get("teacher", {})
    rows: dict[str, Any] = {
        "student": f"{student['name']}, {student['width']} wide",
        "parameters": f"{exported['parameters']:,}",
        "input": f"{student['input_px']} px, RGB, ImageNet mean and deviation",
        "method": f"{method['name']} ({method.get('source') or 'no source stated'})",
        "labels used in pre-training": "yes" if method.get("labels_used") else "no",
        "teacher": taught.get("name", "none"),
        "teacher's checksum": teacher.get("checksum"),
        "teacher's pre-training": about.get("pretraining"),
        "teacher's labels": _yes(about.get("labels_used")),
        "licence of the teacher": about.get("licence"),
        "teacher's source": about.get("source"),
        "data": suite.data["name"],
        "data fingerprint": outputs.get("prepare", {}).get("fingerprint"),
        "licences of the data": "; ".join(
            f"{k}: {v}" for k, v in (outputs.get("prepare", {}).get("licences") or {}).items()
        ),
        "share of the data": f"{100 * cell.share:g} %" if pre.get("images") else None,
        "images": pre.get("images"),
        "epochs": pre.get("epochs"),
        "steps": pre.get("steps"),
        "images seen": pre.get("images_seen"),
        "seed": cell.pretrain_seed,
        "suite, stage": f"{suite.name}, {cell.chain['export']}",
    }
    if not taught:
        rows = {k: v for k, v in rows.items() if not k.startswith(("teacher'", "licence of the t"))}
    lines = [f"# {_plain(student['name'])}, {_plain(method['name'])}", ""]
    if taught and not about.get("licence"):
        rows["licence of the teacher"] = "not stated: ask its makers before you use this student"
    lines += ["| | |", "|---|---|"]
    lines += [f"| {k} | {_plain(v)} |" for k, v in rows.items() if v not in (None, "")]
    lines += ["", "A student learns from its teacher's outputs and from the images: both licences"]
    lines += ["may matter."]
    lines += ["", "## Files", "", "```"]
    lines += [f"{digest}  {name}" for name, digest in sorted(checksums.items())]
    lines += ["```", "", "## Loading", "", "```python", *_loading(student), "```", ""]
    return "\n".join(lines)


def _yes(said: Any) -> str | None:
    return None if said is None else "yes" if said else "no"


def _plain(value: Any) -> str:
    """One line of a Markdown table: names from configs are not trusted."""
    text = " ".join(str(value).split())
    for sign in "|<>`[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def _loading(student: Json) -> list[str]:
    kind = str(student["backbone"]["type"])
    lines = [
        "# mmpretrain, mmdet, mmseg: in the config",
        f"backbone = dict({', '.join(f'{k}={v!r}' for k, v in student['backbone'].items())},",
        f"                init_cfg=dict(type='Pretrained', checkpoint='{PTH}'))",
    ]
    backbone = student["backbone"]
    whole = not {"base_channels", "stem_channels"} & set(backbone)
    if kind.endswith("ResNet") and whole:
        depth = backbone["depth"]
        lines += [
            f"# torchvision; timm: timm.create_model('resnet{depth}', num_classes=0)",
            "import safetensors.torch, torchvision",
            f"net = torchvision.models.resnet{depth}()",
            f"missing = net.load_state_dict(safetensors.torch.load_file('{SAFE}'), strict=False)",
            "assert missing.missing_keys == ['fc.weight', 'fc.bias'] and not "
            "missing.unexpected_keys",
        ]
    return lines
