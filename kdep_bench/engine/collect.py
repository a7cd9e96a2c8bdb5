"""Collects finished stages into one Record per transfer run, and builds the tables.

The chain of a run is the transfer stage and all stages that it depends on. A record has the costs
from the stage.json of every stage in the chain, and the scores from the stage.json of the transfer.
This module reruns and averages nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.data.content import fingerprint_of
from kdep_bench.engine import cited_stages, state
from kdep_bench.engine.collect_probes import collect_probes
from kdep_bench.errors import KdepError
from kdep_bench.features.cache_origin import computed_by
from kdep_bench.files import canonical_json, text_hash
from kdep_bench.pretrain.budgets import epochs_note
from kdep_bench.safe_files import copy_file, is_real_folder, remove
from kdep_bench.suite.config import config_files
from kdep_bench.suite.data_identity import CONTENT
from kdep_bench.suite.factors import grid_of
from kdep_bench.suite.graph import Plan, TransferRun
from kdep_bench.suite.methods import row_name, tuned_teacher, with_role_teachers, without
from kdep_bench.suite.schema import Json, Suite, labels_of_run, method_needs
from kdep_bench.suite.teachers import teacher_config_for
from kdep_bench.suite.train_test_overlap import overlap_notes

if TYPE_CHECKING:
    from kdep_bench.results.records.record import Record

CURVE_POINTS = 200  # most points of a curve in a record
# Files of per-sample outputs up to this size are copied into the results folder.
MAX_SAMPLES_BYTES = 128 << 10
SUPERSEDED = "superseded"  # folder of records that the suite no longer plans


def collect(
    suite: Suite,
    plan: Plan,
    work: Path,
    results: Path,
    failed: Mapping[str, str] | None = None,
    rebuild: bool = False,
) -> Json:
    """Writes the record of every run of `plan` below `results`, and the tables if they change.

    A record with the status 'missing' never replaces one that has a value: the work dir may have
    been pruned, or the value may come from another machine. Records of runs that the suite no
    longer plans are moved to `superseded/`.

    Args:
        suite: the suite of `plan`.
        plan: its stages and runs.
        work: the work dir.
        results: the results folder.
        failed: stage id -> error of this run, for stages whose failed.json could not be written.
        rebuild: whether to build the tables also if no record is new.

    Returns:
        {'ok', 'failed', 'missing', 'written': numbers of records; 'probes': the same numbers for
        probe records, if the suite has probes; 'superseded': number of records that were moved to
        that folder, if any; 'report': result of `results.build`, if tables were
        built}.
    """
    from kdep_bench import results as results_package

    if work.is_dir():
        cited_stages.register(work, results)
    chains = _Chains(plan, work, failed or {})
    counts = {"ok": 0, "failed": 0, "missing": 0, "written": 0}
    n_superseded = _move_superseded(results, {run.id for run in plan.runs})
    for run in plan.runs:
        record, written = _collect_run(suite, run, chains, work, results)
        counts[record.status] += 1
        counts["written"] += written
    is_card_new = _write_card(suite, plan, chains, results)
    probes = collect_probes(suite, chains, results, SUPERSEDED)
    out: Json = dict(counts)
    if n_superseded:
        out["superseded"] = n_superseded
    if plan.probes:
        out["probes"] = probes
    if (
        rebuild
        or n_superseded
        or counts["written"]
        or is_card_new
        or probes["written"]
        or not (results / "leaderboard.md").exists()
    ):
        method_inputs = _method_inputs(plan)
        out["report"] = results_package.build(
            results,
            suite.name,
            suite.claims,
            method_inputs,
            factors=grid_of([run.method for run in plan.runs], [run.student for run in plan.runs]),
        )
    return out


def _method_inputs(plan: Plan) -> dict[str, Json]:
    """Method -> its inputs and a description, as in `report.build`.

    The description is the `about` of a method that the suite defines, otherwise the first line of
    the docstring of its config.
    """
    from kdep_bench.results.report.report import docstring_line

    files, inputs = config_files("method"), dict[str, Json]()
    for method in (run.method for run in plan.runs):
        entry: Json = {"reads": sorted(method_needs(method))}
        described = method.get("transfer") or method
        config = files.get(described["name"])
        about = described.get("about") or (docstring_line(config) if config is not None else "")
        if about:
            entry["about"] = about
        inputs[row_name(method)] = entry
    return inputs


def _collect_run(
    suite: Suite, run: TransferRun, chains: _Chains, work: Path, results: Path
) -> tuple[Record, bool]:
    """Makes the record of a run, and writes it if it is new or has changed.

    Returns:
        (the record, whether it was written).
    """
    from kdep_bench.results.records import store

    record = _valid_record(suite, run, chains)
    old = _load_or_none(store.records_dir(results) / f"{run.id}.json")
    if record.status == "missing" and old is not None and old.status == "ok":
        record = old
    elif not record.data.fingerprint and old is not None:  # the `prepare` stage was pruned
        old_values = {"fingerprint": old.data.fingerprint, "source": old.data.source}
        record = record.model_copy(update={"data": record.data.model_copy(update=old_values)})
    if old is not None and _is_same(old, record):
        return record, False
    _copy_images(record, state.folder(work, run.id), results)
    _copy_samples(record, state.folder(work, run.id), results)
    store.write(results, record)
    return record, True


def check_folder(results: Path, suite: str) -> None:
    """Raises KdepError for a results folder that cannot be written, or is of another suite.

    The records of the other suite would be moved.
    """
    from kdep_bench.results.records import record, store

    existing = next(p for p in (results, *results.parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        fault = "is not writable" if existing.is_dir() else "is a file"
        raise KdepError(
            f"the results folder {results} cannot be written, because {existing} {fault}",
            fix="choose another folder with --results-dir",
        )
    for path in sorted(store.records_dir(results).glob("*.json")):
        try:
            recorded_suite = record.load(path).suite
        except (KdepError, OSError):
            continue  # a damaged record is written again
        if recorded_suite != suite:
            raise KdepError(
                f"the folder {results} has the records of the suite {recorded_suite!r}",
                expected=f"a new folder, or one of the suite {suite!r}",
                fix="choose another folder with --results-dir",
            )
        return


def _write_card(suite: Suite, plan: Plan, chains: _Chains, results: Path) -> bool:
    """Writes the counts of stage `prepare` into `results`; returns whether they changed."""
    from kdep_bench.results.report import data_card

    stages = {run.chain["prepare"] for run in plan.runs if "prepare" in run.chain}
    for stage_id in sorted(stages):
        prepared = chains.stage(stage_id)
        if prepared is not None and prepared["outputs"].get("counts"):
            return data_card.write(results, suite.data["name"], prepared["outputs"])
    return False


class _Chains:
    """Reads the stage.json of every stage once; a damaged one counts as missing."""

    def __init__(self, plan: Plan, work: Path, failed: Mapping[str, str]) -> None:
        self.plan, self.work, self.failed = plan, work, failed
        self._read: dict[str, tuple[Json | None, str | None]] = {}

    def _finished(self, stage_id: str) -> tuple[Json | None, str | None]:
        if stage_id not in self._read:
            stage, fault = state.finished(self.plan.stages[stage_id], self.work)
            stage = with_current_names(stage)
            if stage is not None and "reused" in stage["outputs"]:
                origin = computed_by(self.work, stage_id, stage["outputs"])
                stage = {**stage, "outputs": {**stage["outputs"], "reused": origin}}
            self._read[stage_id] = stage, fault
        return self._read[stage_id]

    def stage(self, stage_id: str | None) -> Json | None:
        """The stage.json of a finished stage; None if it is not finished."""
        return None if stage_id is None else self._finished(stage_id)[0]

    def fault(self, stage_id: str) -> str | None:
        """The reason that a stage's outputs cannot be used, as a clause; None if they can."""
        fault = self._finished(stage_id)[1]
        return fault and fault.replace(f"{self.work}/", "")  # no machine's paths in records

    def fingerprint(self, run: TransferRun) -> str:
        """Fingerprint of the data that a run has read; "" if unknown.

        For data in files it is computed from the plan. Generated data may have changed after the
        transfer, so the fingerprint is read from the stage.json of the transfer.
        """
        prepare, transfer = run.chain["prepare"], self.stage(run.chain["transfer"])
        if content := self.plan.stages[prepare].spec.get(CONTENT):
            return fingerprint_of(content)
        if transfer is not None and "data" in transfer:
            return transfer["data"]
        prepared = self.stage(prepare)
        return prepared["outputs"].get("fingerprint", "") if prepared else ""

    def failure(self, stage_id: str) -> tuple[str, str] | None:
        """(error, time) of the last attempt of a stage that is not done; None without a failure."""
        if self.stage(stage_id) is not None:
            return None
        failure = state.failure(state.folder(self.work, stage_id))
        if failure is not None:
            return failure["error"], failure["at"]
        return (self.failed[stage_id], _now()) if stage_id in self.failed else None


