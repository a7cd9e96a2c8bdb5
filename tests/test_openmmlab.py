"""The package `openmmlab` with real Runners and a toy model of four weights."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdep_bench import openmmlab
from kdep_bench.errors import KdepError
from kdep_bench.openmmlab import environment

REPO = Path(__file__).parents[1]
TOY_SOURCE = textwrap.dedent(
    """
    import torch
    from mmengine.config import Config
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS, MODELS

    @MODELS.register_module(force=True)
    class ToyModel(BaseModel):
        def __init__(self, nan_at=0, **kwargs):
            super().__init__(**kwargs)
            self.linear, self.nan_at, self.calls = torch.nn.Linear(4, 1), nan_at, 0

        def forward(self, x, y, mode="tensor"):
            predicted = self.linear(x)[:, 0]
            if mode != "loss":
                return predicted
            self.calls += 1
            error = ((predicted - y) ** 2).mean()
            bad = float("nan") if self.calls == self.nan_at else 0.0
            return {"loss_fit": error, "loss_size": self.linear.weight.abs().mean() * 0.1 + bad}

    @DATASETS.register_module(force=True)
    class ToyData(torch.utils.data.Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, i):
            x = torch.randn(4, generator=torch.Generator().manual_seed(i))
            return x, x.sum()

    def toy_config(epochs=2, **model):
        return Config(dict(
            model=dict(type="mmengine.ToyModel", **model),
            train_dataloader=dict(
                batch_size=4, num_workers=0, dataset=dict(type="mmengine.ToyData"),
                sampler=dict(type="DefaultSampler", shuffle=True),
                collate_fn=dict(type="default_collate")),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.02, momentum=0.9)),
            default_hooks=dict(checkpoint=dict(
                type="CheckpointHook", interval=1, max_keep_ckpts=2))))
    """
)


@pytest.fixture(scope="module")
def toy() -> Any:
    """The function `toy_config`, in this process, which is set up for mmpretrain."""
    openmmlab.setup("mmpretrain", switch=True)
    namespace: dict[str, Any] = {}
    exec(TOY_SOURCE, namespace)
    return namespace["toy_config"]


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the code in another process."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def weights(runner: Any) -> list[float]:
    """The four weights of the toy model."""
    return runner.model.linear.weight[0].tolist()


# ---------------------------------------------------------------- environment


def test_import_and_versions_do_not_import_torch() -> None:
    done = python(
        "import sys\nfrom kdep_bench import openmmlab as mm\n"
        "print(mm.versions()['torch'], mm.backend(), mm.read_metrics({'a': 1}, ['a']))\n"
        "mm.check_versions('mmdet')\n"
        "print([m for m in ('torch', 'mmengine', 'mmcv') if m in sys.modules])"
    )
    assert done.stdout.splitlines()[1] == "[]", done.stderr


def test_versions_lists_the_installed_packages() -> None:
    versions = openmmlab.versions()
    assert {"python", "torch", "mmengine", "mmdet", "setuptools", "kdep_bench"} <= set(versions)
    assert all(isinstance(v, str) and v[0].isdigit() for v in versions.values())


def test_mmpretrain_can_be_imported_if_transformers_5_is_installed(
    tmp_path: Path,
) -> None:
    """An empty package replaces transformers 5: both lack a name that mmpretrain's BLIP imports."""
    info = tmp_path / "transformers-5.23.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.23.0\n")
    (tmp_path / "transformers.py").write_text("")
    code = "from kdep_bench import openmmlab; openmmlab.setup('mmpretrain')"
    env = dict(os.environ, PYTHONPATH=f"{REPO}{os.pathsep}{tmp_path}")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("distribution", "version", "message"),
    [
        ("setuptools", "84.0.0", "setuptools 84.0.0 is installed.*pkg_resources.*'setuptools<82'"),
        (
            "mmcv-lite",
            "2.2.0",
            r"mmcv-lite 2\.2\.0 .*mmdet and mmseg do not accept.*mmcv-lite==2\.1\.0",
        ),
        ("numpy", "3.0.0", r"numpy 3\.0\.0 is installed.*'numpy>=2,<3'"),
        ("mmdet", None, r"mmdet is not installed.*mmdet==3\.3\.0"),
        ("torch", "2.15.0+cu131", r"torch 2\.15\.0\+cu131 is installed.*< 2\.15"),
    ],
)
def test_the_error_for_a_wrong_version_names_the_right_version(
    monkeypatch: pytest.MonkeyPatch, distribution: str, version: str | None, message: str
) -> None:
    original = environment._version
    monkeypatch.setattr(
        environment, "_version", lambda name: version if name == distribution else original(name)
    )
    with pytest.raises(KdepError, match=message):
        openmmlab.check_versions("mmdet")


