"""NetworkTeacher: a teacher built from a library's network, which finds its tap itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdep_bench.data.normalisation import check_stated
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.networks.taps import (
    capture_modules,
    find_last_activation,
    global_mean,
    is_rectified,
)
from kdep_bench.teachers.base import Teacher, TeacherOutput, freeze
from kdep_bench.teachers.weights import RANDOM, Hub, find_weights, load_network, read_weights

LAST = "last"


class NetworkOutput(NamedTuple):
    """The output of a library's network for a batch.

    Attributes:
        final: [B, C, H, W], the last spatial map (patch tokens as a grid); None if there is none.
        read: [B, D], the input of the classifier.
        logits: [B, classes] or None.
        tokens: [B, T, D] or None.
    """

    final: Tensor | None
    read: Tensor
    logits: Tensor | None
    tokens: Tensor | None


def grid(tokens_BTC: Tensor, extra: int) -> Tensor:
    """Reshapes the patch tokens to a map [B, C, H, W] with H = W.

    Args:
        tokens_BTC: [B, T, C] tokens.
        extra: number of leading tokens that are not patches (class token, registers).

    Raises:
        KdepError: the number of patches is not a square.
    """
    b, t, c = tokens_BTC.shape
    side = math.isqrt(t - extra)
    if side * side != t - extra:
        raise KdepError(
            f"the network has {t - extra} patch tokens",
            expected="a square number, from a square image",
            fix="correct `input_px=`, or the number of leading tokens of the teacher's class",
        )
    return tokens_BTC[:, extra:].transpose(1, 2).reshape(b, c, side, side)


class NetworkTeacher(Teacher):
    """A teacher whose network is built by a library from a name; each library has a subclass.

    Tap "before" (as in KDEP): the input of the last activation, averaged over positions. It is
    found by running the network on noise, and verified: activation(tap) must equal the last map. A
    network that does not end in an activation (Swin, ViT and ConvNeXt end in a norm) is tapped at
    the input of its classifier: the mean of the normalised map (Swin), the normalised class token
    or mean (ViT), or the normalised mean (ConvNeXt).

    Tap "read": the input of the classifier, for any network. Use it for networks that end in a
    linear 1x1 convolution from 320 to 1280 channels (EfficientNet, MobileNetV2): there the feature
    "before" has a rank of at most 320. (The output of a LayerNorm has a rank of at most width - 1.)

    Args:
        name: name in records.
        model: the library's name of the architecture.
        input_px: side of the square input in pixels.
        weights: path of a file (see `read_weights`); None: the library's weights of that name;
            "random": seeded random weights, for tests.
        sha256: expected SHA-256 of the weights file.
        download: whether the library's weights may be downloaded if they are not on this machine.
        prefix, drop, key: see `read_weights`.
        tap: "before" or "read".
        maps: {name: module path in the network} of additional spatial maps. A network with a
            spatial map also has the map "last": for a tap before an activation, the map whose mean
            is the pooled feature, otherwise the network's last map.
        width, has_logits: if given, compared with the network; with has_logits=False no classifier
            is built, and its tensors in the file are ignored.
        mean, std: normalisation per RGB channel on the 0-255 scale; default: the library's.
        args: other arguments of the architecture.

    `up_to` accepts a name in `maps` or a module path.

    Raises:
        KdepError: an unknown model or argument, weights that are missing or do not fit, or a
            network whose tap cannot be found.
    """

    layers_by_path = True

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
            raise KdepError(
                f"teacher {name} has tap={tap!r}",
                expected="'before' or 'read'",
                fix="correct `tap=` in the teacher's config",
            )
        check_stated({"name": name, "mean": mean, "std": std})
        options = dict(args or {})
        with torch.random.fork_rng(devices=[]):
            # Tensors that are not in the weights file must be equal in all processes.
            torch.manual_seed(0)
            net, head_path = self.make(model, options, has_logits is not False)
        if weights != RANDOM:
            path = find_weights(name, weights, self.hub(model, options, net), download)
            tensors = read_weights(path, sha256, key, prefix, drop)
            if has_logits is False and head_path:
                tensors = {k: v for k, v in tensors.items() if not k.startswith(head_path + ".")}
            self.load(net, tensors, path)
        if mean is None or std is None:
            mean, std = self.statistics(model, options, net)
        super().__init__(tuple(mean), tuple(std))
        self.head_path, self.model = head_path, model
        self.name, self.input_px, self.net = name, input_px, freeze(net)
        self._paths = dict(maps or {})
        self._activation: str | None = None
        self.tap = self._find_tap(tap)
        self._measure(width, has_logits)

    # -- implemented per library ---------------------------------------------------------------

    @abstractmethod
    def make(self, model: Any, args: dict[str, Any], with_head: bool) -> tuple[nn.Module, str]:
        """Builds the network with random weights.

        Returns:
            the network, and the module path of its classifier ("" if there is none).
        """

    @abstractmethod
    def parts(self, x_B3HW: Tensor) -> NetworkOutput:
        """Runs `self.net` on a normalised batch."""

    @abstractmethod
    def hub(self, model: Any, args: dict[str, Any], net: nn.Module) -> Hub | None:
        """The Hub for the library's weights of that name; None if there are none."""

    @abstractmethod
    def statistics(
        self, model: Any, args: dict[str, Any], net: nn.Module
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation per RGB channel of the input, on the 0-255 scale."""

    def load(self, net: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
        """Loads all tensors into `net`, and verifies them; see `load_network`."""
        load_network(net, tensors, source)

    def layer_module(self, layer: str) -> nn.Module:
        path = self._paths.get(layer, layer)
        known = dict(self.net.named_modules())
        if not path or path not in known:
            outer = [p for p in known if p and p.count(".") < 2]
            raise unknown_name(
                "layer", layer, [*self._paths, *outer], place=f"the teacher {self.name}"
            )
        return known[path]

    # -- the tap -------------------------------------------------------------------------------

    def features(self, x_B3HW: Tensor) -> TeacherOutput:
        """Runs the network; `tokens` are the output of its last layer or norm."""
        points: dict[str, Any] = {f"map:{n}": (p, "out") for n, p in self._paths.items()}
        if self._activation:
            points["tap"] = (self._activation, "in")
        with capture_modules(self.net, points) as recorded:
            output = self.parts(x_B3HW)
        last = recorded.get("tap", output.final)
        pooled = output.read if self._activation is None else global_mean(recorded["tap"])
        maps = {} if last is None else {LAST: last}
        maps.update({n: self.as_map(recorded[f"map:{n}"]) for n in self._paths})
        return TeacherOutput(pooled, output.logits, maps, output.tokens)

    @staticmethod
    def _end(output: NetworkOutput) -> Tensor:
        """The last map, or the input of the classifier if there is no map."""
        return output.read if output.final is None else output.final

    def _noise(self) -> Tensor:
        """Two seeded images of Gaussian noise, as normalised input."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, 3, self.input_px, self.input_px, generator=generator)

    @torch.no_grad()
    def _find_tap(self, tap: str) -> str:
        """Finds and verifies the tap; returns text that states where in the network it is."""
        missing = [p for p in self._paths.values() if p not in dict(self.net.named_modules())]
        if missing or LAST in self._paths:
            problem = f"the paths {missing}, which the network does not have"
            raise KdepError(
                f"`maps` of teacher {self.name} has {problem if missing else 'a map named last'}",
                expected="module paths of the network, under other names than 'last'",
                fix="correct `maps=` in the teacher's config",
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
            with capture_modules(self.net, {"tap": (path, "in")}) as recorded:
                final = self.parts(x).final
            if final is None or not torch.equal(module(recorded["tap"]), final):
                raise KdepError(
                    f"the tap {path} of teacher {self.name} is not the input of the activation "
                    "before its final map",
                    expected="activation(tap) equal to the final map",
                    fix="set tap='read'",
                )
            return f"before {path} ({type(module).__name__})"
        if last is not None and is_rectified(last, read):
            raise KdepError(
                f"the last activation of teacher {self.name} is a ReLU that is not a module, so "
                "its input cannot be read",
                expected="a network that ends in an activation module, or in no activation",
                fix="set tap='read' to use the input of its classifier",
            )
        return "what the classifier reads (the network does not end in an activation)"

    @torch.no_grad()
    def _measure(self, width: int | None, has_logits: bool | None) -> None:
        """Sets width, has_logits and map_names from a forward pass on noise.

        Raises:
            KdepError: the config states another `width` or `has_logits`.
        """
        out = self.features(self._noise())
        self.width, self.has_logits = out.pooled.shape[1], out.logits is not None
        self.map_names = tuple(out.maps)
        for key, stated, actual in (
            ("width", width, self.width),
            ("has_logits", has_logits, self.has_logits),
        ):
            if stated is not None and stated != actual:
                raise KdepError(
                    f"teacher {self.name} has {key}={actual}",
                    expected=f"{stated}, the value in its config",
                    fix=f"correct `{key}=`",
                )