# Former name of a stage output -> its current name.
RENAMED_OUTPUTS = {
    "energy_kept": "explained_variance_ratio",
    "std_ratio_after_svd": "std_ratio_after_align",
}


def with_current_names(stage: Json | None) -> Json | None:
    """A stage.json with the current names of outputs, so that old stages stay usable.

    If an output has both names, the value of the current name is used.
    """
    if stage is None:
        return None
    outputs = stage.get("outputs")
    if not isinstance(outputs, dict) or not RENAMED_OUTPUTS.keys() & outputs.keys():
        return stage
    old = {RENAMED_OUTPUTS[k]: v for k, v in outputs.items() if k in RENAMED_OUTPUTS}
    return {**stage, "outputs": {**old, **without(outputs, set(RENAMED_OUTPUTS))}}


def _valid_record(suite: Suite, run: TransferRun, chains: _Chains) -> Record:
    """The record of a run; a failed record if the outputs of its stages do not fit a record.

    Stage functions, for example of a user, can return outputs of any type.
    """
    from kdep_bench.results.records import record

    try:
        new_record = make_record(suite, run, chains)
        _image_files(new_record, state.folder(chains.work, run.id))  # only to check the paths
        return new_record
    except KdepError as e:
        sentence = str(e)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        problem = (
            f"the outputs of the stages of {run.id} cannot be made into a record "
            f"({type(e).__name__}: {e})"
        )
        sentence = str(KdepError(problem[:2000], fix="run the suite again"))
    fields = _planned_fields(suite, run, {}, chains)
    return record.make(fields | {"status": "failed", "error": sentence, "created": _now()})


