"""Stage `prepare` for official data sets: checks them and links them below out/data.

    out/data/<set>                  a link to the set's folder below $KDEP_DATA
    out/data/pool/images            a link to the images that pre-training reads (ImageNet's train)
    out/data/pool/labels.json       their classes, read only by methods that use labels
    out/data/sets.json              counts of images and classes

The stage id depends on the content of the files and not on their path, so results remain valid if
the data is moved.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.content import Catalogue, Source, all_of, fingerprint_of
from kdep_bench.data.listing import class_names, list_images, shown
from kdep_bench.data.official.base import OfficialSet, data_root, get_set, verify
from kdep_bench.errors import KdepError, unknown_name
from kdep_bench.faults import Faults
from kdep_bench.files import canonical_json, write_atomic, write_json


def reads(spec: dict[str, Any]) -> dict[str, list[Source]]:
    """The files that the stage reads: set name -> its folder without the archives; also the pool.

    Empty for generated tiny copies.

    Raises:
        KdepError: $KDEP_DATA is not set or is not a folder.
    """
    if spec.get("tiny_seed") is not None:
        return {}
    root, sources = data_root(spec.get("root"), name=spec["pool"]).absolute(), {}
    for name in sorted({*spec["sets"], spec["pool"]}):
        archive_names = (a.name for a in get_set(name).archives)
        sources[name] = [all_of(root / name, archive_names)]
    return {**sources, "pool": sources[spec["pool"]]}


KEYS = frozenset({"type", "name", "sets", "pool", "pool_folder", "root", "decode", "tiny_seed"})


def prepare(
    spec: dict[str, Any], inputs: dict[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """Stage `prepare` of the full-scale suites.

    Args:
        spec: the data config, with these keys:
            sets: names of the sets that the suite's tasks read.
            pool: name of the set with the pre-training images.
            pool_folder: folder of that set with one folder per class; default 'train'.
            root: folder with all sets; default $KDEP_DATA.
            decode: number of images per split to decode; default 8.
            tiny_seed: if given, tiny copies of all sets are generated in their real formats, for a
                rehearsal (a run on tiny data), and `root` is not read.
        inputs: not used.
        out: folder of the stage.
        progress: called with (steps done, steps, note): a step per set, and one for the pool.

    Returns:
        a dict with data (the folder), source, counts, licences and notes; for tiny copies also
        fingerprint (otherwise the engine computes it from the files that `reads` returns).

    Raises:
        KdepError: a set that is missing, incomplete or damaged.
    """
    if unknown := set(spec) - KEYS:
        raise unknown_name("key", sorted(unknown)[0], KEYS, place="the official data")
    names = sorted({*spec["sets"], spec["pool"]})
    sets = [get_set(n) for n in names]
    is_tiny = spec.get("tiny_seed") is not None
    if is_tiny:
        root = _generate(sets, out / "sets", int(spec["tiny_seed"]))
    else:
        root = data_root(spec.get("root"), name=spec["pool"])
    counts: dict[str, Any] = {}
    faults = Faults()
    for i, dataset in enumerate(sets):
        progress(i, len(sets) + 1, f"checking {dataset.title}")
        with faults.collect():
            counts[dataset.name] = verify(
                dataset, root, spec.get("decode", 8), check_counts=not is_tiny
            )
    faults.raise_any(f"the data {spec.get('name') or ''}".rstrip())
    for dataset in sets:
        _link(root / dataset.name, out / "data" / dataset.name, out)
    progress(len(sets), len(sets) + 1, "listing the pool")
    pool = root / spec["pool"] / spec.get("pool_folder", "train")
    n_images = _link_pool(pool, out / "data" / "pool", out)
    write_json(out / "data" / "sets.json", {"counts": counts})
    progress(len(sets) + 1, len(sets) + 1, "done")
    digests = {n: Catalogue(all_of(root / n)).scan().digest() for n in names} if is_tiny else {}
    return {
        "data": "data",
        "source": "tiny copies in the real formats (a rehearsal)" if is_tiny else "official",
        **({"fingerprint": fingerprint_of(digests)} if is_tiny else {}),
        "counts": {"images": {"pool": n_images}, **counts},
        "licences": {dataset.title: dataset.licence for dataset in sets},
        "notes": [note for dataset in sets for note in dataset.notes],
    }


def _generate(sets: list[OfficialSet], root: Path, seed: int) -> Path:
    """Writes tiny copies of the sets below `root`; each set has its own random seed."""
    for dataset in sets:
        (root / dataset.name).mkdir(parents=True)
        name_hash = int.from_bytes(hashlib.sha256(dataset.name.encode()).digest()[:4], "big")
        dataset.tiny(root / dataset.name, np.random.default_rng([seed, name_hash]))
    return root


def _link(target: Path, link: Path, stage: Path) -> None:
    """Makes `link` a symbolic link to the folder `target`; `stage` is the stage directory."""
    link.parent.mkdir(parents=True, exist_ok=True)
    # Tiny copies are in the stage directory: relative links stay valid if the work dir is moved.
    is_in_stage = target.resolve().is_relative_to(stage.resolve())
    destination = os.path.relpath(target, link.parent) if is_in_stage else target.resolve()
    link.unlink(missing_ok=True)
    link.symlink_to(destination, target_is_directory=True)


def _link_pool(source: Path, pool: Path, stage: Path) -> int:
    """Links the pool's images and writes labels.json; returns the number of images.

    Args:
        source: folder with one folder of images per class.
        pool: folder to write to.
        stage: the stage directory.
    """
    if not source.is_dir():
        raise KdepError(
            f"the folder {source} of the pool does not exist",
            expected="a folder with one folder of images per class",
            fix="correct `pool_folder` in the data config",
        )
    listing = list_images(source)
    if listing.other_files:
        raise KdepError(
            f"the file {shown(source / listing.other_files[0])} of the pool does not have an image "
            "suffix",
            fix="move it elsewhere",
        )
    by_class = listing.by_class()
    if loose := by_class.get(""):
        raise KdepError(
            f"the image {shown(source / loose[0])} of the pool is not in a class folder",
            expected="one folder per class",
            fix="move it into the folder of its class",
        )
    if not by_class:
        raise KdepError(
            f"the pool {source} contains no image",
            expected="one folder per class",
            fix="correct `pool` in the data config",
        )
    classes = class_names(source)
    labels = {name: label for label, c in enumerate(classes) for name in by_class.get(c, ())}
    _link(source, pool / "images", stage)
    text = canonical_json({"classes": classes, "labels": labels})
    write_atomic(pool / "labels.json", text)
    return len(labels)
