"""The Python interface: `pretrain`, `evaluate`, `extract_features` and `compare`.

`pretrain` and `evaluate` write a suite config, run it like `kdep-bench run` in separate processes,
and read the result. A repeated call reruns no finished stage; an interrupted one resumes.

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
import re
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

GIVEN = "given"  # default method name of the backbone that `evaluate` scores


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
    """Score of a method on a task, between 0 and 1, over seeds.

    Attributes:
        student, method, task, metric: names.
        mean: mean over seeds; None if a seed failed or is missing.
        sd: standard deviation; None with one seed.
        low, high: 95 % confidence interval of the mean; None with one seed.
        seeds: number of seeds of the mean; 0 without a mean.
        among_best: whether it is among the best of the task, see GLOSSARY.md.
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
    """The scores of a results folder.

    Attributes:
        folder: the folder, with the leaderboard, the HTML report (index.html) and the records.
        scores: one Score per student, method and task.
        answer: sentences that summarise the comparison.
    """

    folder: Path
    scores: tuple[Score, ...]
    answer: tuple[str, ...]

    def __str__(self) -> str:
        lines = [*self.answer, ""] if self.answer else []
        for score in self.scores:
            mean = "no score" if score.mean is None else f"{100 * score.mean:.1f}"
            deviation = "" if score.sd is None else f" ± {100 * score.sd:.1f}"
            best = "  among the best" if score.among_best else ""
            subject = f"{score.student}  {score.method}  {score.task} ({score.metric})"
            lines.append(f"{subject}  {mean}{deviation}{best}")
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
        images: a folder of images, including its sub-folders; labels are not read.
        method: a method config's name, or dict(base=name, ...); it must not read labels.
        name: name of the suite and the data, used in paths.
        epochs: passes over the images.
        views: fixed random crops per image; each is used once in `views` epochs.
        batch: images per step.
        lr: peak learning rate of SGD with momentum 0.9, weight decay 5e-4 and a cosine schedule.
        precision: "float32", "bfloat16" or, on a GPU, "float16".
        seed: seed of the initial weights and the order of the images.
        work_dir: folder for stages and the suite file; default: work_dirs/.
        show_progress: whether to print the progress of the stages.

    Raises:
        KdepError: the suite is invalid or a stage fails. The error has the message of
            `kdep-bench run`.
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
    loaded_suite = _load_with_content(suite, work)
    export = student_export(build_plan(loaded_suite))
    folder = state.folder(work, export)
    file = folder / "backbone.pth"
    backbone = _backbone(loaded_suite.students[0], file)
    return Pretrained(backbone, file, folder / "README.md", suite)


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
        backbone: the network, the result of `pretrain`, or a file with its state dict. It must be
            the network that `student` describes: after loading, every tensor is compared.
        student: a student config's name, or dict(base=name, ...).
        data: a data config's name, or a complete config.
        tasks: task configs' names, or dict(base=name, ...).
        labels_used: whether the backbone's pre-training read labels; shown in the tables.
        method: name of the backbone in the tables.
        compared_with: methods to compare with; "scratch" is no pre-training. Methods with
            pre-training use the pool of `data`.
        teacher: teacher for the methods of `compared_with` that need one.
        name: name of the suite, used in paths.
        epochs, views, batch, lr, precision: pre-training budget of the methods of `compared_with`.
        seeds: seeds of the transfer training; the first is also the pre-training seed of the
            methods of `compared_with`.
        work_dir: folder for stages and the suite file; default: work_dirs/.
        results_dir: folder for records and tables; default: results/NAME/.
        show_progress: whether to print the progress of the stages.

    Raises:
        KdepError: the suite is invalid, a stage failed, or an argument is not a list.
    """
    _check_list(tasks, "tasks")
    _check_list(seeds, "seeds")
    _check_list(compared_with, "compared_with", may_be_empty=True)
    work = _work(work_dir)
    file = _weights_file(backbone, work)
    given_method = dict(
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
        methods=[given_method, *compared_with],
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
    """Features of a backbone: its last feature map, averaged over positions.

    Images are normalised as in pre-training. The mode (training or evaluation) of every layer is
    restored at the end.

    Args:
        backbone: a network whose output is a map [B, C, h, w], a vector [B, C], or a tuple of maps,
            of which the last is used.
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
        is_array = isinstance(images, np.ndarray)
        raise KdepError(
            f"the images are {'an empty array' if is_array else f'a {type(images).__name__}'}",
            expected="a NumPy array [N, H, W, 3], uint8",
            fix="pass at least one image"
            if is_array
            else "join a list of images by np.stack, or convert a tensor by .numpy()",
        )
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise KdepError(
            f"the images are an array of shape {images.shape} and type {images.dtype}",
            expected="[N, H, W, 3], uint8",
            fix="pass RGB images with the channels last and values from 0 to 255",
        )
    network = backbone.backbone if isinstance(backbone, Pretrained) else backbone
    training_modes = {module: module.training for module in network.modules()}
    weight = next(network.parameters())
    network.eval()
    mean, std = (torch.tensor(v, device=weight.device).view(3, 1, 1) for v in (MEAN, STD))
    features = []
    try:
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                pixels = images[start : start + batch].transpose(0, 3, 1, 2).copy()
                inputs = (torch.from_numpy(pixels).to(weight.device) - mean) / std
                output = network(inputs.to(weight.dtype))
                output = output[-1] if isinstance(output, tuple | list) else output
                output = output.float()
                pooled = output.mean((2, 3)) if output.ndim == 4 else output
                features.append(pooled.cpu().numpy())
    finally:
        for module, is_training in training_modes.items():  # layers may differ in their mode
            module.training = is_training
    return np.concatenate(features)


