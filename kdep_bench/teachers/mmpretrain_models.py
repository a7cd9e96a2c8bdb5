"""Teachers from mmpretrain, by name in its model zoo ("resnet50_8xb32_in1k") or config file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.taps import capture_modules, global_mean
from kdep_bench.teachers.network import NetworkOutput, NetworkTeacher, grid
from kdep_bench.teachers.weights import Hub, file_size_text, url_hub


def register_models() -> None:
    """Registers mmpretrain's models, unless a toolkit was set up (each setup registers them)."""
    if openmmlab.current_scope() is None:
        openmmlab.setup("mmpretrain")


def zoo_entry(model: str) -> Any:
    """mmpretrain's entry for a name in its model zoo, with `.config` and `.weights` (URL or None).

    Raises:
        KdepError: an unknown name; the error lists similar ones.
    """
    register_models()
    from mmpretrain.apis import list_models
    from mmpretrain.apis.model import ModelHub

    names = list_models()
    if model.lower() not in (n.lower() for n in names):
        raise unknown_name("mmpretrain model", model, names)
    return ModelHub.get(model)


def make(model: str, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
    """Builds an ImageClassifier of mmpretrain with random weights.

    Args:
        model: a name in the model zoo, or the path of a config file.
        args: merged into the config's `model`.
        with_head: whether to build the classifier.

    Returns:
        the network, and the module path of its classifier, "head".

    Raises:
        KdepError: no such model or file, not an ImageClassifier, or invalid arguments.
    """
    register_models()
    from mmengine.config import Config, ConfigDict
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    is_file = str(model).endswith(".py")
    if is_file and not Path(model).is_file():
        raise KdepError(
            f"the mmpretrain config {model} does not exist",
            fix="correct `model=` in the teacher's config",
        )
    config = Config.fromfile(model) if is_file else zoo_entry(model).config
    classifier = ConfigDict(config.model)
    if classifier.type != "ImageClassifier":
        raise KdepError(
            f"{model} is a {classifier.type} in mmpretrain",
            expected="an ImageClassifier",
            fix="choose another model",
        )
    classifier.setdefault("data_preprocessor", config.get("data_preprocessor"))
    classifier.pop("init_cfg", None)
    classifier.backbone.pop("init_cfg", None)  # it would load weights without checking them
    if not with_head:
        classifier.pop("head", None)
    merged = Config({"model": classifier})
    try:
        merged.merge_from_dict({"model": args})
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            net: Any = MODELS.build(merged.model)
    except (KeyError, TypeError, ValueError, AssertionError) as e:
        raise KdepError(
            f"mmpretrain cannot build {model} with {args} ({e})",
            fix="correct `args=` in the teacher's config",
        ) from e
    net.init_weights()
    return net, "head"


def backbone_parts(backbone: Any, x_B3HW: Tensor) -> tuple[Any, Tensor | None, Tensor | None]:
    """Runs an OpenMMLab backbone; returns (its outputs, last map or None, tokens or None).

    A ViT returns only its class token, and ConvNeXt only its normalised mean; their tokens or map
    are recorded inside the network.
    """
    points: dict[str, Any] = {}
    extra = getattr(backbone, "num_extra_tokens", None)
    if extra is not None and hasattr(backbone, "ln1"):
        points["tokens"] = ("ln1", "out")
    elif getattr(backbone, "gap_before_final_norm", False):
        points["final"] = (f"stages.{len(backbone.stages) - 1}", "out")
    with capture_modules(backbone, points) as recorded:
        outputs = backbone(x_B3HW)
    last, tokens = outputs[-1], recorded.get("tokens")
    if tokens is not None:
        return outputs, grid(tokens, int(extra or 0)), tokens
    if isinstance(last, Tensor) and last.ndim == 4:
        return outputs, last, None
    return outputs, recorded.get("final"), None


def parts(net: Any, x_B3HW: Tensor) -> NetworkOutput:
    """Runs backbone, neck and head of an ImageClassifier."""
    outputs, final, tokens = backbone_parts(net.backbone, x_B3HW)
    features = net.neck(outputs) if net.with_neck else outputs
    if not net.with_head:
        return NetworkOutput(final, pooled(features[-1]), None, tokens)
    read = pooled(net.head.pre_logits(features))
    return NetworkOutput(final, read, net.head(features), tokens)


def pooled(feature: Any) -> Tensor:
    """The feature as [B, D]: a map is averaged over positions; of a list, the last item is used."""
    feature = feature[-1] if isinstance(feature, (list, tuple)) else feature
    return global_mean(feature) if feature.ndim == 4 else feature.flatten(1)


class MMPretrain(NetworkTeacher):
    """An ImageClassifier of mmpretrain; `args` are merged into its model config.

    `maps` are outputs of named modules ("backbone.layer3"). `has_logits=False` is for files without
    a head. `mean` and `std` are in RGB order, also for a model that was trained on BGR images: the
    normalised images are converted to BGR for it.
    """

    def make(self, model: str, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
        return make(model, args, with_head)

    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        rgb = self.net.data_preprocessor.to_rgb  # type: ignore[union-attr]
        return parts(self.net, x_B3HW if rgb else x_B3HW.flip(1))

    def as_map(self, out: Any) -> Tensor:
        if isinstance(out, Tensor) and out.ndim == 3:
            return grid(out, int(getattr(self.net.backbone, "num_extra_tokens", 0)))  # type: ignore[arg-type]
        return super().as_map(out)

    def hub(self, model: str, args: dict[str, Any], net: nn.Module) -> Hub | None:
        if str(model).endswith(".py"):
            return None
        url = zoo_entry(model).weights
        return url_hub(url, file_size_text(net)) if url else None

    def statistics(
        self, model: str, args: dict[str, Any], net: Any
    ) -> tuple[Sequence[float], Sequence[float]]:
        data = net.data_preprocessor
        if not getattr(data, "_enable_normalize", False):
            raise KdepError(
                f"the config of {model} has no normalisation",
                expected="a data_preprocessor with mean and std",
                fix="set `mean=` and `std=`, RGB, on the 0-255 scale",
            )
        mean, std = data.mean.flatten().tolist(), data.std.flatten().tolist()
        return (mean, std) if data.to_rgb else (mean[::-1], std[::-1])
