"""Is this still the cache of these views and this teacher? Asked by computing rows again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdep_bench.data.views import Views, read_rgb, render
from kdep_bench.devices import compute_device
from kdep_bench.errors import KdepError
from kdep_bench.features import sparse
from kdep_bench.features.cache_read import MANIFEST, SAMPLE, Cache, open_cache
from kdep_bench.files import canonical_json, read_strict, safe_name, text_hash
from kdep_bench.teachers.base import Teacher, TeacherOutput, build_teacher

# Half precision has 11 significant bits; twice its half-ulp, relative to the feature's scale,
# leaves room for a different batch size in the recomputation.
TOLERANCE = 2.0**-10


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 meanwhile: its 10 bits would make a GPU's features differ from a CPU's."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def run_teacher(teacher: Teacher, images: Tensor) -> TeacherOutput:
    """The teacher's output for uint8 pictures [B, 3, px, px], on the CPU, exact float32."""
    with exact_float32():
        out = teacher(images.to(compute_device()))
    if out.pooled.device.type == "cpu":
        return out
    return TeacherOutput(
        out.pooled.cpu(),
        None if out.logits is None else out.logits.cpu(),
        {k: v.cpu() for k, v in out.maps.items()},
        None if out.tokens is None else out.tokens.cpu(),
    )


def extra_outputs(
    teacher: Teacher, out: TeacherOutput, outputs: Sequence[str]
) -> dict[str, Tensor]:
    """The further arrays {name: [B, ...]} of an output; KdepError for one it does not have."""
    got: dict[str, Tensor] = {}
    if "logits" in outputs and out.logits is not None:
        got["logits"] = out.logits
    if "tokens" in outputs and out.tokens is not None:
        got["tokens"] = out.tokens
    for name, value in out.maps.items():
        if "maps" in outputs or f"maps.{name}" in outputs:
            got[safe_name(f"maps.{name}", "map name")] = value
    for name in outputs:
        if name.startswith(f"{sparse.VALUES}.") and out.logits is not None:
            k = int(name.partition(".")[2])
            got |= dict(
                zip(sparse.names(k), sparse.largest(out.logits, k, teacher.name), strict=True)
            )
    for wanted in outputs:
        if not any(wanted in (n, n.partition(".")[0]) for n in got):
            raise KdepError(
                f"the teacher {teacher.name} has no {wanted}",
                fix="choose another teacher, or remove the methods that read them",
            )
    return got


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


def normalisation(teacher: Teacher) -> dict[str, list[float]]:
    """The teacher's `mean` and `std`, three numbers each, on the 0-255 scale."""
    return {"mean": teacher.mean.flatten().tolist(), "std": teacher.std.flatten().tolist()}


def recipe_hash(views: Views) -> str:
    """Identity of the crops: image list, boxes, flips and V (so seed, scale and ratio as well)."""
    h = hashlib.sha256(np.ascontiguousarray(views.box).tobytes())
    h.update(np.ascontiguousarray(views.flip).tobytes())
    return text_hash(h.hexdigest() + canonical_json([views.files, views.views]), 16)


def sample_rows(rows: int, count: int = 16) -> np.ndarray:
    """Sorted rows that are computed again."""
    return np.sort(np.random.default_rng(0).choice(rows, min(count, rows), False))


def verify_sample(cache: Cache, teacher: Teacher, views: Views, count: int = 16) -> float:
    """Recomputes `count` rows from the source images; see `verify_images`."""
    if len(cache) != views.rows:
        raise KdepError(
            f"the cache has {len(cache)} rows",
            expected=f"{views.rows}, one per view",
            fix="delete that cache stage and run again",
        )
    same_teacher(cache, teacher)
    rows = sample_rows(views.rows, count)
    return verify_images(cache, teacher, rows, render_rows(views, rows, teacher.input_px))


def same_teacher(cache: Cache, teacher: Teacher) -> None:
    """KdepError unless the cache was made by this very network."""
    if cache.teacher["checksum"] != teacher.checksum():
        raise KdepError(
            f"the cache was made by teacher {cache.teacher['name']} "
            f"({cache.teacher['checksum']}), not by {teacher.name} ({teacher.checksum()})",
            fix="delete that cache stage and run again",
        )