def make_record(suite: Suite, run: TransferRun, chains: _Chains) -> Record:
    """The Record of one run, from its stage directories.

    The record has the status 'failed' if a stage of the run is damaged, because its cost or scores
    cannot be read. A missing upstream stage is no failure, because work dirs are pruned.

    Raises:
        KdepError: the transfer stage lacks an output that records need.
    """
    from kdep_bench.results.records import record

    stages = {kind: chains.stage(stage_id) for kind, stage_id in run.chain.items()}
    fields = _planned_fields(suite, run, stages, chains)
    for stage_id in run.chain.values():
        fault = chains.fault(stage_id)
        if fault is not None and chains.failure(stage_id) is None:
            problem = f"the outputs of stage {stage_id} cannot be used: {fault}"
            error = KdepError(problem, fix="run the suite again")
            fields.update(status="failed", error=str(error), created=_now())
            return record.make(fields)
    transfer = stages["transfer"]
    if transfer is not None:
        fields.update(_measured_fields(run, stages, transfer))
        fields["notes"] = [*_suite_notes(suite, run), *fields["notes"]]
        return record.make(fields)
    for kind, stage_id in run.chain.items():
        failure = chains.failure(stage_id)
        if failure is not None:
            sentence = failure[0] if kind == "transfer" else f"{kind} failed: {failure[0]}"
            fields.update(status="failed", error=sentence, created=failure[1])
            return record.make(fields)
    fields.update(status="missing", created=_now())
    return record.make(fields)


