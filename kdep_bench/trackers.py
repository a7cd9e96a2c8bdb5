"""`runtime.trackers` of a suite: TensorBoard or MLflow logging of pre-training and transfer.

Scalars are logged by mmengine's Visualizer backends. Stages receive their configs by an environment
variable, not in the spec, because they must not change a stage's hash. Nothing is read back.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from kdep_bench.errors import KdepError, unknown_name

Json = dict[str, Any]
_VARIABLE = "KDEP_TRACKERS"
KINDS = ("pretrain", "transfer")  # kinds of stages with an mmengine Runner


class Tracker(NamedTuple):
    """A backend of mmengine, the package that it requires, and the keys that it accepts."""

    backend: str
    package: str
    keys: tuple[str, ...]


TRACKERS = {
    "tensorboard": Tracker("mmengine.TensorboardVisBackend", "tensorboard", ()),
    "mlflow": Tracker(
        "mmengine.MLflowVisBackend", "mlflow", ("tracking_uri", "exp_name", "run_name", "tags")
    ),
}


def resolve(entries: Sequence[Any]) -> list[Json]:
    """Backend configs of `runtime.trackers`.

    Args:
        wanted: names ('tensorboard', 'mlflow'), or dicts with the name as `type` and the backend's
            keys, such as dict(type="mlflow", tracking_uri="http://host:5000").

    Raises:
        KdepError: an unknown name or key, or a package that is not installed.
    """
    return [_resolve(entry) for entry in entries]


def _resolve(entry: Any) -> Json:
    given = (
        {"type": entry}
        if isinstance(entry, str)
        else dict(entry)
        if isinstance(entry, dict)
        else {}
    )
    name = given.pop("type", None)
    if not isinstance(name, str):
        raise KdepError(
            f"runtime.trackers contains {entry!r:.80}",
            expected="a name, or dict(type=<name>, ...): " + ", ".join(TRACKERS),
            fix="correct the suite",
        )
    if name not in TRACKERS:
        raise unknown_name("tracker in runtime.trackers", name, TRACKERS)
    tracker = TRACKERS[name]
    for key in given:
        if key not in tracker.keys:
            raise unknown_name(f"key of the tracker {name!r}", str(key), tracker.keys)
    if importlib.util.find_spec(tracker.package) is None:
        raise KdepError(
            f"the suite uses the tracker {name!r}, but the package {tracker.package} is not "
            "installed",
            fix="run: pip install 'kdep_bench[trackers]', or remove it from runtime.trackers",
        )
    return {"type": tracker.backend, **given}


def set_backends(backends: Sequence[Json], run: str) -> None:
    """Sets the backends of all later Runners in this process and its child processes.

    Args:
        backends: configs from `resolve`; empty for none.
        run: name of the run in the tracker.
    """
    os.environ.pop(_VARIABLE, None)
    named = [
        {"exp_name": "kdep_bench", "run_name": run, **b} if "MLflow" in b["type"] else dict(b)
        for b in backends
    ]
    if named:
        os.environ[_VARIABLE] = json.dumps(named)
    if any("MLflow" in b["type"] for b in named):
        # Without a tracking_uri mmengine's backend writes files, which MLflow 3 must be allowed to.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def current_backends() -> list[Json]:
    """The backend configs of the last call of `set_backends`."""
    return json.loads(os.environ.get(_VARIABLE, "[]"))
