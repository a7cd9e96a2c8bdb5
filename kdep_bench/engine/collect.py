"""Finished chains -> one Record a transfer cell -> tables and page.

A record says what its cell cost from the stage.json of every stage in its chain, and what it
measured from that of its transfer. Nothing is rerun and nothing is averaged here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdep_bench.data.content import fingerprint_of
from kdep_bench.engine import cited_stages, state
from kdep_bench.errors import KdepError
from kdep_bench.files import canonical_json, text_hash
from kdep_bench.pretrain.budgets import epochs_note
from kdep_bench.safe_files import copy_file, is_real_folder, remove
from kdep_bench.suite.data_identity import CONTENT
from kdep_bench.suite.graph import Plan, TransferRun
from kdep_bench.suite.methods import without
from kdep_bench.suite.schema import Json, Suite, label_policy, method_needs
from kdep_bench.suite.train_test_overlap import overlap_notes

if TYPE_CHECKING:
    from kdep_bench.results.records.record import Record

CURVE_POINTS = 200
SUPERSEDED = "superseded"


def collect(
    suite: Suite,
    plan: Plan,
    work: Path,
    results: Path,
    failed: Mapping[str, str] | None = None,
    rebuild: bool = False,
) -> Json:
    """Writes the records of every cell of `plan` below `results`, then the tables where needed.

    A record that would say 'missing' never replaces one that has a value: the work dir may have
    been pruned, or belong to another machine. Records of cells that the suite no longer plans are
    moved to `superseded/`.

    Args:
        failed: stage id -> sentence of this run's failures, where failed.json could not be written.
        rebuild: make the tables also when no record is new.

    Returns:
        counts {'ok', 'failed', 'missing', 'written'} and, where tables were made, 'report'.
    """
    from kdep_bench import results as results_room
    from kdep_bench.results.records import store

    if work.is_dir():
        cited_stages.remember(work, results)
    chains = _Chains(plan, work, failed or {})
    counts = {"ok": 0, "failed": 0, "missing": 0, "written": 0}
    superseded = _set_aside(results, {c.id for c in plan.runs})
    for run in plan.runs:
        record = _record_or_reason(suite, run, chains)
        old = _old(store.records_dir(results) / f"{run.id}.json")
        if record.status == "missing" and old is not None and old.status == "ok":
            record = old
        elif not record.data.fingerprint and old is not None:  # its `prepare` was pruned
            kept = {"fingerprint": old.data.fingerprint, "source": old.data.source}
            record = record.model_copy(update={"data": record.data.model_copy(update=kept)})
        counts[record.status] += 1
        if old is None or not _same(old, record):
            _copy_pictures(record, state.folder(work, run.id), results)
            store.write(results, record)
            counts["written"] += 1
    written = _write_card(suite, plan, chains, results)
    out: Json = dict(counts)
    if (
        rebuild
        or superseded
        or counts["written"]
        or written
        or not (results / "leaderboard.md").exists()
    ):
        pages = {c.method["name"]: {"reads": sorted(method_needs(c.method))} for c in plan.runs}
        out["report"] = results_room.build(results, suite.name, suite.claims, pages)
    return out


def _write_card(suite: Suite, plan: Plan, chains: _Chains, results: Path) -> bool:
    """Keeps what stage `prepare` counted beside the records; returns whether it was new."""
    from kdep_bench.results.report import data_card

    stages = {run.chain["prepare"] for run in plan.runs if "prepare" in run.chain}
    for one in sorted(stages):
        prepared = chains.stage(one)
        if prepared is not None and prepared["outputs"].get("counts"):
            return data_card.write(results, suite.data["name"], prepared["outputs"])
    return False


class _Chains:
    """The stage.json of every stage, read once; damaged ones count as absent, with the reason."""

    def __init__(self, plan: Plan, work: Path, failed: Mapping[str, str]) -> None:
        self.plan, self.work, self.failed = plan, work, failed
        self._read: dict[str, tuple[Json | None, str | None]] = {}

    def _look(self, one: str) -> tuple[Json | None, str | None]:
        if one not in self._read:
            made, fault = state.finished(self.plan.stages[one], self.work)
            self._read[one] = with_current_names(made), fault
        return self._read[one]

    def stage(self, one: str | None) -> Json | None:
        return None if one is None else self._look(one)[0]

    def fault(self, one: str) -> str | None:
        """Why what a stage left cannot be used, as a clause; None for one that is whole or gone."""
        fault = self._look(one)[1]
        return fault and fault.replace(f"{self.work}/", "")  # records name no machine's folders

    def fingerprint(self, run: TransferRun) -> str:
        """Of the data in the cell's own chain; "" where nothing tells it.

        That of files is in the plan. Generated data may have been made again since the transfer,
        which therefore recorded what it was given.
        """
        prepare, transfer = run.chain["prepare"], self.stage(run.chain["transfer"])
        if content := self.plan.stages[prepare].spec.get(CONTENT):
            return fingerprint_of(content)
        if transfer is not None and "data" in transfer:
            return transfer["data"]
        made = self.stage(prepare)
        return made["outputs"].get("fingerprint", "") if made else ""

    def failure(self, one: str) -> tuple[str, str] | None:
        """(sentence, time) of the last try of a stage that is not done."""
        if self.stage(one) is not None:
            return None
        said = state.failure(state.folder(self.work, one))
        if said is not None:
            return said["error"], said["at"]
        return (self.failed[one], _now()) if one in self.failed else None


# Names of stage outputs that earlier versions wrote -> the same outputs' names now.
RENAMED_OUTPUTS = {
    "energy_kept": "explained_variance_ratio",
    "std_ratio_after_svd": "std_ratio_after_align",
}


def with_current_names(stage: Json | None) -> Json | None:
    """A stage.json whose outputs have today's names, so that finished stages stay usable.

    Where a name of both kinds is there, the current one counts.
    """
    if stage is None:
        return None
    outputs = stage.get("outputs")
    if not isinstance(outputs, dict) or not RENAMED_OUTPUTS.keys() & outputs.keys():
        return stage
    old = {RENAMED_OUTPUTS[k]: v for k, v in outputs.items() if k in RENAMED_OUTPUTS}
    return {**stage, "outputs": {**old, **without(outputs, set(RENAMED_OUTPUTS))}}


def _record_or_reason(suite: Suite, run: TransferRun, chains: _Chains) -> Record:
    """`record_of`; a failed record of that cell alone where its stages hold what none is made of.

    Outputs are whatever a stage's function returned: any of them can be of another type than the
    record's.
    """
    from kdep_bench.results.records import record

    try:
        made = record_of(suite, run, chains)
        _picture_files(made, state.folder(chains.work, run.id))
        return made
    except KdepError as e:
        sentence = str(e)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        got = (
            f"the outputs of the stages of {run.id} cannot be made into a record "
            f"({type(e).__name__}: {e})"
        )
        sentence = str(KdepError(got[:2000], fix="run the suite again"))
    fields = _planned(suite, run, {}, chains)
    return record.make(fields | {"status": "failed", "error": sentence, "created": _now()})


def record_of(suite: Suite, run: TransferRun, chains: _Chains) -> Record:
    """The Record of one cell as its stage directories have it now.

    A stage of its chain that is there and damaged fails the cell: what it cost, or measured, cannot
    be read. One that is gone does not: work dirs are pruned.
    """
    from kdep_bench.results.records import record

    found = {kind: chains.stage(one) for kind, one in run.chain.items()}
    fields = _planned(suite, run, found, chains)
    for one in run.chain.values():
        fault = chains.fault(one)
        if fault is not None and chains.failure(one) is None:
            got = f"the outputs of stage {one} cannot be used: {fault}"
            sentence = KdepError(got, fix="run the suite again")
            fields.update(status="failed", error=str(sentence), created=_now())
            return record.make(fields)
    transfer = found["transfer"]
    if transfer is not None:
        fields.update(_measured(run, found, transfer))
        fields["notes"] = [*_overlaps(suite, run), *fields["notes"]]
        return record.make(fields)
    for kind, one in run.chain.items():
        said = chains.failure(one)
        if said is not None:
            sentence = said[0] if kind == "transfer" else f"{kind} failed: {said[0]}"
            fields.update(status="failed", error=sentence, created=said[1])
            return record.make(fields)
    fields.update(status="missing", created=_now())
    return record.make(fields)


def _planned(
    suite: Suite, run: TransferRun, found: Mapping[str, Json | None], chains: _Chains
) -> Json:
    """What the plan knows of a cell, with what its upstream stages have told so far."""
    method, task = run.method, run.task
    prepare, pretrain = _outputs(found, "prepare"), _outputs(found, "pretrain")
    trained, terms = method.get("weights") is None, pretrain.get("terms") or {}
    known = {k: pretrain.get(k) for k in ("images_seen", "epochs", "steps", "views")}
    return {
        "id": run.id,
        "suite": suite.name,
        "arm": {
            "method": method["name"],
            "family": method.get("family", ""),
            "label_policy": label_policy(method),
            "labels_used": bool(method.get("labels_used")),
            "reconstruction": bool(method.get("reconstruction")),
            "source": method.get("source", ""),
        },
        "student": {
            "name": run.student["name"],
            "width": run.student["width"],
            "params": _outputs(found, "export").get("parameters"),
            "flops": _outputs(found, "export").get("flops"),
        },
        "teacher": _teacher(run, found),
        "data": {
            "name": suite.data["name"],
            "fingerprint": chains.fingerprint(run),
            "source": prepare.get("source", ""),
            "share": run.fraction,
            "images": pretrain.get("images") if trained else None,
        },
        "budget": {
            **known,
            "learning_rate": _rate(found.get("pretrain")),
            "epochs_asked": _epochs_asked(found.get("pretrain")),
        }
        if trained
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
        "align": _align(found),
        "cost": _cost(run, found, suite.runtime.timed),
        "curves": _thinned(pretrain.get("curves")),
        "terms": terms if len(terms) > 1 else {},  # one alone is all of the loss
        "stages": dict(run.chain),
        "config_hash": _config_hash(run),
    }


def _measured(run: TransferRun, found: Mapping[str, Json | None], transfer: Json) -> Json:
    said, environment = transfer["outputs"], transfer["environment"]
    wanted = ("value", "metrics", "per_class", "gate")
    lacking = [k for k in wanted if k not in said]
    if lacking:
        raise KdepError(
            f"the outputs of stage {run.id} lack {', '.join(lacking)}",
            expected="value, metrics, per_class and gate",
            fix="return them from the task's function",
        )
    fields: Json = {
        "status": "ok",
        **{k: said[k] for k in wanted},
        "curves": {
            **_thinned(_outputs(found, "pretrain").get("curves")),
            **_thinned(said.get("curves")),
        },
        "notes": [
            *_data_notes(run, found),
            *_outputs(found, "pretrain").get("notes", []),
            *said.get("notes", []),
        ],
        "pictures": [f"pictures/{run.id}/{p}" for p in said.get("pictures", [])],
        "git": environment.get("git", ""),
        "packages": environment.get("packages", {}),
        "created": transfer["finished"],
    }
    if said.get("chance") is not None:
        task = run.task
        fields["task"] = {
            "name": task["name"],
            "family": task.get("family", ""),
            "version": task.get("version", 1),
            "split": task.get("split", "test"),
            "metric": said.get("metric", task["metric"]),
            "direction": task.get("direction", "max"),
            "chance": said["chance"],
        }
    return fields


def _data_notes(run: TransferRun, found: Mapping[str, Json | None]) -> list[str]:
    """What stage `prepare` says about the part of the data that the task reads."""
    from kdep_bench.results.report.data_card import NOTE

    notes = _outputs(found, "prepare").get("task_notes") or {}
    folder = (run.task.get("recipe") or {}).get("folder")
    return [f"{NOTE}{note}" for note in notes.get(folder, [])]


def _overlaps(suite: Suite, run: TransferRun) -> list[str]:
    """Notes about a teacher, or given weights, that were trained on what the task tests."""
    from kdep_bench.results.report.data_card import NOTE

    trained = [run.teacher, run.method if run.method.get("weights") is not None else None]
    notes = overlap_notes(trained, run.task, suite.data["name"])
    return [f"{NOTE}{note}" for note in notes]


def _outputs(found: Mapping[str, Json | None], kind: str) -> Json:
    record = found.get(kind)
    return record["outputs"] if record else {}


def _rate(pretrain: Json | None) -> float | None:
    """The optimiser's rate of a pre-training that took steps."""
    if pretrain is None or not pretrain["outputs"].get("steps"):
        return None
    return pretrain["spec"].get("budget", {}).get("optimizer", {}).get("lr")