def test_a_compiled_mmcv_and_the_maintained_fork_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed = {"mmcv": "2.1.0", "mmcv-lite": None, "mmengine": None, "onedl-mmengine": "0.10.12"}
    original = environment._version
    monkeypatch.setattr(
        environment,
        "_version",
        lambda name: installed[name] if name in installed else original(name),
    )
    openmmlab.check_versions("mmseg")


def test_an_unknown_toolkit_and_a_second_toolkit_in_a_process_are_refused(toy: Any) -> None:
    with pytest.raises(KdepError, match=r"unknown OpenMMLab toolkit 'mmdetection'.*mmdet"):
        openmmlab.setup("mmdetection")
    assert openmmlab.current_scope() == "mmpretrain"
    openmmlab.setup("mmpretrain")
    with pytest.raises(KdepError, match="set up for mmpretrain, so it cannot be set up for mmdet"):
        openmmlab.setup("mmdet")


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["mmpretrain", "mmdet", "mmseg"])
def test_setup_is_quiet_and_builds_the_students_backbone(scope: str) -> None:
    registered = {
        "mmpretrain": ("TRANSFORMS", "ResizeEdge"),
        "mmdet": ("TRANSFORMS", "mmdet.PackDetInputs"),
        "mmseg": ("TRANSFORMS", "PackSegInputs"),
    }[scope]
    done = python(
        f"from kdep_bench import openmmlab as mm\nmm.setup({scope!r})\n"
        "from mmengine.registry import DefaultScope\n"
        "print(DefaultScope.get_current_instance().scope_name)\n"
        f"from {scope}.registry import MODELS, {registered[0]}\n"
        "net = MODELS.build(dict(type='mmpretrain.ResNet', depth=18, base_channels=8,\n"
        "    stem_channels=8))\n"
        "net.init_weights()\n"
        f"print(type(net).__module__, {registered[0]}.get({registered[1]!r}) is not None)",
        PYTHONWARNINGS="default",
    )
    assert done.stdout.split() == [scope, "mmpretrain.models.backbones.resnet", "True"]
    assert done.stderr == ""


# --------------------------------------------------------------------- Runner


