"""Runs every notebook of this folder from scratch, in one temporary folder; `make notebooks`.

Python docs/notebooks/run.py [--save FOLDER]: --save also writes them there with their outputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbformat  # pyright: ignore[reportMissingImports]
from nbclient import NotebookClient  # pyright: ignore[reportMissingImports]
from nbclient.exceptions import CellExecutionError  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).resolve().parent
TIMEOUT = 900  # seconds of one cell
ORDER = ("pretrain_and_evaluate", "deploy")  # the second reuses the stages of the first


def main() -> int:
    """Exit code 1 where a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="folder for the notebooks with outputs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ORDER:
            start = time.perf_counter()
            notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
            client = NotebookClient(
                notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}}
            )
            try:
                client.execute()
            except CellExecutionError as e:
                print(f"{name}: {e}", file=sys.stderr)
                return 1
            if args.save:
                args.save.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook, args.save / f"{name}.ipynb")
            print(f"{name}: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
