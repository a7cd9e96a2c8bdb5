"""Copies configs/ into a wheel as kdep_bench/_configs; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """`build_py`, and the configs; an editable install reads them in the clone."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        # setuptools adds to what an earlier build left, also modules that are gone since.
        shutil.rmtree(Path(self.build_lib) / "kdep_bench", ignore_errors=True)
        super().run()
        target = Path(self.build_lib) / "kdep_bench" / "_configs"
        shutil.copytree("configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithConfigs})
