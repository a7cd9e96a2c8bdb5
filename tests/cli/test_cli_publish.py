"""Published students load in other libraries with equal features; their cards are complete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdep_bench.cli.publish import Gaps, publish, to_safetensors
from kdep_bench.engine import state
from kdep_bench.errors import KdepError
from kdep_bench.files import file_hash
from kdep_bench.paths import ROOT as REPO
from kdep_bench.suite.config import build_suite, resolve
from kdep_bench.suite.graph import Plan
from kdep_bench.suite.plan import build_plan
from kdep_bench.transfer.model_card import CARD, PTH, SAFETENSORS, _loading, card
from tests.transfer.conftest import export_random, in_subprocess  # noqa: F401  (a fixture)

SUITE = {
    "name": "little",
    "data": "smoke",
    "teacher": "efficientnet_lite0",
    "students": ["resnet18"],
    "methods": ["kdep", "scratch"],
    "tasks": ["smoke_probe"],
    "budget": {"epochs": 1, "batch": 8, "optimizer": {"type": "SGD", "lr": 0.1}},
    "seeds": {"pretrain": [0], "transfer": [0]},
}


@pytest.fixture(scope="module")
def r18(tmp_path_factory: pytest.TempPathFactory, in_subprocess: Callable[..., Any]) -> Path:  # noqa: F811
    """The export of a random ResNet-18 with changed BatchNorm statistics."""
    out = tmp_path_factory.mktemp("r18")
    in_subprocess(export_random, resolve("student", "resnet18"), out)
    file = out / "export" / PTH
    tensors = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    for name, value in tensors.items():
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand_like(value))
    torch.save(tensors, file)
    to_safetensors(file, file.parent)
    return file.parent


def random_images() -> torch.Tensor:
    """Random images [2, 3, 64, 64]."""
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def mm_features(folder: Path) -> np.ndarray:
    """The last map of mmpretrain's ResNet-18 with the exported weights; run in a subprocess."""
    from kdep_bench.networks.backbone import build_backbone

    student = resolve("student", "resnet18")
    init = {"type": "Pretrained", "checkpoint": str(folder / PTH)}
    net = build_backbone(student, init_cfg=init)
    net.eval()  # on its own line, as mmpretrain's eval() returns None
    with torch.inference_mode():
        return net(random_images())[-1].numpy()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Random images [2, 3, 64, 64]."""
    return random_images()


@pytest.fixture(scope="module")
def expected(r18: Path, in_subprocess: Callable[..., Any]) -> torch.Tensor:  # noqa: F811
    """The features of mmpretrain's ResNet-18, loaded with `init_cfg`."""
    return torch.from_numpy(in_subprocess(mm_features, r18))


def test_a_published_student_loads_in_torchvision(
    r18: Path, images: torch.Tensor, expected: torch.Tensor
) -> None:
    import torchvision
    from safetensors.torch import load_file

    net = torchvision.models.resnet18()
    mismatch = net.load_state_dict(load_file(r18 / SAFETENSORS), strict=False)
    assert mismatch.missing_keys == ["fc.weight", "fc.bias"]
    assert not mismatch.unexpected_keys
    net.fc = torch.nn.Identity()  # type: ignore[assignment]
    with torch.inference_mode():
        pooled = net.eval()(images)
    assert torch.allclose(pooled, expected.mean((2, 3)), atol=1e-5, rtol=1e-4)


