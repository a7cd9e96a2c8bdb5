"""Model cards (README.md): how a student was pre-trained, and how to load it.

Stage `export` writes a card next to the backbone, from the plan and the outputs of the earlier
stages; `kdep_bench.cli.publish` writes a card for the files that it copies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict

PTH, SAFETENSORS, CARD = "backbone.pth", "backbone.safetensors", "README.md"

Json = dict[str, Any]


def about(
    method: Json, student: Json, teacher: Json | None, data: str, share: float, seed: int
) -> Json:
    """Values that the planner passes to stage `export` for the model card.

    They are not part of the stage's id.

    Args:
        method, student, teacher: configs; `teacher` is None for a method without one. `labels_used`
            of the method is that of the run (`suite.schema.labels_of_run`): True also if only the
            student's initial weights were trained with labels.
        data: name of the data.
        share: data fraction.
        seed: pre-training seed.
    """
    fields = ("name", "source", "labels_used")
    teacher_values = None
    if teacher is not None:
        teacher_values = {"name": teacher["name"], "card": teacher.get("card", {})}
    return {
        "method": {k: method[k] for k in fields if k in method},
        "student": student["name"],
        "teacher": teacher_values,
        "data": data,
        "share": share,
        "seed": seed,
    }


def outputs_before(pretrain: Path) -> dict[str, Json]:
    """Outputs, by kind, of the pre-training stage in `pretrain` and of the stages that it used.

    Stages are read from the same work dir; missing stages are left out. If two stages have the same
    kind, the one that is closer to pre-training is used; the stage that makes the images of a
    method from those of the pool has the key "synthesis", not "prepare". For a method with several
    teachers, cache and alignment have the role of the teacher in their key: "large.cache".
    """
    stage_outputs: dict[str, Json] = {}
    # (name of the stage in `needs` of the pre-training, stage id)
    todo, seen = [("", pretrain.name)], set[str]()
    while todo:
        role, stage = todo.pop(0)
        if stage in seen:
            continue
        seen.add(stage)
        with contextlib.suppress(KdepError, OSError, KeyError, AttributeError):
            record = read_strict(pretrain.parent / stage / "stage.json", follow=False)
            kind = record["kind"]
            if kind == "prepare" and "prepare" in record["needs"]:
                kind = "synthesis"
            has_role = role.partition(".")[2] == kind  # "large.cache"
            stage_outputs.setdefault(role if has_role else kind, record["outputs"])
            is_pretrain = stage == pretrain.name
            for input_name, needed_stage in record["needs"].items():
                todo.append((input_name if is_pretrain else "", needed_stage))
    return stage_outputs


def card(
    plan_values: Json,
    student: Json,
    outputs: Mapping[str, Json],
    exported: Json,
    checksums: Mapping[str, str],
    stage: str,
) -> str:
    """The text of the model card, in Markdown.

    Args:
        plan_values: the result of `about`, or {} if it is not known.
        student: student config.
        outputs: outputs of the stages prepare, cache, align and pretrain, as far as known.
        exported: outputs of stage `export`.
        checksums: SHA-256 by file name.
        stage: id of stage `export`.
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
    lines += ["", "The student was trained on the images and on outputs of the teacher, if any;"]
    lines += ["both licences may apply to it."]
    lines += ["", "## Files", "", "```"]
    lines += [f"{digest}  {name}" for name, digest in sorted(checksums.items())]
    lines += ["```", "", "## Loading", "", "```python", *_loading(student, checksums), "```", ""]
    return "\n".join(lines)


