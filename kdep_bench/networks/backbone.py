"""Builds OpenMMLab backbones, and reads their last map before the final activation (the tap).

For a network that does not end in an activation (ConvNeXt, Swin and ViT end in a norm), the tap is
"output": the map that its classifier averages. `kdep_bench/students/discover.py` finds the tap of
any network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError
from kdep_bench.networks.taps import find_last_activation, global_mean, is_rectified, nonzero_scales

# {backbone class of mmpretrain 1.2.0 or kdep_bench.students: function that returns the path of its
# last activation}
LAST_ACTIVATION: dict[str, Callable[[Any], str]] = {
    "ResNet": lambda net: f"{net.res_layers[-1]}.{len(getattr(net, net.res_layers[-1])) - 1}.relu",
    "MobileNetV2": lambda net: "conv2.activate",
    "MobileNetV3": lambda net: f"{net.layers[-1]}.activate",
    "EfficientNetLite": lambda net: "bn2.act",
}

OUTPUT = "output"  # the tap of a network that does not end in an activation


def build_backbone(student: Mapping[str, Any], **overrides: Any) -> nn.Module:
    """Builds the student's backbone with random weights, or with the weights of its `init_cfg`.

    Weights are drawn from torch's global generator, which the caller must seed.

    Args:
        student: a student config; its `backbone` is built.
        overrides: arguments of the backbone that replace those of the config (`out_indices`,
            `init_cfg`, ...).

    Raises:
        KdepError: the type is not a network.
    """
    if openmmlab.current_scope() is None:  # every scope has mmpretrain's models
        openmmlab.setup("mmpretrain")
    from mmpretrain.registry import MODELS

    net = MODELS.build({**student["backbone"], **overrides})
    if not isinstance(net, nn.Module):
        raise KdepError(
            f"the backbone type {student['backbone'].get('type')} is not a torch.nn.Module",
            fix="correct `backbone` in the student config",
        )
    net.init_weights()  # type: ignore[operator]
    return net


def activation_module(backbone: nn.Module, tap: str) -> nn.Module:
    """The backbone's last activation; see `PreActivationTap` for `tap`.

    Raises:
        KdepError: an unknown class or module path.
    """
    kind = type(backbone).__name__
    path = tap
    if tap == "last_pre_activation":
        if kind not in LAST_ACTIVATION:
            raise KdepError(
                f"the last activation of the backbone {kind} is not known",
                expected=f"one of {sorted(LAST_ACTIVATION)}",
                fix="set `tap=` in the student config to the module path of its last activation "
                "(kdep-bench student finds it)",
            )
        path = LAST_ACTIVATION[kind](backbone)
    try:
        return backbone.get_submodule(path)
    except AttributeError:
        raise KdepError(
            f"the backbone {kind} has no module {path!r}",
            expected="the path of its last activation",
            fix="correct `tap=` in the student config",
        ) from None


class PreActivationTap(nn.Module):
    """Runs a backbone and returns its last map before and after the final activation.

    A hook records the input of the last activation module, and `inplace` is set to False there. The
    names of the backbone's parameters do not change. A ResNet block calls its activation twice, the
    second time after the addition of the shortcut; the last call is used.

    Args:
        backbone: an OpenMMLab backbone whose last output is the final map.
        tap: "last_pre_activation": before the last activation, which is known for some classes (see
            LAST_ACTIVATION); "output": the last map itself, for a network that does not end in an
            activation; or the module path of the last activation.

    Raises:
        KdepError: an unknown class or module path.
    """

    def __init__(self, backbone: nn.Module, tap: str = "last_pre_activation") -> None:
        super().__init__()
        self.backbone = backbone
        self._recorded: Tensor | None = None
        self._activation: list[nn.Module] = []  # in a list, so that torch does not register it
        if tap == OUTPUT:
            return
        module = activation_module(backbone, tap)
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
        module.register_forward_pre_hook(self._record)
        self._activation.append(module)

    def _record(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._recorded = args[0]

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the backbone on a normalised batch.

        Returns:
            the last map before and after the final activation, each [B, C, H, W]; with the tap
            "output" both are the same map.
        """
        out = self.backbone(x_B3HW)
        post_activation = out[-1] if isinstance(out, (tuple, list)) else out
        if not self._activation:
            return post_activation, post_activation
        pre_activation, self._recorded = self._recorded, None
        assert pre_activation is not None
        return pre_activation, post_activation

    @torch.no_grad()
    def verify(self, width: int, px: int) -> None:
        """Checks with noise images that activation(tap) equals the backbone's output.

        For the check, norm scales that are initialised to zero (in residual branches) are set to
        one. With zero, a block is the identity, and a tap at an earlier block would not be noticed.

        Args:
            width: the expected number of channels.
            px: side of the noise images in pixels.

        Raises:
            KdepError: another number of channels, or the tap is not the input of the last
                activation.
        """
        was_training = self.training
        self.eval()
        x = torch.randn(2, 3, px, px)
        with nonzero_scales(self):
            pre_activation, post_activation = self(x)
        # With the tap "output" the backbone must not end in an activation.
        unexpected = None if self._activation else find_last_activation(self, lambda: self(x)[1])
        self.train(was_training)
        if pre_activation.shape[1] != width:
            raise KdepError(
                f"the student's last map has {pre_activation.shape[1]} channels",
                expected=f"{width}, the `width` of its config",
                fix="correct `width` in the student config",
            )
        if unexpected is not None or (
            not self._activation and is_rectified(post_activation, pool(post_activation))
        ):
            activation = "an activation that is not a module"
            fix = "use a network whose last activation is a module, and set `tap=` to its path"
            if unexpected:
                activation = f"the activation {unexpected.removeprefix('backbone.')}"
                fix = f"set tap={unexpected.removeprefix('backbone.')!r} in the student config"
            raise KdepError(
                f"tap='output' is wrong for {type(self.backbone).__name__}, which ends in "
                f"{activation}",
                fix=fix,
            )
        if self._activation and not torch.equal(
            self._activation[0](pre_activation), post_activation
        ):
            raise KdepError(
                f"the tap of {type(self.backbone).__name__} is not the input of its last "
                "activation",
                expected="activation(tap) equal to the backbone's output",
                fix="set `tap=` in the student config to the module path of the last activation",
            )


pool = global_mean