def _epochs_asked(pretrain: Json | None) -> float | None:
    """Epochs of the budget, in images of the share, where whole batches made others of them."""
    if pretrain is None or not (outputs := pretrain["outputs"]).get("steps"):
        return None
    budget, images = pretrain["spec"].get("budget", {}), outputs.get("images")
    pool = (outputs.get("image_list") or {}).get("of", images)
    if not images or not budget or not epochs_note(budget, images, pool, outputs["steps"]):
        return None
    return budget["epochs"] * (pool / images if budget.get("epochs_over") == "pool" else 1)


def _teacher(run: TransferRun, found: Mapping[str, Json | None]) -> Json | None:
    if run.teacher is None:
        return None
    said, card = _outputs(found, "cache").get("teacher", {}), run.teacher.get("card", {})
    live = _outputs(found, "pretrain").get("teacher_checksum", "")
    return {
        "name": run.teacher["name"],
        "checksum": said.get("checksum", live),
        "width": said.get("width", run.teacher.get("width")),
        "flops": said.get("flops"),
        "top1": card.get("top1"),
        "top1_source": card.get("top1_source", ""),
    }


def _config_hash(run: TransferRun) -> str:
    """Hash of the configs of a cell, without prose that the published records' configs lacked."""
    prose = {"card", "tests_on"}
    parts = [without(run.method, prose), run.student, _hashed(run), without(run.task, prose)]
    return text_hash(canonical_json(parts))