def _planned_fields(
    suite: Suite, run: TransferRun, stages: Mapping[str, Json | None], chains: _Chains
) -> Json:
    """Record fields from the plan and from the upstream stages that are finished.

    `stages`: role of a stage in the chain -> its stage.json, None if it is not finished.
    """
    method, task = run.method, run.task
    prepare, pretrain = _outputs(stages, "prepare"), _outputs(stages, "pretrain")
    is_trained, terms = method.get("weights") is None, pretrain.get("terms") or {}
    budget = {k: pretrain.get(k) for k in ("images_seen", "epochs", "steps", "views")}
    return {
        "id": run.id,
        "suite": suite.name,
        "arm": _method_fields(method, run.student),
        "student": {
            "name": run.student["name"],
            "width": run.student["width"],
            "params": _outputs(stages, "export").get("parameters"),
            "flops": _outputs(stages, "export").get("flops"),
        },
        "teacher": _teacher_fields(run, stages),
        "transfer": _transfer_fields(run, stages),
        "data": {
            "name": suite.data["name"],
            "fingerprint": chains.fingerprint(run),
            "source": prepare.get("source", ""),
            "share": run.fraction,
            "images": pretrain.get("images") if is_trained else None,
        },
        "budget": {
            **budget,
            "learning_rate": _learning_rate(stages.get("pretrain")),
            "epochs_asked": _planned_epochs(stages.get("pretrain")),
        }
        if is_trained
        else {},
        "seed": {"pretrain": run.pretrain_seed, "transfer": run.transfer_seed},
        "task": {
            "name": task["name"],
            "family": task.get("family", ""),
            "version": task.get("version", 1),
            "split": task.get("split", "test"),
            "metric": task["metric"],
            "direction": task.get("direction", "max"),
            "chance": task.get("chance"),
        },
        "align": _align_fields(stages),
        "cost": _cost_fields(run, stages, suite.runtime.timed),
        "curves": _thinned(pretrain.get("curves")),
        "terms": terms if len(terms) > 1 else {},  # a single term is the whole loss
        "stages": dict(run.chain),
        "config_hash": _config_hash(run),
    }


def _measured_fields(run: TransferRun, stages: Mapping[str, Json | None], transfer: Json) -> Json:
    """Record fields from `transfer`, the stage.json of the transfer."""
    outputs, environment = transfer["outputs"], transfer["environment"]
    required = ("value", "metrics", "per_class", "gate")
    missing = [k for k in required if k not in outputs]
    if missing:
        raise KdepError(
            f"the outputs of stage {run.id} lack {', '.join(missing)}",
            expected="value, metrics, per_class and gate",
            fix="return them from `run` of the task's class (gate: the result of the check of the "
            "loaded weights)",
        )
    fields: Json = {
        "status": "ok",
        **{k: outputs[k] for k in required},
        "curves": {
            **_thinned(_outputs(stages, "pretrain").get("curves")),
            **_thinned(outputs.get("curves")),
        },
        "notes": [
            *_data_notes(run, stages),
            *_outputs(stages, "synthesis").get("notes", []),
            *_outputs(stages, "pretrain").get("notes", []),
            *outputs.get("notes", []),
        ],
        "pictures": [f"pictures/{run.id}/{p}" for p in outputs.get("pictures", [])],
        "samples": _samples(run, outputs.get("samples")),
        "git": environment.get("git", ""),
        "packages": environment.get("packages", {}),
        "created": transfer["finished"],
    }
    if outputs.get("chance") is not None:
        task = run.task
        fields["task"] = {
            "name": task["name"],
            "family": task.get("family", ""),
            "version": task.get("version", 1),
            "split": task.get("split", "test"),
            "metric": outputs.get("metric", task["metric"]),
            "direction": task.get("direction", "max"),
            "chance": outputs["chance"],
        }
    return fields


def _samples(run: TransferRun, samples: Json | None) -> Json | None:
    """The record's field about per-sample outputs; a large file stays in the work dir."""
    from kdep_bench.results.records.samples import FOLDER

    if samples is None:
        return None
    is_small = samples["bytes"] <= MAX_SAMPLES_BYTES
    return {**samples, "file": f"{FOLDER}/{run.id}.npz" if is_small else ""}


def _data_notes(run: TransferRun, stages: Mapping[str, Json | None]) -> list[str]:
    """Notes of stage `prepare` about the part of the data that the task reads."""
    from kdep_bench.results.report.data_card import NOTE

    notes = _outputs(stages, "prepare").get("task_notes") or {}
    folder = (run.task.get("recipe") or {}).get("folder")
    return [f"{NOTE}{note}" for note in notes.get(folder, [])]


