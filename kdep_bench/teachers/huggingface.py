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
from kdep_bench.errors import KdepError, first_of, unknown_name
from kdep_bench.files import plain_text, read_json
from kdep_bench.networks.taps import capture_modules
from kdep_bench.teachers.network import NetworkOutput, NetworkTeacher, grid
from kdep_bench.teachers.weights import Hub, file_size_text, hugging_face_hub

HF_FILES = ("model.safetensors", "pytorch_model.bin")


class ModelFamily(NamedTuple):
    """A model type of transformers.

    Attributes:
        config: name of its configuration class.
        tower: name of its class for the vision tower.
        classifier: name of its class with a classifier; None if there is none.
        mean, std: input normalisation per RGB channel on the 0-1 scale.
    """

    config: str
    tower: str
    classifier: str | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_HALF_RANGE = (0.5, 0.5, 0.5)
_IMAGENET = (
    tuple(v / 255 for v in normalisation.MEAN),
    tuple(v / 255 for v in normalisation.STD),
)
# Normalisations as in transformers' image processors: IMAGENET_STANDARD_MEAN for ViT,
# IMAGENET_DEFAULT_MEAN for DINOv2's BitImageProcessor, OPENAI_CLIP_MEAN for CLIP.
FAMILIES: dict[str, ModelFamily] = {
    "vit": ModelFamily(
        "ViTConfig", "ViTModel", "ViTForImageClassification", _HALF_RANGE, _HALF_RANGE
    ),
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
# Settings that change a tower's output for the same tensors; compared with a stored config.json.
TOWER_SETTINGS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "mlp_ratio",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "qkv_bias",
    "use_swiglu_ffn",
)


def transformers() -> Any:
    """Imports the package transformers; raises KdepError, with the pip command, if that fails."""
    try:
        return importlib.import_module("transformers")
    except ImportError as e:
        raise KdepError(
            f"the package transformers is not installed or cannot be imported ({e})",
            fix="run: pip install 'transformers>=5.23,<6' (the optional extra `hf`)",
        ) from e


