"""Draws and writes the pocket data (images, boxes and masks) in parallel processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from kdep_bench.data.pocket import compose
from kdep_bench.data.pocket.material import (
    CLASSES,
    DISTRACTOR,
    SCENE,
    Cutout,
    Material,
    Photo,
)
from kdep_bench.data.pocket.spec import checked_spec
from kdep_bench.data.pocket.verify import write_checksums
from kdep_bench.data.splits import SPLIT_FRACTIONS, split_by_group
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, read_strict, write_json

Progress = Callable[..., None]
SCENE_ID, IGNORE = len(CLASSES), 255  # train ids of the background and of ignored pixels
#: Ids in gtFine_labelIds; different from train ids, so that using the wrong masks causes an error.
LABEL_IDS = np.array([*range(11, 11 + len(CLASSES)), 23], np.uint8)
LABEL_ID_UNLABELLED = 0
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 90]
_CHUNK = 250  # images per job
_BYTES_PER_IMAGE = 9000  # upper bound on the mean at 128 px, for the disk space check


@dataclass(frozen=True)
class Job:
    """Work for one process: images start..stop-1 of one kind and split.

    `kind` is 'pool' (composites), 'crops' (of backgrounds, also for the pool), 'classify' or
    'scenes' (for detection and segmentation).
    """

    kind: str
    split: str
    start: int
    stop: int


@dataclass
class Written:
    """The result of a job.

    Attributes:
        files: (relative path, SHA-256) of each file.
        annotations: one entry per image, from which the labels and COCO files are written.
    """

    files: list[tuple[str, str]]
    annotations: list[dict[str, Any]]


class Maker:
    """Draws and writes the images of jobs; each worker process has one Maker.

    Args:
        spec: see `checked_spec`.
        sources_by_split: source images by split.
        root: folder of the data.
    """

    def __init__(
        self, spec: dict[str, Any], sources_by_split: dict[str, compose.SourceImages], root: Path
    ):
        self.spec, self.sources_by_split, self.root = spec, sources_by_split, root

    def run(self, job: Job) -> Written:
        """Draws and writes the images of `job`."""
        make = {
            "pool": self._composite,
            "crops": self._crop,
            "classify": self._classify,
            "scenes": self._scene,
        }[job.kind]
        out = Written([], [])
        for index in range(job.start, job.stop):
            # crc32, because hash() of a text differs between processes.
            image_seed = [zlib.crc32(job.kind.encode()), zlib.crc32(job.split.encode()), index]
            make(np.random.default_rng([self.spec["seed"], *image_seed]), job.split, index, out)
        return out

    def _composite(self, rng: np.random.Generator, split: str, index: int, out: Written) -> None:
        label = index % len(CLASSES)
        image, main = compose.single(
            rng, self.sources_by_split[split], CLASSES[label], self.spec["px"]
        )
        name = pool_name(index)
        self._image(out, f"pool/images/{name}", image)
        out.annotations.append({"file": name, "label": label, "fine": main.group})

    def _crop(self, rng: np.random.Generator, split: str, index: int, out: Written) -> None:
        px, photo = self.spec["px"], compose.pick(rng, self.sources_by_split[split].photos)
        name = pool_name(self.spec["pool_composites"] + index)
        self._image(out, f"pool/images/{name}", compose.detail(rng, photo, px))
        out.annotations.append({"file": name, "label": SCENE_ID, "fine": photo.group})

    def _classify(self, rng: np.random.Generator, split: str, index: int, out: Written) -> None:
        label = CLASSES[index % len(CLASSES)]
        image, _ = compose.single(rng, self.sources_by_split[split], label, self.spec["px"])
        self._image(out, f"classify/{split}/{label}/{index:05d}.jpg", image)

    def _scene(self, rng: np.random.Generator, split: str, index: int, out: Written) -> None:
        scene = compose.scene(rng, self.sources_by_split[split], tuple(self.spec["scene_size"]))
        file = f"{index + 1:06d}.jpg"
        self._image(out, f"detect/{split}/{file}", scene.image)
        stem = f"{split}/pocket/pocket_{index + 1:06d}_000019"
        self._image(out, f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png", scene.image)
        train_ids, label_ids = segmentation(scene)
        self._image(out, f"cityscapes/gtFine/{stem}_gtFine_labelTrainIds.png", train_ids)
        self._image(out, f"cityscapes/gtFine/{stem}_gtFine_labelIds.png", label_ids)
        height, width = scene.instances.shape
        image = {"file_name": file, "height": height, "width": width}
        out.annotations.append({"image": image, "objects": coco_annotations(scene)})

    def _image(self, out: Written, rel: str, image: np.ndarray) -> None:
        """Encodes an image, writes it to the relative path `rel`, and adds it to `out.files`."""
        ok, raw = cv2.imencode(Path(rel).suffix, image, QUALITY if rel.endswith("jpg") else [])
        if not ok:
            raise KdepError(
                f"OpenCV could not encode {rel} from {image.shape} {image.dtype}",
                fix="run: pip install --force-reinstall --no-deps opencv-python-headless",
            )
        out.files.append((rel, write_file(self.root / rel, raw.tobytes())))


def pool_name(index: int) -> str:
    """Path of pool image `index` below pool/images."""
    return f"{index // 1000:02d}/{index:06d}.jpg"


def segmentation(scene: compose.Scene) -> tuple[np.ndarray, np.ndarray]:
    """The masks of a scene: (train ids, label ids), both [h, w] uint8.

    A pixel whose right or lower neighbour belongs to another instance is ignored (train id 255,
    label id 0), because its colour is a mixture of both.
    """
    instances = scene.instances
    train_ids = np.array([SCENE_ID, *scene.labels], np.uint8)[instances]
    edge = np.zeros(instances.shape, bool)
    edge[:, :-1] |= instances[:, :-1] != instances[:, 1:]
    edge[:-1] |= instances[:-1] != instances[1:]
    label_ids = LABEL_IDS[train_ids]
    train_ids[edge], label_ids[edge] = IGNORE, LABEL_ID_UNLABELLED
    return train_ids, label_ids


def coco_annotations(scene: compose.Scene) -> list[dict[str, Any]]:
    """COCO annotations, without ids, of the visible part of each object in a scene."""
    out = []
    for number, label in enumerate(scene.labels, 1):
        mask = scene.instances == number
        ys, xs = np.nonzero(mask)
        x, y = int(xs.min()), int(ys.min())
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts = rle["counts"]  # bytes in current pycocotools; JSON needs text
        counts = counts if isinstance(counts, str) else counts.decode()
        out.append(
            {
                "category_id": label + 1,
                "bbox": [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": list(mask.shape), "counts": counts},
            }
        )
    return out


def write_file(path: Path, raw: bytes) -> str:
    """Writes `raw` and returns its SHA-256; KdepError if it cannot be written.

    Not atomic, because an interrupted `prepare` stage starts again from an empty folder.
    """
    try:
        try:
            path.write_bytes(raw)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
    except OSError as e:
        raise KdepError(
            f"the file {path} cannot be written ({e.strerror})",
            fix="free disk space or correct the permissions of the work dir, then run again",
        ) from None
    return hashlib.sha256(raw).hexdigest()


def make(
    spec: dict[str, Any],
    material: Material,
    out: Path,
    progress: Progress,
    workers: int | None = None,
) -> dict[str, Any]:
    """Makes the pocket data from `material`.

    Args:
        spec: see `checked_spec`.
        material: the source images.
        out: the stage directory; out/data is replaced.
        progress: called with (images done, images, note).
        workers: number of processes; None: one per core, at most 8. 1 starts no process.

    Returns:
        the outputs of `prepare`.

    Raises:
        KdepError: see `prepare`.
    """
    spec, started = checked_spec(spec), time.perf_counter()
    root, total = out / "data", images_in(spec)
    shutil.rmtree(root, ignore_errors=True)
    _check_space(out, total)
    objects = split_by_group(material.cutouts, spec["seed"])
    photos = split_by_group(material.backgrounds, spec["seed"])
    sources_by_split = {s: _source_images(s, objects[s], photos[s]) for s in SPLIT_FRACTIONS}
    written = _draw(Maker(spec, sources_by_split, root), list(jobs(spec)), progress, workers)
    seconds = time.perf_counter() - started
    files = [entry for part in written.values() for entry in part.files]
    files += _write_photos(root, material.checks)
    files += _write_known(root, material.cutouts)
    files += _write_pool_labels(root, written)
    files += _write_coco(root, written, spec)
    summary = {
        "fingerprint": write_checksums(root, files),
        "source": material.source,
        "counts": _counts(files, sources_by_split),
        "classes": list(CLASSES),
        "licences": material.licences,
        "notes": material.notes,
    }
    manifest = {
        **summary,
        "spec": spec,
        "seed": spec["seed"],
        "packages": material.packages,
        "splits": {
            "objects": {s: sorted(c.name for c in objects[s]) for s in SPLIT_FRACTIONS},
            "backgrounds": {s: sorted(p.name for p in photos[s]) for s in SPLIT_FRACTIONS},
        },
        "codecs": {"opencv": cv2.__version__, "numpy": np.__version__},
    }
    write_json(root / "manifest.json", manifest)
    progress(total, total, "done")
    return {"data": "data", **summary, "images_per_s": round(total / seconds, 1)}


def images_in(spec: dict[str, Any]) -> int:
    """Number of images that will be drawn."""
    per_split = sum(spec["classify"].values()) + sum(spec["scenes"].values())
    return spec["pool_composites"] + spec["pool_crops"] + per_split


def jobs(spec: dict[str, Any]) -> Iterable[Job]:
    """The jobs, of at most _CHUNK images each."""
    sizes = [("pool", "pool", spec["pool_composites"]), ("crops", "pool", spec["pool_crops"])]
    sizes += [("classify", split, n) for split, n in spec["classify"].items()]
    sizes += [("scenes", split, n) for split, n in spec["scenes"].items()]
    for kind, split, count in sizes:
        for start in range(0, count, _CHUNK):
            yield Job(kind, split, start, min(count, start + _CHUNK))


def _source_images(split: str, cutouts: list[Cutout], photos: list[Photo]) -> compose.SourceImages:
    by_label: dict[str, list[Cutout]] = {label: [] for label in (*CLASSES, DISTRACTOR)}
    for cutout in cutouts:
        by_label[cutout.label].append(cutout)
    empty = [label for label, members in by_label.items() if not members]
    if empty or not photos:
        missing = ", ".join(empty) or "backgrounds"
        raise KdepError(
            f"the source images of the split {split} of the pocket data include no {missing}",
            fix="use another `seed` or `source` in the data config",
        )
    return compose.SourceImages(by_label, photos)


def _check_space(out: Path, images: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(out).free, images * _BYTES_PER_IMAGE
    if free < need:
        raise KdepError(
            f"only {free / 1e6:.0f} MB are free in {out}",
            expected=f"about {need / 1e6:.0f} MB for {images} images",
            fix="free disk space, or choose another work dir (--work-dir)",
        )


def _draw(
    maker: Maker, todo: list[Job], progress: Progress, workers: int | None
) -> dict[Job, Written]:
    """Runs all jobs, in `workers` processes if possible; returns the results in order of `todo`."""
    done: dict[Job, Written] = {}
    count, total = 0, sum(job.stop - job.start for job in todo)
    if workers is None:
        workers = 1 if total < 2 * _CHUNK else _cores()
    # Python forbids daemonic processes to start processes.
    if workers < 2 or multiprocessing.current_process().daemon:
        for job in todo:
            done[job] = maker.run(job)
            count += job.stop - job.start
            progress(count, total, f"{job.kind} {job.split}")
        return done
    # A forked child would hang if OpenCV had already started its threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (maker, os.getpid()))
    try:
        futures: dict[Future[Written], Job] = {pool.submit(_work, job): job for job in todo}
        for future in as_completed(futures):
            job = futures[future]
            done[job] = future.result()
            count += job.stop - job.start
            progress(count, total, f"{job.kind} {job.split}")
    except BrokenProcessPool:
        raise KdepError(
            "a process that renders images was killed",
            expected="about 400 MB of memory per process",
            fix="free memory and run again",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return {job: done[job] for job in todo}


def _cores() -> int:
    """Number of cores that this process may use, at most 8: the disk limits more processes."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(count or 1, 8)


