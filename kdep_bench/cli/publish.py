"""Export a suite's finished students, each with its weights in two formats and a model card.

kdep-bench publish pocket --out published [--only kdep] [--onnx] [--latency]

Writes backbone.pth, backbone.safetensors and README.md for each student. Exit codes: 0 all are
published, 1 some are unfinished or damaged (they are listed), 2 an error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdep_bench.cli.parser import Parser
from kdep_bench.engine import state
from kdep_bench.errors import KdepError, first_of
from kdep_bench.files import file_hash, write_atomic, write_json
from kdep_bench.safe_files import copy_file, real_folder
from kdep_bench.suite.graph import Plan, TransferRun
from kdep_bench.suite.schema import Suite
from kdep_bench.transfer.model_card import CARD, PTH, SAFETENSORS, card


@dataclass
class Gaps:
    """Students that `publish` did not publish, and missing parts of model cards.

    Attributes:
        left_out: id of the export stage -> why its student was not published, as a clause.
        remarks: sentences about what is missing in a model card, and why.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def publish(
    suite: Suite,
    plan: Plan,
    work: Path,
    out: Path,
    selected: set[str] | None = None,
    gaps: Gaps | None = None,
) -> list[Path]:
    """Writes one folder per finished export stage of `plan`, with the stage's name.

    Args:
        suite: the suite.
        plan: its stages and runs.
        work: the work dir with the stage directories.
        out: output folder; existing files are replaced.
        selected: ids of export stages; None for all.
        gaps: receives the selected students that could not be published; it is changed.

    Returns:
        the written folders.

    Raises:
        KdepError: no selected stage is finished and intact.
    """
    runs: dict[str, TransferRun] = {}
    for run in plan.runs:
        runs.setdefault(run.chain["export"], run)
    published: list[Path] = []
    gaps = gaps or Gaps()
    for stage_id, run in sorted(runs.items()):
        if selected is not None and stage_id not in selected:
            continue
        folder = _publish_one(suite, plan, work, out, stage_id, run, gaps)
        if folder is not None:
            published.append(folder)
    if not published:
        reasons = [f"{i}: {why}" for i, why in gaps.left_out.items()]
        raise KdepError(
            f"no export stage of the suite {suite.name!r} is finished in {work}"
            + (f" ({first_of(reasons, 3, '; ')})" if reasons else ""),
            fix="run the suite first, or give its --work-dir",
        )
    return published


def _publish_one(
    suite: Suite, plan: Plan, work: Path, out: Path, stage_id: str, run: TransferRun, gaps: Gaps
) -> Path | None:
    """Writes the folder of one export stage.

    Returns:
        the folder; None if the stage has no intact result (the reason is added to `gaps`).
    """
    record, fault = state.finished(plan.stages[stage_id], work)
    source = state.folder(work, stage_id) / PTH
    if record is not None and file_hash(source) != record["outputs"].get("checksum"):
        fault = f"its file {PTH} differs from the one that its stage exported"
    if record is None or fault:
        gaps.left_out[stage_id] = fault or _why_not(state.folder(work, stage_id))
        return None
    outputs = _upstream_outputs(plan, work, stage_id, run, gaps)
    folder = real_folder(out / stage_id)
    copy_file(source, folder / PTH)
    checksums = {PTH: record["outputs"]["checksum"], SAFETENSORS: to_safetensors(source, folder)}
    about, origin = plan.stages[stage_id].about, f"{stage_id}, suite {suite.name}"
    text = card(about, run.student, outputs, record["outputs"], checksums, origin)
    write_atomic(folder / CARD, text)
    return folder


