"""Teachers from Hugging Face transformers: the vision towers of ViT, DINOv2 and CLIP.

transformers is an optional extra (`pip install 'kdep_bench[hf]'`).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdep_bench.data import normalisation
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.files import plain_text, read_json
from kdep_bench.networks.taps import capture_modules
from kdep_bench.teachers.network import NetworkOutput, NetworkTeacher, grid
from kdep_bench.teachers.weights import Hub, hugging_face_hub, size_of

HF_FILES = ("model.safetensors", "pytorch_model.bin")


class ModelFamily(NamedTuple):
    """A model type of transformers: its classes (a classifier or None) and normalisation (0-1)."""

    config: str
    tower: str
    classifier: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_HALF = (0.5, 0.5, 0.5)
_IMAGENET = (
    tuple(v / 255 for v in normalisation.MEAN),
    tuple(v / 255 for v in normalisation.STD),
)
# Normalisations: transformers' image processors (IMAGENET_STANDARD_MEAN for ViT,
# IMAGENET_DEFAULT_MEAN for DINOv2's BitImageProcessor configs, OPENAI_CLIP_MEAN for CLIP).
FAMILIES: dict[str, ModelFamily] = {
    "vit": ModelFamily("ViTConfig", "ViTModel", "ViTForImageClassification", _HALF, _HALF),
    "dinov2": ModelFamily(
        "Dinov2Config",
        "Dinov2Model",
        "Dinov2ForImageClassification",
        *_IMAGENET,  # type: ignore[arg-type]
    ),
    "clip_vision_model": ModelFamily(
        "CLIPVisionConfig",
        "CLIPVisionModel",
        None,
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
}
# What decides how a tower computes with the same tensors; must agree with their config.json.
DECISIVE = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "mlp_ratio"),
    *("hidden_act", "layer_norm_eps", "image_size", "patch_size", "qkv_bias", "use_swiglu_ffn"),
)


def transformers() -> Any:
    """The package, or a sentence with the command that installs it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as e:
        raise KdepError(
            f"the package transformers is not installed or cannot be imported ({e})",
            fix="run: pip install 'transformers>=5.23,<6' (the optional extra `hf`)",
        ) from e


class HuggingFace(NetworkTeacher):
    """A vision tower of transformers.

    `model` is a repository of the hub ("facebook/dinov2-base"), used only where no file is given.
    `args` is the tower's configuration: `model_type` ("vit", "dinov2", "clip_vision_model") and
    what differs from that type's defaults; a config.json beside the weights must agree with it.

    Tap: the class token after the last norm (ViT, DINOv2, CLIP before its projection); a DINOv2
    with its linear classifier reads [class token, mean of patch tokens], twice as wide. Tokens: all
    after the last norm, the class token first (for CLIP, transformers' own `last_hidden_state` is
    before that norm). Where `args` states `num_labels`, the classifier is part of the teacher (ViT,
    DINOv2). `maps` are outputs of named modules ("encoder.layers.5").

    A file may have the names of any transformers version: transformers itself translates them, and
    every tensor is then proved to be one of the file's.
    """

    def make(self, model: str, args: dict[str, Any], head: bool) -> tuple[nn.Module, str]:
        config, family = make_config(args)
        library = transformers()
        if not head or family.classifier is None or "num_labels" not in args:
            more = {"add_pooling_layer": False} if family.tower == "ViTModel" else {}
            return getattr(library, family.tower)(config, **more), "classifier"
        return getattr(library, family.classifier)(config), "classifier"

    def load(self, net: Any, tensors: dict[str, Tensor], source: Path) -> None:
        check_config(net.config, source.parent / "config.json")
        library = transformers()
        bars = library.utils.logging
        more = {} if getattr(net, "pooler", 0) is not None else {"add_pooling_layer": False}
        level, shown = bars.get_verbosity(), bars.is_progress_bar_enabled()
        bars.set_verbosity_error()
        bars.disable_progress_bar()
        try:
            filled, info = type(net).from_pretrained(
                None,
                config=net.config,
                state_dict=tensors,
                dtype=torch.float32,
                output_loading_info=True,
                **more,
            )
        except (RuntimeError, ValueError) as e:
            raise KdepError(
                f"the weights in {source} do not fit {type(net).__name__} ({plain_text(e)})",
                expected="the weights of exactly this architecture",
                fix="correct `args=`",
            ) from e
        finally:
            bars.set_verbosity(level)
            if shown:
                bars.enable_progress_bar()
        faults = {k: sorted(map(str, v))[:3] for k, v in info.items() if v}
        if faults:
            raise KdepError(
                f"the weights in {source} do not fit {type(net).__name__}: {faults}",
                expected="exactly the tensors of this network",
                fix="correct `args=`, set `prefix=` to that of the network, or list in `drop=` "
                "what is not part of it",
            )
        alien = unmatched_tensors(filled.state_dict(), tensors)
        if alien:
            raise KdepError(f"{len(alien)} tensors are not those of {source}: {alien[:3]}")
        net.load_state_dict(filled.state_dict(), strict=True)

    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        net: Any = self.net
        own = (net.config.image_size,) * 2 if isinstance(net.config.image_size, int) else ()
        resize = tuple(x_B3HW.shape[2:]) != own and net.config.model_type != "dinov2"
        more = {"interpolate_pos_encoding": True} if resize else {}
        classifier = getattr(net, "classifier", None)
        if classifier is None:
            tokens = normed(net, net(pixel_values=x_B3HW, **more).last_hidden_state)
            return NetworkOutput(grid(tokens, 1), tokens[:, 0], None, tokens)
        base = net.base_model_prefix
        with capture_modules(net, {"out": (base, "out"), "read": ("classifier", "in")}) as seen:
            logits = net(pixel_values=x_B3HW, **more).logits
        tokens = seen["out"].last_hidden_state
        return NetworkOutput(grid(tokens, 1), seen["read"], logits, tokens)

    def as_map(self, out: Any) -> Tensor:
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor) and out.ndim == 3:
            return grid(out, 1)
        return super().as_map(out)

    def hub(self, model: str, args: dict[str, Any], net: nn.Module) -> Hub | None:
        found = hugging_face_hub(model, HF_FILES, size_of(net))

        def fetch() -> Path:
            from huggingface_hub import hf_hub_download

            hf_hub_download(model, "config.json")  # for `check_config`
            return found.fetch()

        return replace(found, fetch=fetch)

    def statistics(
        self, model: str, args: dict[str, Any], net: nn.Module
    ) -> tuple[Sequence[float], Sequence[float]]:
        family = FAMILIES[args["model_type"]]
        return [255 * v for v in family.mean], [255 * v for v in family.std]