def _hashed(run: TransferRun) -> Json | None:
    """The teacher as the config hash of published records has it: its card stated less then."""
    if run.teacher is None or "card" not in run.teacher:
        return run.teacher
    card = without(run.teacher["card"], {"classes", "trained_on"})
    if isinstance(card.get("maps"), dict):
        card = without(card, {"maps"})
    return {**run.teacher, "card": card}


def _align(found: Mapping[str, Json | None]) -> Json | None:
    both = {**_outputs(found, "align"), **_outputs(found, "pretrain")}
    keys = (
        "explained_variance_ratio",
        "std_ratio_before",
        "std_ratio_after_align",
        "std_ratio_after_transform",
    )
    got = {k: both[k] for k in keys if both.get(k) is not None}
    return got or None


def _cost(run: TransferRun, found: Mapping[str, Json | None], timed: bool) -> Json:
    """Wall seconds of the chain; of the cache, which serves every share, the cell's share.

    Without `timed` (see `Runtime`) there are sizes and no seconds.

    The wall time of a resumed stage is that of its last try; what the stage says the whole of its
    work took is never less.
    """

    def wall(kind: str) -> float | None:
        """Of this arm's stage, and of those of the arms that made its teacher."""
        said = {"cache": "fill_s", "pretrain": "train_s"}.get(kind, "")
        mine = [r for one, r in found.items() if one.rpartition(".")[2] == kind]
        if not mine or not timed or any(r is None for r in mine):
            return None
        seconds = [max(r["wall_s"], r["outputs"].get(said) or 0.0) * part(r) for r in mine if r]
        return round(sum(seconds), 3) if kind == "cache" else sum(seconds)

    def part(record: Json) -> float:
        """The part of a stage that this cell's share needs: less than all of a fuller cache."""
        if "teacher" not in record["spec"] or record["kind"] != "cache":
            return 1.0
        return run.fraction / record["spec"].get("share", 1.0)

    def caches(what: str) -> float | None:
        mine = [r for one, r in found.items() if r and one.rpartition(".")[2] == "cache"]
        got = [r["outputs"].get(what) for r in mine]
        return sum(g * part(r) for g, r in zip(got, mine, strict=True) if g) if any(got) else None

    pretrain, transfer = found.get("pretrain"), found.get("transfer")
    size, told = caches("bytes"), _outputs(found, "pretrain")
    last = transfer or pretrain
    given = run.method.get("weights") is not None
    ran = [r for r in (pretrain, transfer) if r]
    extra = told.get("extra_forwards")  # absent in runs that did not count them
    return {
        "pretrain_s": None if given else wall("pretrain"),
        "cache_s": wall("cache"),
        "align_s": wall("align"),
        "transfer_s": wall("transfer"),
        "images_per_s": told.get("images_per_s") if timed else None,
        "cache_bytes": None if size is None else round(size),
        "peak_memory_bytes": max((r["peak_rss"] for r in ran), default=None),
        "peak_gpu_bytes": max((r["peak_gpu"] for r in ran if "peak_gpu" in r), default=None),
        "extra_parameters": told.get("extra_parameters"),
        "extra_forwards": None if extra is None else round(extra + (caches("forwards") or 0)),
        "device": last["environment"].get("device") if last else None,
        "threads": last["environment"].get("threads") if last else None,
    }