def compare(results_dir: str | Path) -> ScoreTable:
    """Reads the scores of a results folder.

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
                estimate = board.result(row, column).estimate
                scores.append(
                    Score(
                        student=student,
                        method=view.labels[row],
                        task=column.task,
                        metric=column.metric,
                        mean=None if estimate is None else estimate.mean,
                        sd=None if estimate is None else estimate.sd,
                        low=None if estimate is None else estimate.low,
                        high=None if estimate is None else estimate.high,
                        seeds=0 if estimate is None else estimate.n,
                        among_best=view.is_bold(row, column),
                    )
                )
    return ScoreTable(folder, tuple(scores), tuple(lines))


def student_export(plan: Plan) -> str:
    """Id of the export stage of the plan's only student.

    Exports of intermediate teachers are excluded: other stages depend on them.
    """
    upstream = {stage_id for stage in plan.stages.values() for stage_id in stage.needs.values()}
    (export,) = [i for i, s in plan.stages.items() if s.kind == "export" and i not in upstream]
    return export


def _work(work_dir: str | Path | None) -> Path:
    """The absolute path of the work dir; default: work_dirs/."""
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
    """Writes a suite config below `work` and returns its path; `kdep-bench run` can run it."""
    safe_name(name, "suite name")
    path = work / "suites" / f"{name}.py"
    suite = _plain(dict(name=name, **content), "")
    text = '"""Written by kdep_bench; run it with: kdep-bench run FILE."""\n\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, f"{text}suite = {pprint.pformat(suite, sort_dicts=False)}\n")
    return path


def _plain(value: Any, where: str) -> Any:
    """`value` with the types that a config file can contain; paths become text.

    `where` is what an error calls the value.

    Raises:
        KdepError: a value of another type, or a number that is not finite.
    """
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}" if where else str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v, f"{where}[{i}]") for i, v in enumerate(value))
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if is_finite and (value is None or type(value) in (bool, int, float, str)):
        return value
    raise KdepError(
        f"`{where}` of the suite is {value!r:.80} of type {type(value).__name__}",
        expected="text, a finite number, True, False, None, a path, or lists and dicts of these",
        fix=f"correct the argument that `{where}` comes from",
    )


def _check_list(values: Any, name: str, may_be_empty: bool = False) -> None:
    """Raises KdepError for text or a number instead of a list, and for an empty list."""
    is_list = hasattr(values, "__len__") and not isinstance(values, str | Mapping)
    if not is_list or not (len(values) or may_be_empty):
        raise KdepError(
            f"`{name}` is {values!r:.80}",
            expected="a list" if may_be_empty else "a list of at least one entry",
            fix=f"pass {name}=[...]",
        )


def _run(suite: Path, work: Path, results: Path | None, show_progress: bool) -> None:
    """Runs the suite in a separate process, which also works in a notebook.

    Raises:
        KdepError: the run failed. The error quotes the errors that it printed.
    """
    command = [sys.executable, "-m", "kdep_bench.cli.main", "run", str(suite)]
    command += ["--work-dir", str(work), *(["--results-dir", str(results)] if results else [])]
    if not show_progress:
        command.append("--plain")
    output = None if show_progress else subprocess.PIPE
    finished = subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, text=True, check=False
    )
    if finished.returncode:
        lines = (finished.stderr + (finished.stdout or "")).strip().splitlines()
        causes: list[str] = []
        for line in lines:
            is_cause = "FAILED" in line or line.startswith("kdep-bench run: ")
            # An error of several faults has a line for each of them.
            if is_cause or (causes and re.match(r"  (\d+\.|-|and) ", line)):
                causes.append(line.removeprefix("kdep-bench run: "))
        text = "\n".join(causes or lines[-1:])
        raise KdepError(f"{text} (suite {suite}, exit code {finished.returncode})")


def _load_with_content(suite: Path, work: Path) -> Any:
    """The suite with the hashes of its data, which are part of the stage ids of the run."""
    from kdep_bench.suite import data_identity
    from kdep_bench.suite.config import load_suite

    return data_identity.with_content(load_suite(str(suite)), work)[0]


def _backbone(student: Mapping[str, Any], file: Path) -> nn.Module:
    from kdep_bench.networks.backbone import build_backbone
    from kdep_bench.students.given_weights import given_weights

    backbone = build_backbone(dict(student))
    given_weights(backbone, str(file))
    backbone.eval()  # in a separate statement: `eval` of mmpretrain's networks returns None
    return backbone


def _weights_file(backbone: nn.Module | Pretrained | str | Path, work: Path) -> Path:
    """The file with a backbone's weights.

    The weights of a network are saved to a file below `work`, named by the hash of the weights.
    """
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
