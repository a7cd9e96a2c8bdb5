"""Vision networks of the library transformers, compared with timm's with the same weights."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from kdep_bench.errors import KdepError
from kdep_bench.teachers.huggingface import HuggingFace
from tests.teachers.conftest import assert_close, normalised, output_of, random_images, randomised

SIZE: dict[str, Any] = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8
)
TIMM: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3)


@pytest.fixture
def library() -> Any:
    """The transformers library."""
    return pytest.importorskip("transformers", reason="the optional extra `hf` is not installed")


def test_without_transformers_the_error_names_the_install_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(KdepError, match="pip install 'transformers"):
        HuggingFace("t", "x/y", 32, weights="random", args=dict(model_type="vit"))
    with pytest.raises(KdepError, match="did you mean vit"):
        HuggingFace("t", "x/y", 32, weights="random", args=dict(model_type="vitt"))


def timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a network of the library transformers (version 5) to timm's names."""
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


def reference(model: str, state: dict[str, Tensor], **options: Any) -> Any:
    """timm's network with the weights of a network from the library transformers."""
    net = timm.create_model(model, **TIMM, **options)
    net.load_state_dict(timm_names(state), strict=True)
    return net.eval()


def saved_weights(net: Any, folder: Path) -> Path:
    """Saves the network; returns the file of its weights."""
    net.save_pretrained(folder)
    return folder / "model.safetensors"


def test_vit_has_the_outputs_of_the_timm_network(library: Any, tmp_path: Path):
    config = dict(SIZE, intermediate_size=96)
    net = randomised(library.ViTForImageClassification(library.ViTConfig(**config, num_labels=5)))
    path = saved_weights(net, tmp_path)
    teacher = HuggingFace(
        "vit",
        "x/y",
        32,
        weights=path,
        maps={"first": "vit.layers.0"},
        args=dict(model_type="vit", num_labels=5, **config),
    )
    timm_net = reference(
        "vit_tiny_patch16_224", dict(net.state_dict()), num_classes=5, norm_layer=layer_norm(1e-12)
    )
    images = random_images(32)
    out = output_of(teacher, images)
    tokens = timm_net.forward_features(normalised(teacher, images))
    assert_close(out.tokens, tokens)
    assert_close(out.pooled, tokens[:, 0])
    assert_close(out.logits, timm_net.head(tokens[:, 0]))
    assert out.maps["first"].shape == (2, 24, 4, 4)
    headless = HuggingFace(
        "vit",
        "x/y",
        32,
        weights=path,
        has_logits=False,
        args=dict(model_type="vit", **config),
    )
    assert_close(output_of(headless, images).pooled, out.pooled)
    larger = HuggingFace(
        "vit", "x/y", 48, weights=path, args=dict(model_type="vit", num_labels=5, **config)
    )
    assert output_of(larger, random_images(48)).maps["last"].shape == (2, 24, 6, 6)


def layer_norm(eps: float) -> Any:
    """LayerNorm with this epsilon."""
    from functools import partial

    return partial(torch.nn.LayerNorm, eps=eps)


def test_dinov2_has_the_outputs_of_the_timm_network(library: Any, tmp_path: Path):
    net = randomised(library.Dinov2Model(library.Dinov2Config(**SIZE)))
    teacher = HuggingFace(
        "dino",
        "x/y",
        32,
        weights=saved_weights(net, tmp_path),
        width=24,
        has_logits=False,
        args=dict(model_type="dinov2", **SIZE),
    )
    timm_net = reference("vit_small_patch14_dinov2", dict(net.state_dict()))
    images = random_images(32)
    out = output_of(teacher, images)
    tokens = timm_net.forward_features(normalised(teacher, images))
    assert_close(out.tokens, tokens)
    assert_close(out.pooled, tokens[:, 0])
    assert_close(out.maps["last"], tokens[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4))
    classifier = randomised(
        library.Dinov2ForImageClassification(library.Dinov2Config(**SIZE, num_labels=5))
    )
    labelled = HuggingFace(
        "dino",
        "x/y",
        32,
        weights=saved_weights(classifier, tmp_path / "c"),
        args=dict(model_type="dinov2", num_labels=5, **SIZE),
    )
    output = output_of(labelled, images)
    assert output.tokens is not None
    assert_close(output.pooled, torch.cat([output.tokens[:, 0], output.tokens[:, 1:].mean(1)], 1))
    assert_close(output.logits, classifier(pixel_values=normalised(labelled, images)).logits)


def test_the_clip_image_encoder_matches_timm_and_ignores_the_text_encoder(
    library: Any, tmp_path: Path
):
    config = dict(SIZE, intermediate_size=96)
    text = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    net: Any = randomised(
        library.CLIPModel(
            library.CLIPConfig(vision_config=config, text_config=text, projection_dim=8)
        )
    )
    path = saved_weights(net, tmp_path)
    arguments: dict[str, Any] = dict(args=dict(model_type="clip_vision_model", **config))
    teacher = HuggingFace("clip", "x/y", 32, weights=path, prefix="vision_model.", **arguments)
    timm_net = reference(
        "vit_base_patch16_clip_quickgelu_224",
        dict(net.vision_model.state_dict()),
        num_classes=0,
    )
    images = random_images(32)
    out = output_of(teacher, images)
    tokens = timm_net.forward_features(normalised(teacher, images))
    assert_close(out.tokens, tokens)
    assert_close(out.pooled, tokens[:, 0])
    assert not teacher.has_logits
    with pytest.raises(KdepError, match="text_model"):
        HuggingFace("clip", "x/y", 32, weights=path, **arguments)


def test_arguments_that_disagree_with_the_saved_config_or_with_the_weights_are_refused(
    library: Any, tmp_path: Path
):
    net = library.Dinov2Model(library.Dinov2Config(**SIZE))
    path = saved_weights(net, tmp_path)

    def build(path_of_weights: Path = path, **changes: Any) -> None:
        """Builds the teacher from this file, with these arguments changed."""
        HuggingFace(
            "d", "x/y", 32, weights=path_of_weights, args=dict(model_type="dinov2") | SIZE | changes
        )

    build()
    with pytest.raises(KdepError, match="num_attention_heads=2; expected 3"):
        build(num_attention_heads=2)
    with pytest.raises(KdepError, match="did you mean hidden_size"):
        build(hiden_size=24)
    without_config = tmp_path / "bare" / "model.safetensors"
    without_config.parent.mkdir()
    shutil.copy(path, without_config)
    with pytest.raises(KdepError, match="do not fit Dinov2Model"):
        build(without_config, hidden_size=48)
    with pytest.raises(KdepError, match="do not fit Dinov2Model"):
        build(without_config, num_hidden_layers=3)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 24


def test_a_hub_name_reports_what_would_be_downloaded(
    library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(KdepError, match=r"huggingface\.co/facebook/dinov2-tiny \(about 0 MB\)"):
        HuggingFace("d", "facebook/dinov2-tiny", 32, args=dict(model_type="dinov2", **SIZE))
