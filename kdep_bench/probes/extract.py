"""Stage `features`: features of an exported backbone or a teacher, extracted once for all probes.

The images are of one of three kinds: those of class folders (preprocessed as by the linear probe of
`transfer.classification`; their features are stored in one file per split), images with masks
(their feature maps are stored, see `extract_maps`), or images of the pool, the pre-training images
(one view of each).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdep_bench.data.fractions import select_for_spec
from kdep_bench.data.normalisation import MEAN, STD
from kdep_bench.data.views import Views, open_views
from kdep_bench.errors import KdepError
from kdep_bench.files import read_strict, write_json
from kdep_bench.probes.base import Features

BATCH = 128  # images; the noise of the probe `robustness` depends on it
LISTING, POOL = "features.json", "pool"

# Images [B, px, px, 3] uint8 RGB -> (before, after): features [B, D] before, after last activation.
Extract = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def extractor(student: Mapping[str, Any], checkpoint: Path) -> Extract:
    """A function that computes the float32 features of images with a backbone in eval mode.

    Raises:
        KdepError: the file and the backbone have different tensors.
    """
    import torch

    from kdep_bench.devices import compute_device
    from kdep_bench.networks.backbone import PreActivationTap, pool

    backbone = loaded_backbone(student, checkpoint)
    device = compute_device()
    tap = PreActivationTap(backbone, student["tap"]).to(device).eval()
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

    @torch.inference_mode()
    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)
        before, after = tap((x.float() - mean) / std)
        return tuple(pool(m).float().cpu().numpy() for m in (before, after))  # type: ignore[return-value]

    return extract


def loaded_backbone(student: Mapping[str, Any], checkpoint: Path, **overrides: Any) -> Any:
    """The student's backbone with the weights of a file.

    `overrides`: arguments of the backbone to replace.

    Raises:
        KdepError: the file and the backbone have different tensors.
    """
    from kdep_bench.networks.backbone import build_backbone
    from kdep_bench.transfer.gate import check, read_tensors
    from kdep_bench.transfer.mm_config import prefer_channels_last

    tensors = read_tensors(checkpoint)
    backbone = build_backbone(student, **overrides)
    expected = backbone.state_dict()
    loadable = {k: v for k, v in tensors.items() if k in expected and expected[k].shape == v.shape}
    backbone.load_state_dict(loadable, strict=False)
    check(backbone, checkpoint, tensors=tensors)
    prefer_channels_last(backbone)
    return backbone


def batches(folder: Path, classes: list[str], px: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (images [B, px, px, 3] uint8 RGB, labels [B]) of class folders, in a fixed order."""
    from mmpretrain.registry import DATASETS

    import kdep_bench.transfer.folders  # noqa: F401, registers KdepFolders

    data = DATASETS.build(
        dict(
            type="KdepFolders",
            data_root=str(folder),
            data_prefix="",
            metainfo=dict(classes=tuple(classes)),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="ResizeEdge", scale=px, edge="short", interpolation="area"),
                dict(type="CenterCrop", crop_size=px),
            ],
        )
    )
    for start in range(0, len(data), BATCH):
        samples = [data[i] for i in range(start, min(start + BATCH, len(data)))]
        images = np.stack([sample["img"][..., ::-1] for sample in samples])
        yield images, np.array([int(sample["gt_label"]) for sample in samples])


def run(
    spec: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    progress: Callable[..., None],
) -> dict[str, Any]:
    """Extracts the features of `spec["images"]`.

    Args:
        spec: `student` or `teacher`, its config; `images`: dict(folder=, splits=) for class folders
            of the data, with `size=` for images with masks (see `extract_maps`), or
            dict(rows=, seed=) for images of the pool; with `share`, `share_seed` and `share_by`,
            only images of this data fraction are used.
        inputs: folders `export`; `prepare` for class folders; `views` for the pool. For a teacher
            that another method of the suite trained, `export` and `pretrain` of that method.
        out: folder of this stage, for one npz per split, `features.json` and, for the pool,
            `rows.npy`.
        progress: called with (done, total, note).

    Returns:
        images (number by split), width, extract_s (seconds), images_per_s, bytes; for a teacher
        also teacher (its name and checksum) and forwards (number of its forward passes, one per
        image).

    Raises:
        KdepError: data that cannot be read, a backbone that does not load, features that are not
            finite.
    """
    from kdep_bench.openmmlab import setup

    setup("mmpretrain")
    if "teacher" in spec:
        return _teacher_features(spec, inputs, out, progress)
    student, image_spec = spec["student"], spec["images"]
    started = time.perf_counter()
    checkpoint = Path(inputs["export"]) / "backbone.pth"
    root = Path(inputs.get("prepare", "")) / "data" / image_spec.get("folder", "")
    if "size" in image_spec:
        from kdep_bench.probes.extract_maps import map_extractor, split_maps

        levels = map_extractor(student, checkpoint)
        classes, counts = [], split_maps(root, image_spec, levels, out, progress)
    elif "folder" in image_spec:
        extract = extractor(student, checkpoint)
        classes, counts = _split_features(
            root, image_spec["splits"], extract, int(student["input_px"]), out, progress
        )
    else:
        extract = extractor(student, checkpoint)
        classes, counts = [], _pool_features(image_spec, inputs, extract, out, progress)
    seconds = time.perf_counter() - started
    write_json(out / LISTING, {"classes": classes, "splits": counts})
    total = sum(counts.values())
    return {
        "images": counts,
        "width": int(student["width"]),
        "extract_s": round(seconds, 3),
        "images_per_s": round(total / max(seconds, 1e-9), 1),
        "bytes": sum((out / f"{name}.npz").stat().st_size for name in counts),
    }


