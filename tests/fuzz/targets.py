"""The readers that are fuzzed: for each, how a valid file is made, changed and read."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdep_bench.errors import KdepError
from tests.fuzz import mutate
from tests.fuzz.mutate import Mutator


@dataclass(frozen=True)
class Target:
    """A reader that is fuzzed.

    Attributes:
        name: of the reader, in the table.
        setup: folder -> (the file that is changed, the call that reads it).
        mutate: (rng, valid bytes) -> changed bytes.
    """

    name: str
    setup: Callable[[Path], tuple[Path, Callable[[], Any]]]
    mutate: Mutator


def official_set(name: str, pattern: str) -> Callable[[Path], tuple[Path, Callable[[], Any]]]:
    """The first file that matches in the tiny copy of an official set, and the set's check."""

    def setup(root: Path) -> tuple[Path, Callable[[], Any]]:
        from kdep_bench.data.official.base import get_set, verify

        dataset = get_set(name)
        (root / name).mkdir(parents=True, exist_ok=True)
        dataset.tiny(root / name, np.random.default_rng(0))
        path = next(iter(sorted((root / name).glob(pattern))))
        return path, lambda: verify(dataset, root, 2, check_counts=False)

    return setup


def own_data(file: str) -> Callable[[Path], tuple[Path, Callable[[], Any]]]:
    """A file of the user's own data, and the reading of all its parts."""

    def setup(root: Path) -> tuple[Path, Callable[[], Any]]:
        from kdep_bench.data.own.stage import read_parts
        from tests.data.own_fixture import make

        spec = make(root)
        return root / file, lambda: read_parts(spec, lambda *_: None)

    return setup


def image_file(suffix: str, mode: str = "RGB") -> Callable[[Path], tuple[Path, Callable[[], Any]]]:
    """An image of this format and mode, and every way in which images are read."""

    def setup(root: Path) -> tuple[Path, Callable[[], Any]]:
        from kdep_bench.data.checks import check_image
        from kdep_bench.data.images import examine, plain_pixels, read_rgb

        path = root / f"a.{suffix}"
        rng = np.random.default_rng(0)
        if mode == "I;16":
            Image.fromarray(rng.integers(0, 65535, (24, 32)).astype(np.uint16)).save(path)
        else:
            pixels = rng.integers(0, 255, (24, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(path)

        def read() -> None:
            with contextlib.suppress(KdepError):  # check_image accepts fewer formats than `examine`
                check_image(path, alpha=True)
            data = path.read_bytes()
            info = examine(data, path)
            if not info.plain:
                plain_pixels(data, path)
            read_rgb(path)

        return path, read

    return setup


def archive_file(kind: str) -> Callable[[Path], tuple[Path, Callable[[], Any]]]:
    """A small archive, and its unpacking."""

    def setup(root: Path) -> tuple[Path, Callable[[], Any]]:
        import shutil

        from kdep_bench.data.official.archives import unpack

        files = {"d/a.txt": b"first" * 150, "x" * 120 + "/b.txt": b"", "c.txt": b"last" * 300}
        out = io.BytesIO()
        if kind == "zip":
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
                for name, data in files.items():
                    z.writestr(name, data)
        else:
            with tarfile.open(fileobj=out, mode="w") as t:
                for name, data in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    t.addfile(info, io.BytesIO(data))
        raw = out.getvalue()
        path = root / f"a.{kind}"
        path.write_bytes(gzip.compress(raw) if kind == "tgz" else raw)

        def read() -> None:
            try:
                unpack(path, root / "out", lambda *_: None)
            finally:
                shutil.rmtree(root / "out", ignore_errors=True)

        return path, read

    return setup


def checkpoint_file(kind: str) -> Callable[[Path], tuple[Path, Callable[[], Any]]]:
    """A checkpoint of three tensors, and its readers, of a teacher's and of a student's file."""

    def setup(root: Path) -> tuple[Path, Callable[[], Any]]:
        import torch
        from safetensors.torch import save_file

        from kdep_bench.teachers.weights import read_weights
        from kdep_bench.transfer.gate import read_tensors

        state = {"a.weight": torch.randn(4, 3), "a.bias": torch.zeros(4), "n": torch.tensor(3)}
        path = root / f"w.{kind}"
        if kind == "safetensors":
            save_file(state, path)
        else:
            torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=kind == "pth")

        def read() -> None:
            with contextlib.suppress(KdepError):
                read_weights(path)
            read_tensors(path)

        return path, read

    return setup


def record_file(root: Path) -> tuple[Path, Callable[[], Any]]:
    """A record of the published results, and the two functions that read it."""
    from kdep_bench.results.records import store
    from kdep_bench.results.records.record import load

    source = next(iter(sorted(Path("results/pocket/records").glob("*.json"))))
    fields = json.loads(source.read_text())
    fields["curves"] = {k: v[:2] for k, v in fields.get("curves", {}).items()}
    (root / "records").mkdir()
    path = root / "records" / source.name
    path.write_text(json.dumps(fields))

    def read() -> None:
        store.read(root)
        load(path)

    return path, read


def stage_file(root: Path) -> tuple[Path, Callable[[], Any]]:
    """stage.json with its checksum corrected, so that the code after that check is reached."""
    from kdep_bench.engine import state

    record = {
        "schema": state.SCHEMA, "id": "a-1", "kind": "a", "version": 1, "spec": {"x": [1]},
        "needs": {}, "environment": {"git": "", "packages": {"torch": "2"}},
        "outputs": {"value": 1},
        "files": {"a.txt": [1, "0" * 64]}, "rest": None, "wall_s": 1.0, "peak_rss": 5,
        "finished": "2026-01-01T00:00:00+00:00", "code": "0",
    }  # fmt: skip
    path = root / "a-1" / "stage.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record))

    def read() -> None:
        raw = path.read_bytes()
        try:
            value = json.loads(raw)
            if isinstance(value, dict):
                path.write_bytes(state.stage_text(value))
        except (ValueError, RecursionError):
            pass
        state.read_stage(path.parent)

    return path, read


def plan_file(root: Path) -> tuple[Path, Callable[[], Any]]:
    """A plan of the smoke suite, and the reading of its first stage."""
    from kdep_bench.engine.stage import read_stage, write_plan
    from kdep_bench.suite.config import load_suite
    from kdep_bench.suite.plan import build_plan

    plan = build_plan(load_suite("smoke"))
    stage_id = next(iter(plan.stages))
    path = root / "plan.json"
    write_plan(path, "smoke", [plan.stages[stage_id]])
    return path, lambda: read_stage(path, stage_id)


def json_file(value: Any, read: Callable[[Path], Any]):
    """A JSON file with this value, and this reader."""

    def setup(root: Path) -> tuple[Path, Callable[[], Any]]:
        path = root / "a.json"
        path.write_text(json.dumps(value))
        return path, lambda: read(path)

    return setup


def read_both_ways(path: Path) -> Any:
    """Reads the file as JSON, leniently and strictly."""
    from kdep_bench.files import read_json, read_strict

    read_json(path)
    return read_strict(path)


def check_coco_json(path: Path) -> Any:
    """The check of COCO files; imported late, so that the import is not measured."""
    from kdep_bench.data.checks import check_coco

    return check_coco(path)


COCO = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 7, "bbox": [1, 2, 9, 9.5], "area": 81, "iscrowd": 0}
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
}


