"""The full-scale tasks on tiny copies in the real formats, each in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.data.official import caltech256, dtd, stage, voc
from kdep_bench.errors import KdepError
from kdep_bench.registry import build
from kdep_bench.suite.config import resolve
from kdep_bench.suite.rehearse import PX, shrink_task
from kdep_bench.transfer import stage as transfer_stage
from kdep_bench.transfer.gate import Parts, check
from tests.transfer.conftest import export_random, quiet

SETS = ["cifar100", "cub200", "dtd", "caltech256", "cityscapes", "voc", "ade20k", "coco"]
TASKS = (
    *("cifar100", "cub200", "dtd", "caltech256", "cityscapes", "voc12_seg", "ade20k"),
    *("voc0712_c4", "voc0712_fpn", "coco_c4", "coco_fpn"),
)
# One of each family runs in every test run; `make rehearse` runs all, on both students.
SAMPLE = ("cifar100", "voc12_seg", "voc0712_c4")

R18: dict[str, Any] = {
    "name": "resnet18",
    "backbone": {
        "type": "mmpretrain.ResNet",
        "depth": 18,
        "style": "pytorch",
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "norm_eval": False,
    },
    "width": 512,
    "input_px": PX,
    "tap": "last_pre_activation",
    "pyramid": {
        "out_indices": [0, 1, 2, 3],
        "channels": [64, 128, 256, 512],
        "strides": [4, 8, 16, 32],
    },
    "dilated": {"strides": [1, 2, 1, 1], "dilations": [1, 1, 2, 4]},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("official")
    stage.prepare({"sets": SETS, "pool": "imagenet", "tiny_seed": 0}, {}, out, quiet)
    return out


@pytest.fixture(scope="module")
def r18(tmp_path_factory: pytest.TempPathFactory, in_subprocess: Callable[..., Any]) -> Path:
    out = tmp_path_factory.mktemp("r18")
    assert in_subprocess(export_random, R18, out)["coverage"] == 1.0
    return out / "export"


def run_task(name: str, prepared: Path, export: Path, out: Path) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    spec = {"task": shrink_task(resolve("task", name)), "student": R18, "seed": 0, "threads": 1}
    return transfer_stage.run(spec, {"prepare": prepared, "export": export}, out, quiet)


def dump_and_reload(name: str, prepared: Path, export: Path, out: Path) -> bool:
    """Whether the task's full-size Config equals its dump, and its data sets build from that."""
    from mmengine.config import Config
    from mmengine.utils import import_modules_from_strings

    from kdep_bench.openmmlab import setup
    from kdep_bench.transfer.mm_config import plain

    task = build(resolve("task", name))
    setup(task.scope)
    cfg = task.build_cfg(prepared / "data", R18, export / "backbone.pth", 0, out / "mm")
    cfg.dump(out / "dumped.py")
    again = Config.fromfile(out / "dumped.py")
    same = plain(again.to_dict()) == plain(cfg.to_dict())
    import_modules_from_strings(**again.custom_imports)
    import importlib

    registry = importlib.import_module(f"{task.scope}.registry")
    for part in ("train_dataloader", "test_dataloader"):
        assert len(registry.DATASETS.build(again[part].dataset)) > 0
    model = registry.MODELS.build(again.model)
    assert sum(p.numel() for p in model.parameters()) > 10_000_000
    return same


@pytest.mark.parametrize("name", TASKS)
def test_config_builds_dumps_and_reloads(
    name: str, prepared: Path, r18: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    assert in_subprocess(dump_and_reload, name, prepared, r18, tmp_path)


@pytest.mark.parametrize("name", SAMPLE)
def test_task_trains_and_scores(
    name: str, prepared: Path, r18: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    out = in_subprocess(run_task, name, prepared, r18, tmp_path)
    assert out["gate"]["coverage"] == 1.0
    assert not out["gate"]["missing"]
    assert not out["gate"]["unexpected"]
    assert 0 <= out["value"] <= 1
    assert out["metric"] == resolve("task", name)["metric"]
    assert all(math.isfinite(v) for _, v in out["curves"]["loss"])


def voc_ap(prepared: Path) -> dict[str, float]:
    """The VOC metric of detections that are the truth itself, difficult objects left out."""
    from mmengine.structures import InstanceData

    from kdep_bench.openmmlab import setup
    from kdep_bench.transfer.full_detection import TEST_KEYS, datasets

    setup("mmdet")
    from mmdet.registry import DATASETS, METRICS

    import kdep_bench.transfer.datasets  # noqa: F401

    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "PackDetInputs", "meta_keys": TEST_KEYS[:3]},
    ]
    data = DATASETS.build(datasets("voc", prepared / "data/voc", train=False, pipeline=pipeline))
    metric = METRICS.build({"type": "KdepVOCMetric", "metric": "mAP", "eval_mode": "11points"})
    metric.dataset_meta = data.metainfo
    kept = ignored = 0
    for i in range(len(data)):
        sample = data[i]["data_samples"]
        truth, kept = sample.gt_instances, kept + len(sample.gt_instances)
        ignored += len(sample.ignored_instances)
        detections = InstanceData(
            bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(len(truth))
        )
        metric.process(
            {},
            [
                {
                    "gt_instances": {"labels": truth.labels, "bboxes": truth.bboxes.tensor},
                    "ignored_instances": {
                        "labels": sample.ignored_instances.labels,
                        "bboxes": sample.ignored_instances.bboxes.tensor,
                    },
                    "pred_instances": detections,
                }
            ],
        )
    return {**metric.evaluate(len(data)), "kept": kept, "ignored": ignored}


