"""A teacher made of a library's network: its weights checked, its tap found and proved."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import check_stated
from kdep_bench.errors import KdepError
from kdep_bench.networks.taps import (
    capture_modules,
    find_last_activation,
    global_mean,
    is_rectified,
)
from kdep_bench.teachers.base import Teacher, TeacherOutput, freeze
from kdep_bench.teachers.weights import RANDOM, Hub, find_weights, fit, read_weights

LAST = "last"


class NetworkOutput(NamedTuple):
    """What a library's network gives for a batch.

    Attributes:
        final: [B, C, H, W], the last spatial map (patch tokens as a grid), or None without one.
        read: [B, D], what the classifier reads.
        logits: [B, classes] or None.
        tokens: [B, T, D] or None.
    """

    final: Tensor | None
    read: Tensor
    logits: Tensor | None
    tokens: Tensor | None


def grid(tokens_BTC: Tensor, extra: int) -> Tensor:
    """[B, T, C] patch tokens after `extra` leading ones -> [B, C, H, W], H = W."""
    b, t, c = tokens_BTC.shape
    side = math.isqrt(t - extra)
    if side * side != t - extra:
        raise KdepError(
            f"the network has {t - extra} patch tokens",
            expected="a square number, from a square image",
        )
    return tokens_BTC[:, extra:].transpose(1, 2).reshape(b, c, side, side)


class NetworkTeacher(Teacher):
    """A teacher whose network a library builds by name. One subclass a library.

    The tap "before" (KDEP's) is the global mean of the last map before the last activation, found
    by running the network on noise and proved: activation(tap) equals the network's own final map.
    A network that does not end in an activation (Swin, ViT, ConvNeXt: a norm is last) has no such
    place; its tap is what its classifier reads: the mean of the normed map (Swin), the normed class
    token or mean (ViT), the norm of the mean (ConvNeXt). The tap "read" is that for any network.

    Where a linear 1x1 convolution comes last (EfficientNet: 320 -> 1280, MobileNetV2: 320 -> 1280),
    the feature "before" has rank <= 320, so "read" is the richer target. What comes out of a
    LayerNorm lies in a hyperplane, whatever its scale and shift: rank <= width - 1.

    Args:
        name: name in records.
        model: the library's name of the architecture.
        input_px: side of the square input.
        weights: a file (see `read_weights`), None for the library's own weights of that name, or
            "random" (seeded; for tests).
        sha256: of the weights file; verified.
        download: allows the library's own weights to be fetched when they are not here yet.
        prefix, drop, key: see `read_weights`.
        tap: "before" or "read".
        maps: name -> module path inside the network: more spatial maps to give. "last" is always
            given: the map whose mean is the pooled feature where the tap is "before" an
            activation, else the network's last map.
        width, has_logits: checked against the network where they are stated; has_logits=False
            leaves the classifier, and its tensors in the file, away.
        mean, std: normalisation on the 0-255 scale; by default what the library declares.
        args: more arguments of the architecture.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        input_px: int,
        *,
        weights: str | Path | None = None,
        sha256: str | None = None,
        download: bool = False,
        prefix: str = "",
        drop: Sequence[str] = (),
        key: str | None = None,
        tap: Literal["before", "read"] = "before",
        maps: Mapping[str, str] | None = None,
        width: int | None = None,
        has_logits: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        if tap not in ("before", "read"):
            raise KdepError(f"teacher {name} has tap={tap!r}", expected="'before' or 'read'")
        check_stated({"name": name, "mean": mean, "std": std})
        options = dict(args or {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # what no file fills must not differ between processes
            net, head = self.make(model, options, has_logits is not False)
        if weights != RANDOM:
            path = find_weights(name, weights, self.hub(model, options, net), download)
            tensors = read_weights(path, sha256, key, prefix, drop)
            if has_logits is False and head:
                tensors = {k: v for k, v in tensors.items() if not k.startswith(head + ".")}
            self.load(net, tensors, path)
        if mean is None or std is None:
            mean, std = self.statistics(model, options, net)
        super().__init__(tuple(mean), tuple(std))
        self.head, self.model = head, model
        self.name, self.input_px, self.net = name, input_px, freeze(net)
        self._paths = dict(maps or {})
        self._activation: str | None = None
        self.tap = self._find_tap(tap)
        self._measure(width, has_logits)

    # -- what a library says of its networks ---------------------------------------------------

    @abstractmethod
    def make(self, model: Any, args: dict[str, Any], head: bool) -> tuple[nn.Module, str]:
        """The network with random weights, and the path of its classifier ("" for none)."""

    @abstractmethod
    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        """Runs `self.net`."""

    @abstractmethod
    def hub(self, model: Any, args: dict[str, Any], net: nn.Module) -> Hub | None:
        """Where the library's own weights of that name come from; None where it has none."""

    @abstractmethod
    def statistics(
        self, model: Any, args: dict[str, Any], net: nn.Module
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and deviation of the input on the 0-255 scale."""

    def load(self, net: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
        """Fills `net` and proves it; see `fit`."""
        fit(net, tensors, source)

    def as_map(self, out: Any) -> Tensor:
        """A submodule's output as [B, C, H, W]."""
        out = out[-1] if isinstance(out, (tuple, list)) else out
        if not isinstance(out, Tensor) or out.ndim != 4:
            raise KdepError(
                f"a feature map of teacher {self.name} has the shape "
                f"{tuple(getattr(out, 'shape', ()))}",
                expected="[B, C, H, W]",
                fix="choose another module in `maps=`",
            )
        return out

    # -- the tap -------------------------------------------------------------------------------

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """See `TeacherOutput`; `tokens` are as the network's last layer or norm gives them."""
        wanted: dict[str, Any] = {f"map:{n}": (p, "out") for n, p in self._paths.items()}
        if self._activation:
            wanted["tap"] = (self._activation, "in")
        with capture_modules(self.net, wanted) as seen:
            parts = self.parts(x_B3HW)
        last = seen.get("tap", parts.final)
        pooled = parts.read if self._activation is None else global_mean(seen["tap"])
        maps = {} if last is None else {LAST: last}
        maps.update({n: self.as_map(seen[f"map:{n}"]) for n in self._paths})
        return TeacherOutput(pooled, parts.logits, maps, parts.tokens)

    @staticmethod
    def _end(parts: NetworkOutput) -> Tensor:
        return parts.read if parts.final is None else parts.final

    def _noise(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, 3, self.input_px, self.input_px, generator=generator)

    @torch.no_grad()
    def _find_tap(self, tap: str) -> str:
        """Finds the tap and says where it is, for people."""
        missing = [p for p in self._paths.values() if p not in dict(self.net.named_modules())]
        if missing or LAST in self._paths:
            raise KdepError(
                f"`maps` of teacher {self.name} contains {missing or [LAST]}",
                expected="module paths of the network, and no map named 'last'",
                fix="correct `maps=`",
            )
        if tap == "read":
            return "what the classifier reads"
        x = self._noise()
        try:
            path = find_last_activation(self.net, lambda: self._end(self.parts(x)))
            last, read = self.parts(x)[:2]
        except (RuntimeError, AssertionError, ValueError) as e:
            raise KdepError(
                f"teacher {self.name} does not run on images of {self.input_px} px "
                f"({str(e).strip().splitlines()[0][:160]})",
                fix="correct `input_px=` or `args=` (img_size, dynamic_img_size)",
            ) from e
        if path is not None:
            self._activation = path
            module = self.net.get_submodule(path)
            with capture_modules(self.net, {"tap": (path, "in")}) as seen:
                after = self.parts(x).final
            if after is None or not torch.equal(module(seen["tap"]), after):
                raise KdepError(
                    f"the tap {path} of teacher {self.name} is not the input of the activation "
                    "before its final map",
                    expected="activation(tap) equal to the final map",
                    fix="set tap='read'",
                )
            return f"before {path} ({type(module).__name__})"
        if last is not None and is_rectified(last, read):
            raise KdepError(
                f"the last map of teacher {self.name} is the output of a ReLU that is not a "
                "module, or is pooled after it",
                expected="a network whose last activation can be found, or that ends without one",
                fix="set tap='read' to use the feature that its classifier reads",
            )
        return "what the classifier reads (the network does not end in an activation)"

    @torch.no_grad()
    def _measure(self, width: int | None, has_logits: bool | None) -> None:
        """Sets width, has_logits and the map names from a forward on noise; checks what is said."""
        out = self.features(self._noise())
        self.width, self.has_logits = out.pooled.shape[1], out.logits is not None
        self.map_names = tuple(out.maps)
        for what, said, found in (
            ("width", width, self.width),
            ("has_logits", has_logits, self.has_logits),
        ):
            if said is not None and said != found:
                raise KdepError(
                    f"teacher {self.name} has {what}={found}",
                    expected=f"{said}, the value in its config",
                    fix=f"correct `{what}=`",
                )
