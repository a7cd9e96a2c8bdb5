"""A teacher from the user's own checkpoint file and a known architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdep_bench.data import normalisation
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.teachers import mmpretrain_models, timm_models, torchvision_models
from kdep_bench.teachers.network import NetworkOutput, NetworkTeacher, grid
from kdep_bench.teachers.weights import Hub

LIBRARIES = {"timm": timm_models, "torchvision": torchvision_models}


class Checkpoint(NetworkTeacher):
    """A network of a known architecture with the weights of a file.

    `model` is "torchvision/resnet50", "timm/resnet50", or an OpenMMLab backbone as a dict
    (`dict(type="mmpretrain.ResNet", depth=50)`). The tensors in the file must have the names of
    that library, after `prefix` is removed ("module.model.", "backbone."). Unless
    `has_logits=True`, the classifier of a torchvision or timm network is not built and its tensors
    are ignored; `drop` lists other tensors to ignore. The input normalisation is ImageNet's unless
    `mean` and `std` are given. See `NetworkTeacher` for the other arguments.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        input_px: int,
        *,
        has_logits: bool | None = False,
        **options: Any,
    ) -> None:
        super().__init__(name, model, input_px, has_logits=bool(has_logits), **options)

    def make(self, model: Any, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
        if isinstance(model, Mapping):
            if with_head:
                raise KdepError(
                    "an OpenMMLab backbone has no logits, but has_logits is set",
                    fix="set has_logits=False, or use a teacher of type MMPretrain",
                )
            return make_backbone(model, args), ""
        library, name = split_name(model)
        return LIBRARIES[library].make(name, args, with_head)

    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        if isinstance(self.model, Mapping):
            outputs, final, tokens = mmpretrain_models.backbone_parts(self.net, x_B3HW)
            return NetworkOutput(final, mmpretrain_models.pooled(outputs[-1]), None, tokens)
        if split_name(self.model)[0] == "timm":
            return timm_models.parts(self.net, x_B3HW)
        return torchvision_models.parts(self.net, x_B3HW, self.head_path)

    def as_map(self, out: Any) -> Tensor:
        if isinstance(self.model, Mapping):
            extra = int(getattr(self.net, "num_extra_tokens", 0))  # type: ignore[arg-type]
            tokens = isinstance(out, Tensor) and out.ndim == 3
            return grid(out, extra) if tokens else super().as_map(out)
        library = LIBRARIES[split_name(self.model)[0]]
        return super().as_map(library.as_map(self.net, out))

    def hub(self, model: Any, args: dict[str, Any], net: nn.Module) -> Hub | None:
        return None

    def statistics(
        self, model: Any, args: dict[str, Any], net: nn.Module
    ) -> tuple[Sequence[float], Sequence[float]]:
        return normalisation.MEAN, normalisation.STD


def split_name(model: Any) -> tuple[str, str]:
    """Splits a name such as "timm/resnet50" into library and model name.

    Raises:
        KdepError: an unknown library.
    """
    library, _, name = str(model).partition("/")
    if library not in LIBRARIES or not name:
        raise unknown_name("library", library, LIBRARIES, place=f"the model {model!r}")
    return library, name


def make_backbone(model: Mapping[str, Any], args: Mapping[str, Any]) -> nn.Module:
    """Builds an OpenMMLab backbone with random weights; raises KdepError if mmpretrain cannot."""
    mmpretrain_models.register_models()
    from mmpretrain.registry import MODELS

    try:
        net: Any = MODELS.build({**model, **args, "init_cfg": None})
    except (KeyError, TypeError, ValueError, AssertionError) as e:
        raise KdepError(
            f"the backbone {dict(model)} cannot be built ({e})",
            fix="correct `model=` in the teacher's config",
        ) from e
    net.init_weights()
    return net