def test_training_reports_progress_and_writes_log_checkpoints_with_checksums_and_loss_curve(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports: list[tuple[int, int, str]] = []
    hook = openmmlab.ProgressHook(lambda done, total, note: reports.append((done, total, note)))
    runner = openmmlab.build_runner(toy(3), work_dir=tmp_path, seed=1, hooks=[hook])
    runner.train()
    assert [report[:2] for report in reports] == [(i, 24) for i in range(1, 25)]
    assert reports[-1][2] == f"loss {hook.points[-1][1]:.3f}"
    assert [step for step, _ in hook.points] == list(range(1, 25))
    assert hook.points[-1][1] < hook.points[0][1] / 3  # the loss has fallen
    json.dumps(hook.points, allow_nan=False)
    assert "Epoch(train)" in (tmp_path / "log.txt").read_text()
    assert sorted(p.name for p in tmp_path.glob("*.pth*")) == [
        "epoch_2.pth",
        "epoch_2.pth.sha256",
        "epoch_3.pth",
        "epoch_3.pth.sha256",
    ]
    assert openmmlab.latest_sealed(tmp_path) == tmp_path / "epoch_3.pth"
    out = capsys.readouterr()
    assert out.out + out.err == ""


def test_the_given_config_is_unchanged_and_the_seed_determines_the_weights(
    toy: Any, tmp_path: Path
) -> None:
    cfg = toy(1)
    before = cfg.to_dict()
    final_weights = []
    for run, seed in enumerate((4, 4, 5)):
        runner = openmmlab.build_runner(cfg, work_dir=tmp_path / str(run), seed=seed)
        runner.train()
        final_weights.append(weights(runner))
    assert cfg.to_dict() == before
    assert final_weights[0] == final_weights[1] != final_weights[2]


def test_a_resumed_run_equals_an_uninterrupted_one(toy: Any, tmp_path: Path) -> None:
    def run(epochs: int, where: str, resume: bool) -> tuple[Any, Any]:
        """Trains the toy model; returns the runner and the hook with its losses."""
        hook = openmmlab.ProgressHook(lambda *_: None)
        runner = openmmlab.build_runner(
            toy(epochs), work_dir=tmp_path / where, seed=0, hooks=[hook], resume=resume
        )
        runner.train()
        return runner, hook

    # There is nothing to resume yet, so this run starts from the beginning.
    uninterrupted, uninterrupted_curve = run(4, "whole", resume=True)
    run(2, "cut", resume=False)
    # The machine failed while epoch 3 was written: it has no checksum, so epoch 2 is resumed.
    (tmp_path / "cut" / "epoch_3.pth").write_bytes(b"half a file")
    assert openmmlab.latest_sealed(tmp_path / "cut") == tmp_path / "cut" / "epoch_2.pth"
    resumed, resumed_curve = run(4, "cut", resume=True)
    assert resumed.iter == uninterrupted.iter == 32
    assert weights(resumed) == weights(uninterrupted)
    assert resumed_curve.points == uninterrupted_curve.points


def test_a_nan_loss_stops_training_with_an_error_that_names_iteration_and_loss_terms(
    toy: Any, tmp_path: Path
) -> None:
    runner = openmmlab.build_runner(toy(2, nan_at=11), work_dir=tmp_path, seed=0)
    with pytest.raises(KdepError, match=r"iteration 11 of 16: .*loss_size = nan.*finite: loss_fit"):
        runner.train()
    assert [p.name for p in tmp_path.glob("*.pth")] == ["epoch_1.pth"]


def test_build_runner_refuses_configs_that_cannot_be_reproduced_or_run(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KdepError, match="no seed"):
        openmmlab.build_runner(toy(), work_dir=tmp_path)
    with pytest.raises(KdepError, match="no work_dir"):
        openmmlab.build_runner(toy(), seed=0)
    cfg = toy()
    cfg.default_scope = "mmseg"
    with pytest.raises(
        KdepError, match="default_scope 'mmseg', but the process was set up for mmpretrain"
    ):
        openmmlab.build_runner(cfg, work_dir=tmp_path, seed=0)
    cfg = toy()
    cfg.resume = True
    with pytest.raises(KdepError, match="sets `resume`"):
        openmmlab.build_runner(cfg, work_dir=tmp_path, seed=0)
    cfg = toy()
    cfg.optim_wrapper.type = "AmpOptimWrapper"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(KdepError, match="AmpOptimWrapper, which needs a GPU"):
        openmmlab.build_runner(cfg, work_dir=tmp_path, seed=0)
    monkeypatch.setattr(environment, "_scope", None)
    with pytest.raises(KdepError, match="before a toolkit was set up"):
        openmmlab.build_runner(toy(), work_dir=tmp_path, seed=0)


@pytest.mark.slow
def test_two_cpu_processes_train_to_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from kdep_bench import openmmlab\nopenmmlab.setup('mmpretrain')\n"
        + TOY_SOURCE
        + textwrap.dedent(
            f"""
            import os, torch.distributed as dist
            runner = openmmlab.build_runner(toy_config(1), work_dir={str(tmp_path)!r}, seed=0)
            runner.train()
            row = runner.model.module.linear.weight[0].tolist()
            name = type(runner.model).__name__
            with open({str(tmp_path)!r} + f"/rank{{dist.get_rank()}}.txt", "w") as f:
                print(name, dist.get_world_size(), runner.iter, row, file=f)
            openmmlab.leave_distributed()
            """
        )
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            "--standalone",
            script,
        ],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr  # the complete output of both ranks
    first, second = [(tmp_path / f"rank{r}.txt").read_text() for r in (0, 1)]
    assert first == second  # averaged gradients: the same weights in both
    assert first.startswith("MMDistributedDataParallel 2 4 ")
    assert openmmlab.latest_sealed(tmp_path) == tmp_path / "epoch_1.pth"


