"""The teacher cache: one forward per (image, view), shared by every method, student and seed.

Float16 features in memory-mapped shards, the manifest last. When the cache is full, a sample of its
rows is read back, computed again by the live teacher and compared; a mismatch refuses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdep_bench.data.views import Views, open_views, read_rgb, render
from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash, read_json, write_json
from kdep_bench.teachers.base import Teacher, build_teacher

MANIFEST = "cache.json"
SHARD_ROWS = 16384
# Half precision has 11 significant bits; twice its half-ulp, relative to the feature's scale,
# leaves room for a different batch size in the recomputation.
TOLERANCE = 2.0**-10


@dataclass(frozen=True)
class Cache:
    """An opened cache of R rows: `width` Dt, `shards` memory maps [<=SHARD_ROWS, Dt] float16."""

    teacher: dict[str, Any]
    width: int
    shards: list[np.ndarray]

    def __len__(self) -> int:
        return sum(len(s) for s in self.shards)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """[len(index), Dt] float16, in the order asked for."""
        out = np.empty((len(index), self.width), np.float16)
        which = index // SHARD_ROWS
        for k in np.unique(which):
            here = which == k
            out[here] = self.shards[k][index[here] % SHARD_ROWS]
        return out


def shard_path(folder: Path, k: int) -> Path:
    return folder / f"features-{k:05d}.npy"


def render_rows(views: Views, rows: range | np.ndarray, px: int) -> torch.Tensor:
    """[len(rows), 3, px, px] uint8: views rendered from their source images at `px`."""
    batch = np.empty((len(rows), px, px, 3), np.uint8)
    last, image = -1, np.empty(0)
    for j, row in enumerate(rows):
        if row // views.views != last:
            last = int(row) // views.views
            image = read_rgb(views.root / views.files[last])
        batch[j] = render(image, views.box[row], bool(views.flip[row]), px)
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Stage `cache`: fills the shards; a finished, whole shard of an interrupted try is kept.

    Spec: `teacher` config, `batch`.
    """
    teacher = build_teacher(spec["teacher"])
    checksum = teacher.checksum()
    check = known_images(teacher, inputs["prepare"] / "data" / "known")
    views = open_views(inputs["views"], inputs["prepare"])
    identity = {"teacher": checksum, "px": teacher.input_px, "rows": views.rows}
    resumable(out, identity)
    batch = int(spec.get("batch", 32))
    for k, first in enumerate(range(0, views.rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, views.rows - first)
        if is_whole(out, k):
            continue
        shard, start = np.empty((count, teacher.width), np.float16), time.perf_counter()
        for i in range(0, count, batch):
            rows = range(first + i, first + min(i + batch, count))
            pooled = teacher(render_rows(views, rows, teacher.input_px)).pooled
            if not bool(torch.isfinite(pooled.half()).all()):
                raise KdepError(
                    f"teacher {teacher.name} gave a NaN, an infinity or a value beyond float16 for "
                    f"{views.files[rows[0] // views.views]} or one of the next {len(rows)} views",
                    "finite features",
                    "check the teacher's weights and normalisation",
                )
            shard[i : i + len(rows)] = pooled.half().numpy()
            progress(rows[-1] + 1, views.rows, f"{teacher.name} features")
        partial = out / f".shard-{k}.npy"
        np.save(partial, shard)
        # Beside the shard, so that a resumed cache still costs what filling all of it took.
        spent = {
            "seconds": time.perf_counter() - start,
            "forwards": count,
            "sha256": file_hash(partial),
        }
        write_json(shard_path(out, k).with_suffix(".json"), spent)
        partial.replace(shard_path(out, k))
    if teacher.checksum() != checksum:
        raise KdepError(f"teacher {teacher.name} changed while it was only read", "frozen weights")
    shards = -(-views.rows // SHARD_ROWS)
    spent = [read_json(shard_path(out, k).with_suffix(".json")) for k in range(shards)]
    forwards, seconds = (sum(s[key] for s in spent) for key in ("forwards", "seconds"))
    manifest = {
        "teacher": {"name": teacher.name, "checksum": checksum, "width": teacher.width},
        "rows": views.rows,
        "shards": shards,
        "precision": "float16",
        "px": teacher.input_px,
    }
    write_json(out / MANIFEST, manifest)
    verify_sample(open_cache(out), teacher, views)
    return {
        "teacher": manifest["teacher"],
        "rows": views.rows,
        "bytes": views.rows * teacher.width * 2,
        "forwards": forwards,
        "fill_s": round(seconds, 2),
        "images_per_s": round(forwards / seconds, 1),
        "known_images": check,
    }


def resumable(out: Path, identity: dict[str, Any]) -> None:
    """Keeps shards of an interrupted try only if they come from the same teacher and views."""
    mark = out / "identity.json"
    if not (mark.exists() and read_json(mark) == identity):
        for old in out.glob("*.npy"):
            old.unlink()
    write_json(mark, identity)


def is_whole(out: Path, k: int) -> bool:
    """Whether shard k of an interrupted try is there and as it was written."""
    try:
        told = read_json(shard_path(out, k).with_suffix(".json"))
        return shard_path(out, k).exists() and file_hash(shard_path(out, k)) == told["sha256"]
    except (KdepError, KeyError, TypeError):
        return False


def known_images(teacher: Teacher, folder: Path) -> dict[str, Any] | None:
    """Top-1 of the teacher on photographs of known ImageNet classes, or None without any.

    `folder/known.json` maps file name to ImageNet-1k class number. A teacher that misses more
    than 40 % has wrong weights or a wrong normalisation: KdepError.
    """
    if not teacher.has_logits or not (folder / "known.json").exists():
        return None
    known: dict[str, int] = read_json(folder / "known.json")
    px = teacher.input_px
    whole = np.array([0, 0, 1, 1], np.float32)
    pictures = np.stack([render(read_rgb(folder / f), whole, False, px) for f in known])
    logits = teacher(torch.from_numpy(pictures).permute(0, 3, 1, 2)).logits
    assert logits is not None
    hits = int((logits.argmax(1) == torch.tensor(list(known.values()))).sum())
    if hits < 0.6 * len(known):
        raise KdepError(
            f"teacher {teacher.name} recognises {hits} of {len(known)} known photographs",
            "at least 60 %",
            "check its weights file, channel order and normalisation",
        )
    return {"right": hits, "of": len(known)}


def open_cache(folder: Path) -> Cache:
    """Opens a finished cache; KdepError for a missing, truncated or mis-shaped shard."""
    m = read_json(folder / MANIFEST)
    shards = []
    for k in range(m["shards"]):
        rows = min(SHARD_ROWS, m["rows"] - k * SHARD_ROWS)
        try:
            shard = np.load(shard_path(folder, k), mmap_mode="r")
        except (OSError, ValueError) as e:
            raise KdepError(
                f"the cache shard {shard_path(folder, k)} cannot be read ({e})",
                f"{rows} rows of {m['teacher']['width']} float16",
                "delete that stage folder and run again",
            ) from None
        if shard.shape != (rows, m["teacher"]["width"]) or shard.dtype != np.float16:
            raise KdepError(
                f"the cache shard {shard_path(folder, k)} holds {shard.shape} {shard.dtype}",
                f"({rows}, {m['teacher']['width']}) float16",
                "delete that stage folder and run again",
            )
        shards.append(shard)
    return Cache(m["teacher"], m["teacher"]["width"], shards)


def verify_sample(cache: Cache, teacher: Teacher, views: Views, count: int = 16) -> float:
    """Recomputes `count` rows live and returns the largest error relative to the feature's scale.

    Raises KdepError when the teacher is another one or a row differs by more than half precision
    explains: another teacher, view, normalisation or resolution.
    """
    if cache.teacher["checksum"] != teacher.checksum():
        raise KdepError(
            f"the cache was made by teacher {cache.teacher['name']} "
            f"({cache.teacher['checksum']}), not by {teacher.name} ({teacher.checksum()})",
            "the same teacher",
            "delete that cache stage and run again",
        )
    if len(cache) != views.rows:
        raise KdepError(f"the cache has {len(cache)} rows", f"{views.rows}, one a view")
    rows = np.sort(np.random.default_rng(0).choice(views.rows, min(count, views.rows), False))
    live = teacher(render_rows(views, rows, teacher.input_px)).pooled
    stored = torch.from_numpy(cache.rows(rows)).float()
    scale = max(float(live.abs().max()), 1e-6)
    error = float((live - stored).abs().max()) / scale
    if not error <= TOLERANCE:
        raise KdepError(
            f"cached features differ from the live teacher by {error:.2g} of their scale",
            f"at most {TOLERANCE:.2g} (half precision)",
            "the views, the normalisation or the resolution changed: delete that cache stage",
        )
    return error
