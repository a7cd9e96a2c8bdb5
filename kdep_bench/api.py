"""The project from Python: `pretrain` a backbone, `evaluate` one, `extract_features`, `compare`.

Each function writes the suite it runs as a config file, runs it as `kdep-bench run` does, in
processes of its own, and reads the result. Stages, caches and records are the same: a repeated call
runs nothing again, and an interrupted one resumes.

    from kdep_bench import api as kb

    trained = kb.pretrain(teacher="efficientnet_lite0", student="resnet18_w32", images="photos/")
    table = kb.evaluate(
        trained.backbone,
        student="resnet18_w32",
        data=dict(type="kdep_bench.data.own.prepare", name="birds", pool="photos/", classify=...),
        tasks=["pocket_probe"],
        labels_used=False,
    )
    print(table)
"""

from __future__ import annotations

import math
import os
import pprint
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.errors import KdepError
from kdep_bench.files import safe_name, write_atomic
from kdep_bench.paths import OUTPUT

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from kdep_bench.suite.graph import Plan

GIVEN = "given"  # the method name of a backbone that `evaluate` was given


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A pre-trained backbone.

    Attributes:
        backbone: the network with its weights, in evaluation mode, on the CPU.
        file: backbone.pth, a flat mapping from names to tensors.
        card: its model card (Markdown): teacher, licence, data, budget, checksum, how to load it.
        suite: the suite config that was run; `kdep-bench run FILE` repeats it.
    """

    backbone: nn.Module
    file: Path
    card: Path
    suite: Path


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of a method on a task, from 0 to 1: mean, standard deviation and 95 % interval.

    `sd`, `low` and `high` are None with one seed; `mean` also where a seed failed or is missing.
    """

    student: str
    method: str
    task: str
    metric: str
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None
    seeds: int
    among_best: bool


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """The scores of a results folder, and its answer in sentences.

    `folder` has the leaderboard, the page (index.html) and the records.
    """

    folder: Path
    scores: tuple[Score, ...]
    answer: tuple[str, ...]

    def __str__(self) -> str:
        lines = [*self.answer, ""] if self.answer else []
        for s in self.scores:
            mean = "no score" if s.mean is None else f"{100 * s.mean:.1f}"
            spread = "" if s.sd is None else f" ± {100 * s.sd:.1f}"
            best = "  among the best" if s.among_best else ""
            lines.append(f"{s.student}  {s.method}  {s.task} ({s.metric})  {mean}{spread}{best}")
        return "\n".join(lines)


def pretrain(
    *,
    teacher: str | Mapping[str, Any],
    student: str | Mapping[str, Any],
    images: str | Path,
    method: str | Mapping[str, Any] = "kdep",
    name: str = "pretrained",
    epochs: float = 16,
    views: int = 2,
    batch: int = 64,
    lr: float = 0.2,
    precision: str = "float32",
    seed: int = 0,
    work_dir: str | Path | None = None,
    show_progress: bool = True,
) -> Pretrained:
    """Pre-trains a student from a teacher on unlabelled images.

    Args:
        teacher: a teacher config's name (`kdep-bench teachers`), or dict(base=name, weights=file).
        student: a student config's name, or dict(base=name, ...).
        images: a folder of images; sub-folders are read, names and labels are not.
        method: a method config's name, or dict(base=name, ...); one that reads no labels.
        name: of the suite and the data, in paths.
        epochs: over the images.
        views: fixed random crops per image, each seen once per `views` epochs.
        batch: images per step.
        lr: peak learning rate of SGD with momentum 0.9, weight decay 5e-4 and a cosine schedule.
        precision: "float32", "bfloat16" or, on a GPU, "float16".
        seed: of initial weights and order.
        work_dir: for stages and the suite file; ./work_dirs by default.
        show_progress: print the progress of the stages.

    Raises:
        KdepError: the suite is refused or a stage fails; the message is that of `kdep-bench run`.
    """
    from kdep_bench.engine import state
    from kdep_bench.suite.plan import build_plan

    work = _work(work_dir)
    pool = str(Path(images).expanduser().absolute())
    suite = _suite(
        name,
        work,
        data=dict(
            type="kdep_bench.data.own.prepare",
            name=name,
            labels=False,
            pool=pool,
            pool_labels=False,
        ),
        teacher=teacher,
        students=[student],
        methods=[method],
        tasks=[],
        budget=_budget(epochs, views, batch, lr, precision),
        seeds=dict(pretrain=[seed], transfer=[0]),
    )
    _run(suite, work, None, show_progress)
    loaded = _loaded(suite, work)
    plan = build_plan(loaded)
    export = student_export(plan)
    folder = state.folder(work, export)
    file = folder / "backbone.pth"
    return Pretrained(_backbone(loaded.students[0], file), file, folder / "README.md", suite)


