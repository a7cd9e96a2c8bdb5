"""The full-scale tasks on tiny copies of their data sets (CIFAR-100, VOC, COCO, ...)."""

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

SETS = [
    *("cifar100", "cub200", "dtd", "caltech256", "cityscapes", "voc", "ade20k", "coco"),
    "foggy_cityscapes",
]
TASKS = (
    *("cifar100", "cub200", "dtd", "caltech256", "cityscapes", "voc12_seg", "ade20k"),
    *("voc0712_c4", "voc0712_fpn", "coco_c4", "coco_fpn"),
    *("foggy_cityscapes", "foggy_cityscapes_source"),
)
# One task of each family runs in every test run; `make rehearse` runs all.
SAMPLE = ("cifar100", "voc12_seg", "voc0712_c4", "foggy_cityscapes")

R18: dict[str, Any] = {  # student config of a full ResNet-18
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
    """Directory of a finished `prepare` stage with tiny copies of all sets."""
    out = tmp_path_factory.mktemp("official")
    stage.prepare({"sets": SETS, "pool": "imagenet", "tiny_seed": 0}, {}, out, quiet)
    return out


@pytest.fixture(scope="module")
def r18(tmp_path_factory: pytest.TempPathFactory, in_subprocess: Callable[..., Any]) -> Path:
    """Directory of a finished export stage of a random full ResNet-18."""
    out = tmp_path_factory.mktemp("r18")
    assert in_subprocess(export_random, R18, out)["coverage"] == 1.0
    return out / "export"


def task_config(name: str) -> dict[str, Any]:
    """The config of a task without `tests_on`, which only planning reads."""
    return {k: v for k, v in resolve("task", name).items() if k != "tests_on"}


def run_task(name: str, prepared: Path, export: Path, out: Path) -> dict[str, Any]:
    """The outputs of the real transfer stage for the task `name`, shrunk to tiny images."""
    out.mkdir(parents=True, exist_ok=True)
    spec = {"task": shrink_task(task_config(name)), "student": R18, "seed": 0, "threads": 1}
    return transfer_stage.run(spec, {"prepare": prepared, "export": export}, out, quiet)


def dump_and_reload(name: str, prepared: Path, export: Path, out: Path) -> bool:
    """Dumps the task's full-size Config, and builds its data sets and model from the dump.

    Returns whether the reloaded Config equals the dumped one.
    """
    from mmengine.config import Config
    from mmengine.utils import import_modules_from_strings

    from kdep_bench.openmmlab import setup
    from kdep_bench.transfer.mm_config import plain

    task = build(task_config(name))
    setup(task.scope)
    cfg = task.build_cfg(prepared / "data", R18, export / "backbone.pth", 0, out / "mm")
    cfg.dump(out / "dumped.py")
    reloaded = Config.fromfile(out / "dumped.py")
    equal = plain(reloaded.to_dict()) == plain(cfg.to_dict())
    import_modules_from_strings(**reloaded.custom_imports)
    import importlib

    registry = importlib.import_module(f"{task.scope}.registry")
    for part in ("train_dataloader", "test_dataloader"):
        assert len(registry.DATASETS.build(reloaded[part].dataset)) > 0
    model = registry.MODELS.build(reloaded.model)
    assert sum(p.numel() for p in model.parameters()) > 10_000_000  # a full ResNet-18 has 11 M
    return equal


@pytest.mark.parametrize("name", TASKS)
def test_a_full_size_config_builds_and_is_unchanged_by_dump_and_reload(
    name: str, prepared: Path, r18: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    assert in_subprocess(dump_and_reload, name, prepared, r18, tmp_path)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_full_scale_task_trains_and_scores_on_tiny_data(
    name: str, prepared: Path, r18: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    outputs = in_subprocess(run_task, name, prepared, r18, tmp_path)
    assert outputs["gate"]["coverage"] == 1.0
    assert not outputs["gate"]["missing"]
    assert not outputs["gate"]["unexpected"]
    assert 0 <= outputs["value"] <= 1
    assert outputs["metric"] == resolve("task", name)["metric"]
    assert all(math.isfinite(v) for _, v in outputs["curves"]["loss"])


def images_of_the_domains(prepared: Path, out: Path) -> dict[str, list[str]]:
    """{task and loader: folder of every image that it reads} of the tasks on Foggy Cityscapes.

    Asserts that the unlabelled images come without boxes.
    """
    from kdep_bench.openmmlab import setup

    setup("mmdet")
    from mmdet.registry import DATASETS

    import kdep_bench.transfer.coco_sets  # noqa: F401

    folders = {}
    for name in ("foggy_cityscapes", "foggy_cityscapes_source"):
        task = build(task_config(name))
        cfg = task.build_cfg(prepared / "data", R18, out / "none.pth", 0, out / "mm")
        for part in ("train_dataloader", "test_dataloader", "unlabelled_dataloader"):
            dataset = DATASETS.build(cfg[part].dataset)
            paths = [Path(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
            assert all(p.is_file() for p in paths)
            folders[f"{name} {part}"] = [p.relative_to(prepared / "data").parts[1] for p in paths]
            if part == "unlabelled_dataloader":
                sample = dataset[0]["data_samples"]
                assert "gt_instances" not in sample or not len(sample.gt_instances)
    return folders


def test_only_clear_scenes_have_boxes_and_each_task_scores_its_own_domain(
    prepared: Path, tmp_path: Path, in_subprocess: Callable[..., Any]
) -> None:
    folders = in_subprocess(images_of_the_domains, prepared, tmp_path)
    clear, in_fog = "leftImg8bit", "leftImg8bit_foggy"
    assert {key: set(names) for key, names in folders.items()} == {
        "foggy_cityscapes train_dataloader": {clear},
        "foggy_cityscapes test_dataloader": {in_fog},
        "foggy_cityscapes unlabelled_dataloader": {in_fog},
        "foggy_cityscapes_source train_dataloader": {clear},
        "foggy_cityscapes_source test_dataloader": {clear},
        "foggy_cityscapes_source unlabelled_dataloader": {in_fog},
    }
    lengths = {key.split()[1]: len(names) for key, names in folders.items()}
    assert lengths == {"train_dataloader": 8, "test_dataloader": 4, "unlabelled_dataloader": 8}


def voc_ap_of_the_truth(prepared: Path) -> dict[str, float]:
    """Scores of detections that equal the true boxes without the difficult objects.

    The result also has the numbers of objects: "kept" (not difficult) and "ignored" (difficult).
    """
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
    """Detecting exactly the objects that are not difficult scores 1."""
    result = in_subprocess(voc_ap_of_the_truth, prepared)
    files = sorted((prepared / "data/voc/VOCdevkit/VOC2007/Annotations").glob("test*.xml"))
    difficult = sum(voc.check_xml(file)["difficult"] for file in files)
    assert result["ignored"] == difficult > 0
    assert result["kept"] == 2 * len(files) - difficult  # every image has two objects
    assert result["pascal_voc/AP"] == pytest.approx(1.0)


def count_crowds(prepared: Path) -> tuple[int, int]:
    """(objects that are trained on, ignored objects) of the tiny COCO as mmdet reads it."""
    from kdep_bench.openmmlab import setup
    from kdep_bench.transfer.full_detection import datasets

    setup("mmdet")
    from mmdet.registry import DATASETS

    import kdep_bench.transfer.coco_sets  # noqa: F401  # registers the data set, as a run does

    data = DATASETS.build(datasets("coco", prepared / "data/coco", train=True, pipeline=[]))
    flags = [
        box["ignore_flag"] for i in range(len(data)) for box in data.get_data_info(i)["instances"]
    ]
    return flags.count(0), flags.count(1)


def test_coco_crowds_are_not_trained_on(prepared: Path, in_subprocess: Callable[..., Any]) -> None:
    n_trained, n_ignored = 12, 4  # 4 crowds in the tiny COCO
    assert in_subprocess(count_crowds, prepared) == (n_trained, n_ignored)


def count_classification_images(prepared: Path) -> dict[str, tuple[int, int]]:
    """(training, test) images of each classification set, as mmpretrain reads it."""
    from kdep_bench.openmmlab import setup
    from kdep_bench.transfer.full_classification import datasets

    setup("mmpretrain")
    from mmpretrain.registry import DATASETS

    import kdep_bench.transfer.datasets  # noqa: F401

    counts = {}
    for name in SETS[:4]:
        train, test, _ = datasets(name, prepared / "data" / name)
        train_set, test_set = (DATASETS.build({**cfg, "pipeline": []}) for cfg in (train, test))
        counts[name] = len(train_set), len(test_set)
        image = train_set[0].get("img")
        if image is not None:  # CIFAR: as stored, but BGR
            from kdep_bench.data.official.cifar100 import read_split

            stored = read_split(prepared / "data" / name, "train")[0]
            assert np.array_equal(image[..., ::-1], stored[0])
    return counts


def test_classification_sets_have_the_images_of_their_official_splits(
    prepared: Path, in_subprocess: Callable[..., Any]
) -> None:
    data = prepared / "data"
    dtd_images = {
        split: len((data / "dtd" / dtd.FOLDER / f"labels/{split}.txt").read_text().split())
        for split in dtd.SPLITS
    }
    counts = in_subprocess(count_classification_images, prepared)
    # DTD is trained on its training and its validation split.
    assert counts["dtd"] == (dtd_images["train1"] + dtd_images["val1"], dtd_images["test1"])
    # The sizes of the tiny copies.
    assert counts["cub200"] == (16, 8)
    assert counts["cifar100"] == (40, 20)
    assert counts["caltech256"] == (16, 8)
    # Of each class the first images by name are for training; a line is "path label".
    lines = (data / "caltech256" / caltech256.LISTS["train"]).read_text().splitlines()[:4]
    assert [line.rsplit("_", 1)[1] for line in lines] == [f"{i:04d}.jpg 0" for i in range(1, 5)]


def test_a_c4_detector_refuses_a_student_that_is_no_resnet(tmp_path: Path) -> None:
    """A C4 detector uses the last stage of a ResNet as its head."""
    task = build(resolve("task", "voc0712_c4"))
    student = {**R18, "name": "mobilenetv2", "backbone": {"type": "mmpretrain.MobileNetV2"}}
    with pytest.raises(KdepError, match="use the FPN task"):
        task._full_model(student, tmp_path)


def test_the_gate_checks_a_backbone_in_parts_and_refuses_a_changed_or_repeated_part(
    tmp_path: Path,
) -> None:
    """The backbone of a C4 detector is in two modules of the model."""
    first, second = torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(3, 1))
    tensors = {k: v.clone() for part in (first, second) for k, v in part.state_dict().items()}
    assert check(Parts([first, second]), "file", tensors=tensors)["coverage"] == 1.0
    with torch.no_grad():
        second[0].weight += 1  # type: ignore[operator]
    with pytest.raises(KdepError, match=r"0\.weight"):
        check(Parts([first, second]), "file", tensors=tensors)
    with pytest.raises(KdepError, match="two parts"):
        check(Parts([first, first]), "file", tensors=tensors)
