"""Installed package versions and their compatibility; sets a process up for a toolkit."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.version import Version

from kdep_bench import ops
from kdep_bench.errors import KdepError, unknown_name

Scope = Literal["mmpretrain", "mmdet", "mmseg"]


class _Requirement(NamedTuple):
    """A required package and the range of its versions that is known to work.

    Attributes:
        distributions: alternative names of the package; the first that is installed is checked.
        at_least, below: at_least <= version < below.
        why: reason for the range, as a clause for the error.
        install: argument of pip install.
    """

    distributions: tuple[str, ...]
    at_least: str
    below: str
    why: str
    install: str


_COMMON = (
    _Requirement(
        ("setuptools",),
        "60",
        "82",
        "82 has no pkg_resources, which the toolkits import",
        "setuptools<82",
    ),
    _Requirement(("numpy",), "1.26", "3", "the versions that were tested", "numpy>=2,<3"),
    _Requirement(("torch",), "2.6", "2.15", "the versions that were tested", "torch==2.14.1"),
    _Requirement(
        ("torchvision",),
        "0.21",
        "0.30",
        "its operators replace those of mmcv",
        "torchvision==0.29.1",
    ),
    _Requirement(
        ("mmengine", "onedl-mmengine"),
        "0.10.7",
        "0.11",
        "the versions that were tested",
        "mmengine==0.10.7",
    ),
    _Requirement(
        ("mmcv", "mmcv-lite"),
        "2.1.0",
        "2.2.0",
        "mmdet and mmseg do not accept 2.2",
        "mmcv-lite==2.1.0",
    ),
)
_MMPRETRAIN = _Requirement(("mmpretrain",), "1.2.0", "1.3", "for the students", "mmpretrain==1.2.0")
_MMDET = _Requirement(("mmdet",), "3.3.0", "3.4", "for detection", "mmdet==3.3.0")
_MMSEG = _Requirement(
    ("mmsegmentation",), "1.2.2", "1.3", "for segmentation", "mmsegmentation==1.2.2"
)
# mmseg imports these two packages without declaring them as dependencies. Every version works.
_FTFY = _Requirement(("ftfy",), "0", "100", "mmseg imports it", "ftfy")
_REGEX = _Requirement(("regex",), "0", "9999", "mmseg imports it", "regex")

_REQUIREMENTS: dict[str, tuple[_Requirement, ...]] = {
    "mmpretrain": (*_COMMON, _MMPRETRAIN),
    "mmdet": (*_COMMON, _MMPRETRAIN, _MMDET),
    "mmseg": (*_COMMON, _MMPRETRAIN, _MMSEG, _FTFY, _REGEX),
}

# Students are mmpretrain backbones in every task, so its models are registered in every scope.
MODULES: dict[str, tuple[str, ...]] = {
    "mmpretrain": (
        "mmpretrain.datasets",
        "mmpretrain.engine",
        "mmpretrain.evaluation",
        "mmpretrain.models",
        "mmpretrain.structures",
        "mmpretrain.visualization",
    ),
    "mmdet": (
        "mmdet.datasets",
        "mmdet.engine",
        "mmdet.evaluation",
        "mmdet.models",
        "mmdet.visualization",
        "mmpretrain.models",
    ),
    "mmseg": (
        "mmseg.datasets",
        "mmseg.engine",
        "mmseg.evaluation",
        "mmseg.models",
        "mmseg.structures",
        "mmseg.visualization",
        "mmpretrain.models",
    ),
}

# Patterns of warnings of the toolkits that users cannot avoid.
_NOISE = (
    r".*has been moved to ``mmcv\.ops",
    r".*pkg_resources is deprecated",
    r".*Failed to search registry with scope",
    r".*invalid escape sequence",
    r".*is deprecated.*torch\.(cuda|cpu)\.amp",
    r".*torch\.meshgrid",
)

# Packages whose versions are recorded.
_LISTED = (
    "kdep_bench",
    "torch",
    "torchvision",
    "mmengine",
    "onedl-mmengine",
    "mmcv",
    "mmcv-lite",
    "mmdet",
    "mmsegmentation",
    "mmpretrain",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "setuptools",
    "opencv-python-headless",
    "opencv-python",
    "pycocotools",
    "Pillow",
    "pydantic",
)

_scope: str | None = None


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages of `_LISTED`; imports none of them."""
    installed = {name: v for name in _LISTED if (v := _version(name)) is not None}
    return {"python": platform.python_version(), **installed}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_versions(scope: str) -> None:
    """Raises KdepError for the first package that is missing or outside the range known to work.

    Args:
        scope: 'mmpretrain', 'mmdet' or 'mmseg'.
    """
    for requirement in _requirements(scope):
        installed = [
            (name, v) for name in requirement.distributions if (v := _version(name)) is not None
        ]
        label = " or ".join(requirement.distributions)
        expected = f"{label} >= {requirement.at_least}, < {requirement.below} ({requirement.why})"
        fix = f"run: pip install '{requirement.install}'"
        if not installed:
            raise KdepError(f"{label} is not installed", expected=expected, fix=fix)
        name, installed_version = installed[0]
        # Base versions: 2.14.1 for "2.14.1+cu130", 2.9.0 for "2.9.0.dev1".
        base = Version(Version(installed_version).base_version)
        if not Version(requirement.at_least) <= base < Version(requirement.below):
            raise KdepError(f"{name} {installed_version} is installed", expected=expected, fix=fix)