# -------------------------------------------------------------------- loading


def test_resume_files_are_unpickled_only_with_a_checksum_and_in_the_work_dir(
    toy: Any, tmp_path: Path
) -> None:
    import torch
    from mmengine.runner.checkpoint import CheckpointLoader

    from kdep_bench.openmmlab import loading

    runner = openmmlab.build_runner(toy(1), work_dir=tmp_path / "run", seed=0)
    runner.train()
    resume_file = tmp_path / "run" / "epoch_1.pth"
    load = CheckpointLoader.load_checkpoint
    assert "message_hub" in load(f"{loading.RESUME}{resume_file}")
    with pytest.raises(KdepError, match="plain weights"):
        load(str(resume_file))  # without the prefix RESUME, only tensors are read
    elsewhere = tmp_path / "epoch_1.pth"
    elsewhere.write_bytes(resume_file.read_bytes())
    loading.seal(elsewhere)
    with pytest.raises(KdepError, match="outside the work dir"):
        load(f"{loading.RESUME}{elsewhere}")
    resume_file.write_bytes(resume_file.read_bytes() + b"x")
    with pytest.raises(KdepError, match="its content does not match"):
        load(f"{loading.RESUME}{resume_file}")

    plain = tmp_path / "plain.pth"
    torch.save({"w": torch.ones(2)}, plain)
    assert load(str(plain))["w"].tolist() == [1, 1]