def test_the_lines_of_the_model_card_load_the_network_in_torchvision_and_timm(
    r18: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(r18)
    code = "\n".join(_loading(resolve("student", "resnet18"), {SAFETENSORS: ""}))
    exec(code, {})
    with_timm = code.replace(
        "net = torchvision.models.resnet18()",
        "import timm; net = timm.create_model('resnet18', num_classes=0)",
    )
    assert with_timm != code
    exec(with_timm, {})


def test_a_published_student_loads_in_timm(
    r18: Path, images: torch.Tensor, expected: torch.Tensor
) -> None:
    import timm

    net = timm.create_model("resnet18", num_classes=0)
    net.load_state_dict(torch.load(r18 / PTH, weights_only=True), strict=True)
    with torch.inference_mode():
        features = net.eval().forward_features(images)  # type: ignore[operator]
    assert torch.allclose(features, expected, atol=1e-5, rtol=1e-4)


def test_a_published_student_loads_in_mmpretrain(r18: Path, expected: torch.Tensor) -> None:
    """The fixture `expected` loads the student there; the other tests compare with its features."""
    assert expected.shape == (2, 512, 2, 2)  # 64 px / stride 32
    assert expected.std() > 0


def test_both_weights_files_have_the_same_tensors(r18: Path) -> None:
    from safetensors.torch import load_file

    saved, safe = torch.load(r18 / PTH, weights_only=True), load_file(r18 / SAFETENSORS)
    assert saved.keys() == safe.keys()
    assert all(torch.equal(saved[k], safe[k]) and saved[k].dtype == safe[k].dtype for k in saved)


def test_a_student_is_published_with_a_card_and_a_changed_file_is_refused(
    r18: Path, tmp_path: Path
) -> None:
    suite = build_suite(SUITE)
    plan = build_plan(suite)
    stage_id = next(i for i, s in plan.stages.items() if s.kind == "export" and "kdep" in i)
    work = tmp_path / "work"
    with pytest.raises(KdepError, match="no export stage"):
        publish(suite, plan, work, tmp_path / "out")
    folder = make_export(plan, work, stage_id, r18 / PTH).parent
    (published_folder,) = publish(suite, plan, work, tmp_path / "out")
    text = (published_folder / CARD).read_text()
    assert f"{file_hash(published_folder / SAFETENSORS)}  {SAFETENSORS}" in text
    assert f"{file_hash(published_folder / PTH)}  {PTH}" in text
    assert "Apache-2.0" in text
    assert "| labels used in pre-training | no |" in text
    (folder / PTH).write_bytes(b"\0" * (folder / PTH).stat().st_size)
    with pytest.raises(KdepError, match="differs from the one that its stage exported"):
        publish(suite, plan, work, tmp_path / "out")


def test_a_card_says_that_a_licence_is_unknown_and_escapes_html() -> None:
    plan = build_plan(build_suite(SUITE))
    stage = next(s for s in plan.stages.values() if s.kind == "export" and "kdep" in s.name)
    assert stage.about["teacher"]["card"]["licence"] == "Apache-2.0"
    unusual = {**stage.about, "teacher": {"name": "a|b<script>", "card": {}}}
    text = card(unusual, stage.spec["student"], {}, {"parameters": 1}, {PTH: "0"}, stage.id)
    assert "not stated; ask its authors" in text
    assert "<script>" not in text
    assert "a&#124;b" in text


def make_export(plan: Plan, work: Path, stage_id: str, source: Path) -> Path:
    """Makes a finished export stage; returns its file."""
    stage, folder = plan.stages[stage_id], state.folder(work, stage_id)
    folder.mkdir(parents=True)
    shutil.copyfile(source, folder / PTH)
    outputs = {"checksum": file_hash(folder / PTH), "parameters": 11_176_512}  # ResNet-18's
    files, rest = state.list_files(folder)
    about = {"id": stage_id, "kind": "export", "version": stage.version, "outputs": outputs}
    about |= {"spec": stage.spec, "needs": dict(stage.needs), "files": files, "rest": rest}
    about |= {"finished": "2026-01-01T00:00:00+00:00", "wall_s": 1.0, "peak_rss": 1}
    state.write_stage(folder, {"schema": state.SCHEMA, "environment": {}, **about})
    return folder / PTH


def run_publish(work: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs tools/publish.py for the suite."""
    suite = work / "little.py"
    suite.write_text(f"suite = {SUITE!r}\n")
    args = [str(REPO / "tools/publish.py"), str(suite), "--work-dir", str(work), "--out", str(out)]
    return subprocess.run(
        [sys.executable, *args, *arguments], capture_output=True, text=True, check=False
    )


def test_publish_names_a_truncated_or_missing_export_and_exits_with_1(
    r18: Path, tmp_path: Path
) -> None:
    suite = build_suite(SUITE)
    plan, work = build_plan(suite), tmp_path / "work"
    kdep, scratch = sorted(i for i, s in plan.stages.items() if s.kind == "export")
    make_export(plan, work, kdep, r18 / PTH)
    completed = run_publish(work, tmp_path / "a")
    assert completed.returncode == 1
    assert f"not published: {scratch}: it was never run" in completed.stderr
    assert "1 of 2 students published" in completed.stderr
    assert "lacks the outputs of prepare-" in completed.stderr
    assert [p.name for p in (tmp_path / "a").iterdir()] == [kdep]
    # Both fixes that the error advises succeed.
    assert run_publish(work, tmp_path / "b", "--partial").returncode == 0
    assert run_publish(work, tmp_path / "b", "--only", "kdep").returncode == 0
    assert run_publish(work, tmp_path / "b", "--only", "nothing").returncode == 2

    path = make_export(plan, work, scratch, r18 / PTH)
    assert run_publish(work, tmp_path / "c").returncode == 0
    os.truncate(path, path.stat().st_size - 1)
    completed = run_publish(work, tmp_path / "d")
    assert completed.returncode == 1
    assert f"not published: {scratch}: its file {PTH} has" in completed.stderr
    gaps = Gaps()
    assert len(publish(suite, plan, work, tmp_path / "e", gaps=gaps)) == 1
    assert list(gaps.left_out) == [scratch]