def _suite_notes(suite: Suite, run: TransferRun) -> list[str]:
    """Notes that hold for the scores: the data's `scores_note`, and overlaps of train and test.

    An overlap: a teacher or given weights were trained on images that the task tests on.
    """
    from kdep_bench.results.report.data_card import NOTE

    tuned_method = ((run.method.get("transfer") or {}).get("teacher") or {}).get("method")
    suite_teacher = suite.teachers[run.student["name"]]
    teachers = [run.teacher]
    if tuned_method:
        teachers.append(teacher_config_for(tuned_method, suite_teacher))
    networks = [network for t in teachers for network in (t or {}).get("teachers", [t])]
    networks += [m for m in (run.method, tuned_method) if m and m.get("weights") is not None]
    notes = overlap_notes(networks, run.task, suite.data["name"])
    scores_note = suite.data.get("scores_note")
    return [f"{NOTE}{note}" for note in [*([scores_note] if scores_note else []), *notes]]


def _outputs(stages: Mapping[str, Json | None], kind: str) -> Json:
    """The outputs of a finished stage; {} if it is not finished."""
    record = stages.get(kind)
    return record["outputs"] if record else {}


def _learning_rate(pretrain: Json | None) -> float | None:
    """Learning rate of the pre-training; None if it took no steps."""
    if pretrain is None or not pretrain["outputs"].get("steps"):
        return None
    return pretrain["spec"].get("budget", {}).get("optimizer", {}).get("lr")


def _planned_epochs(pretrain: Json | None) -> float | None:
    """Epochs over the data fraction that the budget asks for.

    None if exactly so many were trained, or if the pre-training took no steps.
    """
    if pretrain is None or not (outputs := pretrain["outputs"]).get("steps"):
        return None
    budget, images = pretrain["spec"].get("budget", {}), outputs.get("images")
    pool = (outputs.get("image_list") or {}).get("of", images)
    if not images or not budget or not epochs_note(budget, images, pool, outputs["steps"]):
        return None
    return budget["epochs"] * (pool / images if budget.get("epochs_over") == "pool" else 1)


def _method_fields(method: Json, student: Json) -> Json:
    """The record's field about the method; it describes the transfer method as well, if any."""
    transfer = method.get("transfer")
    configs = [method] if transfer is None else [method, transfer]
    return {
        "method": row_name(method),
        "family": configs[-1].get("family", ""),
        **labels_of_run(method, student),
        "reconstruction": any(bool(config.get("reconstruction")) for config in configs),
        "source": "; ".join(config["source"] for config in configs if config.get("source")),
    }


def _transfer_fields(run: TransferRun, stages: Mapping[str, Json | None]) -> Json | None:
    """The record's field about the transfer method and its teacher; None without one."""
    transfer = run.method.get("transfer")
    if transfer is None:
        return None
    from kdep_bench.results.records.record import TRANSFER_SIZES

    tuned = tuned_teacher(run.method, run.student)
    cost = _outputs(stages, "transfer").get("transfer") or {}
    return {
        "pretrained_by": run.method["name"],
        "method": transfer["name"],
        "teacher": tuned and _tuned_teacher_name(tuned),
        "teacher_value": _outputs(stages, "tuned.transfer").get("value"),
        "teacher_labels_used": tuned
        and labels_of_run(tuned["method"], tuned["student"])["label_policy"] == "labels",
        "extra_parameters": cost.get("extra_parameters"),
        "extra_forwards": cost.get("extra_forwards"),
        **{k: cost[k] for k in TRANSFER_SIZES if k in cost},
    }


def _tuned_teacher_name(tuned: Json) -> str:
    """'student.method', with the class of the teacher's own transfer method if it has one."""
    transfer = tuned.get("transfer")
    name = f"{tuned['student']['name']}.{tuned['method']['name']}"
    if transfer is None:
        return name
    return f"{name} with {str(transfer['type']).replace(':', '.').split('.')[-1]}"


