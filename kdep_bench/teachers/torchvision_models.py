"""Teachers from torchvision, by its model names ("resnet50", "swin_b")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from kdep_bench.data import normalisation
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.taps import Side, capture_modules
from kdep_bench.teachers.network import NetworkOutput, NetworkTeacher, grid
from kdep_bench.teachers.weights import Hub, url_hub

# Submodules whose input or output is the last feature map; the first that a network has is used.
# The encoder of a ViT returns tokens, with the class token first.
FINAL: tuple[tuple[str, Side], ...] = (
    ("avgpool", "in"),
    ("encoder", "out"),
    ("conv5", "out"),  # ShuffleNetV2
    ("layers", "out"),  # MNASNet
    ("features", "out"),  # DenseNet, SqueezeNet
)


# Networks whose published weights were trained with another normalisation. With the argument
# `transform_input`, which torchvision sets for its own weights, they convert ImageNet's to it.
RENORMALISING = ("googlenet", "inception_v3")
# The network whose published weights expect pixel values from -1 to 1, without a conversion.
HALF = ("efficientnet_v2_l",)


def make(model: str, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
    """Builds a torchvision classifier with random weights.

    Args:
        model: torchvision's name of the architecture.
        args: arguments of `torchvision.models.get_model`.
        with_head: whether to keep the last linear layer; otherwise it is replaced by an Identity.

    Returns:
        the network, and the module path of its last linear layer.

    Raises:
        KdepError: an unknown name, invalid arguments, or no linear layer.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if model not in names:
        raise unknown_name("torchvision model", model, names)
    try:
        net = torchvision.models.get_model(model, weights=None, **args)
    except TypeError as e:
        raise KdepError(
            f"torchvision cannot build {model} with {args} ({e})",
            fix="correct `args=` in the teacher's config",
        ) from e
    path = last_linear(net)
    if not with_head:
        net.set_submodule(path, nn.Identity())
    return net, path


def last_linear(net: nn.Module) -> str:
    """The path of the last nn.Linear in order of definition, which is torchvision's classifier."""
    paths = [p for p, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not paths:
        raise KdepError(
            f"{type(net).__name__} has no linear classifier", fix="choose another architecture"
        )
    return paths[-1]


def parts(net: Any, x_B3HW: Tensor, head_path: str) -> NetworkOutput:
    """Runs the network and records its last map and the input of the classifier at `head_path`."""
    final_point: tuple[str, Side] | None = next((f for f in FINAL if hasattr(net, f[0])), None)
    if final_point is None:
        raise KdepError(
            f"the last feature map of {type(net).__name__} is not known",
            expected=f"one of the submodules {', '.join(p for p, _ in FINAL)}",
            fix="choose another architecture",
        )
    points: dict[str, tuple[str, Side]] = {"final": final_point, "read": (head_path, "in")}
    with capture_modules(net, points) as recorded:
        out = net(x_B3HW)
    final, read = recorded["final"], recorded["read"]
    logits = None if isinstance(net.get_submodule(head_path), nn.Identity) else out
    tokens = final if final.ndim == 3 else None
    return NetworkOutput(
        grid(final, 1) if tokens is not None else final, read.flatten(1), logits, tokens
    )


def as_map(net: Any, out: Any) -> Any:
    """A module's output as [B, C, H, W]; converts Swin's [B, H, W, C] and a ViT's tokens."""
    if isinstance(out, Tensor) and out.ndim == 3:
        return grid(out, 1)
    return out.permute(0, 3, 1, 2) if isinstance(net, SwinTransformer) else out


class Torchvision(NetworkTeacher):
    """A torchvision classifier.

    `args` are passed to `torchvision.models.get_model`, except for the entry `hub`: the name of the
    weights to use if no file is given ("IMAGENET1K_V1"; default: torchvision's default). `maps` are
    outputs of named modules ("layer3", "features.5").
    """

    def make(self, model: str, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
        defaults = {"transform_input": True} if model in RENORMALISING else {}
        return make(model, {k: v for k, v in (defaults | args).items() if k != "hub"}, with_head)

    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        return parts(self.net, x_B3HW, self.head_path)

    def as_map(self, out: Any) -> Tensor:
        return super().as_map(as_map(self.net, out))

    def hub(self, model: str, args: dict[str, Any], net: nn.Module) -> Hub | None:
        return hub(model, args.get("hub", "DEFAULT"))

    def statistics(
        self, model: str, args: dict[str, Any], net: nn.Module
    ) -> tuple[Sequence[float], Sequence[float]]:
        """ImageNet statistics, which all torchvision classifiers but HALF expect."""
        if model in HALF:
            return (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)
        return normalisation.MEAN, normalisation.STD


def hub(model: str, name: str) -> Hub:
    """The Hub for torchvision's weights `name` of a model; KdepError for an unknown name."""
    known = torchvision.models.get_model_weights(model)
    if name not in known.__members__:
        raise unknown_name("weights", name, known.__members__, place=f"torchvision's {model}")
    entry = known[name]
    megabytes = entry.meta.get("_file_size")
    return url_hub(entry.url, f"{megabytes:.0f} MB" if megabytes else "")