def verify_images(cache: Cache, teacher: Teacher, rows: np.ndarray, pixels: Tensor) -> float:
    """Computes rows live and returns the largest error relative to its array's scale.

    Raises KdepError when a row differs by more than half precision explains: another teacher,
    view, normalisation or resolution.
    """
    said, worst = run_teacher(teacher, pixels), 0.0
    outputs = [n for n in sorted(cache.extras) if not n.startswith(f"{sparse.CLASSES}.")]
    compared = extra_outputs(teacher, said, outputs)
    for name, live in {"features": said.pooled, **compared}.items():
        if name.startswith(f"{sparse.CLASSES}.") or (name == "features" and not cache.shards):
            continue
        stored = torch.from_numpy(cache.rows(rows, None if name == "features" else name)).float()
        scale = max(float(live.abs().max()), 1e-6)
        if name.startswith(f"{sparse.VALUES}."):
            assert said.logits is not None
            index = sparse.names(int(name.partition(".")[2]))[1]
            classes = torch.from_numpy(cache.rows(rows, index))
            error = sparse.stored_error(said.logits, stored, classes) / scale
        else:
            error = float((live - stored).abs().max()) / scale
        if not error <= TOLERANCE:
            what = "cached features differ" if name == "features" else f"cached {name} differ"
            raise KdepError(
                f"{what} from the live teacher by {error:.2g} of their scale",
                expected=f"at most {TOLERANCE:.2g} (half precision)",
                fix="delete that cache stage and run again (the views, the normalisation or the "
                "resolution have changed)",
            )
        worst = max(worst, error)
    return worst


def load_teacher_config(folder: Path) -> dict[str, Any] | None:
    """The config of the teacher that filled a cache; None where neither file says.

    The files of a teacher that an arm made are told relative to the cache's folder.
    """
    manifest = read_strict(folder / MANIFEST)
    config = manifest.get("config")
    if config is None and (folder / "stage.json").exists():  # written before manifests told it
        config = read_strict(folder / "stage.json")["spec"]["teacher"]
    files = {k: str((folder / path).resolve()) for k, path in manifest.get("files", {}).items()}
    return config if config is None else {**config, **files}


def verify_cache(folder: Path, views: Views, count: int = 8) -> dict[str, Any]:
    """Before a training run: is this the cache of these views, by the teacher as it is now?

    The identity fields (rows, crops, resolution, normalisation, checksum) and `count` pictures of
    the sample, computed again. Costs building the teacher and `count` forwards.

    Returns {"rows": how many were computed again, "error": largest relative error}; a cache
    written before samples were kept gives rows 0, after a check of what it does tell.

    Raises KdepError for a cache of other views or another teacher, also one whose weights are not
    here any more.
    """
    m, cache = read_strict(folder / MANIFEST), open_cache(folder)
    if m.get("of", len(cache)) != views.rows:
        raise KdepError(
            f"the cache {folder} has {len(cache)} rows",
            expected=f"{views.rows}, one per view",
            fix="delete that cache stage and run again",
        )
    if m.get("recipe", recipe_hash(views)) != recipe_hash(views):
        raise KdepError(
            f"the cache {folder} was computed from different crops than these views",
            expected="the same image list, view seed, scale and ratio",
            fix="delete that cache stage and run again",
        )
    config = load_teacher_config(folder)
    if config is None or not (folder / SAMPLE).exists():
        return {"rows": 0, "error": None}
    teacher = build_teacher(config)
    same_teacher(cache, teacher)
    for what, own in (("px", teacher.input_px), ("normalisation", normalisation(teacher))):
        if m[what] != own:
            raise KdepError(
                f"the cache {folder} was computed with {what} {m[what]}",
                expected=f"{own}, the current value of teacher {teacher.name}",
                fix="delete that cache stage and run again",
            )
    with np.load(folder / SAMPLE) as sample:
        rows, pixels = sample["rows"][:count], torch.from_numpy(sample["pixels"][:count])
    error = verify_images(cache, teacher.to(compute_device()), rows, pixels)
    return {"rows": len(rows), "error": error}


def open_head(folder: Path) -> nn.Module:
    """The classifier that gives the teacher's logits from the cached pooled feature, proved.

    Raises KdepError where the teacher has no such classifier, is not the one that filled the
    cache, or its own logits for the sample's pictures are not those of the cached features.
    """
    config, cache = load_teacher_config(folder), open_cache(folder)
    teacher = None if config is None else build_teacher(config)
    if teacher is None or teacher.logit_head is None:
        raise KdepError(
            f"the cache of teacher {cache.teacher['name']} has no logits, and they cannot be "
            "computed from its pooled feature",
            fix="add 'logits' to the method's `needs`",
        )
    same_teacher(cache, teacher)
    if (folder / SAMPLE).exists():
        with np.load(folder / SAMPLE) as sample:
            rows, pixels = sample["rows"][:8], torch.from_numpy(sample["pixels"][:8])
        own = teacher(pixels).logits
        with torch.no_grad():
            ours = teacher.logit_head(torch.from_numpy(cache.rows(rows)).float())
        # The feature's rounding, summed over Dt channels; a wrong head is off by the whole scale.
        if own is None or float((ours - own).abs().max()) > 2.0**-6 * float(own.abs().max()):
            raise KdepError(
                f"the classifier of {teacher.name} does not reproduce its logits from the cached "
                "feature",
                expected="logits = logit_head(pooled)",
                fix="correct `logit_head` of that teacher class",
            )
    return teacher.logit_head.requires_grad_(False)