def normed(net: Any, tokens_BTC: Tensor) -> Tensor:
    """Tokens after the tower's last norm (CLIP applies it to the class token alone)."""
    norm = getattr(net, "post_layernorm", None)
    return tokens_BTC if norm is None else norm(tokens_BTC)


def make_config(args: Mapping[str, Any]) -> tuple[Any, ModelFamily]:
    """transformers' configuration of `args`; KdepError for an unknown type or key."""
    kind = args.get("model_type")
    if kind not in FAMILIES:
        raise unknown_name("model_type of a Hugging Face teacher", str(kind), FAMILIES)
    given = {k: v for k, v in args.items() if k != "model_type"}
    family = FAMILIES[kind]
    default = getattr(transformers(), family.config)()
    for name in given:
        if not hasattr(default, name):
            raise unknown_name(f"key of {family.config}", name, default.to_dict())
    return getattr(transformers(), family.config)(**given), family


def check_config(config: Any, path: Path) -> None:
    """Refuses weights whose own config.json computes otherwise than `config`."""
    if not path.is_file():
        return
    stored = read_json(path)
    try:
        clip = config.model_type.startswith("clip")
        stored = stored.get("vision_config", stored) if clip else stored
        theirs = type(config).from_dict(stored)
    except Exception as e:  # transformers raises whatever it meets first
        raise KdepError(
            f"{path} is not a valid config of a {config.model_type} ({type(e).__name__}: "
            f"{plain_text(e)})",
            expected="the config.json of these weights",
            fix="download it again, or move it elsewhere: it is only compared with `args=`",
        ) from None
    for name in DECISIVE:
        ours, other = getattr(config, name, None), getattr(theirs, name, None)
        if ours != other:
            raise KdepError(
                f"the teacher's config has {name}={ours!r}",
                expected=f"{other!r}, as in {path}",
                fix="correct `args=`",
            )


def unmatched_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of a state dict whose tensor, by shape and bytes, is none of the file's."""
    known = {_digest(v) for v in tensors.values()}
    return [k for k, v in own.items() if _digest(v) not in known]


def _digest(x: Tensor) -> str:
    x = x.detach().to(torch.float32).contiguous()
    return hashlib.sha256(str(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest()