def _teacher_fields(run: TransferRun, stages: Mapping[str, Json | None]) -> Json | None:
    """The record's field about the teacher; None without one."""
    if run.teacher is None:
        return None
    if "teachers" in run.teacher:
        return _joined_teacher_fields(run, stages)
    cached, card = _outputs(stages, "cache").get("teacher", {}), run.teacher.get("card", {})
    live = _outputs(stages, "pretrain").get("teacher_checksum", "")
    return {
        "name": run.teacher["name"],
        "checksum": cached.get("checksum", live),
        "width": cached.get("width", run.teacher.get("width")),
        "flops": cached.get("flops"),
        "top1": card.get("top1"),
        "top1_source": card.get("top1_source", ""),
    }


def _joined_teacher_fields(run: TransferRun, stages: Mapping[str, Json | None]) -> Json:
    """The record's field about several teachers.

    Names and checksums are joined; the FLOPs are the sum over teachers of one forward pass. A value
    that is unknown for one teacher is unknown in the record.
    """
    assert run.teacher is not None
    roles = list(run.method["teachers"])
    live = _outputs(stages, "pretrain").get("teachers", {})
    cached = [_outputs(stages, f"{role}.cache").get("teacher", {}) for role in roles]
    checksums = [
        s.get("checksum") or live.get(role, {}).get("teacher_checksum", "")
        for s, role in zip(cached, roles, strict=True)
    ]
    flops = [s.get("flops") for s in cached]
    return {
        "name": run.teacher["name"],
        "checksum": "+".join(checksums) if all(checksums) else "",
        "flops": None if None in flops else sum(flops),
    }


def _config_hash(run: TransferRun) -> str:
    """Hash of the configs of a run, without keys that earlier, published records did not have."""
    description_keys = {"card", "tests_on"}
    method = with_role_teachers(without(run.method, description_keys), _hashed_teacher)
    parts = [method, run.student, _hashed_teachers(run), without(run.task, description_keys)]
    return text_hash(canonical_json(parts))


def _hashed_teachers(run: TransferRun) -> Json | None:
    """The teacher configs of a run that the hash includes; None without a teacher."""
    if run.teacher is None:
        return None
    if "teachers" in run.teacher:
        return {"teachers": [_hashed_teacher(t) for t in run.teacher["teachers"]]}
    return _hashed_teacher(run.teacher)


def _hashed_teacher(teacher: Json) -> Json:
    """A teacher config without the card keys that published records did not have."""
    if "card" not in teacher:
        return teacher
    card = without(teacher["card"], {"classes", "trained_on"})
    if isinstance(card.get("maps"), dict):
        card = without(card, {"maps"})
    return {**teacher, "card": card}


def _align_fields(stages: Mapping[str, Json | None]) -> Json | None:
    """The record's field about the alignment; None without one."""
    outputs = {**_outputs(stages, "align"), **_outputs(stages, "pretrain")}
    keys = (
        "explained_variance_ratio",
        "std_ratio_before",
        "std_ratio_after_align",
        "std_ratio_after_transform",
    )
    values = {k: outputs[k] for k in keys if outputs.get(k) is not None}
    return values or None


