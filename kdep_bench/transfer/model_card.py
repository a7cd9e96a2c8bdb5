"""Model cards: how a student was pre-trained, and how to load it.

The stage `export` writes one next to the backbone, from values of the plan and the outputs of the
earlier stages; `kdep_bench.cli.publish` writes one for the files that it copies out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict

PTH, SAFE, CARD = "backbone.pth", "backbone.safetensors", "README.md"

Json = dict[str, Any]


def about(
    method: Json, student: Json, teacher: Json | None, data: str, share: float, seed: int
) -> Json:
    """Values for the model card that the plan passes to an export; not part of any stage id."""
    fields = ("name", "source", "labels_used")
    return {
        "method": {k: method[k] for k in fields if k in method},
        "student": student["name"],
        "teacher": None
        if teacher is None
        else {"name": teacher["name"], "card": teacher.get("card", {})},
        "data": data,
        "share": share,
        "seed": seed,
    }


def outputs_before(pretrain: Path) -> dict[str, Json]:
    """Outputs by kind of the pre-training stage in `pretrain` and of those it comes from.

    Only stages whose stage.json is in the same work dir; of two stages of one kind, the nearer. The
    cache and the alignment of one of several teachers are named by its role: "large.cache".
    """
    found: dict[str, Json] = {}
    todo, seen = [("", pretrain.name)], set[str]()
    while todo:
        role, one = todo.pop(0)
        if one in seen:
            continue
        seen.add(one)
        with contextlib.suppress(KdepError, OSError, KeyError, AttributeError):
            record = read_strict(pretrain.parent / one / "stage.json", follow=False)
            of_a_role = role.partition(".")[2] == record["kind"]
            found.setdefault(role if of_a_role else record["kind"], record["outputs"])
            direct = one == pretrain.name
            todo.extend((r if direct else "", up) for r, up in record["needs"].items())
    return found


def card(
    plan_values: Json,
    student: Json,
    outputs: Mapping[str, Json],
    exported: Json,
    checksums: Mapping[str, str],
    stage: str,
) -> str:
    """The model card, Markdown.

    Args:
        plan_values: the result of `about`, or {} for an export without a plan.
        outputs: of prepare, cache, align and pretrain, by kind, as far as they are known.
        exported: outputs of the export.
        checksums: SHA-256 by file name.
        stage: where it comes from.
    """
    method = plan_values.get("method", {})
    name = plan_values.get("student") or student.get("name", "student")
    rows: Json = {
        "student": f"{name}, {student['width']} wide" if "width" in student else name,
        "parameters": f"{exported['parameters']:,}",
        **_training_rows(plan_values, student, outputs),
        "stage": stage,
    }
    title = ", ".join(_plain(part) for part in (name, method.get("name")) if part)
    lines = [f"# {title}", "", "| | |", "|---|---|"]
    lines += [f"| {k} | {_plain(v)} |" for k, v in rows.items() if v not in (None, "", {})]
    lines += ["", "A student learns from its teacher's outputs and from the images: both licences"]
    lines += ["may matter."]
    lines += ["", "## Files", "", "```"]
    lines += [f"{digest}  {name}" for name, digest in sorted(checksums.items())]
    lines += ["```", "", "## Loading", "", "```python", *_loading(student, checksums), "```", ""]
    return "\n".join(lines)


def _training_rows(plan_values: Json, student: Json, outputs: Mapping[str, Json]) -> Json:
    """Rows of the card on input, method, teacher, data and amount of training."""
    method, pre = plan_values.get("method", {}), outputs.get("pretrain", {})
    prepared, px = outputs.get("prepare", {}), student.get("input_px")
    labels = pre.get("labels_used", method.get("labels_used", False))
    licences = (prepared.get("licences") or {}).items()
    return {
        "input": px and f"{px} px, RGB, ImageNet mean and deviation",
        "method": method and f"{method['name']} ({method.get('source') or 'no source stated'})",
        "labels used in pre-training": _yes(labels) if method or pre else None,
        **_teacher_rows(plan_values, outputs),
        "data": plan_values.get("data"),
        "data fingerprint": prepared.get("fingerprint"),
        "licences of the data": "; ".join(f"{k}: {v}" for k, v in licences),
        "share of the data": f"{100 * plan_values['share']:g} %"
        if plan_values and pre.get("images")
        else None,
        "images": pre.get("images"),
        "epochs": pre.get("epochs"),
        "steps": pre.get("steps"),
        "images seen": pre.get("images_seen"),
        "seed": plan_values.get("seed"),
    }


def _teacher_rows(plan_values: Json, outputs: Mapping[str, Json]) -> Json:
    """Rows of the card on the teacher or teachers."""
    taught, pre = plan_values.get("teacher") or {}, outputs.get("pretrain", {})
    if plan_values and not taught:
        return {"teacher": "none"}
    facts = taught.get("card", {})
    caches = [k for k in outputs if k.endswith(".cache")] or ["cache"]
    stored = [outputs.get(k, {}).get("teacher", {}) for k in caches]
    live = [pre, *(pre.get("teachers") or {}).values()]
    checksums = [t.get("checksum") for t in stored] + [v.get("teacher_checksum") for v in live]
    licence = facts.get("licence")
    if taught and not licence:
        licence = "not stated: ask its makers before you use this student"
    return {
        "teacher": taught.get("name", "none")
        if plan_values
        else ", ".join(t["name"] for t in stored if t.get("name")),
        "teacher's checksum": ", ".join(dict.fromkeys(c for c in checksums if c)),
        "teacher's pre-training": facts.get("pretraining"),
        "teacher's labels": _yes(facts.get("labels_used")),
        "licence of the teacher": licence,
        "teacher's source": facts.get("source"),
    }


def _yes(value: Any) -> str | None:
    return None if value is None else "yes" if value else "no"


def _plain(value: Any) -> str:
    """One line of a Markdown table: names from configs are not trusted."""
    text = " ".join(str(value).split())
    for sign in "|<>`[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def _loading(student: Json, files: Mapping[str, str]) -> list[str]:
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
        safe = SAFE in files
        read = f"safetensors.torch.load_file('{SAFE}')"
        if not safe:
            read = f"torch.load('{PTH}', weights_only=True)"
        lines += [
            f"# torchvision; timm: timm.create_model('resnet{depth}', num_classes=0)",
            f"import {'safetensors.torch' if safe else 'torch'}, torchvision",
            f"net = torchvision.models.resnet{depth}()",
            f"missing = net.load_state_dict({read}, strict=False)",
            "assert missing.missing_keys == ['fc.weight', 'fc.bias'] and not "
            "missing.unexpected_keys",
        ]
    return lines
