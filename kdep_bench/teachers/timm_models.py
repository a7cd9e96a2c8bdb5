"""Teachers from timm, by its model names ("resnet50.a1_in1k")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.teachers.network import NetworkOutput, NetworkTeacher, grid
from kdep_bench.teachers.weights import Hub, file_size_text, hugging_face_hub, url_hub

# timm's own order of preference (timm/models/_hub.py, load_state_dict_from_hf).
HF_FILES = ("model.safetensors", "pytorch_model.bin")


def make(model: str, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
    """Builds a timm model with random weights.

    Args:
        model: timm's model name.
        args: arguments of `timm.create_model`.
        with_head: whether to keep the classifier.

    Returns:
        the network, and the module path of its classifier ("" if it has none).

    Raises:
        KdepError: an unknown name or invalid arguments.
    """
    if not timm.is_model(model.split(".")[0]):
        raise unknown_name("timm model", model, timm.list_models())
    try:
        net: Any = timm.create_model(model, pretrained=False, **args)
    except (TypeError, RuntimeError) as e:
        raise KdepError(
            f"timm cannot build {model} with {args} ({e})",
            fix="correct `args=` in the teacher's config",
        ) from e
    path = next((p for p, m in net.named_modules() if m is net.get_classifier()), "")
    if not isinstance(net.get_submodule(path), nn.Linear | nn.Conv2d):
        path = ""  # with num_classes=0 the classifier is an Identity
    if path and not with_head:
        net.reset_classifier(0)
    return net, path


def parts(net: Any, x_B3HW: Tensor) -> NetworkOutput:
    """Runs a timm model: `forward_features`, then `forward_head`."""
    out = net.forward_features(x_B3HW)
    if not isinstance(out, Tensor):
        raise KdepError(
            f"forward_features of {type(net).__name__} returns a {type(out).__name__}",
            expected="one tensor",
            fix="choose another architecture",
        )
    read = net.forward_head(out, pre_logits=True)
    logits = net.forward_head(out) if getattr(net, "num_classes", 0) else None
    tokens = out if out.ndim == 3 else None
    final = as_map(net, out)
    return NetworkOutput(final, read.flatten(1), logits, tokens)


def as_map(net: Any, out: Any) -> Any:
    """A module's output as [B, C, H, W]; converts NHWC (Swin) and tokens."""
    if not isinstance(out, Tensor):
        return out
    if out.ndim == 3:
        return grid(out, getattr(net, "num_prefix_tokens", 0))
    return out.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else out


class Timm(NetworkTeacher):
    """A timm model.

    `args` are passed to `timm.create_model` (`dynamic_img_size=True`, `num_classes=0`, ...). The
    weights file must have timm's tensor names, as the files of huggingface.co/timm do. The tokens
    of a ViT are those that `forward_features` returns, class and register tokens first. `maps` are
    outputs of named modules ("stages.2", "blocks.11"); tokens are reshaped to a grid.
    """

    def make(self, model: str, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
        return make(model, args, with_head)

    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        return parts(self.net, x_B3HW)

    def as_map(self, out: Any) -> Tensor:
        return super().as_map(as_map(self.net, out))

    def hub(self, model: str, args: dict[str, Any], net: Any) -> Hub | None:
        return hub(net)

    def statistics(
        self, model: str, args: dict[str, Any], net: Any
    ) -> tuple[Sequence[float], Sequence[float]]:
        return statistics(net)


def hub(net: Any) -> Hub | None:
    """The Hub for timm's weights of a model; None if timm has none."""
    cfg = net.pretrained_cfg
    if cfg.get("hf_hub_id"):
        return hugging_face_hub(cfg["hf_hub_id"], HF_FILES, file_size_text(net))
    return url_hub(cfg["url"], file_size_text(net)) if cfg.get("url") else None


def statistics(net: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std per RGB channel that timm states for a model, on the 0-255 scale."""
    mean, std = net.pretrained_cfg["mean"], net.pretrained_cfg["std"]
    return [255 * v for v in mean], [255 * v for v in std]