@dataclass(frozen=True)
class _AttributedCosts:
    """The costs of a run's stages that are attributed to this run; see `_cost_fields`."""

    run: TransferRun
    stages: Mapping[str, Json | None]
    report_times: bool

    def stages_of_kind(self, kind: str) -> list[Json | None]:
        """The stages of a kind; a stage that several teachers of the run share is listed once.

        The pre-training of a tuned teacher that is the student itself (teacher="self") is not
        listed: it is the student's own or, because all runs share the teacher, one with another
        seed.
        """
        tuned = (self.run.method.get("transfer") or {}).get("teacher") or {}
        is_self = "student" in tuned and tuned["student"] is None and kind != "transfer"
        same_kind = [
            r
            for role, r in self.stages.items()
            if role.rpartition(".")[2] == kind and not (is_self and role.startswith("tuned."))
        ]
        return list({id(record): record for record in same_kind}.values())

    def wall_seconds(self, kind: str) -> float | None:
        """Seconds of all stages of a kind, including the stages of intermediate teachers.

        None if there are no such stages, if a stage is not finished, or if no times are reported.
        """
        seconds_key = {"cache": "fill_s", "pretrain": "train_s"}.get(kind, "")
        same_kind = self.stages_of_kind(kind)
        if not same_kind or not self.report_times or any(r is None for r in same_kind):
            return None
        if kind == "cache":
            same_kind = _once_per_computation(same_kind)
        seconds = [
            max(r["wall_s"], r["outputs"].get(seconds_key) or 0.0) * self.fraction_used(r)
            for r in same_kind
            if r
        ]
        return round(sum(seconds), 3) if kind == "cache" else sum(seconds)

    def pretraining_seconds(self) -> float | None:
        """Seconds of the pre-trainings, and of making the images of methods that make their own."""
        seconds, made = self.wall_seconds("pretrain"), self.wall_seconds("synthesis")
        if not self.stages_of_kind("synthesis") or seconds is None:
            return seconds
        return None if made is None else seconds + made

    def fraction_used(self, record: Json) -> float:
        """Fraction of a stage's cost that is attributed to this run.

        It is below 1 if a teacher cache contains more images than the run uses.
        """
        if "teacher" not in record["spec"] or record["kind"] != "cache":
            return 1.0
        roles = [role for role, stage in self.stages.items() if stage is record]
        # A cache of the images that a method has made has the images of this method only.
        if any(role.removesuffix("cache") + "synthesis" in self.stages for role in roles):
            return 1.0
        return self.run.fraction / record["spec"].get("share", 1.0)

    def intermediate_forwards(self) -> int:
        """Forward passes of all networks in the pre-trainings of teachers that the run trains."""
        last = self.stages.get("pretrain")
        outputs = [r["outputs"] for r in self.stages_of_kind("pretrain") if r and r is not last]
        return sum((o.get("images_seen") or 0) + (o.get("extra_forwards") or 0) for o in outputs)

    def cache_total(self, key: str) -> float | None:
        """The sum of an output over the teacher caches; None if no cache has it.

        Forward passes whose arrays several caches contain are counted once.
        """
        caches = self.stages_of_kind("cache")
        if key == "forwards":
            caches = _once_per_computation(caches)
        values = [(r["outputs"].get(key), self.fraction_used(r)) for r in caches if r]
        attributed = [value * fraction for value, fraction in values if value]
        return sum(attributed) if attributed else None


def _once_per_computation(caches: Iterable[Json | None]) -> list[Json | None]:
    """The finished caches, without caches whose arrays are those of another cache in the list.

    A cache with linked arrays has the output `reused`, the id of the cache that computed them, and
    states the cost of that cache (features/cache.py).
    """
    computed_first = sorted((r for r in caches if r), key=lambda r: "reused" in r["outputs"])
    by_origin: dict[str, Json | None] = {}
    for record in computed_first:
        by_origin.setdefault(record["outputs"].get("reused", record["id"]), record)
    return list(by_origin.values())


def _cost_fields(run: TransferRun, stages: Mapping[str, Json | None], report_times: bool) -> Json:
    """Cost of a run: wall seconds per stage kind, sizes in bytes, forward passes.

    The cost of the teacher cache is multiplied by the data fraction. Without `report_times`
    (`runtime.timed` of the suite) there are no seconds. The wall time of a resumed stage covers its
    last attempt only; the seconds in its outputs cover all attempts. The larger one is used.
    """
    costs = _AttributedCosts(run, stages, report_times)
    pretrain, transfer = stages.get("pretrain"), stages.get("transfer")
    cache_bytes, outputs = costs.cache_total("bytes"), _outputs(stages, "pretrain")
    has_given_weights = run.method.get("weights") is not None
    finished = [r for r in (pretrain, transfer) if r]
    last_stage = transfer or pretrain
    environment = last_stage["environment"] if last_stage else {}
    extra_forwards = outputs.get("extra_forwards")  # old pre-trainings did not count them
    if extra_forwards is not None:
        synthesis = [r["outputs"] for r in costs.stages_of_kind("synthesis") if r]
        # Passes of the teacher to make the images of a method that makes its own.
        made = sum(o.get("forwards") or 0 for o in synthesis)
        upstream_forwards = costs.intermediate_forwards() + (costs.cache_total("forwards") or 0)
        extra_forwards = round(extra_forwards + made + upstream_forwards)
    return {
        "pretrain_s": None if has_given_weights else costs.pretraining_seconds(),
        "cache_s": costs.wall_seconds("cache"),
        "align_s": costs.wall_seconds("align"),
        "transfer_s": costs.wall_seconds("transfer"),
        "images_per_s": outputs.get("images_per_s") if report_times else None,
        "cache_bytes": None if cache_bytes is None else round(cache_bytes),
        "peak_memory_bytes": max((r["peak_rss"] for r in finished), default=None),
        "peak_gpu_bytes": max((r["peak_gpu"] for r in finished if "peak_gpu" in r), default=None),
        "extra_parameters": outputs.get("extra_parameters"),
        "extra_forwards": extra_forwards,
        "device": environment.get("device"),
        "threads": environment.get("threads"),
        "processor_units": environment.get("processor_units"),
    }


