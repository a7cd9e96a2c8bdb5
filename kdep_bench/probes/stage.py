"""Stage `probe`: measures one exported backbone by one probe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.given_files import check_and_remove_content
from kdep_bench.errors import KdepError
from kdep_bench.probes.base import (
    BACKBONE,
    CLASSES,
    MASKS,
    POOL,
    TEACHER,
    TEACHER_CLASSES,
    Inputs,
    Probe,
    outputs,
)
from kdep_bench.probes.extract import batches, extractor, loaded_backbone, open_features
from kdep_bench.registry import build, type_path

# Keys of a probe's config that are not arguments of its class.
NOT_ARGUMENTS = {"name", "folder", "about", "source", "reconstruction"}


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Measures `spec["probe"]`.

    Args:
        spec: `probe` (a probe config); `student`, for a probe that runs the backbone.
        inputs: folders of earlier stages, as required by the probe's `reads`: `features` (of class
            folders, or maps of images with masks), `pool` (features of pool images), `cache` (the
            teacher's features of pool images), `teacher_features` (the teacher's features of class
            folders), `export` and `prepare` (the backbone and the images).
        out: folder of this stage; not used.
        progress: called with (done, total, note).

    Returns:
        values and notes (see `base.outputs`), probe_s (seconds).

    Raises:
        KdepError: a type that is not a Probe, a file that changed after the run was planned, too
            few images, or a value that is not finite.
    """
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    config = check_and_remove_content(spec["probe"])
    probe = build({k: v for k, v in config.items() if k not in NOT_ARGUMENTS})
    if not isinstance(probe, Probe):
        raise KdepError(
            f"the type {type_path(config['type'])} is not a probe",
            expected="a subclass of kdep_bench.probes.base.Probe",
            fix="correct `type` in the probe's config",
        )
    started = time.perf_counter()
    measured = probe.measure(_inputs(probe, spec, inputs, progress))
    seconds = time.perf_counter() - started
    progress(1, 1, config["name"])
    return {**outputs(measured, f"probe {config['name']!r}"), "probe_s": round(seconds, 3)}


def _inputs(
    probe: Probe, spec: Mapping[str, Any], inputs: Mapping[str, Path], progress: Callable[..., None]
) -> Inputs:
    """Opens the inputs in the probe's `reads`."""
    arguments: dict[str, Any] = {"progress": progress}
    if CLASSES in probe.reads:
        features = open_features(inputs["features"])
        arguments["splits"] = {split: features[split] for split in probe.splits}
    if MASKS in probe.reads:
        from kdep_bench.probes.extract_maps import open_maps

        arguments["maps"] = open_maps(inputs["features"])
    if POOL in probe.reads:
        arguments["pool"] = open_features(inputs["pool"])["pool"]
    if TEACHER in probe.reads:
        from kdep_bench.features.cache_read import open_cache

        rows = np.load(inputs["pool"] / "rows.npy")
        arguments["teacher"] = open_cache(inputs["cache"]).rows(rows).astype(np.float32)
    if TEACHER_CLASSES in probe.reads:
        features = open_features(inputs["teacher_features"])
        arguments["teacher_splits"] = {split: features[split] for split in probe.splits}
    if BACKBONE in probe.reads:
        from kdep_bench.openmmlab import setup

        setup("mmpretrain")
        weights = inputs["export"] / "backbone.pth"
        if "folder" in spec["probe"]:
            arguments["extract"] = extractor(spec["student"], weights)
            arguments["images"] = _images(spec, inputs)
        network = arguments["network"] = loaded_backbone(spec["student"], weights)
        network.eval()  # returns None for an mmpretrain backbone
        arguments["input_px"] = int(spec["student"]["input_px"])
    return Inputs(**arguments)


def _images(
    spec: Mapping[str, Any], inputs: Mapping[str, Path]
) -> Callable[[str], Iterator[np.ndarray]]:
    """The function `Inputs.images`."""
    from kdep_bench.transfer.mm_config import class_folders

    root = inputs["prepare"] / "data" / spec["probe"]["folder"]
    px = int(spec["student"]["input_px"])

    def images(split: str) -> Iterator[np.ndarray]:
        for batch, _ in batches(root / split, class_folders(root / split), px):
            yield batch

    return images
