"""Replaces mmcv's compiled operators by those of torchvision if mmcv is `mmcv-lite`.

`mmcv-lite` has no compiled extension `mmcv._ext`. `install()` appends a finder to `sys.meta_path`
that provides a replacement of this module. Finders before it have priority, so a compiled extension
is used if there is one. With the replacement, `import mmcv.ops`, `import mmdet` and `import mmseg`
work without compilation, on every device that torchvision's operators support.

Importing this package does not import torch; importing `mmcv._ext` does.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Literal

from kdep_bench.errors import KdepError

_NAME = "mmcv._ext"
_REPLACEMENT = Path(__file__).with_name("_ext.py")


class _ReplacementFinder(MetaPathFinder):
    """Finds the module `mmcv._ext` in the file `_ext.py` of this package; finds no other module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _NAME:
            return None
        return importlib.util.spec_from_file_location(fullname, _REPLACEMENT)


_FINDER = _ReplacementFinder()


def install() -> None:
    """Makes `mmcv._ext` importable; must be called before the first `import mmcv.ops`. Idempotent.

    Each call moves the finder to the end of `sys.meta_path`, so that all other finders have
    priority.
    """
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
    sys.meta_path.append(_FINDER)


def backend() -> Literal["compiled", "torchvision"]:
    """The implementation of `mmcv.ops` in this environment; imports neither torch nor mmcv.

    Raises:
        KdepError: mmcv is not installed.
    """
    loaded = sys.modules.get(_NAME)
    if loaded is not None:
        return "torchvision" if hasattr(loaded, "KDEP_REPLACEMENT") else "compiled"
    parent = sys.modules.get("mmcv")
    if parent is not None:
        folders: Sequence[str] | None = parent.__path__
    else:
        spec = PathFinder.find_spec("mmcv")
        folders = spec.submodule_search_locations if spec else None
    if folders is None:
        raise KdepError("mmcv is not installed", fix="run: pip install mmcv-lite==2.1.0")
    return "compiled" if PathFinder.find_spec(_NAME, list(folders)) else "torchvision"


__all__ = ["backend", "install"]
