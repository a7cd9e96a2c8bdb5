"""Writes a published student as a folder in the layout of the Hugging Face hub.

    config.json                a timm config if timm has the network, otherwise the student config
    model.safetensors          the weights, with that network's tensor names
    preprocessor_config.json   resize, crop and normalisation, for transformers' image processors
    README.md                  the model card with the hub's header

If timm has the network, `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it. After
`hf upload USER/NAME FOLDER`, "hf-hub:USER/NAME" does so too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.data.normalisation import MEAN, STD, WHITE
from kdep_bench.errors import KdepError
from kdep_bench.files import write_atomic
from kdep_bench.transfer.model_card import CARD, is_standard_resnet

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_BOX = 4  # PIL's Image.Resampling.BOX, the filter that resizes the test images of classification


def write_hf(student: Mapping[str, Any], source: Path, card: str, folder: Path) -> None:
    """Writes the four files, and replaces existing ones.

    Args:
        student: the student's config.
        source: safetensors file with the student's weights.
        card: text of the model card of the published student.
        folder: an existing folder.

    Raises:
        KdepError: the tensors are not those of the network in config.json.
    """
    from safetensors.torch import load_file, save

    tensors = load_file(source)
    config, prefix = _config(student)
    renamed = {k.removeprefix(prefix): v for k, v in tensors.items()}
    if "architecture" in config:
        _check_tensors(config, {k: tuple(v.shape) for k, v in renamed.items()}, source)
    write_atomic(folder / WEIGHTS, save(renamed, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, indent=1) + "\n")
    px = int(student["input_px"])
    write_atomic(folder / PREPROCESSOR, json.dumps(preprocessor(px), indent=1) + "\n")
    write_atomic(folder / CARD, _header(config) + _with_loading(card, config))


def preprocessor(px: int) -> dict[str, Any]:
    """The content of preprocessor_config.json: resize the shorter side to `px`, crop, normalise."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": px},
        "resample": _BOX,
        "do_center_crop": True,
        "crop_size": {"height": px, "width": px},
        "do_rescale": True,
        "rescale_factor": 1 / WHITE,
        "do_normalize": True,
        "image_mean": [m / WHITE for m in MEAN],
        "image_std": [s / WHITE for s in STD],
    }


def _config(student: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The content of config.json, and the prefix to remove from the tensor names."""
    backbone = dict(student["backbone"])
    if str(backbone["type"]).endswith("TimmBackbone"):
        ignored = ("type", "model", "out_indices", "frozen_stages", "norm_eval", "init_cfg")
        arguments = {k: v for k, v in backbone.items() if k not in ignored}
        return _timm_config(student, backbone["model"], arguments), "net."
    if is_standard_resnet(student):
        return _timm_config(student, f"resnet{backbone['depth']}", {}), ""
    return {"library_name": "kdep_bench", "student": dict(student)}, ""


def _timm_config(
    student: Mapping[str, Any], model: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The config.json of a network of timm.

    Args:
        student: the student's config.
        model: timm's name of the network; text after a "." names weights and is ignored.
        arguments: other arguments of `timm.create_model`.
    """
    import timm

    architecture, _, _ = model.partition(".")
    network: Any = timm.create_model(architecture, num_classes=0, **arguments)
    defaults = network.pretrained_cfg
    px = int(student["input_px"])
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": int(student["width"]),
        "pretrained_cfg": {
            "input_size": [3, px, px],
            "fixed_input_size": bool(defaults.get("fixed_input_size", False)),
            "interpolation": "box",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [m / WHITE for m in MEAN],
            "std": [s / WHITE for s in STD],
            "num_classes": 0,
            "first_conv": defaults.get("first_conv"),
            "classifier": defaults.get("classifier"),
        },
    }
    if arguments:
        config["model_args"] = dict(arguments)
    return config


def _check_tensors(config: Mapping[str, Any], shapes: Mapping[str, Any], source: Path) -> None:
    """Raises KdepError unless `shapes` {name: shape} are those of timm's network."""
    import timm

    arguments = config.get("model_args", {})
    network = timm.create_model(config["architecture"], num_classes=0, **arguments)
    expected = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    if expected != dict(shapes):
        differing = sorted(k for k in expected.keys() | shapes.keys()
                           if expected.get(k) != shapes.get(k))  # fmt: skip
        raise KdepError(
            f"{len(differing)} tensors of {source} are not those of timm's "
            f"{config['architecture']} (other names or shapes), the first is {differing[0]}",
            fix="publish the student without --hf",
        )


def _header(config: Mapping[str, Any]) -> str:
    """The YAML header of the model card, which the hub reads."""
    library = "timm" if "architecture" in config else "kdep_bench"
    lines = [f"library_name: {library}", "pipeline_tag: image-feature-extraction"]
    return "\n".join(["---", *lines, "tags:", "- knowledge-distillation", "- backbone", "---", ""])


def _with_loading(card: str, config: Mapping[str, Any]) -> str:
    """The card with code that loads this folder in place of its section "Files"."""
    before, _, _ = card.partition("## Files")
    if "architecture" in config:
        code = ["import timm", 'net = timm.create_model("local-dir:.", pretrained=True)']
    else:
        code = [
            "import json, safetensors.torch",
            "from kdep_bench.networks.backbone import build_backbone",
            f'net = build_backbone(json.load(open("{CONFIG}"))["student"])',
            f'net.load_state_dict(safetensors.torch.load_file("{WEIGHTS}"))',
        ]
    return before + "\n".join(["## Loading", "", "```python", *code, "```", ""])
