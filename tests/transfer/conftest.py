"""Fixtures of the transfer tests: tiny data, an exported student with random weights, and a way to
run a stage in a new process."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from tests.transfer import tiny

REPO = Path(__file__).resolve().parents[2]


def config(kind: str, name: str) -> dict[str, Any]:
    """The dict that configs/<kind>/<name>.py defines, in plain values, as in a stage's spec."""
    from mmengine.config import Config

    from kdep_bench.transfer.mm_config import plain

    return plain(Config.fromfile(REPO / "configs" / kind / f"{name}.py")[kind[:-1]])


def quiet(done: int, total: int, note: str = "") -> None:
    """A progress function that prints nothing. It can be pickled for another process."""


def export_random(student: dict[str, Any], out: Path) -> dict[str, Any]:
    """Saves a random backbone with an aligner as a pre-trained model, and runs the export stage."""
    import torch

    from kdep_bench.networks.backbone import build_backbone
    from kdep_bench.transfer import export

    torch.manual_seed(0)
    backbone = build_backbone(student)
    tensors = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    (out / "pretrain").mkdir(parents=True, exist_ok=True)
    tensors["aligner.weight"] = torch.zeros(3, 3)
    torch.save(tensors, out / "pretrain" / "student.pth")
    (out / "export").mkdir(exist_ok=True)
    return export.run({"student": student}, {"pretrain": out / "pretrain"}, out / "export", quiet)


@pytest.fixture(scope="session")
def in_subprocess() -> Iterator[Callable[..., Any]]:
    """`in_subprocess(function, *args)` calls the function in a new process.

    One process can import mmdet, mmseg and mmpretrain together, but can run only one of them, so
    every call gets its own process. With KDEP_TESTS_FORK it is a fork of this process, which has
    already imported them.
    """
    if os.environ.get("KDEP_TESTS_FORK"):
        yield in_a_fork
        return
    yield in_a_new_process


def in_a_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, or its exception, from a process of the fork server."""
    with ProcessPoolExecutor(1, mp_context=server_with_toolkits()) as pool:
        return pool.submit(with_toolkits, function, *args).result(timeout=300)


# Process id of the fork server that has imported the toolkits; None before its start.
_server_pid: int | None = None


def server_with_toolkits() -> Any:
    """The context of a running fork server that has imported the toolkits.

    Another test may have started the only fork server of this process without the toolkits. Every
    process would then import them, which takes five seconds, so that server is replaced.
    """
    global _server_pid
    context, server = multiprocessing.get_context("forkserver"), forkserver._forkserver
    if _server_pid is None or server._forkserver_pid != _server_pid:  # type: ignore[attr-defined]
        # `_stop` deletes the server's socket file; its temporary folder may be gone already.
        with contextlib.suppress(FileNotFoundError):
            server._stop()  # type: ignore[attr-defined]
        context.set_forkserver_preload(["tests.transfer.preload"])
        server.ensure_running()
        _server_pid = server._forkserver_pid  # type: ignore[attr-defined]
    return context


def with_toolkits(function: Callable[..., Any], *args: Any) -> Any:
    """Imports the toolkits, if the fork server has not, then returns the function's result."""
    importlib.import_module("tests.transfer.preload")
    return function(*args)


def in_a_fork(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, or its exception, from a fork of this process."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result(timeout=300)


@pytest.fixture(scope="session")
def student() -> dict[str, Any]:
    """The student config that the tests of this folder share: a narrow ResNet-18."""
    return config("students", "resnet18_w32")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data tree in the layout of the prepared pocket data."""
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    student: dict[str, Any],
    in_subprocess: Callable[..., Any],
) -> Path:
    """Directory of a finished export stage of a random student."""
    out = tmp_path_factory.mktemp("student")
    outputs = in_subprocess(export_random, student, out)
    assert outputs["coverage"] == 1.0
    assert outputs["dropped"] == ["aligner"]
    return out / "export"
