"""Vision towers of transformers against timm's with the same weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.teachers.huggingface import HuggingFace
from tests.teachers.conftest import asked, close, lively, normalised, pictures

SIZE: dict[str, Any] = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8
)
TIMM: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("transformers", reason="the optional extra `hf` is not installed")


def test_without_the_extra_the_command_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(KdepError, match="pip install 'transformers"):
        HuggingFace("t", "x/y", 32, weights="random", args=dict(model_type="vit"))
    with pytest.raises(KdepError, match="did you mean vit"):
        HuggingFace("t", "x/y", 32, weights="random", args=dict(model_type="vitt"))


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers 5's tensors of a tower under timm's names."""
    pairs = (
        (r"^(vit|dinov2)\.", ""),
        (r"^embeddings\.(cls_token|class_embedding)$", "cls_token"),
        (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
        (r"^embeddings\.patch_embeddings?(\.projection)?\.", "patch_embed.proj."),
        (r"^(encoder\.)?layers?\.", "blocks."),
        (r"layernorm_before|layer_norm1", "norm1"),
        (r"layernorm_after|layer_norm2", "norm2"),
        (r"self_attn|attention", "attn"),
        (r"o_proj|out_proj", "proj"),
        (r"layer_scale(.)\.lambda1", r"ls\1.gamma"),
        (r"^(layernorm|post_layernorm)\.", "norm."),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^classifier\.", "head."),
    )
    named = {}
    for name, value in state.items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        named[name] = value
    for name in [n for n in named if ".q_proj." in n]:
        parts = [named.pop(name.replace("q_proj", f"{c}_proj")) for c in "qkv"]
        named[name.replace("q_proj", "qkv")] = torch.cat(parts)
    named["cls_token"] = named["cls_token"].view(1, 1, -1)
    named["pos_embed"] = named["pos_embed"].view(1, -1, named["cls_token"].shape[2])
    named.pop("embeddings.mask_token", None)
    return named


def reference(model: str, state: dict[str, Tensor], **more: Any) -> Any:
    net = timm.create_model(model, **TIMM, **more)
    net.load_state_dict(timm_names(state), strict=True)
    return net.eval()


def stored(net: Any, folder: Path) -> Path:
    net.save_pretrained(folder)
    return folder / "model.safetensors"


def test_vit_equals_timm_s(library: Any, tmp_path: Path):
    config = dict(SIZE, intermediate_size=96)
    net = lively(library.ViTForImageClassification(library.ViTConfig(**config, num_labels=5)))
    path = stored(net, tmp_path)
    teacher = HuggingFace(
        "vit",
        "x/y",
        32,
        weights=path,
        maps={"first": "vit.layers.0"},
        args=dict(model_type="vit", num_labels=5, **config),
    )
    own = reference(
        "vit_tiny_patch16_224", dict(net.state_dict()), num_classes=5, norm_layer=norm(1e-12)
    )
    images = pictures(32)
    out = asked(teacher, images)
    tokens = own.forward_features(normalised(teacher, images))
    close(out.tokens, tokens)
    close(out.pooled, tokens[:, 0])
    close(out.logits, own.head(tokens[:, 0]))
    assert out.maps["first"].shape == (2, 24, 4, 4)
    headless = HuggingFace(
        "vit",
        "x/y",
        32,
        weights=path,
        has_logits=False,
        args=dict(model_type="vit", **config),
    )
    close(asked(headless, images).pooled, out.pooled)
    larger = HuggingFace(
        "vit", "x/y", 48, weights=path, args=dict(model_type="vit", num_labels=5, **config)
    )
    assert asked(larger, pictures(48)).maps["last"].shape == (2, 24, 6, 6)


def norm(eps: float) -> Any:
    from functools import partial

    return partial(torch.nn.LayerNorm, eps=eps)


def test_dinov2_equals_timm_s(library: Any, tmp_path: Path):
    net = lively(library.Dinov2Model(library.Dinov2Config(**SIZE)))
    teacher = HuggingFace(
        "dino",
        "x/y",
        32,
        weights=stored(net, tmp_path),
        width=24,
        has_logits=False,
        args=dict(model_type="dinov2", **SIZE),
    )
    own = reference("vit_small_patch14_dinov2", dict(net.state_dict()))
    images = pictures(32)
    out = asked(teacher, images)
    tokens = own.forward_features(normalised(teacher, images))
    close(out.tokens, tokens)
    close(out.pooled, tokens[:, 0])
    close(out.maps["last"], tokens[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4))
    classifier = lively(
        library.Dinov2ForImageClassification(library.Dinov2Config(**SIZE, num_labels=5))
    )
    labelled = HuggingFace(
        "dino",
        "x/y",
        32,
        weights=stored(classifier, tmp_path / "c"),
        args=dict(model_type="dinov2", num_labels=5, **SIZE),
    )
    seen = asked(labelled, images)
    assert seen.tokens is not None
    close(seen.pooled, torch.cat([seen.tokens[:, 0], seen.tokens[:, 1:].mean(1)], 1))
    close(seen.logits, classifier(pixel_values=normalised(labelled, images)).logits)


def test_clip_s_tower_equals_timm_s_and_leaves_the_text_tower(library: Any, tmp_path: Path):
    config = dict(SIZE, intermediate_size=96)
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    net: Any = lively(
        library.CLIPModel(
            library.CLIPConfig(vision_config=config, text_config=text, projection_dim=8)
        )
    )
    path = stored(net, tmp_path)
    more: dict[str, Any] = dict(args=dict(model_type="clip_vision_model", **config))
    teacher = HuggingFace("clip", "x/y", 32, weights=path, prefix="vision_model.", **more)
    own = reference(
        "vit_base_patch16_clip_quickgelu_224",
        dict(net.vision_model.state_dict()),
        num_classes=0,
    )
    images = pictures(32)
    out = asked(teacher, images)
    tokens = own.forward_features(normalised(teacher, images))
    close(out.tokens, tokens)
    close(out.pooled, tokens[:, 0])
    assert not teacher.has_logits
    with pytest.raises(KdepError, match="text_model"):
        HuggingFace("clip", "x/y", 32, weights=path, **more)


def test_a_config_that_disagrees_with_the_weights_is_refused(library: Any, tmp_path: Path):
    net = library.Dinov2Model(library.Dinov2Config(**SIZE))
    path = stored(net, tmp_path)

    def ask(where: Path = path, **more: Any) -> None:
        HuggingFace("d", "x/y", 32, weights=where, args=dict(model_type="dinov2") | SIZE | more)

    ask()
    with pytest.raises(KdepError, match="num_attention_heads=2; expected 3"):
        ask(num_attention_heads=2)
    with pytest.raises(KdepError, match="did you mean hidden_size"):
        ask(hiden_size=24)
    bare = tmp_path / "bare" / "model.safetensors"
    bare.parent.mkdir()
    shutil.copy(path, bare)
    with pytest.raises(KdepError, match="do not fit Dinov2Model"):
        ask(bare, hidden_size=48)
    with pytest.raises(KdepError, match="do not fit Dinov2Model"):
        ask(bare, num_hidden_layers=3)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 24


def test_a_hub_name_reports_what_would_be_downloaded(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(KdepError, match=r"huggingface\.co/facebook/dinov2-tiny \(about 0 MB\)"):
        HuggingFace("d", "facebook/dinov2-tiny", 32, args=dict(model_type="dinov2", **SIZE))