def test_voc_difficult_objects_do_not_count(
    prepared: Path, in_subprocess: Callable[..., Any]
) -> None:
    """Boxes that are the truth without the difficult ones score 1: none of those is missed."""
    out = in_subprocess(voc_ap, prepared)
    xmls = sorted((prepared / "data/voc/VOCdevkit/VOC2007/Annotations").glob("test*.xml"))
    difficult = sum(voc.check_xml(x)["difficult"] for x in xmls)
    assert out["ignored"] == difficult > 0
    assert out["kept"] == 2 * len(xmls) - difficult
    assert out["pascal_voc/AP"] == pytest.approx(1.0)


def crowds(prepared: Path) -> tuple[int, int]:
    """(objects that train, objects set aside) of the tiny COCO as mmdet reads it."""
    from kdep_bench.openmmlab import setup
    from kdep_bench.transfer.full_detection import datasets

    setup("mmdet")
    from mmdet.registry import DATASETS

    import kdep_bench.transfer.coco_sets  # noqa: F401  # registers the data set, as a run does

    data = DATASETS.build(datasets("coco", prepared / "data/coco", train=True, pipeline=[]))
    flags = [o["ignore_flag"] for i in range(len(data)) for o in data.get_data_info(i)["instances"]]
    return flags.count(0), flags.count(1)


def test_coco_crowds_do_not_train(prepared: Path, in_subprocess: Callable[..., Any]) -> None:
    assert in_subprocess(crowds, prepared) == (12, 4)


def counts(prepared: Path) -> dict[str, tuple[int, int]]:
    from kdep_bench.openmmlab import setup
    from kdep_bench.transfer.full_classification import datasets

    setup("mmpretrain")
    from mmpretrain.registry import DATASETS

    import kdep_bench.transfer.datasets  # noqa: F401

    out = {}
    for name in SETS[:4]:
        train, test, _ = datasets(name, prepared / "data" / name)
        a, b = (DATASETS.build({**d, "pipeline": []}) for d in (train, test))
        out[name] = len(a), len(b)
        image = a[0].get("img")
        if image is not None:  # CIFAR: as stored, but BGR
            from kdep_bench.data.official.cifar100 import read_split

            stored = read_split(prepared / "data" / name, "train")[0]
            assert np.array_equal(image[..., ::-1], stored[0])
    return out


def test_classification_splits(prepared: Path, in_subprocess: Callable[..., Any]) -> None:
    data = prepared / "data"
    parts = {
        s: len((data / "dtd" / dtd.FOLDER / f"labels/{s}.txt").read_text().split())
        for s in dtd.SPLITS
    }
    found = in_subprocess(counts, prepared)
    assert found["dtd"] == (parts["train1"] + parts["val1"], parts["test1"])
    assert found["cub200"] == (16, 8)
    assert found["cifar100"] == (40, 20)
    assert found["caltech256"] == (16, 8)
    first = (data / "caltech256" / caltech256.LISTS["train"]).read_text().splitlines()[:4]
    assert [r.rsplit("_", 1)[1] for r in first] == [f"{i:04d}.jpg 0" for i in range(1, 5)]


def test_a_c4_detector_refuses_a_student_without_a_last_stage(tmp_path: Path) -> None:
    task = build(resolve("task", "voc0712_c4"))
    student = {**R18, "name": "mobilenetv2", "backbone": {"type": "mmpretrain.MobileNetV2"}}
    with pytest.raises(KdepError, match="use the FPN task"):
        task._full_model(student, tmp_path)


def test_the_gate_joins_parts_and_refuses_one_that_is_short(tmp_path: Path) -> None:
    a, b = torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(3, 1))
    tensors = {k: v.clone() for m in (a, b) for k, v in m.state_dict().items()}
    assert check(Parts([a, b]), "file", tensors=tensors)["coverage"] == 1.0
    with torch.no_grad():
        b[0].weight += 1  # type: ignore[operator]
    with pytest.raises(KdepError, match=r"0\.weight"):
        check(Parts([a, b]), "file", tensors=tensors)
    with pytest.raises(KdepError, match="two parts"):
        check(Parts([a, a]), "file", tensors=tensors)
