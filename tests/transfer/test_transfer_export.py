"""The export stage checks that the backbone is complete, removes all else, writes a model card."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash, write_json
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.transfer import export, model_card
from tests.transfer.conftest import config, export_random, quiet

# A student config: ResNet-18 with 4 channels in its first stage.
SMALL = {"backbone": {"type": "mmpretrain.ResNet", "depth": 18, "stem_channels": 4}}
SMALL["backbone"]["base_channels"] = 4


def damage_and_export(out: Path, case: str) -> tuple[str, dict[str, Any] | None]:
    """Exports a student whose file is damaged in the way `case`.

    Returns:
        (message of the error, None), or ("", outputs of the stage).
    """
    export_random(SMALL, out)
    source = out / "pretrain" / "student.pth"
    tensors = torch.load(source, weights_only=True)
    name = "backbone.layer1.0.conv1.weight"
    if case == "missing":
        del tensors[name]
    elif case == "shape":
        tensors[name] = tensors[name][:, :2].clone()
    elif case == "surplus":
        tensors["backbone.layer9.weight"] = torch.zeros(2)
    elif case == "wrapped":
        tensors = {"state_dict": tensors}
    elif case == "prefix":
        tensors = {f"module.{k}": v for k, v in tensors.items()}
    elif case == "nan":
        tensors[name][0] = float("nan")
    torch.save(tensors, source)
    (out / "export" / "backbone.pth").unlink()
    try:
        return "", export.run(
            {"student": SMALL}, {"pretrain": out / "pretrain"}, out / "export", quiet
        )
    except KdepError as error:
        assert not (out / "export" / "backbone.pth").exists()
        return str(error), None


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("missing", "1 missing from the file (layer1.0.conv1.weight)"),
        ("shape", "shape [4, 4, 3, 3] in the model, [4, 2, 3, 3] in the file"),
        ("surplus", "1 in the file only (layer9.weight)"),
        ("prefix", "beginning with backbone.; the names begin with module"),
        ("nan", "NaN or infinity"),
    ],
)
def test_a_damaged_student_is_refused(case, problem, tmp_path, in_subprocess):
    message, outputs = in_subprocess(damage_and_export, tmp_path, case)
    assert outputs is None
    assert problem in message


def test_a_file_whose_tensors_are_under_the_key_state_dict_is_exported(tmp_path, in_subprocess):
    message, outputs = in_subprocess(damage_and_export, tmp_path, "wrapped")
    assert not message
    assert outputs["coverage"] == 1.0


def test_the_exported_file_contains_only_tensors_of_the_backbone(exported):
    tensors = torch.load(exported / "backbone.pth", weights_only=True)
    assert isinstance(tensors, OrderedDict)
    assert all(isinstance(v, torch.Tensor) for v in tensors.values())
    modules = {name.split(".")[0] for name in tensors}
    assert modules == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}


def test_the_outputs_describe_the_written_file(tmp_path, in_subprocess):
    outputs = in_subprocess(export_random, SMALL, tmp_path)
    path = tmp_path / "export" / "backbone.pth"
    tensors = torch.load(path, weights_only=True)
    assert outputs["checksum"] == file_hash(path)
    assert outputs["tensors"] == len(tensors)
    # Statistics and counters of BatchNorm are no parameters.
    parameters = [v for k, v in tensors.items() if not k.endswith(("mean", "var", "tracked"))]
    assert outputs["parameters"] == sum(v.numel() for v in parameters)


@pytest.mark.parametrize("name", ["resnet18_w32", "mobilenetv2_w50"])
def test_student_configs_state_the_sizes_that_the_backbone_s_maps_have(name, in_subprocess):
    in_subprocess(check_student, config("students", name))


def check_student(student: dict[str, Any]) -> None:
    """Compares the width and the pyramid of a student config with the backbone's real output."""
    pyramid, px = student["pyramid"], student["input_px"]
    image = torch.zeros(1, 3, px, px)
    backbone = build_backbone(student)
    backbone.eval()
    assert backbone(image)[-1].shape[1] == student["width"]
    backbone = build_backbone(student, out_indices=pyramid["out_indices"])
    backbone.eval()
    maps = backbone(image)
    assert [level.shape[1] for level in maps] == pyramid["channels"]
    assert [px // level.shape[2] for level in maps] == pyramid["strides"]


def test_equal_tensors_make_equal_files(tmp_path: Path):
    tensors = {"w": torch.arange(3.0)}
    digest = export.save_tensors(tensors, tmp_path / "a.pth")
    assert digest == export.save_tensors(tensors, tmp_path / "b.pth")


def test_a_card_describes_the_pool_as_data_and_not_the_images_that_a_method_generated(
    tmp_path: Path,
):
    # {stage: (the stages that it needs, its outputs)}
    records = {
        "pretrain": ({"views": "views-1"}, {"images": 64}),
        "views-1": ({"prepare": "prepare-made"}, {}),
        "prepare-made": ({"prepare": "prepare-pool"}, {"fingerprint": "made"}),
        "prepare-pool": ({}, {"fingerprint": "pool", "licences": {"set": "its own"}}),
    }
    for name, (needs, outputs) in records.items():
        (tmp_path / name).mkdir()
        record = {"kind": name.partition("-")[0], "needs": needs, "outputs": outputs}
        write_json(tmp_path / name / "stage.json", record)
    outputs = model_card.outputs_before(tmp_path / "pretrain")
    assert outputs["prepare"] == {"fingerprint": "pool", "licences": {"set": "its own"}}
    assert outputs["synthesis"] == {"fingerprint": "made"}


def test_a_model_card_is_written_next_to_the_backbone(tmp_path, in_subprocess):
    """The card repeats values of the plan and of the records of earlier stages."""
    in_subprocess(export_random, SMALL, tmp_path)
    card_without_records = (tmp_path / "export" / "README.md").read_text()
    digest = file_hash(tmp_path / "export" / "backbone.pth")
    assert f"{digest}  backbone.pth" in card_without_records
    # Without records the table has no row about a licence; the text has the words "both licences".
    table = card_without_records.partition("## Files")[0]
    assert "licence" not in table.replace("both licences", "")
    # {stage: (the stages that it needs, its outputs)}
    records = {
        "pretrain": ({"cache": "cache-1", "views": "views-1"}, {"images_seen": 640, "images": 64}),
        "cache-1": (
            {"prepare": "prepare-1", "pretrain": "pretrain-0"},
            {"teacher": {"name": "t", "checksum": "abc123"}},
        ),
        # The pre-training of the teacher, not of this student.
        "pretrain-0": ({}, {"images_seen": 1}),
        "prepare-1": ({}, {"fingerprint": "f00", "licences": {"set": "its own"}}),
    }
    for name, (needs, outputs) in records.items():
        (tmp_path / name).mkdir(exist_ok=True)
        record = {"kind": name.partition("-")[0], "needs": needs, "outputs": outputs}
        write_json(tmp_path / name / "stage.json", record)
    teacher = {"name": "t", "card": {"licence": "MIT", "labels_used": True}}
    method = {"name": "kdep", "source": "a paper", "labels_used": False}
    about = model_card.about(method, {"name": "small"}, teacher, "pool", 0.1, 3)
    spec = {"student": SMALL, "about": about}
    folder = tmp_path / "export"
    in_subprocess(export.run, spec, {"pretrain": tmp_path / "pretrain"}, folder, quiet)
    lines = (folder / "README.md").read_text().splitlines()
    # {first column: second column} of the card's table.
    rows = dict(
        line.strip("| ").split(" | ")
        for line in lines
        if line.startswith("| ") and line.count(" | ") == 1 and line != "| | |"
    )
    assert rows["teacher"] == "t"
    assert rows["teacher's checksum"] == "abc123"
    assert rows["licence of the teacher"] == "MIT"
    assert rows["licences of the data"] == "set: its own"
    assert rows["images seen"] == "640"
    assert rows["data fraction"] == "10 %"
    assert rows["method"] == "kdep (a paper)"
    assert rows["labels used in pre-training"] == "no"
    assert rows["stage"] == "export"
