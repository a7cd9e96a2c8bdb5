"""The module `mmcv._ext` comes from a compiled mmcv or from the stand-in.

The stand-in uses torchvision's operators; an operator that it lacks raises an error when called.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from kdep_bench import ops
from kdep_bench.errors import KdepError


def python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_backend_is_reported_without_importing_torch() -> None:
    code = """
import sys
from kdep_bench import ops
ops.install()
print(ops.backend(), 'torch' in sys.modules, 'mmcv' in sys.modules)
"""
    assert python(code) == "torchvision False False"


def test_install_adds_one_import_finder_at_the_end_of_sys_meta_path() -> None:
    class Later:
        """A finder that another package added to `sys.meta_path`."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            return None

    sys.meta_path.append(Later)  # pyright: ignore[reportArgumentType]
    try:
        ops.install()
        ops.install()
        finders = [f for f in sys.meta_path if type(f).__name__ == "_ReplacementFinder"]
        assert finders == [sys.meta_path[-1]]
    finally:
        sys.meta_path.remove(Later)  # pyright: ignore[reportArgumentType]


def test_a_compiled_extension_is_used_instead_of_the_replacement(tmp_path: Path) -> None:
    # A compiled mmcv has a file _ext.* in its folder.
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    (tmp_path / "mmcv" / "_ext.py").write_text("nms = 'compiled'\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from kdep_bench import ops
ops.install()
before = ops.backend()
import mmcv._ext
print(before, mmcv._ext.nms, ops.backend(), mmcv._ext.__file__.startswith({str(tmp_path)!r}))
"""
    assert python(code) == "compiled compiled compiled True"


def test_without_mmcv_kdep_error_is_raised() -> None:
    code = """
import sys
sys.path = [p for p in sys.path if 'site-packages' not in p]
import kdep_bench.ops as ops
try:
    ops.backend()
except Exception as e:
    print(type(e).__name__, e)
"""
    root = Path(ops.__file__).parents[2]
    out = python(f"import sys; sys.path.insert(0, {str(root)!r})\n{code}")
    assert out.startswith("KdepError mmcv is not installed")


def test_an_operator_without_a_replacement_raises_kdep_error_when_called() -> None:
    import mmcv._ext as ext  # pyright: ignore[reportMissingImports]
    from mmcv.ops import RoIPool, softmax_focal_loss

    with pytest.raises(KdepError, match=r"'psamask_forward'.*compiled mmcv"):
        ext.psamask_forward(torch.zeros(1), 1, key=2)
    with pytest.raises(KdepError, match="'roi_pool_forward'"):
        RoIPool(2)(torch.zeros(1, 1, 4, 4), torch.tensor([[0, 0, 0, 2.0, 2]]))
    with pytest.raises(KdepError, match="'softmax_focal_loss_forward'"):
        softmax_focal_loss(torch.zeros(1, 2), torch.tensor([0]))
    assert not hasattr(ext, "_no_such_private_name")


def test_all_nineteen_listed_operators_are_implemented() -> None:
    import mmcv._ext as ext  # pyright: ignore[reportMissingImports]

    assert len(ext.__all__) == 19
    assert all(getattr(ext, name).__name__ == name for name in ext.__all__)
    assert all("_missing" not in getattr(ext, name).__qualname__ for name in ext.__all__)


def test_the_compiler_and_cuda_versions_are_those_of_torchvision_and_torch() -> None:
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert torchvision.__version__ in get_compiler_version()
    assert get_compiling_cuda_version() == (torch.version.cuda or "not available")


@pytest.mark.slow
@pytest.mark.parametrize("toolkit", ["mmdet.models", "mmseg.models", "mmpretrain.models"])
def test_a_toolkit_imports_with_the_stand_in(toolkit: str) -> None:
    code = f"""
from kdep_bench import ops
ops.install()
import mmcv.ops, {toolkit}
print(ops.backend())
"""
    assert python(code).splitlines()[-1] == "torchvision"
