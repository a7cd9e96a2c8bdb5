"""Every teacher config: a complete card, and a teacher that builds and has the stated width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from kdep_bench.errors import KdepError
from kdep_bench.suite.config import load_config, names, resolve
from kdep_bench.teachers.base import build_teacher
from tests.teachers.conftest import output_of, random_images

# Keys that every `card`, the description of a teacher, has.
CARD = {"pretraining", "labels_used", "top1", "licence", "source", "trained_on"}
OPTIONAL_IN_CARD = {
    *("top1_source", "logits_from_pooled", "width", "classes", "maps", "blocks", "heads")
}
# Config -> (width, arguments) of a tiny network of the same family that is built in its place.
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet50": (2048, {}),
    "microsoft_resnet50": (2048, {}),
    "efficientnet_b0": (1280, {}),
    "mobilenetv2": (1280, {}),
    "dinov2_vitb14": (
        48,
        dict(args=dict(depth=1, embed_dim=48, num_heads=3, dynamic_img_size=True)),
    ),
    "clip_vitb16": (
        48,
        dict(args=dict(num_hidden_layers=1, hidden_size=48, intermediate_size=96, image_size=64)),
    ),
}
LARGE = ("swin_b", "convnext_b")  # too large to build with weights here
# Other tests use the real weights of these.
INSTALLED = {
    *("efficientnet_lite0", "efficientnet_lite2"),
    *("efficientnet_lite0_s16", "efficientnet_lite0_s32", "efficientnet_lite0_black_box"),
}


def teacher_config(name: str) -> dict[str, Any]:
    """The complete config of the teacher."""
    return resolve("teacher", name)


def test_every_teacher_config_is_tested_here():
    assert set(names("teacher")) == set(SMALL) | set(LARGE) | INSTALLED


@pytest.mark.parametrize("name", names("teacher"))
def test_every_card_names_the_teacher_s_training_data(name: str):
    card = load_config("teacher", name)["card"]
    assert set(card) - OPTIONAL_IN_CARD == CARD
    assert isinstance(card["labels_used"], bool)
    assert card["top1"] is None or (0.5 < card["top1"] < 1 and card["top1_source"])


@pytest.mark.parametrize("name", SMALL)
def test_a_teacher_builds_from_its_config(name: str):
    if name == "clip_vitb16":
        pytest.importorskip("transformers", reason="the optional extra `hf` is not installed")
    width, changes = SMALL[name]
    px = 70 if name.startswith("dinov2") else 64
    config = {**teacher_config(name), "weights": "random", "input_px": px, "width": width}
    if changes:
        config["args"] = {**config["args"], **changes["args"]}
    teacher = build_teacher(config)
    out = output_of(teacher, random_images(px, 1))
    assert out.pooled.shape == (1, width)
    classes = teacher_config(name)["card"].get("classes")
    assert classes == (None if out.logits is None else out.logits.shape[1])


def test_the_large_networks_have_the_widths_of_their_configs():
    for name in LARGE:
        config = teacher_config(name)
        with torch.device("meta"):
            net: Any = torchvision.models.get_model(config["model"])
        linear = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
        assert linear.in_features == config["width"]
        assert linear.out_features == config["card"]["classes"]
    with torch.device("meta"):
        net = timm.create_model(teacher_config("dinov2_vitb14")["model"])
    assert net.num_features == teacher_config("dinov2_vitb14")["width"]
    clip = teacher_config("clip_vitb16")
    assert clip["args"]["hidden_size"] == clip["width"]


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2", "microsoft_resnet50", "dinov2_vitb14"])
def test_the_error_for_missing_weights_names_where_to_get_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = teacher_config(name)
    if name == "dinov2_vitb14":
        config["args"]["depth"] = 1  # quick to build
    with pytest.raises(KdepError, match=r"downloaded from https|set `weights=` to the path"):
        build_teacher(config)


def test_the_checksums_of_torchvision_s_configs_are_those_in_its_file_names():
    for name in ("resnet50", "swin_b", "convnext_b", "efficientnet_b0", "mobilenetv2"):
        config = teacher_config(name)
        entry = torchvision.models.get_model_weights(config["model"])[config["args"]["hub"]]
        assert f"-{config['sha256']}.pth" in entry.url
        assert config["card"]["top1"] == pytest.approx(
            entry.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100
        )