class MakesFolder:
    """An object whose unpickling would make a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["KDEP_TEST_EVIL"],))


class UsesGetattr:
    """An object whose unpickling would misuse the `getattr` that resume files may call."""

    def __reduce__(self) -> tuple[Any, ...]:
        from mmengine.logging import HistoryBuffer

        return (getattr, (HistoryBuffer, "__init__"))


@pytest.mark.parametrize("kind", [MakesFolder, UsesGetattr])
def test_a_checkpoint_with_a_checksum_cannot_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    import torch

    from kdep_bench.openmmlab import loading

    monkeypatch.setenv("KDEP_TEST_EVIL", str(tmp_path / "made"))
    path = tmp_path / "epoch_1.pth"
    torch.save({"w": kind()}, path)
    loading.seal(path)
    loading.trust_work_dir(tmp_path)
    with pytest.raises(KdepError, match="plain weights"):
        loading.load_from_sealed(f"{loading.RESUME}{path}")
    assert not (tmp_path / "made").exists()


def test_load_weights_runs_no_code_and_names_the_fault_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    with_code = tmp_path / "evil.pth"
    monkeypatch.setenv("KDEP_TEST_EVIL", str(tmp_path / "made"))
    torch.save({"w": MakesFolder()}, with_code)
    with pytest.raises(KdepError, match=r"evil\.pth contains more than plain weights"):
        openmmlab.load_weights(with_code)
    assert not (tmp_path / "made").exists()
    with pytest.raises(KdepError, match="does not exist"):
        openmmlab.load_weights(tmp_path / "absent.pth")
    for name, content in (("empty.pth", b""), ("noise.pth", b"\x00\x01 no archive at all" * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KdepError, match=name):
            openmmlab.load_weights(tmp_path / name)
    truncated = tmp_path / "good.pth"
    torch.save({"w": torch.arange(10000.0)}, truncated)
    truncated.write_bytes(truncated.read_bytes()[:-3000])
    with pytest.raises(KdepError, match=r"good\.pth"):
        openmmlab.load_weights(truncated)


# -------------------------------------------------------------------- metrics


class Counts:
    """The numbers that a detection hook counts."""

    def __init__(self, images: int, detections: int) -> None:
        self.images, self.detections = images, detections


def test_missing_and_non_finite_metrics_are_refused_unless_nothing_was_detected() -> None:
    assert openmmlab.read_metrics({"a": 0.25, "b": 7}, ["a"]) == ({"a": 0.25}, [])
    expected = ["coco/bbox_mAP", "coco/bbox_mAP_50"]
    values, notes = openmmlab.read_metrics({}, expected, Counts(12, 0))
    assert values == dict.fromkeys(expected, 0.0)
    assert notes == [f"there are no detections in 12 images, so {', '.join(expected)} counts 0"]
    for counted in (None, Counts(0, 0), Counts(12, 3)):  # missing for another reason
        with pytest.raises(KdepError, match="returned no coco/bbox_mAP, coco/bbox_mAP_50, only"):
            openmmlab.read_metrics({"other": 1.0}, expected, counted)
    for value in (math.nan, math.inf, "high", None):
        with pytest.raises(KdepError, match=r"the metric a is .*finite"):
            openmmlab.read_metrics({"a": value}, ["a"])
    with pytest.raises(KdepError, match="no annotated objects that this metric scores"):
        openmmlab.read_metrics({"coco/bbox_mAP_s": -1.0}, ["coco/bbox_mAP_s"])


COCO_SCRIPT = textwrap.dedent(
    """
    import json, sys, torch
    from pathlib import Path
    from kdep_bench import openmmlab
    openmmlab.setup("mmdet")
    from mmengine.config import Config
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS, MODELS
    from mmengine.structures import InstanceData
    from mmdet.structures import DetDataSample

    out, found = Path(sys.argv[1]), sys.argv[2] == "some"
    box = [10.0, 10.0, 20.0, 20.0]
    (out / "gt.json").write_text(json.dumps(dict(
        images=[dict(id=i, width=64, height=64, file_name=f"{i}.jpg") for i in range(3)],
        categories=[dict(id=1, name="thing")],
        annotations=[dict(id=i + 1, image_id=i, category_id=1, bbox=box, area=400.0, iscrowd=0)
                     for i in range(3)])))

    @MODELS.register_module()
    class Detector(BaseModel):
        def forward(self, inputs, mode="predict"):
            samples = []
            for i in inputs:
                n = int(found)
                sample = DetDataSample(metainfo=dict(img_id=i, ori_shape=(64, 64)))
                sample.pred_instances = InstanceData(
                    bboxes=torch.tensor([[10.0, 10, 30, 30]] * n).reshape(n, 4),
                    scores=torch.ones(n), labels=torch.zeros(n, dtype=torch.long))
                samples.append(sample)
            return samples

    @DATASETS.register_module()
    class Images(torch.utils.data.Dataset):
        metainfo = dict(classes=("thing",))
        def __len__(self):
            return 3
        def __getitem__(self, i):
            return dict(inputs=i)

    cfg = Config(dict(
        model=dict(type="mmengine.Detector"), test_cfg=dict(),
        test_dataloader=dict(batch_size=2, dataset=dict(type="mmengine.Images"),
                             sampler=dict(type="DefaultSampler", shuffle=False)),
        test_evaluator=dict(type="CocoMetric", ann_file=str(out / "gt.json"), metric="bbox")))
    seen = openmmlab.DetectionCount()
    runner = openmmlab.build_runner(cfg, work_dir=out, seed=0, hooks=[seen])
    values, notes = openmmlab.read_metrics(runner.test(), ["coco/bbox_mAP_50"], detections=seen)
    (out / "answer.json").write_text(json.dumps([values, notes, seen.images, seen.detections]))
    """
)


@pytest.mark.slow
@pytest.mark.parametrize(("found", "value"), [("some", 1.0), ("none", 0.0)])
def test_coco_metric_with_and_without_detections(tmp_path: Path, found: str, value: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COCO_SCRIPT, str(tmp_path), found],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values, notes, images, detections = json.loads((tmp_path / "answer.json").read_text())
    assert values == {"coco/bbox_mAP_50": value}
    assert (images, detections, bool(notes)) == (3, 3 if value else 0, not value)


# ------------------------------------------------------------------ loss curve


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000), st.sampled_from([2, 8, 200]))
def test_a_loss_curve_has_few_points_in_order_with_the_mean_loss_of_their_steps(
    losses: list[float], limit: int
) -> None:
    from kdep_bench.openmmlab.hooks import LossCurve

    curve = LossCurve(limit)
    for step, loss in enumerate(losses, 1):
        curve.add(step, loss)
    steps = [p[0] for p in curve.points]
    assert 1 <= len(curve.points) <= limit
    assert steps == sorted(set(steps))
    assert steps == [curve.stride * (i + 1) for i in range(len(steps))]
    for (end, mean), start in zip(curve.points, [0, *steps], strict=False):
        part = losses[int(start) : int(end)]
        assert mean == pytest.approx(sum(part) / len(part), abs=1e-6)
