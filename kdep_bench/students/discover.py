"""Creates a student's config for a network of timm or mmpretrain: tap, width and pyramid.

    python tools/make_student.py timm/resnet18d

writes a config to `configs/students/`. Its values are measured by running the network; the
pre-training stage checks them again before it trains.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import OUTPUT, PreActivationTap, build_backbone, pool
from kdep_bench.networks.taps import find_last_activation, is_rectified, nonzero_scales
from kdep_bench.students.python_text import python_text

STRIDES = (4, 8, 16, 32)  # strides of the levels of a pyramid
TIMM = "kdep_bench.students.timm_backbone.TimmBackbone"
# Arguments that let networks with a fixed input size accept other sizes: for ViT, for Swin, and for
# networks without such arguments. The first dict that timm accepts is used.
TIMM_ARGS: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False, "always_partition": True},
    {},
)
# Arguments that are set by a task, or that are not part of an architecture.
_TASK_ARGS = {"init_cfg", "frozen_stages", "out_indices", "drop_path_rate"}
_MAX_LEVELS = 20  # maximum number of levels that are tried for a backbone of mmpretrain


def discover(name: str, input_px: int = 224) -> dict[str, Any]:
    """The student config of "timm/<model>" or "mmpretrain/<name in its zoo>".

    Args:
        name: the library, and the name of the network in it.
        input_px: side of the images in pre-training, in pixels.

    Raises:
        KdepError: an unknown name (the error lists similar ones), or a network that does not fit
            the requirements of a student.
    """
    library, _, model = name.partition("/")
    if library == "timm":
        backbone = _timm(model, input_px)
    elif library == "mmpretrain":
        backbone = _mmpretrain(model)
    else:
        raise KdepError(
            f"the student {name!r} does not name a library",
            expected="timm/MODEL or mmpretrain/MODEL, such as timm/resnet18",
            fix="put the library in front of the model's name",
        )
    net = _build(backbone)
    width, tap = find_tap(net, input_px)
    student: dict[str, Any] = dict(
        name=re.sub(r"[^a-z0-9_]+", "_", model.lower()),
        backbone=backbone,
        width=width,
        input_px=input_px,
        tap=tap,
    )
    if pyramid := find_pyramid(backbone, net, input_px):
        student["pyramid"] = pyramid
    check_student(student)
    return student


def _timm(model: str, px: int) -> dict[str, Any]:
    """The backbone config of a network of timm, with arguments for images of `px` pixels."""
    fault: Exception | None = None
    for args in TIMM_ARGS:
        config = {"type": TIMM, "model": model, **args}
        try:
            _outputs(_build(config), px)
        except KdepError as e:
            if e.__cause__ is None:  # the model is unknown; other errors are about its arguments
                raise
            fault = e
        except (AssertionError, RuntimeError) as e:
            fault = e
        else:
            return config
    raise KdepError(
        f"timm's {model} does not run on images of {px} px ({fault})",
        fix="choose another size (--px) or another student",
    )


def _mmpretrain(model: str) -> dict[str, Any]:
    """The backbone config of a network of mmpretrain."""
    from kdep_bench.teachers.mmpretrain_models import zoo_entry

    entry = zoo_entry(model).config.model
    backbone = {k: v for k, v in dict(entry.backbone).items() if k not in _TASK_ARGS}
    backbone["type"] = f"mmpretrain.{backbone['type']}"
    return backbone


def _build(backbone: Mapping[str, Any], **overrides: Any) -> nn.Module:
    """Builds a network with fixed random weights; the global random generator is unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_backbone({"backbone": backbone}, **overrides)


@torch.no_grad()
def _outputs(net: nn.Module, height: int, width: int | None = None) -> list[Tensor]:
    """The output maps of a backbone for one noise image, in eval mode.

    `height` and `width` are in pixels; if `width` is None, the image is square. Raises KdepError if
    the outputs are not maps [1, C, H, W].
    """
    net.eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, height, width or height, generator=generator)
    out = net(x)
    maps = list(out) if isinstance(out, (tuple, list)) else [out]
    if not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        raise KdepError(
            f"the backbone {type(net).__name__} returns "
            f"{[tuple(getattr(m, 'shape', ())) for m in maps]}",
            expected="feature maps [B, C, H, W]",
            fix="take the student from timm ('timm/<model>')",
        )
    return maps


