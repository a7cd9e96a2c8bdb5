"""Writes one probe record per planned probe into the folder `probes` of the results."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kdep_bench.data.content import fingerprint_of
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, text_hash
from kdep_bench.safe_files import is_real_folder
from kdep_bench.suite.data_identity import CONTENT
from kdep_bench.suite.graph import Plan, ProbeRun
from kdep_bench.suite.methods import DESCRIPTION_KEYS, without
from kdep_bench.suite.schema import Json, Suite, labels_of_run

if TYPE_CHECKING:
    from kdep_bench.results.records.probe_record import ProbeRecord


# Roles of the stages that extract features for probes.
FEATURES = ("features", "pool", "teacher_features")


class Chains(Protocol):
    """Reads the finished and failed stages of a plan; implemented in `collect`."""

    plan: Plan

    def stage(self, stage_id: str | None) -> Json | None:
        """The stage.json of a finished stage; None if it is not finished."""

    def fault(self, stage_id: str) -> str | None:
        """The reason that the files of a stage cannot be used, as a clause; None if they can."""

    def failure(self, stage_id: str) -> tuple[str, str] | None:
        """(error, time) of a failed stage; None if it has not failed."""


def collect_probes(suite: Suite, chains: Chains, results: Path, superseded: str) -> dict[str, int]:
    """Writes the record of every probe of the plan below `results`.

    A record with the status 'missing' never replaces one that has values. Records of probes that
    the suite no longer plans are moved to `<superseded>/probes`.

    Returns:
        counts {'ok', 'failed', 'missing', 'written'}; a moved record counts as written.
    """
    counts = {"ok": 0, "failed": 0, "missing": 0, "written": 0}
    if not chains.plan.probes and not (results / "probes").is_dir():
        return counts
    from kdep_bench.results.records import probe_record, store

    planned_names = {f"{run.id}.json" for run in chains.plan.probes}
    for path in probe_record.paths(results):
        if path.name not in planned_names:
            store.own_folder(results, superseded)
            target = store.own_folder(results / superseded, probe_record.PROBES)
            path.replace(target / path.name)
            counts["written"] += 1
    for run in chains.plan.probes:
        record = _valid_record(suite, run, chains)
        path = results / probe_record.PROBES / f"{run.id}.json"
        old = _load_or_none(path, probe_record.load)
        if record.status == "missing" and old is not None and old.status == "ok":
            record = old
        counts[record.status] += 1
        if old is None or not _is_same(old, record):
            probe_record.write(results, record)
            counts["written"] += 1
    return counts


def _load_or_none(path: Path, load: Callable[[Path], ProbeRecord]) -> ProbeRecord | None:
    """The record at `path`; None if it is absent or damaged (it is then written again)."""
    try:
        exists = is_real_folder(path.parent) and path.exists()
        return load(path) if exists else None
    except KdepError:
        return None


def _is_same(old: ProbeRecord, new: ProbeRecord) -> bool:
    """Whether two records are equal.

    The time of a record without values is ignored: it is the time of collecting.
    """
    if new.status != "ok":
        new = new.model_copy(update={"created": old.created})
    return old == new


def _valid_record(suite: Suite, run: ProbeRun, chains: Chains) -> ProbeRecord:
    """The record of a probe; a failed record if the outputs of its stages do not fit a record."""
    from kdep_bench.results.records import probe_record

    planned = _planned_fields(suite, run, chains)
    try:
        return probe_record.make(planned | _result_fields(suite, run, chains), run.id)
    except KdepError as e:
        reason = e.problem
    except (AttributeError, LookupError, TypeError, ValueError) as e:
        reason = f"{type(e).__name__}: {e}"
    problem = f"the outputs of stage {run.id} cannot be made into a record ({reason})"
    sentence = str(KdepError(problem[:2000], fix=f"run the suite again with --force {run.id}"))
    return probe_record.make(planned | _failed_fields(sentence, _now()), run.id)


def _planned_fields(suite: Suite, run: ProbeRun, chains: Chains) -> Json:
    """Record fields of a probe that do not depend on its result: configs, data and stages."""
    method = run.method
    budget = chains.plan.stages[run.chain["pretrain"]].spec.get("budget") or {}
    return {
        "schema": 1,
        "id": run.id,
        "suite": suite.name,
        "method": {
            "method": method["name"],
            "family": method.get("family", ""),
            **labels_of_run(method, run.student),
            "reconstruction": bool(method.get("reconstruction")),
            "source": method.get("source", ""),
        },
        "student": run.student["name"],
        "teacher": "" if run.teacher is None else run.teacher["name"],
        "data": {
            "name": suite.data["name"],
            "fingerprint": _fingerprint(run, chains),
            "share": run.fraction,
        },
        "epochs": _epochs(budget, run.fraction),
        "seed": run.seed,
        "probe": run.probe["name"],
        "folder": run.probe.get("folder") or "",
        "about": run.probe.get("about", ""),
        "config_hash": text_hash(canonical_json(without(run.probe, DESCRIPTION_KEYS))),
        "stages": dict(run.chain),
    }


def _epochs(budget: Json, fraction: float) -> float | None:
    """Planned epochs over the images of the data fraction; None for untrained backbones.

    The planned number is used, so that probes whose pre-training failed are in the same table row.
    """
    if not budget:
        return None
    return budget["epochs"] / (fraction if budget.get("epochs_over") == "pool" else 1)


def _fingerprint(run: ProbeRun, chains: Chains) -> str:
    """Fingerprint of the data that the features were extracted from; "" if none is recorded."""
    prepare = run.chain["prepare"]
    if content := chains.plan.stages[prepare].spec.get(CONTENT):
        return fingerprint_of(content)
    features = chains.stage(run.chain.get("features") or run.chain.get("teacher_features"))
    if features is not None and "data" in features:
        return features["data"]
    prepared = chains.stage(prepare)
    return prepared["outputs"].get("fingerprint", "") if prepared else ""


def _result_fields(suite: Suite, run: ProbeRun, chains: Chains) -> Json:
    """Record fields of the result: status, and the values or the reason why there are none."""
    for stage_id in run.chain.values():
        fault = chains.fault(stage_id)
        if fault is not None and chains.failure(stage_id) is None:
            problem = f"the outputs of stage {stage_id} cannot be used: {fault}"
            return _failed_fields(str(KdepError(problem, fix="run the suite again")), _now())
    finished_stage = chains.stage(run.id)
    if finished_stage is None:
        for role, stage_id in run.chain.items():
            failure = chains.failure(stage_id)
            if failure is not None:
                sentence = failure[0] if role == "probe" else f"{role} failed: {failure[0]}"
                return _failed_fields(sentence, failure[1])
        return {"status": "missing", "created": _now()}
    outputs, environment = finished_stage["outputs"], finished_stage["environment"]
    report_times = suite.runtime.timed
    return {
        "status": "ok",
        "values": outputs["values"],
        "notes": outputs["notes"],
        "features_s": _features_seconds(run, chains) if report_times else None,
        "probe_s": outputs["probe_s"] if report_times else None,
        "device": environment.get("device"),
        "git": environment.get("git", ""),
        "packages": environment.get("packages", {}),
        "created": finished_stage["finished"],
    }


def _features_seconds(run: ProbeRun, chains: Chains) -> float | None:
    """Seconds of the feature extractions that the probe reads; None if one is missing."""
    stages = [chains.stage(run.chain[role]) for role in FEATURES if role in run.chain]
    seconds = [stage["outputs"]["extract_s"] for stage in stages if stage is not None]
    return sum(seconds) if seconds and len(seconds) == len(stages) else None


def _failed_fields(sentence: str, when: str) -> Json:
    return {"status": "failed", "error": sentence, "created": when}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