def _upstream_outputs(
    plan: Plan, work: Path, stage_id: str, run: TransferRun, gaps: Gaps
) -> dict[str, Any]:
    """Role -> outputs of the upstream stages that the model card of an export describes.

    The outputs of a stage without a result are {}; the reason is added to `gaps`.
    """
    outputs = {}
    for role, upstream_id in run.chain.items():
        # If the method has several teachers, the roles of their stages are such as "large.cache".
        is_teacher_stage = role.partition(".")[2] in ("cache", "align") and "teachers" in run.method
        if role in ("prepare", "cache", "align", "pretrain") or is_teacher_stage:
            record, reason = state.finished(plan.stages[upstream_id], work)
            outputs[role] = (record or {}).get("outputs", {})
            if record is None:
                reason = reason or _why_not(state.folder(work, upstream_id))
                gaps.remarks.append(
                    f"the card of {stage_id} lacks the outputs of {upstream_id}: {reason}"
                )
    return outputs


def _why_not(folder: Path) -> str:
    """Why a stage has no stage.json, as a clause."""
    failed = state.failure(folder)
    if failed:
        return f"its last attempt failed: {failed['error']}"
    return "it was interrupted" if folder.is_dir() else "it was never run"


def to_safetensors(source: Path, folder: Path) -> str:
    """Writes `folder`/backbone.safetensors with the tensors of `source`; returns its SHA-256.

    Raises:
        KdepError: the written file does not contain the same tensors.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from kdep_bench.transfer.gate import read_tensors

    tensors = {k: v.contiguous() for k, v in read_tensors(source).items()}
    partial = folder / f".{SAFETENSORS}.partial"
    partial.unlink(missing_ok=True)
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        written = load_file(partial)
        has_same_names = written.keys() == tensors.keys()
        if not has_same_names or not all(
            torch.equal(written[name], tensors[name]) for name in written
        ):
            raise KdepError(
                f"the written file {folder / SAFETENSORS} does not contain the same tensors as "
                f"{source}",
                fix="run the same command again",
            )
        partial.replace(folder / SAFETENSORS)
    finally:
        partial.unlink(missing_ok=True)
    return file_hash(folder / SAFETENSORS)


def _add_hf(plan: Plan, folders: list[Path], out: Path) -> list[Path]:
    """Copies each published folder to `out` in the layout of the Hugging Face hub.

    Returns:
        the new folders.
    """
    from kdep_bench.transfer.hf_layout import write_hf

    students = {run.chain["export"]: run.student for run in plan.runs}
    hub_folders = []
    for folder in folders:
        hub_folder = real_folder(out / folder.name)
        text = (folder / CARD).read_text(encoding="utf-8")
        write_hf(students[folder.name], folder / SAFETENSORS, text, hub_folder)
        hub_folders.append(hub_folder)
    return hub_folders


def _add_onnx(plan: Plan, work: Path, folders: list[Path], args: argparse.Namespace) -> list[str]:
    """Writes the ONNX files of each published folder.

    Prints latencies with --latency, and scores of the linear probe with --int8.

    Returns:
        'id of the transfer run: reason' for each transferred model that was not written.
    """
    from kdep_bench.networks.backbone import build_backbone
    from kdep_bench.students.given_weights import given_weights
    from kdep_bench.transfer.onnx_file import ONNX, latencies, write_onnx

    left_out: list[str] = []
    for folder in folders:
        runs = [run for run in plan.runs if run.chain["export"] == folder.name]
        student = runs[0].student
        backbone = build_backbone(student)
        given_weights(backbone, str(folder / PTH))
        write_onnx(backbone, student["input_px"], folder / ONNX)
        files = [ONNX]
        if args.int8:
            files.append(_add_int8(plan, work, folder, runs))
        timed_files = files if args.latency else []
        for name in timed_files:
            for row in latencies(backbone, folder / name, student["input_px"]):
                print(
                    f"{folder.name}/{name}: batch {row['batch']}: torch {row['torch_ms']:.2f} ms, "
                    f"onnxruntime {row['onnxruntime_ms']:.2f} ms (median of 20, one CPU thread)"
                )
        left_out += _add_models(plan, work, folder, runs)
    return left_out


def _add_int8(plan: Plan, work: Path, folder: Path, runs: list[TransferRun]) -> str:
    """Writes the backbone in 8-bit integers, and its score on the suite's first linear probe.

    Returns:
        the name of the ONNX file.
    """
    from kdep_bench.registry import build
    from kdep_bench.transfer.onnx_file import ONNX
    from kdep_bench.transfer.onnx_int8 import INT8, calibration_images, probe_scores, quantise

    student, data_root = runs[0].student, _data_root(plan, work, runs[0])
    images = calibration_images(data_root / "pool" / "images", student["input_px"])
    quantise(folder / ONNX, images, folder / INT8)
    # With the protocol 'split' the classifier is fitted on the training split only.
    probes = [
        run
        for run in runs
        if run.task["type"].endswith(".LinearProbe") and run.task["recipe"]["protocol"] == "split"
    ]
    measured: dict[str, Any] = {"calibration_images": len(images), "top1": {}}
    for run in probes[:1]:
        spec = plan.stages[run.id].spec
        files = {"float32": folder / ONNX, "int8": folder / INT8}
        scores = probe_scores(
            files, build(spec["task"]), student, data_root, folder / PTH, spec["seed"]
        )
        measured["top1"] = {run.task["name"]: {"seed": spec["seed"], **scores}}
        print(
            f"{folder.name}: {run.task['name']}, seed {spec['seed']}: top-1 x100 "
            f"{100 * scores['float32']:.1f} in float32, {100 * scores['int8']:.1f} in int8"
        )
    if not probes:
        print(f"{folder.name}: the suite has no linear probe, so its int8 score is not measured")
    write_json(folder / "backbone_int8.json", measured)
    return INT8


def _add_models(plan: Plan, work: Path, folder: Path, runs: list[TransferRun]) -> list[str]:
    """Writes the models of transfer runs with `keep_model`.

    Returns:
        'id of the transfer run: reason' for each model that was not written.
    """
    from kdep_bench.transfer.onnx_model import write_model

    left_out = []
    for run in runs:
        stage = plan.stages[run.id]
        if not stage.spec.get("keep_model"):
            continue
        record, fault = state.finished(stage, work)
        why = fault or _why_not(state.folder(work, run.id))
        if record is not None:
            try:
                _check_not_quantised(run.id, record["outputs"])
                path = folder / f"{_model_name(run)}.s{stage.spec['seed']}.onnx"
                place = state.folder(work, run.id)
                data_root = _data_root(plan, work, run)
                spec = stage.spec
                write_model(spec["task"], spec["student"], data_root, place, spec["seed"], path)
                continue
            except KdepError as e:
                why = str(e)
        left_out.append(f"{run.id}: {why}")
    return left_out


def _model_name(run: TransferRun) -> str:
    """The task's name, with the name of the transfer method if there is one."""
    transfer = run.method.get("transfer")
    return run.task["name"] if transfer is None else f"{run.task['name']}.{transfer['name']}"