def find_tap(net: nn.Module, px: int) -> tuple[int, str]:
    """(width, tap) of a backbone: channels of its last map, and the path of its last activation.

    The tap is "output" if the network ends without an activation.

    Raises:
        KdepError: the last map is the output of a ReLU that is not a module.
    """
    path = find_last_activation(net, lambda: _outputs(net, px)[-1])
    with nonzero_scales(net):
        last = _outputs(net, px)[-1]
    if path is None and is_rectified(last, pool(last)):
        raise KdepError(
            f"the last map of {type(net).__name__} is the output of a ReLU that is not a module",
            expected="a network whose last activation can be found, or that ends without one",
            fix="choose another student",
        )
    return last.shape[1], OUTPUT if path is None else path


def find_pyramid(backbone: Mapping[str, Any], net: nn.Module, px: int) -> dict[str, Any] | None:
    """`out_indices`, `channels` and `strides` of the levels at strides 4, 8, 16 and 32.

    If several levels have the same stride, the last one is used. The result is None if a stride is
    missing. It is also None if the network has other parameters when it returns all levels
    (mmpretrain's ConvNeXt and Swin add a norm per level): pre-trained weights could then not be
    loaded completely.
    """
    if hasattr(net, "strides") and hasattr(net, "channels"):  # a TimmBackbone
        indices: Sequence[int] = range(len(net.strides))  # type: ignore[arg-type]
    else:
        indices = _all_levels(backbone)
    if not indices:
        return None
    with_levels = _build(backbone, out_indices=tuple(indices))
    if list(with_levels.state_dict()) != list(net.state_dict()):
        return None
    side = max(64, 32 * (px // 32))
    levels: dict[int, tuple[int, int]] = {}  # stride -> (index, channels)
    for index, level in zip(indices, _outputs(with_levels, side), strict=True):
        levels[side // level.shape[2]] = index, level.shape[1]
    if any(s not in levels for s in STRIDES):
        return None
    return dict(
        out_indices=tuple(levels[s][0] for s in STRIDES),
        channels=tuple(levels[s][1] for s in STRIDES),
        strides=STRIDES,
    )


def _all_levels(backbone: Mapping[str, Any]) -> range:
    """The indices of all levels that an OpenMMLab backbone can return, found by trial.

    The largest number of levels that runs is used; an empty range if there are fewer than four.
    """
    for count in range(_MAX_LEVELS, len(STRIDES) - 1, -1):
        try:
            _outputs(_build(backbone, out_indices=tuple(range(count))), 64)
        except (AssertionError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            continue
        return range(count)
    return range(0)


def check_student(student: Mapping[str, Any]) -> None:
    """Checks tap, width and pyramid of a student config by running its network.

    Raises:
        KdepError: the config does not fit the network; see also `check_pyramid`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_backbone(student)
        PreActivationTap(net, student["tap"]).verify(student["width"], student["input_px"])
        check_pyramid(student, net)


def check_pyramid(student: Mapping[str, Any], net: nn.Module) -> None:
    """Checks the pyramid of a student, if it has one; `net` is its network.

    Raises:
        KdepError: the levels have other channels or strides (measured on an image that is not
            square), or the network has other parameters when it returns all levels.
    """
    declared = student.get("pyramid") or {}
    if not declared:
        return
    with_levels = _build(student["backbone"], out_indices=tuple(declared["out_indices"]))
    if list(with_levels.state_dict()) != list(net.state_dict()):
        raise KdepError(
            f"the student {student['name']} has different parameters when it returns the levels "
            "of its pyramid, so a task could not load the pre-trained weights",
            fix="take the student from timm ('timm/<model>'), or remove `pyramid`",
        )
    height, width = 64, 96
    shapes = [tuple(m.shape[1:]) for m in _outputs(with_levels, height, width)]
    expected = [
        (c, height // s, width // s)
        for c, s in zip(declared["channels"], declared["strides"], strict=True)
    ]
    if shapes != expected:
        raise KdepError(
            f"the levels of {student['name']} have the shapes {shapes} for an image of "
            f"{height}x{width} pixels",
            expected=f"{expected}, as in its `pyramid`",
            fix="correct `pyramid` in the student config; kdep-bench student measures it",
        )


def config_text(student: Mapping[str, Any], source: str) -> str:
    """The Python source of a student's config; `source` is the name given to `discover`."""
    if not student.get("pyramid"):
        about = "It has no pyramid: classification only."
    else:
        about = "Its levels are at strides 4, 8, 16 and 32."
    tap = "what its classifier pools" if student["tap"] == OUTPUT else f"before {student['tap']}"
    return (
        f'"""{source}: values measured by tools/make_student.py.\n\n'
        f'Tap: {tap}. {about}\n"""\n\nstudent = {python_text(dict(student))}\n'
    )