def _thinned(curves: Any) -> Json:
    """The curves with at most CURVE_POINTS points each; the first and last point are kept."""
    out = {}
    for name, points in (curves or {}).items():
        if len(points) > CURVE_POINTS:
            last = len(points) - 1
            points = [points[i * last // (CURVE_POINTS - 1)] for i in range(CURVE_POINTS)]
        out[name] = points
    return out


def _load_or_none(path: Path) -> Record | None:
    """The record at `path`; None if it is absent or damaged (it is then written again)."""
    from kdep_bench.results.records import record

    try:
        return record.load(path) if path.exists() else None
    except KdepError:
        return None


def _is_same(old: Record, new: Record) -> bool:
    """Whether two records are equal; the time of a missing or failed record is ignored."""
    if new.status != "ok":
        new = new.model_copy(update={"created": old.created})
    return old == new


def _move_superseded(results: Path, planned: set[str]) -> int:
    """Moves records of runs that are no longer planned, and their files, to `superseded/`.

    Args:
        results: the results folder.
        planned: ids of the planned runs.

    Returns:
        the number of moved records.
    """
    from kdep_bench.results.records import store

    moved = 0
    for path in sorted(store.own_folder(results, store.RECORDS).glob("*.json")):
        if path.stem not in planned and not path.name.startswith("."):
            store.own_folder(results, SUPERSEDED)
            path.replace(results / SUPERSEDED / path.name)
            images = Path("pictures", path.stem)
            if is_real_folder(results / "pictures") and is_real_folder(results / images):
                store.own_folder(results / SUPERSEDED, "pictures")
                remove(results / SUPERSEDED / images)
                (results / images).replace(results / SUPERSEDED / images)
            samples = Path("samples", f"{path.stem}.npz")
            if is_real_folder(results / "samples") and (results / samples).is_file():
                store.own_folder(results / SUPERSEDED, "samples")
                (results / samples).replace(results / SUPERSEDED / samples)
            moved += 1
    return moved


def _image_files(record: Record, stage_dir: Path) -> dict[str, Path]:
    """Path of each image in the record -> its file in the stage's directory.

    Raises:
        KdepError: a file is outside the stage's directory.
    """
    files = {p: stage_dir / p.removeprefix(f"pictures/{record.id}/") for p in record.pictures}
    for image, source in files.items():
        if stage_dir.resolve() not in source.resolve().parents or source.is_dir():
            raise KdepError(
                f"the stage {record.id} lists the image {image!r}, which is outside the stage's "
                "directory",
                expected="a path relative to that directory",
                fix="correct the paths that the task returns",
            )
    return files


def _copy_images(record: Record, stage_dir: Path, results: Path) -> None:
    """Copies the images into the results folder, which must be complete without the work dir."""
    from kdep_bench.results.records import store

    for image, source in _image_files(record, stage_dir).items():
        target = results / image
        for folder in reversed(Path(image).parents[:-1]):
            store.own_folder(results, str(folder))
        with contextlib.suppress(FileNotFoundError):
            copy_file(source, target)


def _copy_samples(record: Record, stage_dir: Path, results: Path) -> None:
    """Copies the per-sample outputs into the results folder, unless they are large."""
    from kdep_bench.results.records import samples, store

    if record.samples is None or not record.samples.file:
        return
    store.own_folder(results, samples.FOLDER)
    with contextlib.suppress(FileNotFoundError):
        copy_file(stage_dir / samples.FILE, results / record.samples.file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