def _thinned(curves: Any) -> Json:
    """Every curve with at most CURVE_POINTS points, first and last kept."""
    out = {}
    for name, points in (curves or {}).items():
        if len(points) > CURVE_POINTS:
            last = len(points) - 1
            points = [points[i * last // (CURVE_POINTS - 1)] for i in range(CURVE_POINTS)]
        out[name] = points
    return out


def _old(path: Path) -> Record | None:
    from kdep_bench.results.records import record

    try:
        return record.load(path) if path.exists() else None
    except KdepError:
        return None  # damaged: written anew


def _same(old: Record, new: Record) -> bool:
    """Equal but for the time of a 'missing' or failed one, which is the time of looking."""
    if new.status != "ok":
        new = new.model_copy(update={"created": old.created})
    return old == new


def _set_aside(results: Path, planned: set[str]) -> int:
    """Moves records of cells that are not planned any more, and their pictures, out of the way;
    returns how many."""
    from kdep_bench.results.records import store

    moved = 0
    for path in sorted(store.own_folder(results, store.RECORDS).glob("*.json")):
        if path.stem not in planned and not path.name.startswith("."):
            store.own_folder(results, SUPERSEDED)
            path.replace(results / SUPERSEDED / path.name)
            pictures = Path("pictures", path.stem)
            if is_real_folder(results / "pictures") and is_real_folder(results / pictures):
                store.own_folder(results / SUPERSEDED, "pictures")
                remove(results / SUPERSEDED / pictures)
                (results / pictures).replace(results / SUPERSEDED / pictures)
            moved += 1
    return moved


def _picture_files(record: Record, stage_dir: Path) -> dict[str, Path]:
    """Picture as the record names it -> its file in the stage; KdepError for one outside."""
    files = {p: stage_dir / p.removeprefix(f"pictures/{record.id}/") for p in record.pictures}
    for picture, source in files.items():
        if stage_dir.resolve() not in source.resolve().parents or source.is_dir():
            raise KdepError(
                f"the stage {record.id} lists the image {picture!r}, which is outside the stage's "
                "directory",
                expected="a path relative to that directory",
                fix="correct the paths that the task returns",
            )
    return files


def _copy_pictures(record: Record, stage_dir: Path, results: Path) -> None:
    """Pictures go beside the records: a results folder is whole without its work dir."""
    from kdep_bench.results.records import store

    for picture, source in _picture_files(record, stage_dir).items():
        target = results / picture
        for folder in reversed(Path(picture).parents[:-1]):
            store.own_folder(results, str(folder))
        with contextlib.suppress(FileNotFoundError):
            copy_file(source, target)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