def _teacher_features(
    spec: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, progress: Callable[..., None]
) -> dict[str, Any]:
    """`run` for the teacher `spec["teacher"]`, whose feature is stored as `before` and `after`."""
    import torch

    from kdep_bench.devices import compute_device
    from kdep_bench.features.cache import exported_files
    from kdep_bench.features.cache_check import run_teacher
    from kdep_bench.teachers.base import build_teacher

    started, image_spec = time.perf_counter(), spec["images"]
    files = exported_files(spec, inputs)
    teacher = build_teacher({**spec["teacher"], **{k: str(path) for k, path in files.items()}})
    checksum = teacher.checksum()
    teacher.to(compute_device())

    def extract(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        pooled = run_teacher(teacher, pixels).pooled.float().cpu().numpy()
        return pooled, pooled

    root = Path(inputs["prepare"]) / "data" / image_spec["folder"]
    classes, counts = _split_features(
        root, image_spec["splits"], extract, teacher.input_px, out, progress
    )
    seconds = time.perf_counter() - started
    write_json(out / LISTING, {"classes": classes, "splits": counts})
    total = sum(counts.values())
    return {
        "images": counts,
        "width": teacher.width,
        "teacher": {"name": teacher.name, "checksum": checksum},
        "forwards": total,
        "extract_s": round(seconds, 3),
        "images_per_s": round(total / max(seconds, 1e-9), 1),
        "bytes": sum((out / f"{name}.npz").stat().st_size for name in counts),
    }


def _split_features(
    root: Path,
    splits: list[str],
    extract: Extract,
    px: int,
    out: Path,
    progress: Callable[..., None],
) -> tuple[list[str], dict[str, int]]:
    """Writes one file per split; returns (class names, number of images by split).

    Raises:
        KdepError: a split with other classes than the first, or an image that cannot be read.
    """
    from kdep_bench.data.checks import check_image_folder
    from kdep_bench.transfer.mm_config import class_folders, reading_images

    classes = class_folders(root / splits[0])
    counts = {}
    with reading_images(f"the extraction of the features of {root.name}"):
        for i, split in enumerate(splits):
            progress(i, len(splits), f"features of {split}")
            # mmcv's decoder fills a truncated JPEG with grey; this check raises an error.
            expected = sum(check_image_folder(root / split, classes).values())
            parts = [(*extract(x), y) for x, y in batches(root / split, classes, px)]
            before, after, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            if len(labels) != expected:
                raise KdepError(
                    f"{root / split} has {expected} images, but {len(labels)} were read",
                    fix="run the suite again",
                )
            counts[split] = _save(out, split, before, after, labels)
    return classes, counts


def _pool_features(
    image_spec: Mapping[str, Any],
    inputs: Mapping[str, Path],
    extract: Extract,
    out: Path,
    progress: Callable[..., None],
) -> dict[str, int]:
    """Writes the features of pool images, and their row numbers in `rows.npy`.

    Returns {"pool": number of images}.
    """
    views = open_views(Path(inputs["views"]))
    rows = pool_rows(image_spec, inputs, views)
    parts = []
    for start in range(0, len(rows), BATCH):
        progress(start, len(rows), "features of pool images")
        parts.append(extract(np.asarray(views.pixels[rows[start : start + BATCH]])))
    before, after = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    np.save(out / "rows.npy", rows)
    return {POOL: _save(out, POOL, before, after, np.full(len(rows), -1))}


def pool_rows(
    image_spec: Mapping[str, Any], inputs: Mapping[str, Path], views: Views
) -> np.ndarray:
    """Row numbers, sorted, of the first views of the chosen images.

    These are at most `image_spec["rows"]` images, drawn with `seed`.
    """
    images = np.arange(len(views.files))
    if "share" in image_spec:
        images = np.sort(select_for_spec(views.files, image_spec, inputs))
    count = min(int(image_spec["rows"]), len(images))
    # 7 makes the random numbers independent of other uses of the same seed.
    chosen = np.random.default_rng([int(image_spec["seed"]), 7]).permutation(images)[:count]
    return np.sort(chosen) * views.views


def _save(out: Path, name: str, before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> int:
    """Writes `<name>.npz`; returns the number of images.

    Raises:
        KdepError: a feature is NaN or infinite.
    """
    for x in (before, after):
        if not np.isfinite(x).all():
            raise KdepError(
                f"the network's features of {name} contain NaN or infinity",
                fix="check the loss curve of its pre-training, or the file of a given network",
            )
    np.savez(out / f"{name}.npz", before=before, after=after, labels=labels)
    return len(labels)


def open_features(folder: Path) -> dict[str, Features]:
    """{split: features} of a finished `features` stage; pool images are the split "pool"."""
    listing = read_strict(folder / LISTING)
    features = {}
    for name in listing["splits"]:
        with np.load(folder / f"{name}.npz") as stored:
            features[name] = Features(
                stored["after"], stored["before"], stored["labels"], tuple(listing["classes"])
            )
    return features
