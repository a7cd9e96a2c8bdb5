"""Which cache computed the arrays of a cache whose files are hard links. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict

STAGE = "stage.json"  # file in the folder of every finished stage


def computed_by(work_dir: Path, cache: str, outputs: Mapping[str, Any]) -> str:
    """The name of the folder of the cache that computed the arrays of a finished cache.

    Its output `reused` names that cache. Earlier versions stored the cache from which the files
    were linked, which may itself have linked them. So `reused` is followed from cache to cache,
    until a cache has no such output or its folder is gone.

    Args:
        work_dir: folder of the stages.
        cache: name of the folder of the finished cache.
        outputs: the outputs in its stage.json.
    """
    seen = {cache}
    while (linked := outputs.get("reused")) is not None and linked not in seen:
        cache = str(linked)
        seen.add(cache)
        try:
            outputs = read_strict(work_dir / cache / STAGE)["outputs"]
        except (KdepError, KeyError, TypeError):
            break  # its folder is gone
    return cache
