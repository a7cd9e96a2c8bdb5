"""The methods compared with KDEP, in the real cache and pre-training stages on tiny data."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdep_bench.data.views import open_views, subset
from kdep_bench.errors import KdepError
from kdep_bench.features import align, cache
from kdep_bench.features.cache_check import load_teacher_config
from kdep_bench.features.cache_read import open_cache
from kdep_bench.files import read_json, write_json
from kdep_bench.objectives.levels import levels_of
from kdep_bench.pretrain.diagnostics import mean_variance
from kdep_bench.suite.config import resolve
from kdep_bench.suite.methods import assistant_config
from kdep_bench.teachers.base import build_teacher
from kdep_bench.transfer import export
from tests.pretrain.conftest import BUDGET, IMAGES, TEACHER, silent
from tests.pretrain.test_pretrain import pretrain
from tests.pretrain.test_pretrain_context import R18

METHODS = (  # names of configs
    "rkd",
    "similarity",
    "pkt",
    "correlation",
    "instance_graph",
    "view_gram",
    "ckd",
    "nkd",
    "tf_nkd",
    "continuation",
    "continuation_labels",
    "eskd",
    "nfd",
    "afd",
    "rtk",
    "dpk",
    "proc_kd",
    "fitnets",
    "pursuhint",
    "dml",
    "bd_kd",
    "mfef",
    "mean_teacher",
)
LEVELS = ["maps.s16", "maps.s32", "maps.s4", "maps.s8"]  # outputs of a cache
SHORT = BUDGET | {"epochs": 1}


@pytest.fixture(scope="module")
def with_maps(stages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of half of the images that stores maps of strides 4, 8, 16 and 32."""
    out = tmp_path_factory.mktemp("maps")
    spec = dict(teacher=TEACHER, batch=16, outputs=LEVELS, share=0.5, share_seed=0)
    cache.run(spec, stages, out, silent)
    return out


def load_method(name: str) -> dict[str, Any]:
    """A copy of a method's config."""
    return copy.deepcopy(resolve("method", name))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_in_the_real_stage(
    name: str, stages: dict[str, Path], with_maps: Path, tmp_path: Path
):
    method = load_method(name)
    if name == "proc_kd":  # the deepest map of a batch has 16 positions
        method["objective"]["prototypes"] = 8
    if levels_of(method["objective"]):
        stages = stages | {"cache": with_maps}
    outputs, state = pretrain(
        tmp_path, stages, method, budget=SHORT | {"epochs": 2}, share=0.5, student=R18
    )
    assert outputs["steps"] == 3
    assert sum(outputs["terms"].values()) == pytest.approx(1)
    extra_parameters = sum(v.numel() for k, v in state.items() if k.startswith("objective."))
    assert outputs["extra_parameters"] == extra_parameters
    has_peer = name in ("dml", "bd_kd", "mfef", "mean_teacher")
    assert outputs["extra_forwards"] == (outputs["images_seen"] if has_peer else 0)
    out = tmp_path / "e"
    out.mkdir()
    exported = export.run({"student": R18}, {"pretrain": tmp_path}, out, silent)
    assert exported["coverage"] == 1  # fraction of the backbone's values that are in the file
    assert not any("peer" in k for k in torch.load(out / "backbone.pth", weights_only=True))


def test_a_cache_of_a_data_fraction_has_only_its_rows(stages: dict[str, Path], with_maps: Path):
    opened, full_cache = open_cache(with_maps), open_cache(stages["cache"])
    views = open_views(stages["views"])
    # Rows of the second view of three images.
    rows = np.sort(subset(IMAGES, 0.5, 0))[[0, 3, 7]] * views.views + 1
    np.testing.assert_array_equal(opened.rows(rows), full_cache.rows(rows))
    assert len(opened) == IMAGES  # half of the images in two views
    assert opened.rows(rows, "maps.s16").shape == (3, 112, 2, 2)
    assert sorted(opened.extras) == LEVELS
    missing_rows = np.setdiff1d(np.arange(IMAGES), subset(IMAGES, 0.5, 0))[:1] * views.views
    with pytest.raises(KdepError, match="is not in the cache"):
        opened.rows(missing_rows)


def test_the_temperature_of_ctkd_is_learned(stages: dict[str, Path], tmp_path: Path):
    _, state = pretrain(tmp_path, stages, load_method("ctkd"), budget=SHORT | {"epochs": 10})
    assert float(state["objective.theta"]) != 1.0  # the initial value