class HuggingFace(NetworkTeacher):
    """A vision tower of transformers.

    `model` is a repository of the hub ("facebook/dinov2-base"), used only if no file is given.
    `args` is the tower's configuration: `model_type` ("vit", "dinov2", "clip_vision_model") and the
    values that differ from the defaults of that type. If the folder of the weights has a
    config.json, its settings in TOWER_SETTINGS must agree with `args`.

    Tap: the class token after the last norm (for CLIP, before its projection). For a DINOv2 with
    its linear classifier it is the input of this classifier: the class token and the mean of the
    patch tokens, twice as wide. Tokens: all tokens after the last norm, the class token first. (For
    CLIP, `last_hidden_state` of transformers is before that norm.) If `args` has `num_labels`, the
    teacher includes the classifier (ViT, DINOv2). `maps` are outputs of named modules
    ("encoder.layers.5").

    The tensors of a file may have the names of any version of transformers, which converts them. A
    tensor of the network that is not in the file raises KdepError.
    """

    def make(self, model: str, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
        config, family = make_config(args)
        library = transformers()
        if not with_head or family.classifier is None or "num_labels" not in args:
            options = {"add_pooling_layer": False} if family.tower == "ViTModel" else {}
            return getattr(library, family.tower)(config, **options), "classifier"
        return getattr(library, family.classifier)(config), "classifier"

    def load(self, net: Any, tensors: dict[str, Tensor], source: Path) -> None:
        check_config(net.config, source.parent / "config.json")
        library = transformers()
        log = library.utils.logging
        options = {} if getattr(net, "pooler", 0) is not None else {"add_pooling_layer": False}
        level, shows_progress = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()
        try:
            filled, info = type(net).from_pretrained(
                None,
                config=net.config,
                state_dict=tensors,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        except (RuntimeError, ValueError) as e:
            raise KdepError(
                f"the weights in {source} do not fit {type(net).__name__} ({plain_text(e)})",
                expected="the weights of exactly this architecture",
                fix="correct `args=` in the teacher's config",
            ) from e
        finally:
            log.set_verbosity(level)
            if shows_progress:
                log.enable_progress_bar()
        faults = [f"{k}: {first_of(sorted(map(str, v)), 3)}" for k, v in info.items() if v]
        if faults:
            raise KdepError(
                f"the weights in {source} do not fit {type(net).__name__} ({'; '.join(faults)})",
                expected="exactly the tensors of this network",
                fix="correct `args=`, set `prefix=` to that of the network, or list in `drop=` "
                "the tensors that are not part of it",
            )
        unmatched = unmatched_tensors(filled.state_dict(), tensors)
        if unmatched:
            raise KdepError(
                f"{len(unmatched)} tensors of the network are not in {source}: "
                f"{first_of(unmatched, 3)}",
                fix="use the checkpoint of exactly this architecture",
            )
        net.load_state_dict(filled.state_dict(), strict=True)

    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        net: Any = self.net
        native = (net.config.image_size,) * 2 if isinstance(net.config.image_size, int) else ()
        resize = tuple(x_B3HW.shape[2:]) != native and net.config.model_type != "dinov2"
        options = {"interpolate_pos_encoding": True} if resize else {}
        classifier = getattr(net, "classifier", None)
        if classifier is None:
            tokens = apply_last_norm(net, net(pixel_values=x_B3HW, **options).last_hidden_state)
            return NetworkOutput(grid(tokens, 1), tokens[:, 0], None, tokens)
        base = net.base_model_prefix
        with capture_modules(net, {"out": (base, "out"), "read": ("classifier", "in")}) as recorded:
            logits = net(pixel_values=x_B3HW, **options).logits
        tokens = recorded["out"].last_hidden_state
        return NetworkOutput(grid(tokens, 1), recorded["read"], logits, tokens)

    def as_map(self, out: Any) -> Tensor:
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Tensor) and out.ndim == 3:
            return grid(out, 1)
        return super().as_map(out)

    def hub(self, model: str, args: dict[str, Any], net: nn.Module) -> Hub | None:
        weights = hugging_face_hub(model, HF_FILES, file_size_text(net))

        def fetch() -> Path:
            from huggingface_hub import hf_hub_download

            hf_hub_download(model, "config.json")  # for `check_config`
            return weights.fetch()

        return replace(weights, fetch=fetch)

    def statistics(
        self, model: str, args: dict[str, Any], net: nn.Module
    ) -> tuple[Sequence[float], Sequence[float]]:
        family = FAMILIES[args["model_type"]]
        return [255 * v for v in family.mean], [255 * v for v in family.std]


def apply_last_norm(net: Any, tokens_BTC: Tensor) -> Tensor:
    """The tokens after the tower's last norm, which CLIP itself applies only to the class token."""
    norm = getattr(net, "post_layernorm", None)
    return tokens_BTC if norm is None else norm(tokens_BTC)


def make_config(args: Mapping[str, Any]) -> tuple[Any, ModelFamily]:
    """Creates transformers' configuration object from `args` of a HuggingFace teacher.

    Returns:
        the configuration, and the ModelFamily.

    Raises:
        KdepError: an unknown `model_type` or key.
    """
    kind = args.get("model_type")
    if kind not in FAMILIES:
        raise unknown_name("model_type", str(kind), FAMILIES, place="a Hugging Face teacher")
    settings = {k: v for k, v in args.items() if k != "model_type"}
    family = FAMILIES[kind]
    default = getattr(transformers(), family.config)()
    for name in settings:
        if not hasattr(default, name):
            raise unknown_name("key", name, default.to_dict(), place=family.config)
    return getattr(transformers(), family.config)(**settings), family


def check_config(config: Any, path: Path) -> None:
    """Compares `config` with the config.json at `path`, if that file exists.

    Raises:
        KdepError: the file is not valid, or a setting in TOWER_SETTINGS differs.
    """
    if not path.is_file():
        return
    stored = read_json(path)
    try:
        clip = config.model_type.startswith("clip")
        stored = stored.get("vision_config", stored) if clip else stored
        from_file = type(config).from_dict(stored)
    except Exception as e:  # transformers raises many types of exceptions for a malformed file
        raise KdepError(
            f"the file {path} is not a valid config of a {config.model_type} "
            f"({type(e).__name__}: {plain_text(e)})",
            expected="the config.json of these weights",
            fix="download it again, or move it elsewhere (it is only compared with `args=`)",
        ) from None
    for name in TOWER_SETTINGS:
        value, file_value = getattr(config, name, None), getattr(from_file, name, None)
        if value != file_value:
            raise KdepError(
                f"the teacher's config has {name}={value!r}",
                expected=f"{file_value!r}, as in {path}",
                fix="correct `args=` in the teacher's config",
            )


def unmatched_tensors(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors in `state` that differ, in shape or values, from all of `tensors`."""
    known = {_digest(v) for v in tensors.values()}
    return [k for k, v in state.items() if _digest(v) not in known]


def _digest(x: Tensor) -> str:
    x = x.detach().to(torch.float32).contiguous()
    return hashlib.sha256(str(tuple(x.shape)).encode() + x.numpy().tobytes()).hexdigest()