def _check_not_quantised(run_id: str, outputs: Mapping[str, Any]) -> None:
    """Raises KdepError for a model whose scored activations have few bits.

    An ONNX file of the saved tensors would have 32-bit activations, so other outputs.
    """
    if "quantised" in (outputs.get("transfer") or {}):
        raise KdepError(
            f"the model of {run_id} was scored with k-bit activations, which an ONNX file does not "
            "have",
            fix="use model.pth of the transfer stage; outputs.transfer.quantised in its stage.json "
            "has the bits and the scale of every layer's input",
        )


def _data_root(plan: Plan, work: Path, run: TransferRun) -> Path:
    """The folder with the data of a run; KdepError if its `prepare` stage has no result."""
    stage = plan.stages[run.chain["prepare"]]
    record, fault = state.finished(stage, work)
    if record is None:
        raise KdepError(
            f"the data of {run.id} are not in {work}: "
            f"{fault or _why_not(state.folder(work, stage.id))}",
            fix="run the suite, or give its --work-dir",
        )
    return state.folder(work, stage.id) / "data"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("suite", help="a suite config, or its name in configs/suites/")
    p.add_argument(
        "--out", type=Path, required=True, help="output folder; one sub-folder per student"
    )
    p.add_argument("--work-dir", type=Path, help="stage directories (default: work_dirs/)")
    p.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only students whose export stage id contains TEXT",
    )
    p.add_argument(
        "--onnx",
        action="store_true",
        help="also write backbone.onnx (input: RGB pixels from 0 to 255; output: features) and "
        "check it against torch; with keep_models=True in the suite also the models of its tasks",
    )
    p.add_argument(
        "--int8",
        action="store_true",
        help="with --onnx: also write the backbone in 8-bit integers, with its linear-probe score",
    )
    p.add_argument(
        "--latency",
        action="store_true",
        help="with --onnx: print the latency at batch 1 and 32 on one CPU thread",
    )
    p.add_argument(
        "--hf",
        type=Path,
        metavar="FOLDER",
        help="also write here one sub-folder per student, in the layout of the Hugging Face hub",
    )
    p.add_argument(
        "--partial", action="store_true", help="exit with 0 even if some students are not published"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, see the docstring of the module."""
    args = parser().parse_args(argv)
    from kdep_bench.paths import OUTPUT
    from kdep_bench.suite.config import load_suite
    from kdep_bench.suite.data_identity import with_content
    from kdep_bench.suite.plan import build_plan

    try:
        work = (args.work_dir or OUTPUT / "work_dirs").absolute()
        suite, lines = with_content(load_suite(args.suite), work)
        for line in lines:
            print(line, file=sys.stderr)
        plan = build_plan(suite)
        export_ids = {i for i, s in plan.stages.items() if s.kind == "export" and args.only in i}
        if not export_ids:
            raise KdepError(
                f"--only {args.only!r} matches no export stage of {suite.name}",
                expected="part of one of: "
                + ", ".join(i for i, s in plan.stages.items() if s.kind == "export"),
                fix="correct --only",
            )
        if (args.latency or args.int8) and not args.onnx:
            option = "--latency" if args.latency else "--int8"
            raise KdepError(f"{option} needs the ONNX file", fix="add --onnx")
        if args.hf and args.hf.absolute() == args.out.absolute():
            raise KdepError(
                f"--hf and --out are the same folder {args.out}, and both have a README.md",
                fix="give --hf another folder",
            )
        if not plan.runs:
            raise KdepError(
                f"the suite {suite.name!r} has no tasks, and publishing needs transfer runs",
                fix=f"copy backbone.pth and README.md from {work}/export-*/",
            )
        gaps = Gaps()
        published = publish(suite, plan, work, args.out, export_ids, gaps)
        if args.onnx:
            gaps.remarks += [f"no ONNX file of {m}" for m in _add_onnx(plan, work, published, args)]
        hub_folders = _add_hf(plan, published, args.hf) if args.hf else []
    except KdepError as e:
        print(f"kdep-bench publish: {e}", file=sys.stderr)
        return 2
    for folder in [*published, *hub_folders]:
        print(folder)
    for remark in gaps.remarks:
        print(f"kdep-bench publish: {remark}", file=sys.stderr)
    for stage_id, why in gaps.left_out.items():
        print(f"kdep-bench publish: not published: {stage_id}: {why}", file=sys.stderr)
    if gaps.left_out:
        print(
            f"kdep-bench publish: {len(published)} of {len(export_ids)} students published. "
            "Fix: run the suite, select finished students with --only, or accept this with "
            "--partial",
            file=sys.stderr,
        )
    return int(bool(gaps.left_out) and not args.partial)


if __name__ == "__main__":
    from kdep_bench.console import run_main

    run_main(main)
