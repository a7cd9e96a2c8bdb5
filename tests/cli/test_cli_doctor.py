"""`kdep-bench doctor` checks the machine, data and suites, and lists every fault."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kdep_bench.cli import doctor
from kdep_bench.data.official import tiny
from kdep_bench.data.official.base import get_set


def test_a_machine_that_runs_the_tests_has_no_fault(tmp_path: Path) -> None:
    findings = {f.subject: f for f in doctor.machine(tmp_path / "not" / "there")}
    assert {"python", "versions", "operators", "GPUs", "cores", "disk"} == set(findings)
    assert all(f.level != "fault" for f in findings.values())
    assert "torch " in findings["versions"].sentence
    assert "NMS test passed on cpu" in findings["operators"].sentence


def test_every_fault_is_listed_and_counted(tmp_path: Path) -> None:
    dataset = get_set("ade20k")
    (tmp_path / "ade20k").mkdir()
    dataset.tiny(tmp_path / "ade20k", np.random.default_rng(0))
    images = sorted((tmp_path / "ade20k").rglob("images/training/*.jpg"))
    images[0].write_bytes(b"")
    images[1].write_bytes(images[1].read_bytes()[:200])
    Image.open(images[2]).convert("CMYK").save(images[2])
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: rotated by 180 degrees
    Image.open(images[3]).save(images[3], exif=exif)
    (images[0].parent / ".unpack.x").write_bytes(b"half")
    findings = list(doctor.official(["ade20k"], tmp_path, None))
    text = "\n".join(map(str, findings))
    for image, message in zip(images, ("0 bytes", "truncated", "CMYK", "EXIF"), strict=True):
        assert any(image.name in str(f) and message in str(f) for f in findings), (image, text)
    assert "the unpacking of an archive was interrupted" in text
    assert f"kdep-bench data ade20k --root {tmp_path} --archives DOWNLOADS; it resumes" in text
    levels = [f.level for f in findings]
    # The data set's check, the half-unpacked file, two damaged images.
    assert levels.count("fault") == 4
    assert levels.count("note") == 2  # CMYK and EXIF: OpenCV can read these two images
    lines: list[str] = []
    assert doctor.report(iter(findings), lines.append) == 4
    assert lines[-1] == "4 fault(s)"


def test_wrong_counts_and_a_missing_data_set_are_faults(tmp_path: Path) -> None:
    (tmp_path / "dtd").mkdir()
    get_set("dtd").tiny(tmp_path / "dtd", np.random.default_rng(0))
    findings = list(doctor.official(["dtd", "coco"], tmp_path))
    assert [f.level for f in findings] == ["fault", "fault"]
    assert "as in the official release" in findings[0].sentence
    assert "kdep-bench data coco" in findings[1].sentence


def test_missing_folders_and_weights_of_a_suite_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KDEP_DATA", raising=False)
    assert "did you mean pocket" in str(next(iter(doctor.suite("pockett"))))
    findings = list(doctor.suite("mine"))  # a template: its data and weights do not exist
    assert findings[0].level == "ok"
    assert "mine/images" in findings[1].sentence
    assert findings[1].level == "fault"
    assert findings[2].subject == "teacher resnet50"
    assert findings[2].level == "ok" or "weights" in findings[2].sentence


def test_too_little_disk_space_for_a_suite_s_views_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet at 224 px, two views of each of 1,281,167 images: 385.7 GB."""
    monkeypatch.delenv("KDEP_DATA", raising=False)
    monkeypatch.setattr(doctor, "_check_teacher", lambda config: "not checked here")

    def finding(free: float) -> doctor.Finding:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        findings = doctor.suite("paper_r18", work=tmp_path / "work")
        return next(f for f in findings if f.subject == "space for views")

    assert finding(400e9) == doctor.Finding(
        "ok", "space for views", "386 GB of fixed views, 0 GB of them rendered"
    )
    assert finding(300e9).level == "fault"
    assert "need 385.7 GB of disk space" in finding(300e9).sentence
    assert "only 300.0 GB free" in finding(300e9).sentence


def test_the_command_prints_faults_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save(tmp_path / "coco" / "a.jpg", tiny.noise_image(np.random.default_rng(0)))
    assert doctor.main(["--data", "coco", "--root", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert f"fault  data set coco: the file {tmp_path}/coco/annotations" in output
    assert output.rstrip().endswith("1 fault(s)")