_MAKER: Maker | None = None  # the Maker of this worker process


def _start_worker(maker: Maker, parent: int) -> None:
    """Initialises a worker process, which ends itself when its parent process has ended."""
    global _MAKER
    _MAKER = maker
    cv2.setNumThreads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(job: Job) -> Written:
    assert _MAKER is not None, "the initialiser has run"
    return _MAKER.run(job)


# The next four functions return (relative path, SHA-256) of each file that they write.


def _write_photos(root: Path, photos: list[Photo]) -> list[tuple[str, str]]:
    """Writes the labelled photographs of the task pocket_photos."""
    out = []
    for photo in photos:
        rel = f"photos/{photo.label}/{photo.name}.jpg"
        raw = cv2.imencode(".jpg", photo.image, QUALITY)[1].tobytes()
        out.append((rel, write_file(root / rel, raw)))
    return out


def _write_known(root: Path, cutouts: list[Cutout]) -> list[tuple[str, str]]:
    """Writes cut-outs of known ImageNet-1k classes on a grey background, for tests of teachers.

    `known.json` next to this module maps files of tuxpaint to class numbers, which were assigned by
    hand. Nothing is written if `cutouts` has none of these files.
    """
    by_name = {c.name: c.image for c in cutouts}
    files, classes = [], {}
    for name, number in read_strict(Path(__file__).with_name("known.json")).items():
        if name not in by_name:
            continue
        cutout = by_name[name].astype(np.float32)
        h, w = cutout.shape[:2]
        side = round(1.15 * max(h, w))  # a small margin around the object
        canvas = np.full((side, side, 3), 128, np.float32)
        y, x = (side - h) // 2, (side - w) // 2
        alpha = cutout[..., 3:] / 255
        canvas[y : y + h, x : x + w] = canvas[y : y + h, x : x + w] * (1 - alpha) + cutout[..., :3]
        file = f"{Path(name).stem}.png"
        raw = cv2.imencode(".png", canvas.clip(0, 255).astype(np.uint8))[1].tobytes()
        files.append((f"known/{file}", write_file(root / "known" / file, raw)))
        classes[file] = number
    if classes:
        files.append(("known/known.json", write_file(root / "known/known.json", _json(classes))))
    return files