def _training_rows(plan_values: Json, student: Json, outputs: Mapping[str, Json]) -> Json:
    """Rows of the card about input, method, teacher, data and amount of training."""
    method, pre = plan_values.get("method", {}), outputs.get("pretrain", {})
    prepared, px = outputs.get("prepare", {}), student.get("input_px")
    labels = method.get("labels_used") or pre.get("labels_used", False)
    licences = (prepared.get("licences") or {}).items()
    fraction = None
    if plan_values and pre.get("images"):
        fraction = f"{100 * plan_values['share']:g} %"
    return {
        "input": px and f"{px} px, RGB, normalised with ImageNet mean and std",
        "method": method and f"{method['name']} ({method.get('source') or 'no source stated'})",
        "labels used in pre-training": _yes_or_no(labels) if method or pre else None,
        **_teacher_rows(plan_values, outputs),
        "data": plan_values.get("data"),
        "data fingerprint": prepared.get("fingerprint"),
        "licences of the data": "; ".join(f"{k}: {v}" for k, v in licences),
        "data fraction": fraction,
        "images": pre.get("images"),
        "epochs": pre.get("epochs"),
        "steps": pre.get("steps"),
        "images seen": pre.get("images_seen"),
        "seed": plan_values.get("seed"),
    }


def _teacher_rows(plan_values: Json, outputs: Mapping[str, Json]) -> Json:
    """Rows of the card about the teacher or teachers."""
    teacher, pre = plan_values.get("teacher") or {}, outputs.get("pretrain", {})
    if plan_values and not teacher:
        return {"teacher": "none"}
    teacher_card = teacher.get("card", {})
    caches = [k for k in outputs if k.endswith(".cache")] or ["cache"]
    stored = [outputs.get(k, {}).get("teacher", {}) for k in caches]
    live = [pre, *(pre.get("teachers") or {}).values()]
    checksums = [t.get("checksum") for t in stored] + [v.get("teacher_checksum") for v in live]
    licence = teacher_card.get("licence")
    if teacher and not licence:
        licence = "not stated; ask its authors before you use this student"
    name = ", ".join(t["name"] for t in stored if t.get("name"))
    if plan_values:
        name = teacher.get("name", "none")
    return {
        "teacher": name,
        "teacher's checksum": ", ".join(dict.fromkeys(c for c in checksums if c)),
        "teacher's pre-training": teacher_card.get("pretraining"),
        "teacher trained with labels": _yes_or_no(teacher_card.get("labels_used")),
        "licence of the teacher": licence,
        "teacher's source": teacher_card.get("source"),
    }


def _yes_or_no(value: Any) -> str | None:
    if value is None:
        return None
    return "yes" if value else "no"


def _plain(value: Any) -> str:
    """Text for a Markdown table; characters with a meaning in Markdown or HTML are escaped."""
    text = " ".join(str(value).split())
    for sign in "|<>`[]":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def is_standard_resnet(student: Mapping[str, Any]) -> bool:
    """Whether torchvision and timm have the backbone, with the same names of tensors."""
    backbone = student["backbone"]
    usual = set(backbone) <= {"type", "depth", "style", "norm_cfg", "norm_eval", "out_indices"}
    # The style "caffe" has the strides of a bottleneck in another convolution.
    pytorch = backbone.get("style", "pytorch") == "pytorch"
    return str(backbone["type"]).endswith("ResNet") and usual and pytorch


def _loading(student: Json, files: Mapping[str, str]) -> list[str]:
    """Lines of Python code that load the backbone."""
    lines = [
        "# mmpretrain, mmdet, mmseg: in the config",
        f"backbone = dict({', '.join(f'{k}={v!r}' for k, v in student['backbone'].items())},",
        f"                init_cfg=dict(type='Pretrained', checkpoint='{PTH}'))",
    ]
    if is_standard_resnet(student):
        depth = student["backbone"]["depth"]
        has_safetensors = SAFETENSORS in files
        read = f"safetensors.torch.load_file('{SAFETENSORS}')"
        if not has_safetensors:
            read = f"torch.load('{PTH}', weights_only=True)"
        lines += [
            f"# torchvision; timm: timm.create_model('resnet{depth}', num_classes=0)",
            f"import {'safetensors.torch' if has_safetensors else 'torch'}, torchvision",
            f"net = torchvision.models.resnet{depth}()",
            f"result = net.load_state_dict({read}, strict=False)",
            "assert set(result.missing_keys) <= {'fc.weight', 'fc.bias'}  # the new classifier",
            "assert not result.unexpected_keys",
        ]
    return lines