def change_pickle(rng: random.Random, raw: bytes) -> bytes:
    """Changes a value of a CIFAR pickle, or single bytes."""
    if rng.random() < 0.5:
        return mutate.bytes_(rng, raw)
    table = pickle.loads(raw)
    key = rng.choice(sorted(table))
    table[key] = rng.choice(
        (*mutate.VALUES, np.zeros((3, 5)), np.zeros(0), np.zeros((2, 3072), "u1"))
    )
    return pickle.dumps(table, protocol=2)


TARGETS = (
    Target("JSON files (read_json, read_strict)", json_file(COCO, read_both_ways), mutate.json_),
    Target("COCO json (check_coco)", json_file(COCO, check_coco_json), mutate.json_),
    Target("COCO json of one's own data", own_data("train.json"), mutate.json_),
    Target(
        "COCO json of the official set", official_set("coco", "annotations/*.json"), mutate.json_
    ),
    Target("mask of one's own data", own_data("masks/train/1.png"), mutate.png),
    Target("image of one's own data", own_data("train/1.jpg"), mutate.bytes_),
    Target("image, PNG", image_file("png"), mutate.png),
    Target("image, PNG with palette", image_file("png", "P"), mutate.png),
    Target("image, 16-bit PNG", image_file("png", "I;16"), mutate.png),
    Target("image, JPEG", image_file("jpg"), mutate.bytes_),
    Target("image, CMYK JPEG", image_file("jpg", "CMYK"), mutate.bytes_),
    Target("image, GIF", image_file("gif"), mutate.bytes_),
    Target("image, WebP", image_file("webp"), mutate.bytes_),
    Target("image, TIFF", image_file("tif"), mutate.bytes_),
    Target("image, BMP", image_file("bmp"), mutate.bytes_),
    Target("archive, tar", archive_file("tar"), mutate.tar),
    Target("archive, compressed tar", archive_file("tgz"), mutate.bytes_),
    Target("archive, zip", archive_file("zip"), mutate.bytes_),
    Target("checkpoint, torch", checkpoint_file("pth"), mutate.zip_(mutate.bytes_, "data.pkl")),
    Target("checkpoint, torch before 1.6", checkpoint_file("old"), mutate.bytes_),
    Target("checkpoint, safetensors", checkpoint_file("safetensors"), mutate.safetensors),
    Target("record", record_file, mutate.json_),
    Target("stage.json", stage_file, mutate.json_),
    Target("plan as a file", plan_file, mutate.json_),
    Target("CUB list", official_set("cub200", "*/images.txt"), mutate.lines),
    Target("CUB classes", official_set("cub200", "*/image_class_labels.txt"), mutate.lines),
    Target("CUB split", official_set("cub200", "*/train_test_split.txt"), mutate.lines),
    Target("Caltech list", official_set("caltech256", "kdep_train.txt"), mutate.lines),
    Target("VOC list", official_set("voc", "VOCdevkit/VOC2012/ImageSets/Main/*.txt"), mutate.lines),
    Target(
        "VOC annotation", official_set("voc", "VOCdevkit/VOC2007/Annotations/*.xml"), mutate.lines
    ),
    Target(
        "VOC mask", official_set("voc", "VOCdevkit/VOC2012/SegmentationClass/*.png"), mutate.png
    ),
    Target("DTD list", official_set("dtd", "dtd/labels/train*.txt"), mutate.lines),
    Target("DTD table (MATLAB)", official_set("dtd", "dtd/imdb/imdb.mat"), mutate.bytes_),
    Target("CIFAR pickle", official_set("cifar100", "*/test"), change_pickle),
    Target(
        "Cityscapes mask", official_set("cityscapes", "gtFine/train/*/*TrainIds.png"), mutate.png
    ),
    Target("ADE20K mask", official_set("ade20k", "*/annotations/training/*.png"), mutate.png),
)