def evaluate(
    backbone: nn.Module | Pretrained | str | Path,
    *,
    student: str | Mapping[str, Any],
    data: str | Mapping[str, Any],
    tasks: Sequence[str | Mapping[str, Any]],
    labels_used: bool,
    method: str = GIVEN,
    compared_with: Sequence[str | Mapping[str, Any]] = ("scratch",),
    teacher: str | Mapping[str, Any] | None = None,
    name: str = "evaluated",
    epochs: float = 16,
    views: int = 2,
    batch: int = 64,
    lr: float = 0.2,
    precision: str = "float32",
    seeds: Sequence[int] = (0, 1, 2),
    work_dir: str | Path | None = None,
    results_dir: str | Path | None = None,
    show_progress: bool = True,
) -> ScoreTable:
    """Transfers a backbone to tasks, and compares it with other methods under the same recipes.

    Args:
        backbone: the network, the result of `pretrain`, or a file of its state dict. It must be the
            network that `student` describes: every tensor is compared after loading.
        student: a student config's name, or dict(base=name, ...).
        data: a data config's name, or a complete config.
        tasks: task configs' names, or dict(base=name, ...).
        labels_used: whether the backbone's pre-training read labels, for the tables.
        method: what the tables call the backbone.
        compared_with: methods to compare with; the default, "scratch", is no pre-training. Those
            that pre-train do so on the pool of `data`.
        teacher: for methods of `compared_with` that need one.
        name: of the suite, in paths.
        epochs, views, batch, lr, precision: pre-training budget of the methods of `compared_with`.
        seeds: of the transfers.
        work_dir: for stages and the suite file; ./work_dirs by default.
        results_dir: for records and tables; ./results/NAME by default.
        show_progress: print the progress of the stages.

    Raises:
        KdepError: as `pretrain`; also where a run failed, or an argument is no list.
    """
    _check_list(tasks, "tasks")
    _check_list(seeds, "seeds")
    _check_list(compared_with, "compared_with", may_be_empty=True)
    work = _work(work_dir)
    file = _weights_file(backbone, work)
    given = dict(
        base="given_weights",
        name=method,
        labels_used=labels_used,
        weights=dict(weights=str(file)),
    )
    suite = _suite(
        name,
        work,
        data=data,
        teacher=teacher,
        students=[student],
        methods=[given, *compared_with],
        tasks=list(tasks),
        budget=_budget(epochs, views, batch, lr, precision),
        seeds=dict(pretrain=[next(iter(seeds))], transfer=list(seeds)),
    )
    results = Path(results_dir).expanduser().absolute() if results_dir else _results(name)
    _run(suite, work, results, show_progress)
    return compare(results)


def extract_features(
    backbone: nn.Module | Pretrained, images: np.ndarray, *, batch: int = 64
) -> np.ndarray:
    """Averaged last-level features of a backbone, for images normalised as in pre-training.

    Args:
        backbone: a backbone whose output is a map [B, C, h, w], a vector [B, C], or a tuple of
            levels of which the last is read.
        images: [N, H, W, 3] RGB, uint8.
        batch: images per forward pass.

    Returns:
        [N, C] float32.

    Raises:
        KdepError: `images` has another shape or type, or `batch` is below 1.
    """
    import numpy as np
    import torch

    from kdep_bench.data.normalisation import MEAN, STD

    if batch < 1:
        raise KdepError(f"the batch is {batch}", expected="at least 1", fix="correct `batch`")
    if not isinstance(images, np.ndarray) or not len(images):
        raise KdepError(
            f"the images are {'an empty array' if hasattr(images, 'shape') else type(images)}",
            expected="a NumPy array [N, H, W, 3], uint8",
            fix="pass at least one image, or join a list of images by np.stack",
        )
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise KdepError(
            f"the images are an array of shape {images.shape} and type {images.dtype}",
            expected="[N, H, W, 3], uint8",
            fix="pass RGB images as bytes",
        )
    network = backbone.backbone if isinstance(backbone, Pretrained) else backbone
    modes = {m: m.training for m in network.modules()}
    weight = next(network.parameters())
    network.eval()
    mean, std = (torch.tensor(v, device=weight.device).view(3, 1, 1) for v in (MEAN, STD))
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                pixels = images[start : start + batch].transpose(0, 3, 1, 2).copy()
                x = (torch.from_numpy(pixels).to(weight.device) - mean) / std
                y = network(x.to(weight.dtype))
                y = y[-1] if isinstance(y, tuple | list) else y
                y = y.float()
                parts.append((y.mean((2, 3)) if y.ndim == 4 else y).cpu().numpy())
    finally:
        for module, mode in modes.items():  # a user may have frozen some layers
            module.training = mode
    return np.concatenate(parts)


def compare(results_dir: str | Path) -> ScoreTable:
    """The scores and the answer of a results folder.

    Raises:
        KdepError: the folder has no records, or a damaged one.
    """
    from kdep_bench.results.board import compare as comparison
    from kdep_bench.results.report import answer
    from kdep_bench.results.report.report import view_of

    folder = Path(results_dir).absolute()
    view = view_of(folder)
    board = view.board
    scores, lines = [], []
    for student in board.students:
        lines += answer.sentences(board, student, view.labels, view.summaries)
        for column in comparison.columns_of(board, student):
            for row in board.rows_of(student):
                result = board.result(row, column)
                e = result.estimate
                scores.append(
                    Score(
                        student,
                        view.labels[row],
                        column.task,
                        column.metric,
                        None if e is None else e.mean,
                        None if e is None else e.sd,
                        None if e is None else e.low,
                        None if e is None else e.high,
                        0 if e is None else e.n,
                        view.is_bold(row, column),
                    )
                )
    return ScoreTable(folder, tuple(scores), tuple(lines))


