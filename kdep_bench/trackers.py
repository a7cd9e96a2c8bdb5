"""Experiment trackers (`runtime.trackers` of a suite): TensorBoard, MLflow or Weights & Biases.

mmengine's Visualizer backends log the scalars of pre-training and transfer. Stages receive the
backends' configs in an environment variable, not in their spec, because the trackers must not
change a stage's id. Nothing is read from the trackers.
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
    """One of the supported trackers.

    Attributes:
        backend: type of mmengine's Visualizer backend.
        package: package that it requires.
        keys: keys that its config may have.
        init_keys: further keys, which mmengine's backend passes to `init` of the package.
        run_key: key of the name of the run, one of `keys` or `init_keys`; "" if runs have no name.
        project_key: key of the name that groups all runs; "" if there is none.
        settings: further arguments of the backend.
    """

    backend: str
    package: str
    keys: tuple[str, ...] = ()
    init_keys: tuple[str, ...] = ()
    run_key: str = ""
    project_key: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    def with_run(self, config: Json, run: str) -> Json:
        """The backend config with the name of the run, unless it already has one."""
        names = {self.project_key: "kdep_bench", self.run_key: run}
        names.pop("", None)
        if not names:
            return dict(config)
        if self.init_keys:
            return {**config, "init_kwargs": {**names, **config.get("init_kwargs", {})}}
        return {**names, **config}


TRACKERS = {
    "tensorboard": Tracker("mmengine.TensorboardVisBackend", "tensorboard"),
    "mlflow": Tracker(
        "mmengine.MLflowVisBackend",
        "mlflow",
        keys=("tracking_uri", "exp_name", "run_name", "tags"),
        run_key="run_name",
        project_key="exp_name",
    ),
    "wandb": Tracker(
        "mmengine.WandbVisBackend",
        "wandb",
        init_keys=("project", "entity", "group", "name", "tags", "notes", "mode", "dir"),
        run_key="name",
        project_key="project",
        # mmengine's backend passes no step; charts shall have the iterations on the x axis.
        settings=(("define_metric_cfg", [{"name": "*", "step_metric": "iter"}]),),
    ),
}


def resolve(entries: Sequence[Any]) -> list[Json]:
    """The backend configs for the entries of `runtime.trackers`.

    Args:
        entries: names ('tensorboard', 'mlflow', 'wandb'), or dicts with the name as `type` and the
            keys of the tracker, such as dict(type="mlflow", tracking_uri="http://host:5000") or
            dict(type="wandb", mode="offline").

    Raises:
        KdepError: a name or key is unknown, or a package is not installed.
    """
    return [_resolve(entry) for entry in entries]


def _resolve(entry: Any) -> Json:
    """The backend config for one entry; see `resolve`."""
    if isinstance(entry, str):
        config: Json = {"type": entry}
    else:
        config = dict(entry) if isinstance(entry, dict) else {}
    name = config.pop("type", None)
    if not isinstance(name, str):
        raise KdepError(
            f"runtime.trackers contains {entry!r:.80}",
            expected="a name, or dict(type=<name>, ...): " + ", ".join(TRACKERS),
            fix="correct the suite",
        )
    if name not in TRACKERS:
        raise unknown_name("tracker", name, TRACKERS, place="runtime.trackers")
    tracker = TRACKERS[name]
    allowed = (*tracker.keys, *tracker.init_keys)
    for key in config:
        if key not in allowed:
            raise unknown_name("key", str(key), allowed, place=f"the tracker {name!r}")
    if importlib.util.find_spec(tracker.package) is None:
        raise KdepError(
            f"the suite uses the tracker {name!r}, but the package {tracker.package} is not "
            "installed",
            fix="run: pip install 'kdep_bench[trackers]', or remove it from runtime.trackers",
        )
    init_kwargs = {key: config.pop(key) for key in tracker.init_keys if key in config}
    if init_kwargs:
        config["init_kwargs"] = init_kwargs
    return {"type": tracker.backend, **dict(tracker.settings), **config}


def set_backends(backends: Sequence[Json], run: str) -> None:
    """Sets the backends of all later Runners in this process and its child processes.

    Args:
        backends: configs from `resolve`; [] for no tracker.
        run: name of the run in the tracker.
    """
    os.environ.pop(_VARIABLE, None)
    trackers = {tracker.backend: tracker for tracker in TRACKERS.values()}
    configs = [trackers[config["type"]].with_run(config, run) for config in backends]
    if configs:
        os.environ[_VARIABLE] = json.dumps(configs)
    if any("MLflow" in config["type"] for config in configs):
        # Without a tracking_uri mmengine's backend logs to files, which MLflow 3 allows only with
        # this variable.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def current_backends() -> list[Json]:
    """The backend configs of the last call of `set_backends`."""
    return json.loads(os.environ.get(_VARIABLE, "[]"))
