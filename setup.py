"""Build step that copies configs/ into a wheel, as kdep_bench/_configs.

All other settings of the build are in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """`build_py` that also copies the configs; an editable install reads those of the clone."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        # setuptools keeps the files of an earlier build, also modules that no longer exist.
        shutil.rmtree(Path(self.build_lib) / "kdep_bench", ignore_errors=True)
        super().run()
        target = Path(self.build_lib) / "kdep_bench" / "_configs"
        shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