def student_export(plan: Plan) -> str:
    """The export stage of the only student: a teacher assistant's is read by other stages."""
    read = {i for stage in plan.stages.values() for i in stage.needs.values()}
    (export,) = [i for i, s in plan.stages.items() if s.kind == "export" and i not in read]
    return export


def _work(work_dir: str | Path | None) -> Path:
    return Path(work_dir).expanduser().absolute() if work_dir else OUTPUT / "work_dirs"


def _results(name: str) -> Path:
    return OUTPUT / "results" / safe_name(name, "suite name")


def _budget(epochs: float, views: int, batch: int, lr: float, precision: str) -> dict[str, Any]:
    return dict(
        epochs=float(epochs),
        views=views,
        batch=batch,
        optimizer=dict(type="SGD", lr=lr, momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        warmup=0.03,
        precision=precision,
    )


def _suite(name: str, work: Path, **content: Any) -> Path:
    """Writes the suite's config below `work`; the file is readable and can be run by hand."""
    safe_name(name, "suite name")
    path = work / "suites" / f"{name}.py"
    suite = _plain(dict(name=name, **content), "")
    text = '"""Written by kdep_bench; run it with: kdep-bench run FILE."""\n\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f"{text}suite = {pprint.pformat(suite, sort_dicts=False)}\n")
    return path


def _plain(value: Any, where: str) -> Any:
    """A value of Python types that a config file can contain; paths become text.

    Raises:
        KdepError: a value of another type; names its place.
    """
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    finite = not isinstance(value, float) or math.isfinite(value)
    if finite and (value is None or type(value) in (bool, int, float, str)):
        return value
    raise KdepError(
        f"`{where}` of the suite is {value!r:.80} of type {type(value).__name__}",
        expected="text, a finite number, True, False, None, a path, or lists and dicts of these",
        fix=f"correct the argument that `{where}` comes from",
    )


def _check_list(values: Any, name: str, may_be_empty: bool = False) -> None:
    """Raises KdepError for text or a number in place of a list, and for an empty list."""
    is_list = hasattr(values, "__len__") and not isinstance(values, str | Mapping)
    if not is_list or not (len(values) or may_be_empty):
        raise KdepError(
            f"`{name}` is {values!r:.80}",
            expected="a list" if may_be_empty else "a list of at least one entry",
            fix=f"pass {name}=[...]",
        )


def _run(suite: Path, work: Path, results: Path | None, show_progress: bool) -> None:
    """Runs the suite in a process of its own, which is also safe in a notebook."""
    command = [sys.executable, "-m", "kdep_bench.cli.main", "run", str(suite)]
    command += ["--work-dir", str(work), *(["--results-dir", str(results)] if results else [])]
    if not show_progress:
        command.append("--plain")
    output = None if show_progress else subprocess.PIPE
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = (done.stderr + (done.stdout or "")).strip().splitlines()
        causes = [line for line in lines if "FAILED" in line or line.startswith("run_suite: ")]
        causes = [line.removeprefix("run_suite: ") for line in causes or lines[-1:]]
        raise KdepError(" ".join(causes) + f" (suite {suite}, exit code {done.returncode})")


def _loaded(suite: Path, work: Path) -> Any:
    """The suite with the content of its data, as the run planned it."""
    from kdep_bench.suite import data_identity
    from kdep_bench.suite.config import load_suite

    return data_identity.with_content(load_suite(str(suite)), work)[0]


def _backbone(student: Mapping[str, Any], file: Path) -> nn.Module:
    from kdep_bench.networks.backbone import build_backbone
    from kdep_bench.students.given_weights import given_weights

    backbone = build_backbone(dict(student))
    given_weights(backbone, str(file))
    backbone.eval()  # mmpretrain's networks return None here
    return backbone


def _weights_file(backbone: nn.Module | Pretrained | str | Path, work: Path) -> Path:
    """The file of a backbone; a network's weights are saved under the hash of their content."""
    if isinstance(backbone, str | Path):
        return Path(backbone).expanduser().absolute()
    if isinstance(backbone, Pretrained):
        return backbone.file
    if not hasattr(backbone, "state_dict"):
        raise KdepError(
            f"the backbone is of type {type(backbone).__name__}",
            expected="a network, the result of `pretrain`, or a file of a state dict",
            fix="save a state dict with torch.save, and pass the file",
        )
    from kdep_bench.transfer.export import save_tensors

    folder = work / "given"
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{os.getpid()}.partial"
    tensors = {k: v.cpu().contiguous() for k, v in backbone.state_dict().items()}
    file = folder / f"{save_tensors(tensors, partial)[:16]}.pth"
    partial.replace(file)
    return file
