"""The Python functions, run through the real stages on images whose correct scores are known."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdep_bench import api as kb
from kdep_bench.api import Pretrained, ScoreTable
from kdep_bench.data.normalisation import MEAN
from kdep_bench.errors import KdepError
from kdep_bench.networks.backbone import build_backbone
from kdep_bench.students.given_weights import given_weights
from kdep_bench.suite.config import build_suite, load_suite, resolve
from kdep_bench.suite.plan import build_plan

COLOURS = dict(blue=(20, 20, 220), green=(20, 220, 20), red=(220, 20, 20))
BUDGET: dict[str, Any] = dict(epochs=1, views=12, batch=8, show_progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A pool of 24 images, and class folders of plain colours: any probe separates them."""
    root = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(0)

    def save(path: Path, colour: tuple[int, ...]) -> None:
        """Saves an image of this colour with noise."""
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-20, 20, (72, 80, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(path)

    for i in range(24):
        save(root / "pool" / f"{i}.png", tuple(rng.integers(0, 255, 3)))
    for split, count in (("train", 12), ("val", 4), ("test", 5)):
        for name, colour in COLOURS.items():
            for i in range(count):
                save(root / split / name / f"{i}.png", colour)
    return root


@pytest.fixture(scope="module")
def trained(folder) -> Pretrained:
    """The student that a short pre-training gives."""
    return kb.pretrain(
        teacher=dict(base="efficientnet_lite0"),
        student="resnet18_w32",
        images=folder / "pool",
        work_dir=folder / "work",
        **BUDGET,
    )


def evaluate(trained, folder, **change) -> ScoreTable:
    """The scores of the trained student on the colours; `change` replaces arguments."""
    splits = {name: str(folder / name) for name in ("train", "val", "test")}
    probe = dict(base="pocket_probe", name="colours", chance=None, recipe=dict(train_share=1.0))
    arguments: dict[str, Any] = dict(
        student="resnet18_w32",
        data=dict(
            type="kdep_bench.data.own.prepare",
            name="colours",
            labels=False,
            pool=str(folder / "pool"),
            pool_labels=False,
            classify=splits,
        ),
        tasks=[probe],
        labels_used=False,
        seeds=(0,),
        work_dir=folder / "work",
        results_dir=folder / "results",
        **BUDGET,
    )
    return kb.evaluate(trained.backbone, **{**arguments, **change})


def test_the_returned_backbone_is_the_exported_file(trained):
    stored = torch.load(trained.file, weights_only=True)
    assert all(torch.equal(v, stored[k]) for k, v in trained.backbone.state_dict().items())
    assert "efficientnet_lite0" in trained.card.read_text()


def test_plain_colours_are_classified_with_a_score_of_1(trained, folder):
    table = evaluate(trained, folder)
    assert {(s.method, s.task, s.mean) for s in table.scores} == {
        ("given", "colours", 1.0),
        ("scratch", "colours", 1.0),
    }
    assert "given" in str(table)
    assert (table.folder / "index.html").is_file()


def test_a_network_that_is_not_the_student_is_refused(trained, folder):
    with pytest.raises(KdepError, match="do not fit"):
        evaluate(trained, folder, student="resnet18_w48", results_dir=folder / "wrong")


def test_features_are_spatial_means_of_the_last_feature_maps(trained):
    """Images with the normalisation's mean colour are zero after normalisation."""
    images = np.broadcast_to(np.round(MEAN).astype(np.uint8), (2, 64, 64, 3)).copy()
    zeros = torch.from_numpy((images - np.array(MEAN)) / 57.0).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = trained.backbone(zeros)[-1].mean((2, 3)).numpy()
    measured = kb.extract_features(trained, images, batch=1)
    assert measured.shape == expected.shape
    np.testing.assert_allclose(measured, expected, rtol=0.02, atol=0.02)
    with pytest.raises(KdepError, match="uint8"):
        kb.extract_features(trained, images.astype(np.float32))


def test_a_folder_without_images_is_named_in_the_error(tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    with pytest.raises(KdepError, match=rf"has no pre-training images in its pool {pool};"):
        kb.pretrain(
            teacher="efficientnet_lite0",
            student="resnet18_w32",
            images=pool,
            work_dir=tmp_path / "work",
            **BUDGET,
        )


def test_a_results_folder_of_another_suite_is_refused_and_not_changed(trained, folder):
    """A run moves records outside its plan to superseded/: here, those of the other suite."""
    evaluate(trained, folder)
    before = {p.name for p in (folder / "results" / "records").iterdir()}
    with pytest.raises(KdepError, match="'evaluated'"):
        evaluate(trained, folder, name="another")
    assert {p.name for p in (folder / "results" / "records").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(tasks=[]), "`tasks`"),  # otherwise the scores of an earlier call are returned
        (dict(tasks="pocket_probe"), "`tasks`"),
        (dict(seeds=()), "`seeds`"),
        (dict(seeds=3), "`seeds`"),
        (dict(compared_with="scratch"), "`compared_with`"),
        (dict(lr=float("inf")), "`budget.optimizer.lr`"),
    ],
)
def test_an_invalid_argument_is_named_in_the_error(trained, folder, change, message):
    with pytest.raises(KdepError, match=message):
        evaluate(trained, folder, **change)


def test_paths_and_numpy_numbers_become_text_and_numbers_of_the_suite_file(tmp_path):
    suite = kb._suite("x", tmp_path, data=dict(pool=Path("a b")), seeds=[np.int64(3)])
    assert "'a b'" in suite.read_text()
    assert "[3]" in suite.read_text()


def test_features_take_any_memory_layout_and_precision_and_keep_frozen_layers():
    network = build_backbone(resolve("student", "resnet18_w32"))
    network.train()
    norm = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.eval()
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    flipped = kb.extract_features(network, images[..., ::-1])
    assert network.training
    assert not norm.training
    np.testing.assert_array_equal(flipped, kb.extract_features(network, images[..., ::-1].copy()))
    half = kb.extract_features(copy.deepcopy(network).bfloat16(), images[..., ::-1])
    assert np.corrcoef(half.ravel(), flipped.ravel())[0, 1] > 0.99


def test_a_tensor_instead_of_an_array_is_not_called_empty() -> None:
    images = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    with pytest.raises(KdepError, match="the images are a Tensor; expected a NumPy array"):
        kb.extract_features(torch.nn.Identity(), images)  # pyright: ignore


@pytest.mark.parametrize("fault", ["nan", "number", "key"])
def test_a_weights_file_with_an_invalid_value_or_key_is_refused(trained, tmp_path, fault):
    tensors: dict[Any, Any] = dict(torch.load(trained.file, weights_only=True))
    first = next(k for k, v in tensors.items() if v.is_floating_point())
    key = 0 if fault == "key" else first
    tensors[key] = tensors[first] * float("nan") if fault == "nan" else 3
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(KdepError, match=r"weights\.pth"):
        given_weights(copy.deepcopy(trained.backbone), str(tmp_path / "weights.pth"))


def test_the_exported_student_is_not_its_teacher_assistant():
    smoke = load_suite("smoke")
    plan = build_plan(
        build_suite(
            dict(
                name="assistant",
                data="smoke",
                teacher="efficientnet_lite0",
                students=["resnet18_w32"],
                methods=["kdep_assistant"],
                tasks=[],
                budget=smoke.budget.model_dump(),
                seeds=dict(pretrain=[0], transfer=[0]),
            )
        )
    )
    assert sum(s.kind == "export" for s in plan.stages.values()) == 2
    assert "resnet18_w32" in kb.student_export(plan)
    assert "kdep_assistant" in kb.student_export(plan)
