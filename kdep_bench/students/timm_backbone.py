"""A timm network as an OpenMMLab backbone, for pre-training and all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.taps import global_mean

STRIDES = (4, 8, 16, 32)  # strides of the levels of a pyramid


class TimmBackbone(BaseModule):
    """The network `model` of timm without its classifier.

    Levels 0, 1, 2 and 3 are the outputs of the last stage at each of the strides 4, 8, 16 and 32
    (`channels`, `strides`). Level 4, the last, is the map that the classifier pools. If the
    classifier does not read the mean of a map (a ViT reads the class token, ConvNeXt the norm of
    the mean), the last level is the classifier's input as [B, C, 1, 1]. A network without stages at
    these strides (ViT) has the last level only, as level 0. The parameters do not depend on the
    choice of levels.

    Args:
        model: name of the network in timm ("resnet18d").
        out_indices: levels to return, ascending; None for the last.
        frozen_stages: -1 freezes nothing, 0 the layers before level 0, k these and levels 0..k-1;
            4 or more freezes the whole network. A network with the last level only is frozen by 0.
        norm_eval: whether BatchNorm is always in eval mode.
        init_cfg: initialisation config of mmengine.
        args: other arguments of `timm.create_model` (`output_stride=8` dilates some networks).

    Raises:
        KdepError: an unknown model, arguments that timm does not accept, or levels that do not
            exist.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: Any = None,
        **args: Any,
    ) -> None:
        super().__init__(init_cfg)
        if not timm.is_model(model.split(".")[0]):
            raise unknown_name("timm model", model, timm.list_models())
        try:
            self.net: Any = timm.create_model(model, pretrained=False, num_classes=0, **args)
        except (TypeError, RuntimeError) as e:
            raise KdepError(
                f"timm cannot build {model} with {args} ({e})",
                fix="correct the arguments of the student's backbone",
            ) from e
        self._stages, self.channels, self.strides = stages(self.net, "output_stride" in args)
        self.last = len(self._stages)
        self.out_indices = (self.last,) if out_indices is None else tuple(out_indices)
        if not self.out_indices or not set(self.out_indices) <= set(range(self.last + 1)):
            raise KdepError(
                f"the student's backbone {model} has out_indices {self.out_indices}",
                expected=f"some of 0..{self.last}" if self.last else "0, because it has no pyramid",
                fix="correct out_indices, or use another student for tasks that need a pyramid",
            )
        self._set_up_head(model)
        self.norm_eval = norm_eval

        self._freeze(frozen_stages)

    def init_weights(self) -> None:
        """Loads the weights of `init_cfg`, if any; timm initialises the others when building."""
        if self.init_cfg:
            super().init_weights()

    def forward(self, x_B3HW: Tensor) -> tuple[Tensor, ...]:
        """Normalised images [B, 3, H, W] to the levels `out_indices`.

        Each level is [B, C, H / stride, W / stride]; the last level may be [B, C, 1, 1].
        """
        chosen = [self._stages[i] for i in self.out_indices if i < self.last]
        if not chosen:
            return (self._head(self.net.forward_features(x_B3HW)),)
        returns_last = self.last in self.out_indices
        out = self.net.forward_intermediates(
            x_B3HW,
            indices=chosen,
            norm=True,
            output_fmt="NCHW",
            intermediates_only=not returns_last,
        )
        if not returns_last:
            return tuple(out)
        return (*out[1], self._head(out[0]))

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and mode:
                frozen = module.weight is not None and not module.weight.requires_grad
                if self.norm_eval or frozen:
                    module.eval()
        return self

    def _head(self, out: Tensor) -> Tensor:
        """The last level, [B, C, H, W] or [B, C, 1, 1], from the output of `forward_features`."""
        if not self._head_is_map:
            return self.net.forward_head(out, pre_logits=True).flatten(1)[:, :, None, None]
        nhwc = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return out.permute(0, 3, 1, 2).contiguous() if nhwc else out

    @torch.no_grad()
    def _set_up_head(self, model: str) -> None:
        """Finds by a forward pass whether the last level is a map, and replaces unused modules.

        If the last level is a map, later modules would not be trained (MobileNetV3 has a 1x1
        convolution after pooling). Those with parameters are replaced by the identity.
        """
        used: set[str] = set()  # names of the children that `forward_features` runs
        handles = [
            module.register_forward_hook(lambda *_, name=name: used.add(name))
            for name, child in self.net.named_children()
            for module in child.modules()
        ]
        was_training = self.net.training
        self.net.eval()
        try:
            out = self.net.forward_features(pattern(64))
        except (AssertionError, RuntimeError):  # the network has a fixed input size
            px = getattr(getattr(self.net, "patch_embed", None), "img_size", None)
            px = px or self.net.pretrained_cfg["input_size"]
            out = self.net.forward_features(pattern(px[-1]))
        finally:
            for handle in handles:
                handle.remove()
        if not isinstance(out, Tensor):
            raise KdepError(
                f"timm's {model} returns a {type(out).__name__} as its features",
                expected="one tensor",
                fix="choose another student",
            )
        self._head_is_map = False
        if out.ndim == 4:
            self._head_is_map = True
            last = self._head(out)
            classifier_input = self.net.forward_head(out, pre_logits=True).flatten(1)
            same_width = classifier_input.shape[1] == last.shape[1]
            self._head_is_map = not same_width or torch.allclose(
                global_mean(last), classifier_input, rtol=1e-3, atol=1e-5
            )
        if self._head_is_map:
            for name, child in list(self.net.named_children()):
                if name not in used and any(True for _ in child.parameters()):
                    setattr(self.net, name, nn.Identity())
        self.net.train(was_training)

    def _freeze(self, stages_frozen: int) -> None:
        """Sets requires_grad=False for the parameters that `frozen_stages` freezes."""
        names = [n for n, _ in self.net.named_parameters()]
        if stages_frozen < 0:
            return
        end = len(names)
        if stages_frozen < self.last:
            module = self.net.feature_info[self._stages[max(stages_frozen - 1, 0)]]["module"]
            indices = [i for i, n in enumerate(names) if n.startswith(module + ".")]
            end = indices[0] if stages_frozen == 0 else indices[-1] + 1
        for name, parameter in self.net.named_parameters():
            if names.index(name) < end:
                parameter.requires_grad_(False)


def stages(net: Any, dilated: bool) -> tuple[list[int], list[int], list[int]]:
    """(timm's stage numbers, channels, strides) of the last stages at strides 4, 8, 16 and 32.

    The lists are empty if the network lacks one of these strides. With `dilated`, the last four
    stages are returned, whose strides are smaller.
    """
    info = getattr(net, "feature_info", None)
    if not info or not hasattr(net, "forward_intermediates"):
        return [], [], []
    rows = [dict(r) for r in (info.info if hasattr(info, "info") else info)]
    if dilated:
        chosen = list(range(len(rows)))[-len(STRIDES) :]
    else:
        index = {int(r["reduction"]): i for i, r in enumerate(rows)}
        if any(s not in index for s in STRIDES):
            return [], [], []
        chosen = [index[s] for s in STRIDES]
    return (
        chosen,
        [int(rows[i]["num_chs"]) for i in chosen],
        [int(rows[i]["reduction"]) for i in chosen],
    )


def pattern(px: int) -> Tensor:
    """A test image [1, 3, px, px] that is not constant and does not use the random generator."""
    return torch.arange(3 * px * px, dtype=torch.float32).sin().reshape(1, 3, px, px)