def write_labelled_photographs(folder: Path) -> None:
    """Writes images labelled with ImageNet classes, as a `prepare` stage does."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / f"{k}.png")
    write_json(folder / "known.json", {f"{k}.png": 1 + k for k in range(3)})


def test_the_student_is_trained_with_the_exported_assistant(
    stages: dict[str, Path], tmp_path: Path
):
    """An assistant is a trained student that is the teacher of another one."""
    assistant = {"student": R18, "method": load_method("logit_kd"), "epochs": None}
    config = assistant_config({"name": "takd", "teacher": assistant})
    assert config is not None
    assert config["has_logits"]
    # The assistant is pre-trained and exported.
    pretrain(tmp_path / "ta", stages, load_method("logit_kd"), student=R18, budget=SHORT)
    (tmp_path / "e").mkdir()
    exported = export.run({"student": R18}, {"pretrain": tmp_path / "ta"}, tmp_path / "e", silent)
    # The assistant's outputs are cached.
    inputs = dict(stages, pretrain=tmp_path / "ta", export=tmp_path / "e", prepare=tmp_path / "p")
    shutil.copytree(stages["prepare"], inputs["prepare"])
    write_labelled_photographs(inputs["prepare"] / "data" / "known")
    teacher_config = {k: v for k, v in config.items() if k != "card"}
    for folder in ("c", "a"):
        (tmp_path / folder).mkdir()
    cache_spec = dict(teacher=teacher_config, outputs=["logits"])
    filled = cache.run(cache_spec, inputs, tmp_path / "c", silent)
    assert filled["teacher"]["export"] == exported["checksum"]
    inputs["cache"] = tmp_path / "c"
    # In a copied work directory, the cache still has the paths of its teacher's files.
    assert not any(Path(f).is_absolute() for f in read_json(tmp_path / "c/cache.json")["files"])
    copy_of_work_dir = tmp_path.with_name("moved")
    shutil.copytree(tmp_path, copy_of_work_dir)
    copied_config = load_teacher_config(copy_of_work_dir / "c")
    assert copied_config is not None
    assert str(copy_of_work_dir) in copied_config["backbone"]
    teacher = build_teacher(copied_config)
    opened = open_views(stages["views"])
    pixels = torch.from_numpy(np.array(opened.pixels[:4])).permute(0, 3, 1, 2)
    state = torch.load(tmp_path / "ta/student.pth", weights_only=True)
    logits = teacher(pixels).logits
    assert logits is not None
    assert logits.shape[1] == len(state["objective.head.bias"])
    # A student learns the assistant's logits.
    outputs, _ = pretrain(tmp_path / "s", inputs, load_method("takd"), student=R18, budget=SHORT)
    assert outputs["cache_check"]["rows"] > 0
    # A student learns the assistant's feature (SVD would refuse it, as its rank is below 32).
    identity = load_method("identity")
    align_spec = dict(width=32, share=1.0, share_seed=0, align=identity["align"])
    align.run(align_spec, inputs, tmp_path / "a", silent)
    inputs["align"] = tmp_path / "a"
    outputs, _ = pretrain(tmp_path / "k", inputs, identity, student=R18, budget=SHORT)
    assert outputs["target_mean_square"] > 0
    # An assistant without a classifier is refused as a teacher with logits.
    backbone_only = {
        **teacher_config,
        "backbone": str(tmp_path / "e/backbone.pth"),
        "checkpoint": None,
    }
    with pytest.raises(KdepError, match="without a linear classifier"):
        build_teacher(backbone_only)
    with pytest.raises(KdepError, match="has no weights"):
        build_teacher(teacher_config)


def test_an_objective_that_gives_the_last_layers_no_gradient_is_refused(
    stages: dict[str, Path], with_maps: Path, tmp_path: Path
):
    method = load_method("fitnets")
    method["objective"]["levels"] = {"s16": "s16"}  # layer4, after s16, gets no gradient
    with pytest.raises(
        KdepError, match=r"15 of 60 student parameters get no gradient.*layer4\.0\.conv1"
    ):
        pretrain(tmp_path, stages | {"cache": with_maps}, method, share=0.5, student=R18)


def test_the_weight_of_a_projector_s_loss_is_computed_from_the_variance_of_the_feature(
    stages: dict[str, Path],
):
    """Not from the mean square, as the bias of a projector learns the mean at once."""
    spec = {"method": load_method("conv1x1"), "share": 1.0, "share_seed": 0}
    opened = open_cache(stages["cache"])
    features = opened.rows(np.arange(len(opened))).astype(np.float64)
    assert mean_variance(spec, stages) == pytest.approx(features.var(0).mean(), rel=1e-9)
    assert mean_variance(spec, stages) < 0.9 * np.square(features).mean()