def _write_pool_labels(root: Path, written: dict[Job, Written]) -> list[tuple[str, str]]:
    """Writes the class of every pool image, and its group ("fine": source object or place)."""
    annotations = [
        annotation
        for job, result in written.items()
        if job.kind in ("pool", "crops")
        for annotation in result.annotations
    ]
    table = {
        "classes": [*CLASSES, SCENE],
        "labels": {a["file"]: a["label"] for a in annotations},
        "fine": {a["file"]: a["fine"] for a in annotations},
    }
    return [("pool/labels.json", write_file(root / "pool/labels.json", _json(table)))]


def _write_coco(
    root: Path, written: dict[Job, Written], spec: dict[str, Any]
) -> list[tuple[str, str]]:
    """Writes a COCO json of the scenes of each split."""
    out = []
    categories = [{"id": i, "name": c, "supercategory": "pocket"} for i, c in enumerate(CLASSES, 1)]
    for split in spec["scenes"]:
        annotations = [
            annotation
            for job, result in written.items()
            if (job.kind, job.split) == ("scenes", split)
            for annotation in result.annotations
        ]
        images, boxes = [], []
        for image_id, annotation in enumerate(annotations, 1):
            images.append({"id": image_id, **annotation["image"]})
            for item in annotation["objects"]:
                boxes.append({"id": len(boxes) + 1, "image_id": image_id, **item})
        info = {"description": "pocket scenes: composites, not COCO", "seed": spec["seed"]}
        table = {"info": info, "images": images, "annotations": boxes, "categories": categories}
        rel = f"detect/annotations/{split}.json"
        out.append((rel, write_file(root / rel, _json(table))))
    return out


def _json(value: Any) -> bytes:
    return canonical_json(value).encode()


def _counts(
    files: list[tuple[str, str]], sources_by_split: dict[str, compose.SourceImages]
) -> dict[str, Any]:
    images = [rel.split("/") for rel, _ in files if rel.endswith(".jpg")]
    names = ("/".join(p[:2]) if p[0] != "pool" else "pool" for p in images)
    return {
        "images": dict(sorted(Counter(names).items())),
        "objects": {
            s: {k: len(v) for k, v in sources.objects.items()}
            for s, sources in sources_by_split.items()
        },
        "backgrounds": {s: len(sources.photos) for s, sources in sources_by_split.items()},
    }