def _requirements(scope: str) -> tuple[_Requirement, ...]:
    if scope not in _REQUIREMENTS:
        raise unknown_name("OpenMMLab toolkit", scope, _REQUIREMENTS)
    return _REQUIREMENTS[scope]


def backend() -> Literal["compiled", "torchvision"]:
    """The implementation of `mmcv.ops` in this environment; imports neither torch nor mmcv."""
    return ops.backend()


def current_scope() -> str | None:
    """The toolkit that `setup` was called for in this process; None before that."""
    return _scope


def setup(scope: str, *, switch: bool = False) -> None:
    """Sets this process up for a toolkit: operators, imports, registries, default scope.

    Args:
        scope: 'mmpretrain', 'mmdet' or 'mmseg'. mmpretrain's backbones are registered for each.
        switch: whether the process may already be set up for another toolkit. This is only safe if
            all earlier Runners of this process have finished, as in a test session.

    Raises:
        KdepError: an unknown scope, a wrong or missing package, an mmcv extension that cannot be
            loaded, or a second scope in one process (toolkits share mmengine's global state, so a
            transform could be looked up in the wrong registry).
    """
    global _scope
    check_versions(scope)
    if _scope not in (None, scope) and not switch:
        raise KdepError(
            f"this process was set up for {_scope}, so it cannot be set up for {scope} too",
            expected="one toolkit per process, because mmengine's default scope is global",
            fix="run each stage in its own process",
        )
    # Otherwise albumentations, which all three toolkits import, looks for updates on the network.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    ops.install()
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    _import_toolkit(scope)
    _quiet_default_logger()
    _set_default_scope(scope)
    _scope = scope


def skip_multimodal() -> None:
    """Makes mmpretrain skip its multi-modal models.

    Workaround: mmpretrain 1.2.0 cannot be imported with transformers 5, because its BLIP model
    imports classes that were removed there. Those models are skipped if a constant in
    `mmpretrain.utils.dependency` is False. That module is loaded from its file, because importing
    it by name would import the whole package first.
    """
    name = "mmpretrain.utils.dependency"
    package = importlib.util.find_spec("mmpretrain")
    if name in sys.modules or package is None or package.origin is None:
        return
    path = Path(package.origin).parent / "utils" / "dependency.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["WITH_MULTIMODAL"] = False
    sys.modules[name] = module


def _import_toolkit(scope: str) -> None:
    skip_multimodal()
    try:
        importlib.import_module("mmcv.ops")
    except (ImportError, AssertionError) as e:
        raise KdepError(
            f"the operators of mmcv ({backend()}) cannot be loaded: {e}",
            expected="an mmcv extension built for this torch, or mmcv-lite",
            fix="run: pip uninstall -y mmcv && pip install mmcv-lite==2.1.0",
        ) from e
    for module in MODULES[scope]:
        importlib.import_module(module)


def _quiet_default_logger() -> None:
    """Sets mmengine's logger to warnings: `init_weights` would print several lines per tensor."""
    from mmengine.logging import MMLogger

    MMLogger.get_instance("mmengine", log_level="WARNING").setLevel("WARNING")


def _set_default_scope(scope: str) -> None:
    from mmengine.registry import DefaultScope

    current = DefaultScope.get_current_instance()
    if current is None or current.scope_name != scope:
        # A new name each time: for a known name, get_instance returns the old scope.
        DefaultScope.get_instance(f"kdep_bench-{scope}-{id(current)}", scope_name=scope)
